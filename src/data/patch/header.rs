//! File names in the headers of a diff: prefixes, quotes, and the ambiguity of `diff --git` lines.

/// The two names of a `diff --git` line (the part after `diff --git `), prefixes removed. None where they cannot be told apart: names
/// with spaces that differ, for which git always gives `rename from` or `---` lines as well.
pub(super) fn git_names(rest: &str) -> Option<(String, String)> {
    let rest = rest.trim_end_matches('\r');
    if rest.starts_with('"') {
        let (old, tail) = unquote(rest)?;
        let tail = tail.strip_prefix(' ')?;
        let new = if tail.starts_with('"') { unquote(tail)?.0 } else { tail.to_owned() };
        return Some(strip_both(old, new));
    }
    if let Some(at) = rest.find(" \"") {
        let (new, _) = unquote(&rest[at + 1..])?;
        return Some(strip_both(rest[..at].to_owned(), new));
    }
    let spaces = || rest.char_indices().filter(|&(_, c)| c == ' ').map(|(i, _)| i);
    let split = |i: usize| (&rest[..i], &rest[i + 1..]);
    // Without a rename both names are equal but for their prefixes, which settles where the second begins.
    for i in spaces() {
        let (old, new) = split(i);
        if let Some(name) = same_rest(old, new).or((old == new).then_some(old)) {
            return Some((name.to_owned(), name.to_owned()));
        }
    }
    let mut candidates = spaces();
    let (old, new) = split(candidates.next()?);
    candidates.next().is_none().then(|| strip_both(old.to_owned(), new.to_owned()))
}

/// The name in a `--- ` or `+++ ` line (the part after the marker): quotes undone, a time stamp cut off; none for `/dev/null`.
pub(super) fn marker_name(rest: &str) -> Option<String> {
    let rest = rest.trim_end_matches('\r');
    let name = if rest.starts_with('"') { unquote(rest)?.0 } else { rest.split('\t').next().unwrap_or(rest).to_owned() };
    (name != "/dev/null").then_some(name)
}

/// The name in an extended header such as `rename from `: quotes undone, no prefix to remove.
pub(super) fn plain_name(rest: &str) -> String {
    let rest = rest.trim_end_matches('\r');
    unquote(rest).map_or_else(|| rest.to_owned(), |(name, _)| name)
}

/// The name behind two different prefixes of git's, where it is the same: `a/` and `b/`, or with `diff.mnemonicPrefix` two of `i/` (the
/// index), `w/` (the work tree), `c/` (a commit), `o/` (an object), `1/` and `2/` (no repository at all).
fn same_rest<'a>(old: &'a str, new: &str) -> Option<&'a str> {
    let cut = |name: &'_ str| -> Option<u8> {
        let prefix = name.bytes().next().filter(|b| b"abiwco12".contains(b))?;
        (name.as_bytes().get(1) == Some(&b'/')).then_some(prefix)
    };
    (cut(old)? != cut(new)? && old[2..] == new[2..]).then(|| &old[2..])
}

/// Removes git's `a/` and `b/` where both names that are there have theirs (a diff made with `--no-prefix` has none), and its other
/// prefixes where the names are the same behind them: `i/` and `w/` could be folders too, if the file moved.
pub(super) fn strip_prefixes(old: Option<String>, new: Option<String>) -> (Option<String>, Option<String>) {
    if let (Some(a), Some(b)) = (&old, &new)
        && let Some(name) = same_rest(a, b)
    {
        return (Some(name.to_owned()), Some(name.to_owned()));
    }
    let has = |name: &Option<String>, prefix: &str| name.as_ref().is_none_or(|n| n.starts_with(prefix));
    if has(&old, "a/") && has(&new, "b/") {
        let cut = |name: String| name[2..].to_owned();
        return (old.map(cut), new.map(cut));
    }
    (old, new)
}

/// The name of a file in a diff without git's header, where it cannot have moved: of two names one of which goes on where the other
/// ends (`a.py.orig`, `a.py~`), the shorter, as git and `patch` choose.
pub(super) fn same_file(old: String, new: String) -> (String, String) {
    let goes_on = |long: &str, short: &str| long.strip_prefix(short).is_some_and(|more| !more.contains('/'));
    if goes_on(&old, &new) {
        return (new.clone(), new);
    }
    if goes_on(&new, &old) { (old.clone(), old) } else { (old, new) }
}

fn strip_both(old: String, new: String) -> (String, String) {
    match strip_prefixes(Some(old), Some(new)) {
        (Some(old), Some(new)) => (old, new),
        _ => unreachable!("two names go in and two come out"),
    }
}

/// Undoes git's C-style quotes: the name and what stands after the closing quote. None where the quotes are not closed, an escape is
/// not one of git's, or the bytes are not UTF-8.
fn unquote(text: &str) -> Option<(String, &str)> {
    let bytes = text.as_bytes();
    if bytes.first() != Some(&b'"') {
        return None;
    }
    let (mut out, mut i) = (Vec::new(), 1);
    loop {
        match *bytes.get(i)? {
            b'"' => return Some((String::from_utf8(out).ok()?, text.get(i + 1..)?)),
            b'\\' => {
                let escape = *bytes.get(i + 1)?;
                i += 2;
                out.push(match escape {
                    b'a' => 7,
                    b'b' => 8,
                    b't' => b'\t',
                    b'n' => b'\n',
                    b'v' => 11,
                    b'f' => 12,
                    b'r' => b'\r',
                    b'"' | b'\\' => escape,
                    b'0'..=b'3' => {
                        let digits = text.get(i - 1..i + 2)?;
                        i += 2;
                        u8::from_str_radix(digits, 8).ok()?
                    }
                    _ => return None,
                });
            }
            byte => {
                out.push(byte);
                i += 1;
            }
        }
    }
}

/// Quotes a name as git does: as it is, unless it holds control characters, quotes, backslashes or bytes beyond ASCII.
pub(super) fn quote(name: &str) -> String {
    if name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'"' && b != b'\\') {
        return name.to_owned();
    }
    let mut out = String::from("\"");
    for byte in name.bytes() {
        match byte {
            7 => out.push_str("\\a"),
            8 => out.push_str("\\b"),
            b'\t' => out.push_str("\\t"),
            b'\n' => out.push_str("\\n"),
            11 => out.push_str("\\v"),
            12 => out.push_str("\\f"),
            b'\r' => out.push_str("\\r"),
            b'"' | b'\\' => out.extend(['\\', byte as char]),
            0x20..0x7f => out.push(byte as char),
            _ => out.push_str(&format!("\\{byte:03o}")),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(rest: &str) -> Option<(String, String)> {
        git_names(rest)
    }

    fn pair(a: &str, b: &str) -> Option<(String, String)> {
        Some((a.to_owned(), b.to_owned()))
    }

    #[test]
    fn git_lines_are_split_where_the_second_name_begins() {
        assert_eq!(names("a/x.py b/x.py"), pair("x.py", "x.py"));
        assert_eq!(names("a/my b/x.py b/my b/x.py"), pair("my b/x.py", "my b/x.py"));
        assert_eq!(names("a/old.py b/new.py"), pair("old.py", "new.py"));
        assert_eq!(names("x.py x.py"), pair("x.py", "x.py"));
        assert_eq!(names("\"a/\\303\\244.py\" \"b/\\303\\244.py\""), pair("ä.py", "ä.py"));
        assert_eq!(names("a/x.py \"b/\\t.py\""), pair("x.py", "\t.py"));
        assert_eq!(names("i/x.py w/x.py"), pair("x.py", "x.py"));
        assert_eq!(names("c/my w/x.py i/my w/x.py"), pair("my w/x.py", "my w/x.py"));
        assert_eq!(names("i/x.py w/y.py"), pair("i/x.py", "w/y.py"));
        assert_eq!(names("a/one two b/three four"), None);
        assert_eq!(names("\"a/open"), None);
        assert_eq!(names(""), None);
    }

    #[test]
    fn quotes_round_trip() {
        for name in ["plain.py", "with space", "ä\u{1F600}", "a\"b\\c", "tab\tnl\n\r\u{7}\u{8}\u{b}\u{c}\u{1}\u{7f}"] {
            let quoted = quote(name);
            assert_eq!(plain_name(&quoted), name, "{quoted}");
            assert!(quoted.is_ascii());
        }
        assert_eq!(quote("a b"), "a b");
    }

    #[test]
    fn markers_lose_time_stamps_and_dev_null_is_nothing() {
        assert_eq!(marker_name("a/x y.py\t2020-01-01 00:00:00"), Some("a/x y.py".to_owned()));
        assert_eq!(marker_name("a/x y.py\t"), Some("a/x y.py".to_owned()));
        assert_eq!(marker_name("/dev/null"), None);
        assert_eq!(strip_prefixes(Some("a/x".into()), None), (Some("x".into()), None));
        assert_eq!(strip_prefixes(Some("a/x".into()), Some("a/x".into())), (Some("a/x".into()), Some("a/x".into())));
        for (old, new) in [("i/x", "w/x"), ("c/x", "i/x"), ("o/x", "w/x"), ("c/x", "w/x"), ("b/x", "a/x"), ("1/x", "2/x")] {
            assert_eq!(strip_prefixes(Some(old.into()), Some(new.into())), (Some("x".into()), Some("x".into())));
        }
        assert_eq!(strip_prefixes(Some("i/x".into()), Some("w/y".into())), (Some("i/x".into()), Some("w/y".into())));
    }
}
