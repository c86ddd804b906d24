//! The suffix automaton of a text (Blumer et al., 1985), with the places where each of its strings ends.
//!
//! A state stands for the substrings that end at the same places. Along the tree of suffix links the places of a state are those of the
//! states below it, so in the order of a walk through the tree they are a range of one array: "the last end before x" and "the first end
//! from x on" are questions to a range, answered in O(log n) by a wavelet matrix.

use rustc_hash::FxHashMap;

use super::wavelet::WaveletMatrix;

/// The state of the empty string.
pub(super) const ROOT: u32 = 0;

const NONE: u32 = u32::MAX;

/// A state with more edges than this has them in a hash table as well.
const MANY: u32 = 8;

/// A range of at most so many places is looked through.
const FEW: u32 = 12;

struct State {
    /// Length of the longest string.
    len: u32,
    /// The state of the longest suffix that ends at more places.
    link: u32,
    /// First edge of a list, and how many there are.
    edges: u32,
    degree: u32,
    /// Its places: this range of `ends`.
    lo: u32,
    hi: u32,
    /// The first and the last of them.
    first: u32,
    last: u32,
}

struct Edge {
    symbol: u32,
    target: u32,
    next: u32,
}

/// The automaton.
pub(super) struct Automaton {
    states: Vec<State>,
    edges: Vec<Edge>,
    /// The edges of states with many; the targets in their lists are out of date.
    many: FxHashMap<u64, u32>,
    /// The edges of the root, by symbol.
    from_root: Vec<u32>,
    /// All places, in the order of the tree.
    ends: Vec<u32>,
    matrix: WaveletMatrix,
}

impl Automaton {
    /// The automaton of a text of symbols below `symbols`. O(n) states, edges, time.
    pub fn new(text: &[u32], symbols: usize) -> Self {
        let bits = (text.len() as u32 + 1).ilog2() + 1;
        let mut new = Self {
            states: Vec::with_capacity(2 * text.len() + 1),
            edges: Vec::with_capacity(3 * text.len()),
            many: FxHashMap::default(),
            from_root: vec![NONE; symbols],
            ends: vec![0; text.len()],
            matrix: WaveletMatrix::new(Vec::new(), bits),
        };
        new.add_state(0, NONE, NONE);
        let mut last = ROOT;
        for (place, &symbol) in text.iter().enumerate() {
            last = new.extend(last, symbol, place as u32);
        }
        new.order_places(text.len());
        new.matrix = WaveletMatrix::new(new.ends.clone(), bits);
        new
    }

    /// A state; `place` is where its longest string ends, if that is a beginning of the text.
    fn add_state(&mut self, len: u32, link: u32, place: u32) -> u32 {
        let (first, last) = if place == NONE { (NONE, 0) } else { (place, place) };
        self.states.push(State { len, link, edges: NONE, degree: 0, lo: 0, hi: 0, first, last });
        self.states.len() as u32 - 1
    }

    /// Appends a symbol to the text; `last` is the state of the text before, the result that of the text after.
    fn extend(&mut self, last: u32, symbol: u32, place: u32) -> u32 {
        let new = self.add_state(self.len(last) + 1, ROOT, place);
        let mut p = last;
        while p != NONE && self.target(p, symbol) == NONE {
            self.add_edge(p, symbol, new);
            p = self.link(p);
        }
        if p == NONE {
            return new;
        }
        let q = self.target(p, symbol);
        if self.len(p) + 1 == self.len(q) {
            self.states[new as usize].link = q;
            return new;
        }
        let split = self.add_state(self.len(p) + 1, self.link(q), NONE);
        let mut edge = self.states[q as usize].edges;
        while edge != NONE {
            let Edge { symbol, next, .. } = self.edges[edge as usize];
            let target = self.target(q, symbol);
            self.add_edge(split, symbol, target);
            edge = next;
        }
        while p != NONE && self.target(p, symbol) == q {
            self.redirect(p, symbol, split);
            p = self.link(p);
        }
        self.states[q as usize].link = split;
        self.states[new as usize].link = split;
        new
    }

    fn add_edge(&mut self, from: u32, symbol: u32, target: u32) {
        if from == ROOT {
            self.from_root[symbol as usize] = target;
            return;
        }
        let next = self.states[from as usize].edges;
        self.edges.push(Edge { symbol, target, next });
        let state = &mut self.states[from as usize];
        state.edges = self.edges.len() as u32 - 1;
        state.degree += 1;
        match state.degree {
            degree if degree == MANY + 1 => {
                let mut edge = self.states[from as usize].edges;
                while edge != NONE {
                    let Edge { symbol, target, next } = self.edges[edge as usize];
                    self.many.insert(key(from, symbol), target);
                    edge = next;
                }
            }
            degree if degree > MANY => {
                self.many.insert(key(from, symbol), target);
            }
            _ => {}
        }
    }

    fn redirect(&mut self, from: u32, symbol: u32, target: u32) {
        if from == ROOT {
            self.from_root[symbol as usize] = target;
        } else if self.states[from as usize].degree > MANY {
            self.many.insert(key(from, symbol), target);
        } else {
            let mut edge = self.states[from as usize].edges;
            while edge != NONE && self.edges[edge as usize].symbol != symbol {
                edge = self.edges[edge as usize].next;
            }
            if edge != NONE {
                self.edges[edge as usize].target = target;
            }
        }
    }

    fn target(&self, from: u32, symbol: u32) -> u32 {
        if from == ROOT {
            return self.from_root.get(symbol as usize).copied().unwrap_or(NONE);
        }
        let state = &self.states[from as usize];
        if state.degree > MANY {
            return self.many.get(&key(from, symbol)).copied().unwrap_or(NONE);
        }
        let mut edge = state.edges;
        while edge != NONE {
            let Edge { symbol: s, target, next } = self.edges[edge as usize];
            if s == symbol {
                return target;
            }
            edge = next;
        }
        NONE
    }

    /// Gives every state its range of places: children after one another, each behind its parent's own place.
    fn order_places(&mut self, n: usize) {
        let order = self.by_length(n);
        let own: Vec<u32> = self.states.iter().map(|s| s.first).collect();
        let mut count: Vec<u32> = own.iter().map(|&place| u32::from(place != NONE)).collect();
        for &v in order.iter().rev() {
            let State { link, first, last, .. } = self.states[v];
            if link != NONE {
                count[link as usize] += count[v];
                let parent = &mut self.states[link as usize];
                (parent.first, parent.last) = (parent.first.min(first), parent.last.max(last));
            }
        }
        let mut free = vec![0u32; self.states.len()];
        for &v in &order {
            let link = self.states[v].link;
            let lo = if link == NONE { 0 } else { free[link as usize] };
            if link != NONE {
                free[link as usize] += count[v];
            }
            free[v] = lo;
            if own[v] != NONE {
                self.ends[lo as usize] = own[v];
                free[v] += 1;
            }
            (self.states[v].lo, self.states[v].hi) = (lo, lo + count[v]);
        }
    }

    /// The states by the lengths of their longest strings: those up the tree before those below.
    fn by_length(&self, n: usize) -> Vec<usize> {
        let mut start = vec![0usize; n + 2];
        self.states.iter().for_each(|s| start[s.len as usize + 1] += 1);
        for i in 1..start.len() {
            start[i] += start[i - 1];
        }
        let mut order = vec![0; self.states.len()];
        for (v, state) in self.states.iter().enumerate() {
            order[start[state.len as usize]] = v;
            start[state.len as usize] += 1;
        }
        order
    }

    /// Length of the longest string of a state.
    pub fn len(&self, state: u32) -> u32 {
        self.states[state as usize].len
    }

    /// The state of the longest suffix that is in another state.
    pub fn link(&self, state: u32) -> u32 {
        self.states[state as usize].link
    }

    /// The state of the strings of `from` with `symbol` behind them, if they are in the text.
    pub fn step(&self, from: u32, symbol: u32) -> Option<u32> {
        Some(self.target(from, symbol)).filter(|&t| t != NONE)
    }

    /// The last place before `x` where the strings of a state end.
    pub fn last_before(&self, state: u32, x: u32) -> Option<u32> {
        let s = &self.states[state as usize];
        if s.last < x {
            return Some(s.last);
        }
        if s.first >= x {
            return None;
        }
        if s.hi - s.lo <= FEW {
            return self.ends[s.lo as usize..s.hi as usize].iter().copied().filter(|&e| e < x).max();
        }
        let below = self.matrix.count_below(s.lo, s.hi, x);
        Some(self.matrix.kth(s.lo, s.hi, below - 1))
    }

    /// The first place from `x` on where the strings of a state end.
    pub fn first_from(&self, state: u32, x: u32) -> Option<u32> {
        let s = &self.states[state as usize];
        if s.first >= x {
            return Some(s.first);
        }
        if s.last < x {
            return None;
        }
        if s.hi - s.lo <= FEW {
            return self.ends[s.lo as usize..s.hi as usize].iter().copied().filter(|&e| e >= x).min();
        }
        let below = self.matrix.count_below(s.lo, s.hi, x);
        Some(self.matrix.kth(s.lo, s.hi, below))
    }
}

fn key(state: u32, symbol: u32) -> u64 {
    u64::from(state) << 32 | u64::from(symbol)
}
