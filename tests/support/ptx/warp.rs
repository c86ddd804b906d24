//! A warp: 32 lanes in lockstep. Lanes that have gone different ways are different fronts; the one at the lowest program counter runs, and
//! fronts that meet are one again. What lanes do together waits for those that are behind.

use super::Result;
use super::decode::{Action, Instruction, Kind, Place, Reduce, Space, Update};
use super::forms::Lanes;
use super::memory::{Spaces, load, store};
use super::text::Entry;
use super::{exchange, matrix};

/// More instructions than any kernel of a test runs between two barriers: a loop without end.
const PATIENCE: usize = 20_000_000;

/// Lanes at one instruction.
#[derive(Clone, Copy)]
struct Front {
    pc: usize,
    mask: u32,
}

/// Lanes that wait at the block's barrier, and what they brought.
pub struct Waiting {
    front: Front,
    reduce: Reduce,
    to: usize,
    values: Lanes,
}

/// An asynchronous copy of 16 bytes: what of them comes from memory, where to.
struct Copy {
    to: u64,
    from: u64,
    read: usize,
}

/// A lane's copies under way.
#[derive(Default)]
struct Copies {
    open: Vec<Copy>,
    groups: std::collections::VecDeque<Vec<Copy>>,
}

pub struct Warp {
    registers: Vec<Lanes>,
    fronts: Vec<Front>,
    waiting: Vec<Waiting>,
    copies: [Copies; 32],
    ended: u32,
    lanes: u32,
    index: usize,
    /// Lane instructions so far.
    pub executed: u64,
}

impl Warp {
    /// A warp of a block, whose first lane is thread 32 `index` of `threads`.
    pub fn new(entry: &Entry, index: usize, threads: usize) -> Self {
        let count = (threads - 32 * index).min(32);
        let lanes = if count == 32 { u32::MAX } else { (1 << count) - 1 };
        let mut registers = vec![[0; 32]; entry.registers];
        entry.constants.iter().for_each(|(value, register)| registers[*register] = [*value; 32]);
        let copies = std::array::from_fn(|_| Copies::default());
        Self { registers, fronts: Vec::new(), waiting: Vec::new(), copies, ended: 0, lanes, index, executed: 0 }
    }

    /// Begins a block: `special` tells each lane what it is.
    pub fn begin(&mut self, entry: &Entry, special: impl Fn(&str, usize) -> u32) {
        for (name, register) in &entry.specials {
            self.registers[*register] = std::array::from_fn(|lane| u64::from(special(name, 32 * self.index + lane)));
        }
        self.fronts = vec![Front { pc: 0, mask: self.lanes }];
        self.ended = 0;
    }

    pub fn has_ended(&self) -> bool {
        self.ended == self.lanes
    }

    /// Whether every lane waits at the barrier.
    pub fn waits(&self) -> bool {
        self.ended == 0 && self.fronts.is_empty()
    }

    pub fn waiting(&self) -> &[Waiting] {
        &self.waiting
    }

    /// Lets the lanes pass the barrier, each with what the block has reduced to.
    pub fn pass(&mut self, reduced: u64) {
        for waiting in std::mem::take(&mut self.waiting) {
            if !matches!(waiting.reduce, Reduce::None) {
                self.each(waiting.front.mask, |registers, lane| registers[waiting.to][lane] = reduced);
            }
            self.fronts.push(waiting.front);
        }
        self.merge();
    }

    /// Runs until every lane has ended or waits.
    pub fn run(&mut self, code: &[Instruction], parameters: &[u8], spaces: &mut Spaces) -> Result<()> {
        for _ in 0..PATIENCE {
            if self.fronts.is_empty() {
                return Ok(());
            }
            let (chosen, active) = self.choose(code)?;
            let pc = self.fronts[chosen].pc;
            let instruction = code.get(pc).ok_or("the code ends without ret")?;
            self.executed += u64::from(active.count_ones());
            self.step(instruction, chosen, active, parameters, spaces)
                .map_err(|e| format!("PTX line {}: {e}, by warp {} of the block, lanes {active:#x}", instruction.line, self.index))?;
            if self.fronts.len() > 1 {
                self.merge();
            }
        }
        Err("a loop without end".to_owned())
    }

    /// The front to run, and its lanes that the guard lets pass.
    fn choose(&self, code: &[Instruction]) -> Result<(usize, u32)> {
        let mut wanted = None;
        for (i, front) in self.fronts.iter().enumerate() {
            let Some(instruction) = code.get(front.pc) else { return Ok((i, front.mask)) };
            let active = match instruction.guard {
                None => front.mask,
                Some((register, negated)) => {
                    let predicate = &self.registers[register];
                    (0..32).fold(0, |mask, l| mask | (((predicate[l] & 1 == 1) != negated) as u32) << l) & front.mask
                }
            };
            let needed = if active == 0 { 0 } else { self.needed(&instruction.action, active) };
            if needed & !active == 0 {
                return Ok((i, active));
            }
            wanted.get_or_insert((instruction.line, needed, active));
        }
        let (line, needed, active) = wanted.ok_or("no lanes")?;
        Err(format!("PTX line {line}: divergent warp {}: lanes {needed:#x} are needed together, and {active:#x} are there", self.index))
    }

    /// The lanes that an instruction needs together.
    fn needed(&self, action: &Action, active: u32) -> u32 {
        let of = |register: usize| lanes(active).fold(0, |all, lane| all | self.registers[register][lane] as u32);
        match action {
            Action::Shuffle { mask, .. } | Action::Vote { mask, .. } | Action::MatchAny { mask, .. } | Action::WarpBarrier { mask } => {
                of(*mask) & self.lanes
            }
            Action::LoadMatrices { .. } | Action::Multiply(_) => u32::MAX,
            _ => 0,
        }
    }

    /// The sets of lanes that exchange something: those that give the same mask, which must be themselves.
    fn groups(&self, mask: usize, active: u32) -> Result<Vec<u32>> {
        let of = |lane: usize| self.registers[mask][lane] as u32 & self.lanes;
        let (mut left, mut groups) = (active, Vec::new());
        while left != 0 {
            let mask = of(left.trailing_zeros() as usize);
            let same = lanes(active).filter(|lane| of(*lane) == mask).fold(0, |all, lane| all | 1 << lane);
            if same != mask {
                return Err(format!("mask {mask:#x} is given by lanes {same:#x}"));
            }
            left &= !mask;
            groups.push(mask);
        }
        Ok(groups)
    }

    /// Fronts in order, those at one place as one.
    fn merge(&mut self) {
        self.fronts.sort_by_key(|f| f.pc);
        self.fronts.dedup_by(|later, first| {
            let same = later.pc == first.pc;
            first.mask |= if same { later.mask } else { 0 };
            same
        });
    }

    fn each(&mut self, mask: u32, mut f: impl FnMut(&mut [Lanes], usize)) {
        (0..32).filter(|l| mask >> l & 1 == 1).for_each(|lane| f(&mut self.registers[..], lane));
    }

    fn step(&mut self, instruction: &Instruction, front: usize, active: u32, parameters: &[u8], spaces: &mut Spaces) -> Result<()> {
        let pc = self.fronts[front].pc;
        self.fronts[front].pc = pc + 1;
        if active == 0 {
            return Ok(());
        }
        match &instruction.action {
            Action::Compute { form, to, from } => {
                let mut out = self.registers[*to];
                form(&mut out, from.map(|r| &self.registers[r]), active);
                self.registers[*to] = out;
            }
            Action::Split { to, from, bits } => self.each(active, |r, l| {
                let value = r[*from][l];
                to.iter().enumerate().for_each(|(i, to)| r[*to][l] = value >> (i as u32 * bits) & ((1 << bits) - 1));
            }),
            Action::Join { to, from, bits } => self.each(active, |r, l| {
                let part = |(i, from): (usize, &usize)| (r[*from][l] & ((1 << bits) - 1)) << (i as u32 * bits);
                r[*to][l] = from.iter().enumerate().map(part).fold(0, |all, part| all | part);
            }),
            Action::LoadParameter { to, first, kind } => {
                let bytes = &parameters[*first as usize..][..kind.bytes];
                self.each(active, |r, l| r[*to][l] = widened(load(bytes), *kind));
            }
            Action::Load { space, kind, to, at } => self.load(active, *space, *kind, to, *at, spaces)?,
            Action::Store { space, kind, from, at } => self.store(active, *space, *kind, from, *at, spaces)?,
            Action::Atomic { space, update, bytes, old, at, from, compare } => {
                self.atomic(active, (*space, *bytes), *update, *old, *at, [*from, *compare], spaces)?;
            }
            Action::Branch { to } => self.branch(front, active, *to),
            Action::Exit => self.end(front, active)?,
            Action::Barrier { reduce, to, from } => {
                let values = self.registers[*from];
                self.waiting.push(Waiting { front: Front { pc: pc + 1, mask: active }, reduce: *reduce, to: *to, values });
                self.leave(front, active);
            }
            Action::Shuffle { from, to, valid, value, lane, clamp, mask } => {
                for group in self.groups(*mask, active)? {
                    exchange::shuffle(&mut self.registers, group, *from, [*to, *value, *lane, *clamp], *valid)?;
                }
            }
            Action::Vote { vote, to, from, mask } => {
                self.groups(*mask, active)?.into_iter().for_each(|g| exchange::vote(&mut self.registers, g, *vote, *to, *from));
            }
            Action::MatchAny { bits, to, value, mask } => {
                self.groups(*mask, active)?.into_iter().for_each(|g| exchange::match_any(&mut self.registers, g, *bits, *to, *value));
            }
            Action::ActiveMask { to } => self.each(active, |r, l| r[*to][l] = u64::from(active)),
            Action::LoadMatrices { transposed, to, at } => matrix::load(&mut self.registers, *transposed, to, *at, &mut spaces.shared)?,
            Action::Multiply(product) => product.run(&mut self.registers),
            Action::CopyAsync { to, from, read } => self.copy_async(active, *to, *from, *read, spaces)?,
            Action::CommitCopies => self.lanes_of(active).for_each(|copies| copies.groups.push_back(std::mem::take(&mut copies.open))),
            Action::WaitForCopies { pending } => {
                for copies in self.lanes_of(active) {
                    while copies.groups.len() > *pending {
                        copies.groups.pop_front().into_iter().flatten().try_for_each(|copy| copy.land(spaces))?;
                    }
                }
            }
            Action::WarpBarrier { mask } => drop(self.groups(*mask, active)?),
            Action::Nothing => {}
        }
        Ok(())
    }

    fn address(&self, lane: usize, at: Place) -> u64 {
        self.registers[at.base][lane].wrapping_add(at.offset)
    }

    fn load(&mut self, active: u32, space: Space, kind: Kind, to: &[usize], at: Place, spaces: &mut Spaces) -> Result<()> {
        for lane in lanes(active) {
            let bytes = spaces.access(space, self.address(lane, at), kind.bytes * to.len())?;
            for (part, to) in bytes.chunks_exact(kind.bytes).zip(to) {
                self.registers[*to][lane] = widened(load(part), kind);
            }
        }
        Ok(())
    }

    fn store(&mut self, active: u32, space: Space, kind: Kind, from: &[usize], at: Place, spaces: &mut Spaces) -> Result<()> {
        for lane in lanes(active) {
            let bytes = spaces.access(space, self.address(lane, at), kind.bytes * from.len())?;
            for (part, from) in bytes.chunks_exact_mut(kind.bytes).zip(from) {
                store(part, self.registers[*from][lane]);
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // one instruction's operands
    fn atomic(
        &mut self,
        active: u32,
        (space, bytes): (Space, usize),
        update: Update,
        old: Option<usize>,
        at: Place,
        [from, compare]: [usize; 2],
        spaces: &mut Spaces,
    ) -> Result<()> {
        let cut = |value: u64| if bytes == 4 { value & u64::from(u32::MAX) } else { value };
        for lane in lanes(active) {
            let place = spaces.access(space, self.address(lane, at), bytes)?;
            let before = load(place);
            store(place, update(before, cut(self.registers[from][lane]), cut(self.registers[compare][lane])));
            if let Some(old) = old {
                self.registers[old][lane] = before;
            }
        }
        Ok(())
    }

    /// Takes lanes out of a front, which may be none of them afterwards.
    fn leave(&mut self, front: usize, lanes: u32) {
        self.fronts[front].mask &= !lanes;
        self.fronts.retain(|f| f.mask != 0);
    }

    fn branch(&mut self, front: usize, active: u32, to: usize) {
        if self.fronts[front].mask == active {
            self.fronts[front].pc = to;
            return;
        }
        self.leave(front, active);
        self.fronts.push(Front { pc: to, mask: active });
    }

    fn end(&mut self, front: usize, active: u32) -> Result<()> {
        if self.lanes_of(active).any(|copies| !copies.open.is_empty() || copies.groups.iter().any(|g| !g.is_empty())) {
            return Err("a thread ends with copies under way".to_owned());
        }
        self.lanes_of(active).for_each(|copies| copies.groups.clear());
        self.ended |= active;
        self.leave(front, active);
        Ok(())
    }

    fn lanes_of(&mut self, mask: u32) -> impl Iterator<Item = &mut Copies> {
        self.copies.iter_mut().enumerate().filter(move |(l, _)| mask >> l & 1 == 1).map(|(_, copies)| copies)
    }

    fn copy_async(&mut self, active: u32, to: Place, from: Place, read: Option<usize>, spaces: &mut Spaces) -> Result<()> {
        for lane in lanes(active) {
            let read = read.map_or(16, |r| self.registers[r][lane] as u32 as usize);
            let (to, from) = (self.address(lane, to) & u64::from(u32::MAX), self.address(lane, from));
            spaces.access(Space::Shared, to, 16)?;
            if !from.is_multiple_of(16) || read > 16 {
                return Err(format!("a copy of {read} bytes from {from:#x}"));
            }
            if read > 0 {
                spaces.global.bytes(from, read)?;
            }
            self.copies[lane].open.push(Copy { to, from, read });
        }
        Ok(())
    }
}

impl Copy {
    fn land(&self, spaces: &mut Spaces) -> Result<()> {
        let mut bytes = [0; 16];
        if self.read > 0 {
            bytes[..self.read].copy_from_slice(spaces.global.bytes(self.from, self.read)?);
        }
        spaces.shared.bytes(self.to, 16)?.copy_from_slice(&bytes);
        Ok(())
    }
}

impl Waiting {
    /// What the block's predicates come to, over all its warps.
    pub fn reduce<'a>(all: impl Iterator<Item = &'a Waiting> + Clone) -> Result<u64> {
        let kinds = all.clone().map(|w| std::mem::discriminant(&w.reduce)).collect::<Vec<_>>();
        if kinds.iter().any(|k| *k != kinds[0]) {
            return Err("threads of a block wait at barriers of different kinds".to_owned());
        }
        let votes = |w: &Waiting| lanes(w.front.mask).map(|l| w.values[l] & 1).sum::<u64>();
        let (yes, threads) = (all.clone().map(votes).sum::<u64>(), all.clone().map(|w| u64::from(w.front.mask.count_ones())).sum::<u64>());
        Ok(match all.clone().next().map(|w| w.reduce) {
            Some(Reduce::And) => u64::from(yes == threads),
            Some(Reduce::Or) => u64::from(yes > 0),
            _ => yes,
        })
    }
}

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| mask >> l & 1 == 1)
}

/// As a wider register holds it.
fn widened(value: u64, kind: Kind) -> u64 {
    let unused = 64 - 8 * kind.bytes as u32;
    if kind.signed { ((value << unused) as i64 >> unused) as u64 } else { value }
}
