//! What evaluations say of patches whose worth is known.

use std::collections::BTreeMap;

use sorft_native::agentless::evaluate::{Summary, compare, patch_records, table};

use crate::script::{GOLD, tasks};

fn records(patches: &[&str]) -> Vec<sorft_native::agentless::evaluate::Record> {
    let tasks = tasks();
    let of: BTreeMap<String, String> = tasks.iter().zip(patches).map(|(t, p)| (t.instance_id.clone(), (*p).to_owned())).collect();
    patch_records((&tasks, &tasks), &of, &BTreeMap::new()).unwrap()
}

#[test]
fn gold_is_everything_and_empty_nothing() {
    let gold = Summary::new(&records(&[GOLD, GOLD]));
    let empty = Summary::new(&records(&["", ""]));
    for name in ["applied", "similarity", "exact", "file.any", "file.all", "function.any", "function.all", "line.any", "line.all"] {
        let of = |s: &Summary| s.numbers[&format!("patch.{name}")].interval;
        assert_eq!((of(&gold).mean, of(&gold).low), (1.0, 1.0), "{name}");
        assert_eq!((of(&empty).mean, of(&empty).high), (0.0, 0.0), "{name}");
    }
    assert_eq!(empty.no_patch, BTreeMap::from([("there is no patch".to_owned(), 2)]));
    assert!(gold.numbers.contains_key("bm25.file.all") && gold.numbers.contains_key("bm25.function.all"));
    assert_eq!(gold.repositories.len(), 2);
}

#[test]
fn a_patch_half_right_is_neither() {
    let other = GOLD.replace("a + b", "b + a");
    let half = Summary::new(&records(&[&other, ""]));
    assert_eq!((half.numbers["patch.applied"].interval.mean, half.numbers["patch.exact"].interval.mean), (0.5, 0.0));
    let similar = half.numbers["patch.similarity"].interval.mean;
    assert!(0.4 < similar && similar < 0.5, "{similar}");
    let c = compare(&records(&["", ""]), &records(&[GOLD, ""])).unwrap();
    let applied = c.numbers["patch.applied"];
    assert_eq!((applied.difference.mean, applied.larger, applied.smaller), (0.5, 1, 0));
}

#[test]
fn tables_are_narrow_and_plain() {
    let summary = Summary::new(&records(&[GOLD, ""]));
    let c = compare(&records(&["", ""]), &records(&[GOLD, GOLD])).unwrap();
    for (width, most) in [(None, 80), (Some(60), 60), (Some(44), 44)] {
        for text in [table::render(&summary, width), table::render_comparison(&c, width)] {
            assert!(text.lines().all(|l| l.chars().count() <= most), "{text}");
            assert!(!text.contains('\u{1b}') && !text.contains("NaN"), "{text}");
            assert!(text.contains("100.0") && text.contains("patch"), "{text}");
        }
    }
}
