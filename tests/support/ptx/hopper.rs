//! The instructions of sm_90a: their forms, and what a warp does at one.

use super::Result;
use super::block::Block;
use super::decode::{Place, UNKNOWN, place, registers};
use super::leave::Store;
use super::matrix;
use super::memory::{Shared, Spaces};
use super::text::{Entry, Operand, Statement};
use super::tma::{MAP_BYTES, Tile};
use super::warp::{Warp, lanes};
use super::warpgroup::{self, Product};
use std::sync::Arc;

/// How the opcodes of these instructions begin.
pub const FAMILIES: [&str; 9] = [
    "mapa.",
    "barrier.cluster.",
    "mbarrier.",
    "cp.async.bulk.",
    "fence.mbarrier_init.",
    "fence.proxy.",
    "setmaxnreg.",
    "stmatrix.",
    "wgmma.",
];

/// What an instruction does; numbers are registers unless something else is said.
pub enum Hopper {
    InitialiseBarrier {
        barrier: Place,
        count: usize,
    },
    /// `fence.mbarrier_init`.
    AnnounceBarriers,
    /// After `expect_tx` of the register `bytes`, where there is one.
    Arrive {
        barrier: Place,
        bytes: Option<usize>,
    },
    /// An address in the window of the cluster: of the same place in the block of a rank.
    MapAddress {
        to: usize,
        from: usize,
        rank: usize,
    },
    /// At a barrier by such an address.
    ArriveAt {
        barrier: Place,
    },
    ArriveInCluster,
    WaitForCluster,
    TryWait {
        to: usize,
        barrier: Place,
        parity: usize,
    },
    LoadTile {
        to: Place,
        map: usize,
        at: Vec<usize>,
        barrier: Place,
        /// Of the blocks that get it, a bit each; the own one where there are none.
        ranks: Option<usize>,
    },
    /// The other way.
    StoreTile {
        map: usize,
        at: Vec<usize>,
        from: Place,
    },
    CommitStores,
    /// Until they have been read, or have arrived.
    WaitForStores {
        pending: usize,
        read: bool,
    },
    StoreMatrices {
        transposed: bool,
        at: Place,
        from: Vec<usize>,
    },
    /// `fence.proxy.async`: what the lanes have stored is there for TMA and for products.
    MakeVisible,
    /// `setmaxnreg`: the new number of registers of a thread.
    SetRegisters {
        more: bool,
        count: u32,
    },
    FenceProducts,
    Multiply(Arc<Product>),
    CommitProducts,
    WaitForProducts {
        pending: usize,
    },
}

/// What came of an instruction for the lanes that came to it.
pub enum Outcome {
    Done,
    /// They go on without what they wanted to wait for.
    Tried(Until),
    /// They stay there, and sleep until this lets them go on.
    Sleep(Until),
}

/// What sleeping lanes wait for.
#[derive(Clone, Copy, PartialEq)]
pub enum Until {
    /// The end of a barrier's phase of some parity.
    Phase { barrier: u64, parity: u64 },
    /// So many meetings of the cluster.
    Meetings(u64),
    /// So many registers of a thread in the block's pool.
    Registers(u32),
}

impl Until {
    pub fn is_over(self, spaces: &Spaces) -> bool {
        match self {
            Until::Phase { barrier, parity } => spaces.block.barriers.lets_pass(barrier, parity),
            Until::Meetings(count) => spaces.cluster.meetings() >= count,
            Until::Registers(count) => spaces.block.pool.has(count),
        }
    }

    pub fn describe(self, spaces: &Spaces) -> String {
        match self {
            Until::Phase { barrier, parity } => format!("parity {parity} of {}", spaces.block.barriers.describe(barrier)),
            Until::Meetings(_) => spaces.cluster.describe(),
            Until::Registers(count) => format!("{count} registers more a thread, {}", spaces.block.pool.describe()),
        }
    }
}

/// Decodes one of them.
pub fn decode(entry: &Entry, s: &Statement) -> Result<Hopper> {
    use Operand::{Nothing, Register, Tensor, Vector};
    let unknown = || Err(UNKNOWN.to_owned());
    Ok(match (s.opcode.as_str(), &s.operands[..]) {
        ("mbarrier.init.shared::cta.b64", [at, Register(count)]) => Hopper::InitialiseBarrier { barrier: place(at)?, count: *count },
        ("fence.mbarrier_init.release.cluster", []) => Hopper::AnnounceBarriers,
        ("mbarrier.arrive.shared::cta.b64", [Nothing, at]) => Hopper::Arrive { barrier: place(at)?, bytes: None },
        ("mbarrier.arrive.expect_tx.shared::cta.b64", [Nothing, at, Register(bytes)]) => {
            Hopper::Arrive { barrier: place(at)?, bytes: Some(*bytes) }
        }
        ("mapa.shared::cluster.u32", [Register(to), Register(from), Register(rank)]) => {
            Hopper::MapAddress { to: *to, from: *from, rank: *rank }
        }
        ("mbarrier.arrive.release.cluster.shared::cluster.b64", [Nothing, at]) => Hopper::ArriveAt { barrier: place(at)? },
        ("barrier.cluster.arrive.release.aligned", []) => Hopper::ArriveInCluster,
        ("barrier.cluster.wait.acquire.aligned", []) => Hopper::WaitForCluster,
        (
            "mbarrier.try_wait.parity.shared::cta.b64" | "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64",
            [Register(to), at, Register(parity)],
        ) => Hopper::TryWait { to: *to, barrier: place(at)?, parity: *parity },
        (opcode, [to, Tensor(map, at), barrier, ranks @ ..]) => {
            let (opcode, ranks) = match (opcode.strip_suffix(".multicast::cluster"), ranks) {
                (None, []) => (opcode, None),
                (Some(opcode), [Register(ranks)]) => (opcode, Some(*ranks)),
                _ => return unknown(),
            };
            let dimensions = match opcode {
                "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes" => 2,
                "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes" => 3,
                _ => return unknown(),
            };
            if at.len() != dimensions {
                return Err(format!("{} coordinates for {dimensions} dimensions", at.len()));
            }
            Hopper::LoadTile { to: place(to)?, map: *map, at: at.clone(), barrier: place(barrier)?, ranks }
        }
        ("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group", [Tensor(map, at), from]) if at.len() == 2 => {
            Hopper::StoreTile { map: *map, at: at.clone(), from: place(from)? }
        }
        ("cp.async.bulk.commit_group", []) => Hopper::CommitStores,
        (opcode @ ("cp.async.bulk.wait_group" | "cp.async.bulk.wait_group.read"), [Register(pending)]) => {
            let pending = entry.constant(*pending).ok_or("a constant is expected")? as usize;
            Hopper::WaitForStores { pending, read: opcode.ends_with(".read") }
        }
        ("stmatrix.sync.aligned.m8n8.x4.shared.b16" | "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16", [at, Vector(from)])
            if from.len() == 4 =>
        {
            Hopper::StoreMatrices { transposed: s.opcode.contains(".trans."), at: place(at)?, from: registers(from)? }
        }
        ("fence.proxy.async.shared::cta", []) => Hopper::MakeVisible,
        (opcode @ ("setmaxnreg.inc.sync.aligned.u32" | "setmaxnreg.dec.sync.aligned.u32"), [Register(count)]) => {
            let count = entry.constant(*count).filter(|n| n.is_multiple_of(8) && (24..=256).contains(n));
            Hopper::SetRegisters { more: opcode.contains("inc"), count: count.ok_or("a multiple of 8 from 24 to 256 is expected")? as u32 }
        }
        ("wgmma.fence.sync.aligned", []) => Hopper::FenceProducts,
        ("wgmma.commit_group.sync.aligned", []) => Hopper::CommitProducts,
        ("wgmma.wait_group.sync.aligned", [Register(pending)]) => {
            Hopper::WaitForProducts { pending: entry.constant(*pending).ok_or("a constant is expected")? as usize }
        }
        (opcode, operands) if opcode.starts_with("wgmma.mma_async.") => {
            Hopper::Multiply(Arc::new(warpgroup::decode(entry, s.line, opcode, operands)?))
        }
        _ => return unknown(),
    })
}

impl Hopper {
    /// Whether all lanes of a warp must come together (`.aligned`).
    pub fn is_aligned(&self) -> bool {
        matches!(self, Hopper::StoreMatrices { .. } | Hopper::ArriveInCluster | Hopper::WaitForCluster) || self.is_of_warpgroup()
    }

    fn is_of_warpgroup(&self) -> bool {
        use Hopper::{CommitProducts, FenceProducts, Multiply, SetRegisters, WaitForProducts};
        matches!(self, SetRegisters { .. } | FenceProducts | Multiply(_) | CommitProducts | WaitForProducts { .. })
    }

    /// Calls `each` with every register that is read (but those of products, which look after themselves) or written.
    pub fn each_register(&self, mut each: impl FnMut(usize, bool)) {
        match self {
            Hopper::InitialiseBarrier { barrier, count } => [barrier.base, *count].into_iter().for_each(|r| each(r, false)),
            Hopper::Arrive { barrier, bytes } => [Some(barrier.base), *bytes].into_iter().flatten().for_each(|r| each(r, false)),
            Hopper::TryWait { to, barrier, parity } => {
                [barrier.base, *parity].into_iter().for_each(|r| each(r, false));
                each(*to, true);
            }
            Hopper::LoadTile { to, map, at, barrier, ranks } => {
                [to.base, *map, barrier.base].into_iter().chain(at.iter().copied()).chain(*ranks).for_each(|r| each(r, false));
            }
            Hopper::MapAddress { to, from, rank } => {
                [*from, *rank].into_iter().for_each(|r| each(r, false));
                each(*to, true);
            }
            Hopper::ArriveAt { barrier } => each(barrier.base, false),
            Hopper::StoreTile { map, at, from } => [*map, from.base].into_iter().chain(at.iter().copied()).for_each(|r| each(r, false)),
            Hopper::StoreMatrices { at, from, .. } => from.iter().copied().chain([at.base]).for_each(|r| each(r, false)),
            Hopper::AnnounceBarriers
            | Hopper::ArriveInCluster
            | Hopper::WaitForCluster
            | Hopper::CommitStores
            | Hopper::WaitForStores { .. }
            | Hopper::MakeVisible
            | Hopper::SetRegisters { .. }
            | Hopper::FenceProducts
            | Hopper::Multiply(_)
            | Hopper::CommitProducts
            | Hopper::WaitForProducts { .. } => {}
        }
    }

    /// Carries the instruction out for the active lanes. `tried`: they have waited for this in vain before.
    pub fn run(&self, warp: &mut Warp, active: u32, line: usize, tried: Option<Until>, spaces: &mut Spaces) -> Result<Outcome> {
        if self.is_of_warpgroup() {
            return self.run_together(warp, line, spaces);
        }
        match self {
            Hopper::InitialiseBarrier { barrier, count } => {
                for lane in lanes(active) {
                    let count = u64::from(warp.registers[*count][lane] as u32);
                    spaces.block.barriers.initialise(warp.shared_address(lane, *barrier), count, &mut spaces.shared)?;
                }
            }
            Hopper::Arrive { barrier, bytes } => {
                for lane in lanes(active) {
                    let bytes = bytes.map_or(0, |r| u64::from(warp.registers[r][lane] as u32));
                    spaces.block.barriers.arrive(warp.shared_address(lane, *barrier), bytes, &mut spaces.shared)?;
                }
            }
            Hopper::TryWait { to, barrier, parity } => return try_wait(warp, active, [*to, *parity], *barrier, tried, spaces),
            Hopper::LoadTile { to, map, at, barrier, ranks } => {
                for lane in lanes(active) {
                    let map = spaces.parameters(warp.registers[*map][lane], MAP_BYTES)?.to_vec();
                    let at: Vec<i32> = at.iter().map(|r| warp.registers[*r][lane] as i32).collect();
                    let (to, barrier) = (warp.shared_address(lane, *to), warp.shared_address(lane, *barrier));
                    let ranks = ranks.map(|r| warp.registers[r][lane] as u32 & 0xffff);
                    load_tile(&map, [to, barrier], &at, ranks, line, spaces)?;
                }
            }
            Hopper::MakeVisible => lanes(active).for_each(|lane| spaces.shared.make_visible(warp.thread(lane))),
            Hopper::AnnounceBarriers => spaces.block.barriers.announce(),
            _ => return self.run_for_others(warp, active, line, spaces),
        }
        Ok(Outcome::Done)
    }

    /// What reaches beyond the block: other blocks of its cluster, and device memory by TMA.
    fn run_for_others(&self, warp: &mut Warp, active: u32, line: usize, spaces: &mut Spaces) -> Result<Outcome> {
        match self {
            Hopper::MapAddress { to, from, rank } => {
                for lane in lanes(active) {
                    let [from, rank] = [from, rank].map(|r| u64::from(warp.registers[*r][lane] as u32));
                    warp.registers[*to][lane] = spaces.cluster.map(from, rank)?;
                }
            }
            Hopper::ArriveAt { barrier } => {
                for lane in lanes(active) {
                    let (shared, block, address) = spaces.of_window(warp.shared_address(lane, *barrier))?;
                    block.barriers.arrives_from_afar(address, shared)?;
                }
            }
            Hopper::ArriveInCluster if warp.in_cluster_barrier => return Err("twice without barrier.cluster.wait".to_owned()),
            Hopper::ArriveInCluster => {
                (warp.arrivals, warp.in_cluster_barrier) = (warp.arrivals + 1, true);
                spaces.cluster.arrive(active.count_ones() as usize);
            }
            Hopper::WaitForCluster if !warp.in_cluster_barrier => return Err("without barrier.cluster.arrive".to_owned()),
            Hopper::WaitForCluster if spaces.cluster.meetings() < warp.arrivals => {
                return Ok(Outcome::Sleep(Until::Meetings(warp.arrivals)));
            }
            Hopper::WaitForCluster => warp.in_cluster_barrier = false,
            Hopper::StoreTile { map, at, from } => {
                for lane in lanes(active) {
                    let map = spaces.parameters(warp.registers[*map][lane], MAP_BYTES)?.to_vec();
                    let at: Vec<i32> = at.iter().map(|r| warp.registers[*r][lane] as i32).collect();
                    let store = Store::new(&map, warp.shared_address(lane, *from), &at, line, &mut spaces.shared)?;
                    warp.stores[lane].push(store);
                }
            }
            Hopper::CommitStores => lanes(active).for_each(|lane| warp.stores[lane].commit()),
            Hopper::WaitForStores { pending, read } => {
                lanes(active).try_for_each(|lane| warp.stores[lane].wait(*pending, *read, spaces.global, &mut spaces.shared))?;
            }
            Hopper::StoreMatrices { transposed, at, from } => matrix::store(warp, *transposed, from, *at, &mut spaces.shared)?,
            _ => {}
        }
        Ok(Outcome::Done)
    }

    /// What the warps of a warpgroup do alike.
    fn run_together(&self, warp: &mut Warp, line: usize, spaces: &mut Spaces) -> Result<Outcome> {
        let (number, mut operands) = (warp.index(), [0; 3]);
        match self {
            Hopper::SetRegisters { more, count } => {
                if let Some(missing) = spaces.block.pool.set(number, *more, *count)? {
                    return Ok(Outcome::Sleep(Until::Registers(missing)));
                }
            }
            Hopper::FenceProducts => warp.products.fence(),
            Hopper::Multiply(product) => operands = warp.products.issue(product, &warp.registers)?,
            Hopper::CommitProducts => warp.products.commit(),
            Hopper::WaitForProducts { pending } => warp.products.wait(*pending, number, &mut warp.registers, &mut spaces.shared)?,
            _ => {}
        }
        spaces.block.together(number).step(number, line, operands)?;
        Ok(Outcome::Done)
    }
}

/// A tile to the own block, or to the same place of all blocks of `ranks`.
fn load_tile(map: &[u8], [to, barrier]: [u64; 2], at: &[i32], ranks: Option<u32>, line: usize, spaces: &mut Spaces) -> Result<()> {
    let start = |(shared, block): (&mut Shared, &mut Block)| {
        block.barriers.takes_copies(barrier, shared)?;
        block.tiles.push(Tile::new(map, to, barrier, at, line, shared)?);
        Ok::<_, String>(())
    };
    match ranks {
        None => start((&mut spaces.shared, &mut spaces.block)),
        Some(0) => Err("a tile to nobody".to_owned()),
        Some(ranks) => lanes(ranks).try_for_each(|rank| start(spaces.of_rank(rank)?)),
    }
}

fn try_wait(
    warp: &mut Warp,
    active: u32,
    [to, parity]: [usize; 2],
    barrier: Place,
    tried: Option<Until>,
    spaces: &mut Spaces,
) -> Result<Outcome> {
    let of = |lane: usize| (warp.shared_address(lane, barrier), u64::from(warp.registers[parity][lane] as u32));
    let (barrier, parity) = of(active.trailing_zeros() as usize);
    if lanes(active).any(|lane| of(lane) != (barrier, parity)) {
        return Err("lanes of a warp wait for different phases".to_owned());
    }
    let until = Until::Phase { barrier, parity };
    let ended = spaces.block.barriers.has_ended(barrier, parity, &mut spaces.shared)?;
    if !ended && tried == Some(until) {
        return Ok(Outcome::Sleep(until));
    }
    lanes(active).for_each(|lane| warp.registers[to][lane] = u64::from(ended));
    // The first try gives up at once, as it may; the next one waits.
    Ok(if ended { Outcome::Done } else { Outcome::Tried(until) })
}
