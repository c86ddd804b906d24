//! Matching blocks and what follows from them: opcodes, groups of them, ratios.

/// `a[a..a + size]` equals `b[b..b + size]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// Where it starts in a.
    pub a: usize,
    /// Where it starts in b.
    pub b: usize,
    /// How many elements match.
    pub size: usize,
}

/// Part of both sequences that is still to be matched: `a[a_lo..a_hi]` against `b[b_lo..b_hi]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub a_lo: usize,
    pub a_hi: usize,
    pub b_lo: usize,
    pub b_hi: usize,
    /// No match in the window is longer than this.
    pub bound: usize,
}

/// What a search found in a window: a match, and its part that bounds other searches (the match without what it was extended by).
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub block: Block,
    pub core: usize,
}

/// All matches, in order, adjacent ones as they were found: `longest` finds the longest match of a window, the leftmost in a and of
/// those the leftmost in b, then what lies left and right of it is searched. A stack stands for the recursion, so its depth is no limit.
///
/// A window left of a match cannot hold one as long, since that would start earlier in a; a window right of it can, and none longer.
/// That is what [`Window::bound`] says: a search may stop at the first match that reaches it.
pub(super) fn all_matches(a_len: usize, b_len: usize, stack: &mut Vec<Window>, mut longest: impl FnMut(&Window) -> Found) -> Vec<Block> {
    let mut blocks = Vec::new();
    stack.clear();
    stack.push(Window { a_lo: 0, a_hi: a_len, b_lo: 0, b_hi: b_len, bound: usize::MAX });
    while let Some(w) = stack.pop() {
        let Found { block, core } = longest(&w);
        if block.size == 0 {
            continue;
        }
        blocks.push(block);
        let (a_end, b_end) = (block.a + block.size, block.b + block.size);
        if w.a_lo < block.a && w.b_lo < block.b {
            stack.push(Window { a_hi: block.a, b_hi: block.b, bound: core.saturating_sub(1), ..w });
        }
        if a_end < w.a_hi && b_end < w.b_hi {
            stack.push(Window { a_lo: a_end, b_lo: b_end, bound: core, ..w });
        }
    }
    blocks.sort_unstable();
    blocks
}

/// Adjacent blocks joined.
pub(super) fn merged(blocks: &[Block]) -> Vec<Block> {
    let mut out: Vec<Block> = Vec::with_capacity(blocks.len());
    for &block in blocks {
        match out.last_mut() {
            Some(last) if last.a + last.size == block.a && last.b + last.size == block.b => last.size += block.size,
            _ => out.push(block),
        }
    }
    out
}

/// `2 M / (|a| + |b|)` for M matching elements; 1 for two empty sequences.
pub fn ratio(matches: usize, a_len: usize, b_len: usize) -> f64 {
    let total = a_len + b_len;
    if total == 0 { 1.0 } else { 2.0 * matches as f64 / total as f64 }
}

/// What happens to a range of a.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// It stays.
    Equal,
    /// It gives way to a range of b.
    Replace,
    /// It goes.
    Delete,
    /// It is empty, and a range of b comes in.
    Insert,
}

/// `a[a.0..a.1]` becomes `b[b.0..b.1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opcode {
    /// How.
    pub tag: Tag,
    /// The range of a.
    pub a: (usize, usize),
    /// The range of b.
    pub b: (usize, usize),
}

/// How to turn a into b, of the matching blocks of the two (without CPython's empty last block).
pub fn opcodes(blocks: &[Block], a_len: usize, b_len: usize) -> Vec<Opcode> {
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    for block in blocks.iter().copied().chain([Block { a: a_len, b: b_len, size: 0 }]) {
        let tag = match (i < block.a, j < block.b) {
            (true, true) => Some(Tag::Replace),
            (true, false) => Some(Tag::Delete),
            (false, true) => Some(Tag::Insert),
            (false, false) => None,
        };
        out.extend(tag.map(|tag| Opcode { tag, a: (i, block.a), b: (j, block.b) }));
        (i, j) = (block.a + block.size, block.b + block.size);
        if block.size > 0 {
            out.push(Opcode { tag: Tag::Equal, a: (block.a, i), b: (block.b, j) });
        }
    }
    out
}

/// `get_grouped_opcodes(n)`: the changes with up to `n` equal elements around them; a group ends where more than `2 n` are equal.
pub fn grouped_opcodes(mut codes: Vec<Opcode>, n: usize) -> Vec<Vec<Opcode>> {
    let tail = |(lo, hi): (usize, usize)| (lo.max(hi.saturating_sub(n)), hi);
    let head = |(lo, hi): (usize, usize)| (lo, hi.min(lo + n));
    if let Some(first) = codes.first_mut().filter(|c| c.tag == Tag::Equal) {
        (first.a, first.b) = (tail(first.a), tail(first.b));
    }
    if let Some(last) = codes.last_mut().filter(|c| c.tag == Tag::Equal) {
        (last.a, last.b) = (head(last.a), head(last.b));
    }
    let mut groups = Vec::new();
    let mut group = Vec::new();
    for mut code in codes {
        if code.tag == Tag::Equal && code.a.1 - code.a.0 > 2 * n {
            group.push(Opcode { a: head(code.a), b: head(code.b), ..code });
            groups.push(std::mem::take(&mut group));
            (code.a, code.b) = (tail(code.a), tail(code.b));
        }
        group.push(code);
    }
    match group[..] {
        [] | [Opcode { tag: Tag::Equal, .. }] => {}
        _ => groups.push(group),
    }
    groups
}
