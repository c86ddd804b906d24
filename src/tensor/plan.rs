//! The execution plan of a batch: which tokens there are, what each one sees, what is predicted, and in which order gradients add up.
//!
//! A batch is a forest of segments. A segment is a run of tokens with a parent: a completion's parent is its prompt. A segment attends to
//! its ancestors and, causally, to itself, so the answers of one prompt pay for the prompt once. The plan is plain data, made once per
//! batch; the CPU ops, the CUDA launches, generation, training and the memory plan all read the same struct.
//!
//! Keys and values live in pages of [`TILE`] positions on a grid of ABSOLUTE positions in the sequence. Whole pages of a prompt are shared
//! by its children; the prompt's last, partial page is copied to each child, which goes on filling its copy. So the tiles over which a
//! token's attention is summed depend on its history alone, not on what the batch holds (`docs/exactness.md`).

use std::ops::Range;

/// Positions in one key/value page, and keys in one attention tile.
pub const TILE: usize = 64;

/// Matrix products sum their contraction in chunks of this many terms: in order inside a chunk, chunk sums added in order.
pub const K_CHUNK: usize = 64;

/// The head works on this many rows of the vocabulary at a time.
pub const VOCAB_CHUNK: usize = 2048;

/// Weight gradients sum over tokens in chunks of this many tokens, counted from the start of each tree.
pub const TOKEN_CHUNK: usize = 512;

/// One node of a [`Tree`]: a run of tokens that goes on from the end of its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentSpec {
    /// Index of the parent segment in the tree (it comes before its children); `None` for the root, which starts at position 0.
    pub parent: Option<usize>,
    /// The tokens.
    pub ids: Vec<u32>,
    /// Which tokens are predicted (the log-probability of `ids[i]` given its history is wanted). Same length as `ids`. The first token of
    /// a root has no history and is never predicted, whatever its flag says.
    pub targets: Vec<bool>,
}

/// A prompt and its answers (or a single run of tokens): the atom of a gradient.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Parents before children; the root first.
    pub segments: Vec<SegmentSpec>,
}

impl Tree {
    /// A prompt with its answers; every answer token is a target, no prompt token is.
    pub fn prompt_with_answers(prompt: &[u32], answers: &[Vec<u32>]) -> Self {
        let mut segments = vec![SegmentSpec { parent: None, ids: prompt.to_vec(), targets: vec![false; prompt.len()] }];
        segments.extend(answers.iter().map(|a| SegmentSpec { parent: Some(0), ids: a.clone(), targets: vec![true; a.len()] }));
        Self { segments }
    }

    /// One sequence with a mask of targets.
    pub fn sequence(ids: &[u32], targets: &[bool]) -> Self {
        Self { segments: vec![SegmentSpec { parent: None, ids: ids.to_vec(), targets: targets.to_vec() }] }
    }

    /// Tokens in the tree, the prompt counted once.
    pub fn num_tokens(&self) -> usize {
        self.segments.iter().map(|s| s.ids.len()).sum()
    }
}

/// A segment's place in the packed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index of the parent in [`Plan::segments`].
    pub parent: Option<usize>,
    /// Its rows in the packed batch.
    pub tokens: Range<usize>,
    /// Absolute position of its first token.
    pub start: usize,
    /// The pages that hold positions `0..start + tokens.len()`, in order; those before `start / TILE` belong to ancestors.
    pub pages: Vec<u32>,
}

impl Segment {
    /// One past the absolute position of the last token.
    pub fn end(&self) -> usize {
        self.start + self.tokens.len()
    }
}

/// The first `slots` positions of page `from` are also the first of page `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The page that is copied.
    pub from: u32,
    /// The child's own page.
    pub to: u32,
    /// How many positions are copied, from the start of the page.
    pub slots: u32,
}

/// A token whose log-probability is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The packed row whose hidden state predicts: the token before the target.
    pub source: u32,
    /// The predicted token.
    pub target: u32,
}

/// What belongs to one tree of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeRange {
    /// Packed rows.
    pub tokens: Range<usize>,
    /// Indices into [`Plan::segments`].
    pub segments: Range<usize>,
    /// Indices into [`Plan::predictions`].
    pub predictions: Range<usize>,
}

/// The execution plan of a batch.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Token ids, packed `[T]`.
    pub ids: Vec<u32>,
    /// Absolute position of each token, `[T]`.
    pub positions: Vec<u32>,
    /// The page and the slot in it that receive each token's key and value, `[T]`.
    pub kv_slots: Vec<(u32, u32)>,
    /// Segments in packed order, parents before children.
    pub segments: Vec<Segment>,
    /// Partial pages copied from parents to children, in segment order; done after all tokens' keys and values are written.
    pub copies: Vec<PageCopy>,
    /// Number of pages that the plan itself owns (0 when the pages belong to a KV cache).
    pub num_pages: usize,
    /// Tokens whose log-probability is wanted, in packed order of the targets.
    pub predictions: Vec<Prediction>,
    /// The trees, in canonical order.
    pub trees: Vec<TreeRange>,
    /// Token chunks over which weight gradients are summed, in order: cut at every tree and every [`TOKEN_CHUNK`] inside one.
    pub grad_chunks: Vec<Range<usize>>,
    /// The same over predictions: the head's gradient chunks.
    pub head_chunks: Vec<Range<usize>>,
}

impl Plan {
    /// The plan of a training or scoring batch.
    pub fn for_trees(trees: &[Tree]) -> Self {
        let mut plan = Plan::default();
        for tree in trees {
            plan.push_tree(tree);
        }
        plan
    }

    /// Number of packed tokens.
    pub fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    fn push_tree(&mut self, tree: &Tree) {
        let (first_token, first_segment, first_prediction) = (self.ids.len(), self.segments.len(), self.predictions.len());
        for spec in &tree.segments {
            self.push_segment(spec, first_segment);
        }
        let tokens = first_token..self.ids.len();
        let predictions = first_prediction..self.predictions.len();
        self.grad_chunks.extend(chunks(tokens.clone()));
        self.head_chunks.extend(chunks(predictions.clone()));
        self.trees.push(TreeRange { tokens, segments: first_segment..self.segments.len(), predictions });
    }

    fn push_segment(&mut self, spec: &SegmentSpec, first_segment: usize) {
        assert_eq!(spec.ids.len(), spec.targets.len(), "one target flag a token");
        let parent = spec.parent.map(|p| first_segment + p);
        let (start, mut pages) = match parent {
            Some(p) => (self.segments[p].end(), self.segments[p].pages.clone()),
            None => (0, Vec::new()),
        };
        let end = start + spec.ids.len();
        let partial = start % TILE;
        if partial > 0 && end > start {
            let (from, to) = (pages[start / TILE], self.num_pages as u32);
            pages[start / TILE] = to;
            self.num_pages += 1;
            self.copies.push(PageCopy { from, to, slots: partial as u32 });
        }
        while pages.len() * TILE < end {
            pages.push(self.num_pages as u32);
            self.num_pages += 1;
        }
        let row0 = self.ids.len();
        for (i, (&id, &target)) in spec.ids.iter().zip(&spec.targets).enumerate() {
            let position = start + i;
            self.positions.push(position as u32);
            self.kv_slots.push((pages[position / TILE], (position % TILE) as u32));
            let source = match (i, parent) {
                (0, None) => None,
                (0, Some(p)) => Some(self.last_row(p)),
                _ => Some(row0 + i - 1),
            };
            if let (true, Some(source)) = (target, source) {
                self.predictions.push(Prediction { source: source as u32, target: id });
            }
        }
        self.ids.extend_from_slice(&spec.ids);
        self.segments.push(Segment { parent, tokens: row0..row0 + spec.ids.len(), start, pages });
    }

    /// The packed row of the last token on the path that ends with segment `s` (an empty segment has its parent's).
    fn last_row(&self, s: usize) -> usize {
        let seg = &self.segments[s];
        match (seg.tokens.is_empty(), seg.parent) {
            (true, Some(p)) => self.last_row(p),
            _ => seg.tokens.end.checked_sub(1).expect("a tree's root holds a token"),
        }
    }
}

/// `range` cut every [`TOKEN_CHUNK`], counted from its start.
fn chunks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(TOKEN_CHUNK).map(move |a| a..(a + TOKEN_CHUNK).min(range.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_shares_whole_pages_and_copies_the_partial_one() {
        let tree = Tree::prompt_with_answers(&[7; 100], &[vec![1, 2], vec![3; 40]]);
        let plan = Plan::for_trees(&[tree]);
        assert_eq!(plan.num_tokens(), 142);
        assert_eq!(plan.segments[0].pages, [0, 1]);
        assert_eq!(plan.segments[1].pages, [0, 2]);
        assert_eq!(plan.segments[2].pages, [0, 3, 4]);
        assert_eq!(plan.copies, [PageCopy { from: 1, to: 2, slots: 36 }, PageCopy { from: 1, to: 3, slots: 36 }]);
        assert_eq!(plan.positions[100], 100);
        assert_eq!(plan.positions[102], 100);
        assert_eq!(plan.predictions[0], Prediction { source: 99, target: 1 });
        assert_eq!(plan.predictions[1], Prediction { source: 100, target: 2 });
        assert_eq!(plan.predictions[2], Prediction { source: 99, target: 3 });
        assert_eq!(plan.kv_slots[102], (3, 36));
    }

    #[test]
    fn a_prompt_that_fills_its_pages_is_not_copied() {
        let plan = Plan::for_trees(&[Tree::prompt_with_answers(&[7; 128], &[vec![1], vec![2]])]);
        assert!(plan.copies.is_empty());
        assert_eq!(plan.segments[2].pages, [0, 1, 3]);
    }

    #[test]
    fn chunks_are_counted_from_each_tree() {
        let t = |n| Tree::sequence(&vec![1; n], &vec![true; n]);
        let plan = Plan::for_trees(&[t(600), t(10)]);
        assert_eq!(plan.grad_chunks, [0..512, 512..600, 600..610]);
        assert_eq!(plan.trees[1].predictions, 599..608);
    }
}
