//! The execution plan, on random forests: what it promises to every op that reads it.

use proptest::prelude::*;
use sorft_native::tensor::plan::{Plan, SegmentSpec, TILE, TOKEN_CHUNK, Tree};

/// A root with at least one token; every further segment hangs on any earlier one. Lengths around page and chunk ends are frequent.
fn trees() -> impl Strategy<Value = Vec<Tree>> {
    let length = || prop_oneof![0usize..6, 62usize..67, 0usize..200, Just(TILE), 510usize..515];
    let segment = (length(), any::<prop::sample::Index>(), any::<u64>());
    let tree = (1usize..140, any::<u64>(), prop::collection::vec(segment, 0..8)).prop_map(|(root, seed, children)| {
        let spec = |parent, len: usize, seed: u64| SegmentSpec {
            parent,
            ids: (0..len).map(|i| (seed as u32).wrapping_add(i as u32) % 1000).collect(),
            targets: (0..len).map(|i| seed >> (i % 64) & 1 == 1).collect(),
        };
        let mut segments = vec![spec(None, root, seed)];
        for (len, parent, seed) in children {
            segments.push(spec(Some(parent.index(segments.len())), len, seed));
        }
        Tree { segments }
    });
    prop::collection::vec(tree, 0..4)
}

/// Rows that each segment's path holds, from the trees alone.
fn paths(trees: &[Tree]) -> Vec<Vec<usize>> {
    let (mut all, mut row) = (Vec::new(), 0);
    for tree in trees {
        let first = all.len();
        for segment in &tree.segments {
            let mut path: Vec<usize> = segment.parent.map_or(Vec::new(), |p| Vec::clone(&all[first + p]));
            path.extend(row..row + segment.ids.len());
            row += segment.ids.len();
            all.push(path);
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_token_reads_its_own_history(trees in trees()) {
        let (plan, paths) = (Plan::for_trees(&trees), paths(&trees));
        // Each slot holds the row whose key was written there; copies follow in order.
        let mut pages = vec![[usize::MAX; TILE]; plan.num_pages];
        for (row, &(page, slot)) in plan.kv_slots.iter().enumerate() {
            prop_assert_eq!(pages[page as usize][slot as usize], usize::MAX, "a slot is written once");
            pages[page as usize][slot as usize] = row;
        }
        for c in &plan.copies {
            let (from, slots) = (pages[c.from as usize], c.slots as usize);
            prop_assert!(pages[c.to as usize][..slots].iter().all(|row| *row == usize::MAX), "a copy does not overwrite");
            pages[c.to as usize][..slots].copy_from_slice(&from[..slots]);
        }
        for (segment, path) in plan.segments.iter().zip(&paths) {
            prop_assert_eq!(segment.end(), path.len());
            let read: Vec<usize> = (0..path.len()).map(|p| pages[segment.pages[p / TILE] as usize][p % TILE]).collect();
            prop_assert_eq!(&read, path);
            prop_assert_eq!(segment.pages.len(), path.len().div_ceil(TILE));
            for (row, p) in segment.tokens.clone().zip(segment.start..) {
                prop_assert_eq!(plan.positions[row] as usize, p);
            }
        }
    }

    #[test]
    fn every_page_is_filled_by_one_segment_of_one_tree(trees in trees()) {
        let plan = Plan::for_trees(&trees);
        let mut owner = vec![None; plan.num_pages];
        for (s, segment) in plan.segments.iter().enumerate() {
            for row in segment.tokens.clone() {
                let page = plan.kv_slots[row].0 as usize;
                prop_assert!(owner[page].is_none_or(|o| o == s), "page {} is filled by two segments", page);
                owner[page] = Some(s);
            }
        }
        prop_assert!(owner.iter().all(Option::is_some), "no page is left over");
        for (from, to) in plan.copies.iter().map(|c| (c.from as usize, c.to as usize)) {
            prop_assert!(owner[from] < owner[to], "copies go from parents to children");
        }
        for tree in &plan.trees {
            for segment in &plan.segments[tree.segments.clone()] {
                let own = segment.pages.iter().all(|p| tree.segments.contains(&owner[*p as usize].unwrap_or(usize::MAX)));
                prop_assert!(own, "a tree reads its own pages");
            }
        }
    }

    #[test]
    fn predictions_follow_from_the_token_before(trees in trees()) {
        let (plan, paths) = (Plan::for_trees(&trees), paths(&trees));
        let mut want = Vec::new();
        let specs = trees.iter().flat_map(|t| &t.segments);
        for ((segment, path), spec) in plan.segments.iter().zip(&paths).zip(specs) {
            for (i, p) in (segment.start..path.len()).enumerate().filter(|(i, p)| spec.targets[*i] && *p > 0) {
                want.push((path[p - 1] as u32, spec.ids[i]));
            }
        }
        let got: Vec<(u32, u32)> = plan.predictions.iter().map(|p| (p.source, p.target)).collect();
        prop_assert_eq!(got, want);
    }

    #[test]
    fn chunks_are_cut_at_trees_and_every_512_inside_one(trees in trees()) {
        let plan = Plan::for_trees(&trees);
        for (chunks, ranges) in [
            (&plan.grad_chunks, plan.trees.iter().map(|t| t.tokens.clone()).collect::<Vec<_>>()),
            (&plan.head_chunks, plan.trees.iter().map(|t| t.predictions.clone()).collect()),
        ] {
            let mut want = Vec::new();
            for range in ranges {
                let mut from = range.start;
                while from < range.end {
                    let to = (from + TOKEN_CHUNK).min(range.end);
                    want.push(from..to);
                    from = to;
                }
            }
            prop_assert_eq!(chunks, &want);
        }
    }

    /// So that a tree's gradient is the same in any micro-batch.
    #[test]
    fn a_tree_is_planned_the_same_alone(trees in trees()) {
        let plan = Plan::for_trees(&trees);
        for (tree, range) in trees.iter().zip(&plan.trees) {
            let alone = Plan::for_trees(std::slice::from_ref(tree));
            let page0 = plan.segments[range.segments.start].pages[0];
            prop_assert_eq!(&alone.ids[..], &plan.ids[range.tokens.clone()]);
            let shifted: Vec<(u32, u32)> = plan.kv_slots[range.tokens.clone()].iter().map(|(p, s)| (p - page0, *s)).collect();
            prop_assert_eq!(&alone.kv_slots, &shifted);
            for (a, b) in alone.segments.iter().zip(&plan.segments[range.segments.clone()]) {
                prop_assert_eq!(a.start, b.start);
                prop_assert_eq!(a.pages.clone(), b.pages.iter().map(|p| p - page0).collect::<Vec<_>>());
            }
        }
    }
}
