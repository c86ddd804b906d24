//! What the warps of a block share beside memory, and how they run: in turn, each until it waits for others.

use super::Result;
use super::barrier::Barriers;
use super::decode::{Instruction, Reduce};
use super::memory::Spaces;
use super::text::Entry;
use super::tma::Tile;
use super::warp::{Waiting, Warp};
use super::warpgroup::Together;
use std::collections::BTreeMap;

/// Of one block.
#[derive(Default)]
pub struct Block {
    pub barriers: Barriers,
    /// Tiles on their way.
    pub tiles: Vec<Tile>,
    pub pool: Pool,
    warpgroups: Vec<Together>,
    /// Tells which tile lands next.
    random: u64,
}

impl Block {
    pub fn new(entry: &Entry, warps: usize) -> Self {
        let warpgroups = (0..warps.div_ceil(4)).map(|_| Together::default()).collect();
        Self { pool: Pool::new(entry, warps), warpgroups, random: 1, ..Self::default() }
    }

    /// What the four warps do alike, of which this is one.
    pub fn together(&mut self, warp: usize) -> &mut Together {
        &mut self.warpgroups[warp / 4]
    }

    /// The end of all threads.
    pub fn end(&self) -> Result<()> {
        if let Some(tile) = self.tiles.first() {
            return Err(format!("PTX line {}: a block ends before a tile has landed", tile.line()));
        }
        self.warpgroups.iter().try_for_each(Together::end)
    }
}

/// Registers of the block that no warp has (the PTX manual, "setmaxnreg"), counted as registers of a thread.
#[derive(Default)]
pub struct Pool {
    free: u32,
    of_warp: Vec<u32>,
}

impl Pool {
    /// A kernel whose number of registers can change is compiled with as many as its `.maxntid` and `.minnctapersm` leave to a thread.
    fn new(entry: &Entry, warps: usize) -> Self {
        const REGISTERS: u32 = 65536;
        const MOST: u32 = 255;
        let own = REGISTERS.checked_div(entry.threads * entry.blocks).map_or(0, |n| n.min(MOST) / 8 * 8);
        Self { free: 0, of_warp: vec![own; warps] }
    }

    pub fn has(&self, count: u32) -> bool {
        self.free >= count
    }

    pub fn describe(&self) -> String {
        format!("where {} are free and warps have {:?}", self.free, self.of_warp)
    }

    /// `setmaxnreg` by a warp: how many more it needs than there are, if it must wait for them.
    pub fn set(&mut self, warp: usize, more: bool, count: u32) -> Result<Option<u32>> {
        let own = self.of_warp[warp];
        match (own, more) {
            (0, _) => return Err("setmaxnreg without .maxntid and .minnctapersm".to_owned()),
            (_, true) if count < own => return Err(format!("more registers: {count} in the place of {own}")),
            (_, false) if count > own => return Err(format!("fewer registers: {count} in the place of {own}")),
            (_, true) if count - own > self.free => return Ok(Some(count - own)),
            _ => {}
        }
        self.free = self.free + own - count;
        self.of_warp[warp] = count;
        Ok(None)
    }
}

/// Runs a block's warps, which have begun, until they have ended or nobody can go on by themselves. False if nobody could at all.
pub fn run(code: &[Instruction], spaces: &mut Spaces, warps: &mut [Warp]) -> Result<bool> {
    let mut any = false;
    loop {
        let mut moved = false;
        for warp in warps.iter_mut() {
            moved |= warp.run(code, spaces)?;
        }
        if warps.iter().all(Warp::has_ended) {
            return Ok(true);
        }
        if !meet(code, warps)? && !moved {
            return Ok(any);
        }
        any = true;
    }
}

/// Lets those go on who have all come to their barrier. False if there are none.
fn meet(code: &[Instruction], warps: &mut [Warp]) -> Result<bool> {
    if warps.iter().all(Warp::waits_for_block) {
        let reduced = reduce(warps.iter().flat_map(|w| w.waiting()))?;
        warps.iter_mut().for_each(|w| w.pass(None, reduced));
        return Ok(true);
    }
    if warps.iter().any(|w| w.waiting().iter().any(|w| w.named.is_none())) && warps.iter().any(Warp::has_lost_threads) {
        return Err("some threads of the block wait at a barrier, and others have ended".to_owned());
    }
    let mut named: BTreeMap<u32, Vec<(u32, usize)>> = BTreeMap::new();
    for waiting in warps.iter().flat_map(|w| w.waiting()) {
        if let Some((id, threads)) = waiting.named {
            named.entry(id).or_default().push((threads, waiting.line(code)));
        }
    }
    for (id, wanted) in named {
        let ((threads, line), here) = (wanted[0], 32 * wanted.len() as u32);
        if wanted.iter().any(|w| w.0 != threads) {
            return Err(format!("PTX line {line}: threads wait at barrier {id} for different numbers of threads: {wanted:?}"));
        }
        if here > threads {
            return Err(format!("PTX line {line}: {here} threads wait at barrier {id}, which is for {threads}"));
        }
        if here == threads {
            warps.iter_mut().for_each(|w| w.pass(Some(id), 0));
            return Ok(true);
        }
    }
    Ok(false)
}

/// What the block's predicates come to.
fn reduce<'a>(all: impl Iterator<Item = &'a Waiting> + Clone) -> Result<u64> {
    let mut kinds = all.clone().map(|w| std::mem::discriminant(&w.reduce));
    let first = kinds.next();
    if kinds.any(|kind| Some(kind) != first) {
        return Err("threads of a block wait at barriers of different kinds".to_owned());
    }
    let (yes, threads) = (all.clone().map(Waiting::votes).sum::<u64>(), all.clone().map(Waiting::threads).sum::<u64>());
    Ok(match all.clone().next().map(|w| w.reduce) {
        Some(Reduce::And) => u64::from(yes == threads),
        Some(Reduce::Or) => u64::from(yes > 0),
        _ => yes,
    })
}

/// One of the tiles on their way lands. False if there is none.
pub fn land_tile(spaces: &mut Spaces) -> Result<bool> {
    let block = &mut spaces.block;
    if block.tiles.is_empty() {
        return Ok(false);
    }
    block.random = block.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    let tile = block.tiles.swap_remove((block.random >> 33) as usize % block.tiles.len());
    tile.land(spaces.global, &mut spaces.shared, &mut block.barriers)?;
    Ok(true)
}

/// Who waits for what, where nobody can go on.
pub fn who_waits(code: &[Instruction], spaces: &Spaces, warps: &[Warp]) -> String {
    let mut who: BTreeMap<(usize, String), Vec<usize>> = BTreeMap::new();
    for warp in warps {
        warp.waits_for(code, spaces).into_iter().for_each(|key| who.entry(key).or_default().push(warp.index()));
    }
    let all = who.into_iter().map(|((line, what), warps)| format!("PTX line {line}: warps {warps:?} wait for {what}"));
    all.collect::<Vec<_>>().join("; ")
}
