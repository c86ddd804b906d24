//! A warp: 32 lanes in lockstep. Lanes that have gone different ways are different fronts; the one at the lowest program counter runs, and
//! fronts that meet are one again. What lanes do together waits for those that are behind.

use super::Result;
use super::access::{Copies, widened};
use super::decode::{Action, Instruction, Place, Reduce};
use super::forms::Lanes;
use super::hopper::{Hopper, Outcome, Until};
use super::leave::Stores;
use super::memory::{Spaces, load};
use super::text::Entry;
use super::warpgroup::Products;
use super::{exchange, matrix};

/// More instructions than any kernel of a test runs between two barriers: a loop without end.
const PATIENCE: usize = 20_000_000;

/// Lanes at one instruction.
#[derive(Clone, Copy)]
struct Front {
    pc: usize,
    mask: u32,
    /// What they have tried to wait for, and whether they sleep until then.
    tried: Option<Until>,
    asleep: bool,
}

impl Front {
    fn new(pc: usize, mask: u32) -> Self {
        Self { pc, mask, tried: None, asleep: false }
    }
}

/// Lanes that wait at a barrier, and what they brought.
pub struct Waiting {
    front: Front,
    /// The barrier's number and how many threads it is for; none at the block's.
    pub named: Option<(u32, u32)>,
    pub reduce: Reduce,
    to: usize,
    values: Lanes,
}

pub struct Warp {
    pub registers: Vec<Lanes>,
    /// Of a warpgroup, where the kernel has such.
    pub products: Products,
    fronts: Vec<Front>,
    waiting: Vec<Waiting>,
    pub copies: [Copies; 32],
    pub stores: [Stores; 32],
    ended: u32,
    lanes: u32,
    index: usize,
    /// How often it has come to the cluster's barrier, and whether it has not waited since.
    pub arrivals: u64,
    pub in_cluster_barrier: bool,
    /// Whether what happens to registers matters to products.
    multiplies: bool,
    /// Lane instructions so far.
    pub executed: u64,
}

impl Warp {
    /// A warp of a block, whose first lane is thread 32 `index` of `threads`.
    pub fn new(entry: &Entry, code: &[Instruction], index: usize, threads: usize) -> Self {
        let count = (threads - 32 * index).min(32);
        let lanes = if count == 32 { u32::MAX } else { (1 << count) - 1 };
        let mut registers = vec![[0; 32]; entry.registers];
        entry.constants.iter().for_each(|(value, register)| registers[*register] = [*value; 32]);
        Self {
            registers,
            products: Products::default(),
            fronts: Vec::new(),
            waiting: Vec::new(),
            copies: std::array::from_fn(|_| Copies::default()),
            stores: std::array::from_fn(|_| Stores::default()),
            ended: 0,
            lanes,
            index,
            arrivals: 0,
            in_cluster_barrier: false,
            multiplies: code.iter().any(|i| matches!(i.action, Action::Hopper(Hopper::Multiply(_)))),
            executed: 0,
        }
    }

    /// Begins a block: `special` tells each lane what it is.
    pub fn begin(&mut self, entry: &Entry, special: impl Fn(&str, usize) -> u32) {
        for (name, register) in &entry.specials {
            self.registers[*register] = std::array::from_fn(|lane| u64::from(special(name, self.thread(lane))));
        }
        self.fronts = vec![Front::new(0, self.lanes)];
        self.products = Products::new(if self.multiplies { entry.registers } else { 0 });
        (self.ended, self.arrivals, self.in_cluster_barrier) = (0, 0, false);
    }

    /// Which of its block it is.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Which of its block's threads a lane is.
    pub fn thread(&self, lane: usize) -> usize {
        32 * self.index + lane
    }

    pub fn has_ended(&self) -> bool {
        self.ended == self.lanes
    }

    pub fn has_lost_threads(&self) -> bool {
        self.ended != 0
    }

    /// Whether every lane waits at the block's barrier.
    pub fn waits_for_block(&self) -> bool {
        self.ended == 0 && self.fronts.is_empty() && self.waiting.iter().all(|w| w.named.is_none())
    }

    pub fn waiting(&self) -> &[Waiting] {
        &self.waiting
    }

    /// Lets lanes pass the block's barrier or the one of a number, each with what the block has reduced to.
    pub fn pass(&mut self, id: Option<u32>, reduced: u64) {
        let (pass, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting).into_iter().partition(|w| w.named.map(|(id, _)| id) == id);
        self.waiting = stay;
        for waiting in pass {
            if !matches!(waiting.reduce, Reduce::None) {
                self.each(waiting.front.mask, |registers, lane| registers[waiting.to][lane] = reduced);
            }
            self.fronts.push(waiting.front);
        }
        self.merge();
    }

    /// What its lanes that cannot go on wait for, and in which lines.
    pub fn waits_for(&self, code: &[Instruction], spaces: &Spaces) -> Vec<(usize, String)> {
        let barriers = self.waiting.iter().map(|w| match w.named {
            Some((id, threads)) => (w.line(code), format!("{threads} threads at barrier {id}")),
            None => (w.line(code), "the block".to_owned()),
        });
        let fronts = self.fronts.iter().map(|f| match f.tried {
            Some(until) if f.asleep => (code[f.pc].line, until.describe(spaces)),
            _ => (code[f.pc].line, "other lanes".to_owned()),
        });
        barriers.chain(fronts).collect()
    }

    /// Runs until every lane has ended or waits. False if none could go on.
    pub fn run(&mut self, code: &[Instruction], spaces: &mut Spaces) -> Result<bool> {
        for steps in 0..PATIENCE {
            self.fronts.iter_mut().for_each(|f| f.asleep &= !f.tried.is_some_and(|until| until.is_over(spaces)));
            if self.fronts.iter().all(|f| f.asleep) {
                return Ok(steps > 0);
            }
            let Some((chosen, active)) = self.choose(code)? else { return Ok(steps > 0) };
            let pc = self.fronts[chosen].pc;
            let instruction = code.get(pc).ok_or("the code ends without ret")?;
            self.executed += u64::from(active.count_ones());
            self.step(instruction, chosen, active, spaces)
                .map_err(|e| format!("PTX line {}: {e}, by warp {} of the block, lanes {active:#x}", instruction.line, self.index))?;
            if self.fronts.len() > 1 {
                self.merge();
            }
        }
        let line = self.fronts.first().and_then(|f| code.get(f.pc)).map_or(0, |i| i.line);
        Err(format!("PTX line {line}: a loop without end, by warp {} of the block", self.index))
    }

    /// The front to run, and its lanes that the guard lets pass; none where lanes wait for others that sleep.
    fn choose(&self, code: &[Instruction]) -> Result<Option<(usize, u32)>> {
        let mut wanted = None;
        for (i, front) in self.fronts.iter().enumerate().filter(|(_, f)| !f.asleep) {
            let Some(instruction) = code.get(front.pc) else { return Ok(Some((i, front.mask))) };
            let active = match instruction.guard {
                None => front.mask,
                Some((register, negated)) => {
                    let predicate = &self.registers[register];
                    (0..32).fold(0, |mask, l| mask | (((predicate[l] & 1 == 1) != negated) as u32) << l) & front.mask
                }
            };
            let needed = if active == 0 { 0 } else { self.needed(&instruction.action, active) };
            if needed & !active == 0 {
                return Ok(Some((i, active)));
            }
            wanted.get_or_insert((instruction.line, needed, active));
        }
        match wanted {
            Some((line, needed, active)) if self.fronts.iter().all(|f| !f.asleep) => {
                let all = format!("lanes {needed:#x} are needed together, and {active:#x} are there");
                Err(format!("PTX line {line}: divergent warp {}: {all}", self.index))
            }
            _ => Ok(None),
        }
    }

    /// The lanes that an instruction needs together.
    fn needed(&self, action: &Action, active: u32) -> u32 {
        let of = |register: usize| lanes(active).fold(0, |all, lane| all | self.registers[register][lane] as u32);
        match action {
            Action::Shuffle { mask, .. } | Action::Vote { mask, .. } | Action::MatchAny { mask, .. } | Action::WarpBarrier { mask } => {
                of(*mask) & self.lanes
            }
            Action::LoadMatrices { .. } | Action::Multiply(_) | Action::Barrier { threads: Some(_), .. } => u32::MAX,
            Action::Hopper(hopper) if hopper.is_aligned() => u32::MAX,
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

    /// Fronts in order, those at one place as one; it sleeps if both did for the same.
    fn merge(&mut self) {
        self.fronts.sort_by_key(|f| f.pc);
        self.fronts.dedup_by(|later, first| {
            let same = later.pc == first.pc;
            if same {
                let tried = first.tried.filter(|until| later.tried == Some(*until));
                *first = Front { mask: first.mask | later.mask, tried, asleep: first.asleep && later.asleep && tried.is_some(), ..*first };
            }
            same
        });
    }

    fn each(&mut self, mask: u32, mut f: impl FnMut(&mut [Lanes], usize)) {
        (0..32).filter(|l| mask >> l & 1 == 1).for_each(|lane| f(&mut self.registers[..], lane));
    }

    fn step(&mut self, instruction: &Instruction, front: usize, active: u32, spaces: &mut Spaces) -> Result<()> {
        let pc = self.fronts[front].pc;
        self.fronts[front].pc = pc + 1;
        if active == 0 {
            return Ok(());
        }
        if self.multiplies {
            self.products.note(instruction)?;
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
                let bytes = &spaces.parameters[*first as usize..][..kind.bytes];
                self.each(active, |r, l| r[*to][l] = widened(load(bytes), *kind));
            }
            Action::Load { space, kind, to, at } => self.load(active, *space, *kind, to, *at, spaces)?,
            Action::Store { space, kind, from, at } => self.store(active, *space, *kind, from, *at, spaces)?,
            Action::Atomic { space, update, bytes, old, at, from, compare } => {
                self.atomic(active, (*space, *bytes), *update, *old, *at, [*from, *compare], spaces)?;
            }
            Action::Branch { to } => self.branch(front, active, *to),
            Action::Exit => self.end(front, active, spaces)?,
            Action::Barrier { id, threads, reduce, to, from } => {
                let named = threads.map(|threads| self.named(active, *id, threads)).transpose()?;
                let values = self.registers[*from];
                self.waiting.push(Waiting { front: Front::new(pc + 1, active), named, reduce: *reduce, to: *to, values });
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
            Action::CommitCopies => lanes(active).for_each(|lane| self.copies[lane].commit()),
            Action::WaitForCopies { pending } => {
                lanes(active).try_for_each(|lane| self.copies[lane].wait(*pending, 32 * self.index + lane, spaces))?;
            }
            Action::Hopper(hopper) => {
                let tried = self.fronts[front].tried;
                let (tried, asleep) = match hopper.run(self, active, instruction.line, tried, spaces)? {
                    Outcome::Done => (None, false),
                    Outcome::Tried(until) => (Some(until), false),
                    Outcome::Sleep(until) => (Some(until), true),
                };
                let front = &mut self.fronts[front];
                *front = Front { pc: if asleep { pc } else { pc + 1 }, tried, asleep, ..*front };
            }
            Action::WarpBarrier { mask } => drop(self.groups(*mask, active)?),
            Action::Nothing => {}
        }
        Ok(())
    }

    /// A barrier's number and how many threads it is for, which all lanes give alike.
    fn named(&self, active: u32, id: usize, threads: usize) -> Result<(u32, u32)> {
        let of = |lane: usize| (self.registers[id][lane] as u32, self.registers[threads][lane] as u32);
        let (id, threads) = of(0);
        match lanes(active).all(|lane| of(lane) == (id, threads)) && id < 16 && threads > 0 && threads.is_multiple_of(32) {
            true => Ok((id, threads)),
            false => Err(format!("barrier {id} of {threads} threads")),
        }
    }

    pub fn address(&self, lane: usize, at: Place) -> u64 {
        self.registers[at.base][lane].wrapping_add(at.offset)
    }

    /// The same in shared memory.
    pub fn shared_address(&self, lane: usize, at: Place) -> u64 {
        self.address(lane, at) & u64::from(u32::MAX)
    }

    /// Takes lanes out of a front, which may be none of them afterwards.
    fn leave(&mut self, front: usize, lanes: u32) {
        self.fronts[front].mask &= !lanes;
        self.fronts.retain(|f| f.mask != 0);
    }

    fn branch(&mut self, front: usize, active: u32, to: usize) {
        let tried = self.fronts[front].tried;
        if self.fronts[front].mask == active {
            self.fronts[front].pc = to;
            return;
        }
        self.leave(front, active);
        self.fronts.push(Front { pc: to, mask: active, tried, asleep: false });
    }

    fn end(&mut self, front: usize, active: u32, spaces: &mut Spaces) -> Result<()> {
        lanes(active).try_for_each(|lane| self.copies[lane].end())?;
        for lane in lanes(active) {
            spaces.late.extend(self.stores[lane].end()?);
        }
        self.products.end()?;
        self.ended |= active;
        self.leave(front, active);
        Ok(())
    }
}

impl Waiting {
    /// Of the barrier in the PTX.
    pub fn line(&self, code: &[Instruction]) -> usize {
        code[self.front.pc - 1].line
    }

    /// How many of its threads vote for it.
    pub fn votes(&self) -> u64 {
        lanes(self.front.mask).map(|l| self.values[l] & 1).sum()
    }

    pub fn threads(&self) -> u64 {
        u64::from(self.front.mask.count_ones())
    }
}

pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| mask >> l & 1 == 1)
}
