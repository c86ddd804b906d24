//! Blocks of a cluster (the PTX manual, "Cluster of Cooperative Thread Arrays", "barrier.cluster", "mapa"): they run in turn, each until it waits. A block
//! of a kernel without clusters is one by itself.

use super::Result;
use super::block::{self, Block};
use super::decode::Instruction;
use super::memory::{Shared, Spaces};
use super::warp::Warp;

/// Bits of an address within a block's shared memory; above them, in the window of the cluster, 1 + the block's rank, or 0 for the own one.
const WINDOW: u32 = 24;

/// What a cluster's blocks share, and the memory and barriers of those that do not run.
pub struct Cluster {
    rank: usize,
    /// By rank; none of the one that runs.
    others: Vec<Option<(Shared, Block)>>,
    ended: Vec<bool>,
    /// Of all blocks, and how many of them are in the cluster's barrier.
    threads: usize,
    arrived: usize,
    /// How often all have been.
    meetings: u64,
}

impl Cluster {
    /// Of blocks that have not begun; the one of rank 0 runs.
    pub fn new(arrays: &[(u64, u64)], blocks: usize, threads: usize) -> Self {
        let other = |rank| (rank > 0).then(|| (Shared::new(arrays.to_vec()), Block::default()));
        let others = (0..blocks).map(other).collect();
        Self { rank: 0, others, ended: vec![false; blocks], threads: blocks * threads, arrived: 0, meetings: 0 }
    }

    /// Begins the next one, of as many blocks.
    pub fn begin(&mut self) {
        self.ended.fill(false);
        (self.arrived, self.meetings) = (0, 0);
    }

    /// Threads come to the cluster's barrier.
    pub fn arrive(&mut self, threads: usize) {
        self.arrived += threads;
        if self.arrived == self.threads {
            (self.arrived, self.meetings) = (0, self.meetings + 1);
        }
    }

    pub fn meetings(&self) -> u64 {
        self.meetings
    }

    pub fn describe(&self) -> String {
        format!("the cluster, {} of whose {} threads are there", self.arrived, self.threads)
    }

    /// The address, in the cluster's window, of what lies at an address of the own block, in the block of a rank.
    pub fn map(&self, address: u64, rank: u64) -> Result<u64> {
        match address >> WINDOW == 0 && rank < self.others.len() as u64 {
            true => Ok((rank + 1) << WINDOW | address),
            false => Err(format!("address {address:#x} of block {rank} in a cluster of {}", self.others.len())),
        }
    }
}

impl Spaces<'_> {
    /// From here on the block of this rank runs.
    pub fn switch_to(&mut self, rank: usize) {
        if let Some((shared, block)) = self.cluster.others[rank].take() {
            let own = (std::mem::replace(&mut self.shared, shared), std::mem::replace(&mut self.block, block));
            let before = std::mem::replace(&mut self.cluster.rank, rank);
            self.cluster.others[before] = Some(own);
        }
    }

    /// Shared memory and barriers of the block of a rank.
    pub fn of_rank(&mut self, rank: usize) -> Result<(&mut Shared, &mut Block)> {
        if self.cluster.ended.get(rank).is_none_or(|ended| *ended) {
            return Err(format!("block {rank} of the cluster has ended, or there is none"));
        }
        match &mut self.cluster.others[rank] {
            None => Ok((&mut self.shared, &mut self.block)),
            Some((shared, block)) => Ok((shared, block)),
        }
    }

    /// The same by an address in the cluster's window, and what that is within the block.
    pub fn of_window(&mut self, address: u64) -> Result<(&mut Shared, &mut Block, u64)> {
        let rank = (address >> WINDOW).checked_sub(1).map_or(self.cluster.rank, |rank| rank as usize);
        let (shared, block) = self.of_rank(rank)?;
        Ok((shared, block, address & ((1 << WINDOW) - 1)))
    }
}

/// Runs blocks, which have begun, to their end.
pub fn run(code: &[Instruction], spaces: &mut Spaces, blocks: &mut [Vec<Warp>]) -> Result<()> {
    loop {
        let mut moved = false;
        for (rank, warps) in blocks.iter_mut().enumerate().filter(|(_, warps)| !warps.iter().all(Warp::has_ended)) {
            spaces.switch_to(rank);
            moved |= block::run(code, spaces, warps)?;
            if warps.iter().all(Warp::has_ended) {
                spaces.block.end()?;
                spaces.cluster.ended[rank] = true;
            }
        }
        if blocks.iter().flatten().all(Warp::has_ended) {
            return Ok(());
        }
        // Tiles land as late as they may: when nobody can go on.
        if !moved && !land_tile(spaces)? {
            return Err(stuck(code, spaces, blocks));
        }
    }
}

/// One of the tiles on their way lands, in a block after the last one. False if there is none.
fn land_tile(spaces: &mut Spaces) -> Result<bool> {
    let (own, count) = (spaces.cluster.rank, spaces.cluster.others.len());
    for i in 1..=count {
        spaces.switch_to((own + i) % count);
        if block::land_tile(spaces)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Who waits for what, where nobody can go on.
fn stuck(code: &[Instruction], spaces: &mut Spaces, blocks: &[Vec<Warp>]) -> String {
    let of = |(rank, warps): (usize, &Vec<Warp>)| {
        spaces.switch_to(rank);
        let who = block::who_waits(code, spaces, warps);
        if blocks.len() == 1 { who } else { format!("block {rank} of the cluster: {who}") }
    };
    format!("deadlock: {}", blocks.iter().enumerate().map(of).collect::<Vec<_>>().join("; "))
}
