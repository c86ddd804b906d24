//! Values that CPython 3.11 gives, and what must hold for any text.

use proptest::prelude::*;

use super::*;

fn lines(text: &str) -> Vec<&[u8]> {
    splitlines(text.as_bytes())
}

fn diff(a: &str, b: &str) -> String {
    String::from_utf8(unified_diff(&lines(a), &lines(b), 3)).unwrap()
}

#[test]
fn lines_end_where_python_ends_them() {
    let text = "a\nb\rc\r\nd\x0be\x0cf\x1cg\x1dh\x1ei\u{85}j\u{2028}k\u{2029}l\x1fm\u{a0}n\n\n";
    let expected = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l\x1fm\u{a0}n", ""];
    assert_eq!(lines(text), expected.map(str::as_bytes));
    assert_eq!(lines(""), Vec::<&[u8]>::new());
    assert_eq!(lines("\n"), [b""]);
    assert_eq!(lines("x\r"), [b"x"]);
}

#[test]
fn white_space_is_what_python_calls_so() {
    let space = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \u{85}\u{a0}\u{1680}\u{2000}\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}";
    for c in space.chars() {
        assert_eq!(strip(format!("{c}a b{c}{c}").as_bytes()), b"a b", "{c:?}");
    }
    for c in "\u{200b}\u{feff}\u{180e}\u{1b}é".chars() {
        assert_eq!(strip(format!("{c}").as_bytes()), format!("{c}").as_bytes(), "{c:?}");
    }
    assert_eq!(strip(space.as_bytes()), b"");
}

#[test]
fn json_strings_keep_lone_surrogates() {
    let read = |json: &str| serde_json::from_str::<PyText>(json).unwrap();
    let lone = read(r#""a\ud83d\ud83d\ude00\ude00z""#);
    assert_eq!(code_points(lone.as_bytes()), [0x61, 0xD83D, 0x1F600, 0xDE00, 0x7A]);
    assert_eq!(json_string(lone.as_bytes()), "\"a\\ud83d😀\\ude00z\"");
    assert_eq!(read(&json_string(lone.as_bytes())), lone);
    let map: std::collections::BTreeMap<PyText, PyText> = serde_json::from_str(r#"{"\udc00": "x"}"#).unwrap();
    assert_eq!(map.keys().map(|k| code_points(k.as_bytes())).collect::<Vec<_>>(), [[0xDC00]]);
    assert!(serde_json::from_str::<PyText>("[1]").is_err() && serde_json::from_str::<PyText>("1").is_err());
}

#[test]
fn ratios_of_the_documentation_and_of_known_traps() {
    let ratio = |a: &str, b: &str| CharIndex::new(b.as_bytes()).ratio(a.as_bytes(), &mut Scratch::default());
    let with_autojunk = |a: &str, b: &str| {
        let chars = |t: &str| t.chars().collect::<Vec<_>>();
        LineMatcher::new(&chars(a), &chars(b), true).ratio()
    };
    assert_eq!((ratio("tide", "diet"), ratio("diet", "tide")), (0.25, 0.5));
    assert_eq!(ratio("abxcd", "abcd"), 8.0 / 9.0);
    assert_eq!(ratio("a😀b", "a😁b"), 4.0 / 6.0);
    assert_eq!(ratio("", ""), 1.0);
    let (a, b) = ("x = 1\n".repeat(60), "x = 2\n".repeat(60));
    assert_eq!(ratio(&a, &b), 2.0 * 300.0 / 720.0);
    assert_eq!(format!("{:.4}", with_autojunk(&a, &b)), "0.0111");
}

#[test]
fn unified_diffs() {
    assert_eq!(diff("a\nb\n", "a\nb"), "");
    assert_eq!(diff("", "a\n"), "@@ -0,0 +1 @@\n+a");
    assert_eq!(diff("a\nb\n", ""), "@@ -1,2 +0,0 @@\n-a\n-b");
    assert_eq!(diff("1\n2\n3\n4\n5\n", "1\n2\n3\n4\nx\n"), "@@ -2,4 +2,4 @@\n 2\n 3\n 4\n-5\n+x");
    let many = |change: &[usize]| (0..20).map(|i| if change.contains(&i) { "x\n".into() } else { format!("{i}\n") }).collect::<String>();
    let two = diff(&many(&[]), &many(&[2, 10]));
    assert_eq!(two.lines().filter(|l| l.starts_with("@@")).collect::<Vec<_>>(), ["@@ -1,6 +1,6 @@", "@@ -8,7 +8,7 @@"]);
    let one = diff(&many(&[]), &many(&[2, 9]));
    assert_eq!(one.lines().filter(|l| l.starts_with("@@")).collect::<Vec<_>>(), ["@@ -1,13 +1,13 @@"]);
}

proptest! {
    #[test]
    fn diffs_of_any_texts_hold_together(a in "(a|b|c|\n|\r\n|\u{2028}|é){0,60}", b in "(a|b|d|\n|\r|\x1c|😀){0,60}") {
        let (old, new) = (lines(&a), lines(&b));
        let patch = unified_diff(&old, &new, 3);
        prop_assert_eq!(patch.is_empty(), old == new);
        let blocks = LineMatcher::new(&old, &new, true).matching_blocks();
        for pair in blocks.windows(2) {
            prop_assert!(pair[0].a + pair[0].size <= pair[1].a && pair[0].b + pair[0].size <= pair[1].b);
        }
        for block in blocks {
            prop_assert_eq!(&old[block.a..block.a + block.size], &new[block.b..block.b + block.size]);
        }
    }

    #[test]
    fn bytes_of_any_kind_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        code_points(&bytes);
        splitlines(&bytes);
        strip(&bytes);
        json_string(&bytes);
        CharIndex::new(&bytes).ratio(&bytes, &mut Scratch::default());
    }
}
