//! The wrappers of `kernels/hopper.cuh` that move bits: tiles by TMA, barriers' phases, named barriers, registers. Nothing here rounds, so all bits
//! must be the same.

use super::{Check, Finding, words};
use crate::Result;
use crate::tensor::cuda::DType::{Bf16, U32};
use crate::tensor::cuda::{Buffer, Gpu, Kernel, Launch, Planes, Source};
use half::bf16;
use std::sync::Arc;

pub(super) fn checks() -> Vec<Check> {
    let mut checks: Vec<Check> = vec![Box::new(matrix), Box::new(planes), Box::new(phases), Box::new(named_barrier), Box::new(registers)];
    checks.extend(super::tiles::checks());
    checks.extend(super::wgmma::checks());
    checks
}

/// A launch of one of `kernels/conformance_hopper.cu`'s kernels.
pub(super) fn launch<'a>(gpu: &'a Gpu, name: &'static str, blocks: usize, threads: usize, shared: usize) -> Launch<'a> {
    Launch::new(gpu, Kernel { source: Source::CONFORMANCE_HOPPER, name }, [blocks, 1, 1], [threads, 1, 1], shared)
}

/// Bytes of a row of a box: 64 columns.
pub(super) const ROW_BYTES: usize = 128;

/// Numbers `[planes, rows, columns]`, of which TMA copies boxes.
pub(super) struct Numbers {
    pub(super) bits: Vec<u16>,
    /// Columns, rows, planes.
    sizes: [usize; 3],
}

impl Numbers {
    /// Random bits of bf16, but of finite numbers, which an upload leaves as they are.
    pub(super) fn new(sizes: [usize; 3], stream: u64) -> Self {
        let finite = |w: u32| if w & 0x7f80 == 0x7f80 { w & 0xbfff } else { w } as u16;
        Self { bits: words(sizes.iter().product(), stream).into_iter().map(|w| finite(w >> 16)).collect(), sizes }
    }

    pub(super) fn upload(&self, gpu: &Arc<Gpu>) -> Result<Buffer> {
        Buffer::from_f32(gpu, Bf16, &self.bits.iter().map(|b| bf16::from_bits(*b).to_f32()).collect::<Vec<_>>())
    }

    /// Zero where a coordinate lies outside (the PTX manual, "Tiled mode": "Out of boundary access").
    fn at(&self, place: [i32; 3]) -> u16 {
        let inside = |(at, size): (i32, usize)| usize::try_from(at).ok().filter(|at| *at < size);
        let [Some(x), Some(y), Some(z)] = [0, 1, 2].map(|i| inside((place[i], self.sizes[i]))) else { return 0 };
        self.bits[(z * self.sizes[1] + y) * self.sizes[0] + x]
    }

    /// A box of 64 columns, `box_rows` rows and some planes as it lies in shared memory: rows of 128 bytes one after another, plane after plane, the
    /// 16-byte chunks of row r exchanged by r % 8 (the PTX manual, "Swizzling modes", of 128 bytes).
    pub(super) fn boxed(&self, [x, y, z]: [i32; 3], box_rows: usize, planes: usize) -> Vec<u32> {
        let mut words = Vec::new();
        for row in 0..box_rows * planes {
            let (y, z) = (y + (row % box_rows) as i32, z + (row / box_rows) as i32);
            for word in 0..ROW_BYTES / 4 {
                let column = x + (((word / 4) ^ (row % 8)) * 8 + word % 4 * 2) as i32;
                words.push(u32::from(self.at([column, y, z])) | u32::from(self.at([column + 1, y, z])) << 16);
            }
        }
        words
    }
}

/// Coordinates as a kernel takes them.
pub(super) fn coordinates(places: &[&[i32]]) -> Vec<u32> {
    places.concat().into_iter().map(i32::cast_unsigned).collect()
}

fn matrix(gpu: &Arc<Gpu>) -> Result<Finding> {
    let (columns, rows, box_rows) = (200, 100, 64);
    let numbers = Numbers::new([columns, rows, 1], 11);
    // Inside, over each edge and two corners, and outside.
    let places = [[64, 8], [0, 36], [192, 0], [128, 72], [192, 97], [-8, 20], [64, -3], [-56, -63], [0, 100], [256, 0]];
    let at = Buffer::from_u32(gpu, &coordinates(&places.each_ref().map(|p| &p[..])))?;
    let len = places.len() * box_rows * ROW_BYTES / 4;
    let (mut out, from) = (Buffer::uninit(gpu, U32, len)?, numbers.upload(gpu)?);
    launch(gpu, "conformance_hopper_matrix", places.len(), 128, box_rows * ROW_BYTES)
        .output("out", &mut out, U32, len)
        .matrix("map", Some(&from), rows, columns, box_rows)
        .input("at", &at, U32, at.len())
        .dim("rows", box_rows)
        .run()?;
    let want: Vec<u32> = places.iter().flat_map(|[x, y]| numbers.boxed([*x, *y, 0], box_rows, 1)).collect();
    Ok(Finding::exact("cp.async.bulk.tensor.2d, 128-byte swizzle", &out.to_u32()?, &want))
}

fn planes(gpu: &Arc<Gpu>) -> Result<Finding> {
    let ([columns, rows, count], box_rows, of_box) = ([72, 6, 9], 3, 5);
    let numbers = Numbers::new([columns, rows, count], 12);
    // Also over the end of a plane's rows, where the next plane's do not follow.
    let places = [[0, 0, 0], [64, 3, 2], [0, 4, 1], [0, 3, 6], [64, 5, 7], [-16, -1, -2], [0, 0, 9], [0, 6, 3]];
    let at = Buffer::from_u32(gpu, &coordinates(&places.each_ref().map(|p| &p[..])))?;
    let len = places.len() * box_rows * of_box * ROW_BYTES / 4;
    let (mut out, from) = (Buffer::uninit(gpu, U32, len)?, numbers.upload(gpu)?);
    launch(gpu, "conformance_hopper_planes", places.len(), 128, box_rows * of_box * ROW_BYTES)
        .output("out", &mut out, U32, len)
        .planes("map", &from, Planes { count, of_box }, rows, columns, box_rows)
        .input("at", &at, U32, at.len())
        .dim("rows", box_rows * of_box)
        .run()?;
    let want: Vec<u32> = places.iter().flat_map(|at| numbers.boxed(*at, box_rows, of_box)).collect();
    Ok(Finding::exact("cp.async.bulk.tensor.3d, 128-byte swizzle", &out.to_u32()?, &want))
}

/// Rounds through two stages: bytes and arrivals end a phase, and a stage is filled again once it was read. A phase that ends too soon leaves other words; one
/// that never ends, a hang (the PTX manual, "mbarrier": "Phase of an mbarrier object").
fn phases(gpu: &Arc<Gpu>) -> Result<Finding> {
    let (rounds, rows, known) = (9, 16, 64);
    let numbers = Numbers::new([64, rounds * rows, 1], 13);
    let seeds = words(rounds * known, 14);
    let (from, seeds_on) = (numbers.upload(gpu)?, Buffer::from_u32(gpu, &seeds)?);
    let len = rounds * (rows * ROW_BYTES / 4 + known);
    let mut out = Buffer::uninit(gpu, U32, len)?;
    launch(gpu, "conformance_hopper_phases", 1, 256, 2 * rows * ROW_BYTES)
        .output("out", &mut out, U32, len)
        .matrix("map", Some(&from), rounds * rows, 64, rows / 2)
        .input("seeds", &seeds_on, U32, seeds.len())
        .dim("rounds", rounds)
        .run()?;
    let step = |x: u32| {
        let x = x ^ x << 13;
        let x = x ^ x >> 17;
        x ^ x << 5
    };
    let mut want = Vec::new();
    for (round, seeds) in seeds.chunks_exact(known).enumerate() {
        want.extend(numbers.boxed([0, (round * rows) as i32, 0], rows, 1));
        want.extend(seeds.iter().map(|seed| (0..100).fold(*seed, |x, _| step(x))));
    }
    Ok(Finding::exact("mbarrier: bytes, arrivals and parity", &out.to_u32()?, &want))
}

/// Barriers for a part of the block (the PTX manual, "bar": a barrier number and a thread count).
fn named_barrier(gpu: &Arc<Gpu>) -> Result<Finding> {
    let group = 128;
    let numbers = words(3 * group, 15);
    let (mut out, from) = (Buffer::uninit(gpu, U32, numbers.len())?, Buffer::from_u32(gpu, &numbers)?);
    launch(gpu, "conformance_hopper_named_barrier", 1, 3 * group, 0)
        .output("out", &mut out, U32, numbers.len())
        .input("in", &from, U32, numbers.len())
        .run()?;
    let mut want = numbers;
    for (g, words) in want.chunks_exact_mut(group).take(2).enumerate() {
        for _ in 0..3 + 2 * g {
            let first = words[0];
            for i in 0..group {
                words[i] = words[i].wrapping_mul(3).wrapping_add(if i + 1 < group { words[i + 1] } else { first });
            }
        }
    }
    let before = want.clone();
    for i in 0..2 * group {
        want[i] = before[i].wrapping_mul(5).wrapping_add(before[2 * group - 1 - i]);
    }
    Ok(Finding::exact("bar.sync of a part of the block", &out.to_u32()?, &want))
}

/// Registers given by a warpgroup and taken by two (the PTX manual, "setmaxnreg"): more than a thread has at the launch, with all of them full. As many blocks as
/// use every multiprocessor more than once.
fn registers(gpu: &Arc<Gpu>) -> Result<Finding> {
    let (takers, held, givers) = (256, 192, 128);
    let blocks = 3 * gpu.info().multiprocessors;
    let numbers = words(takers * held + givers, 16);
    let len = blocks * numbers.len();
    let (mut out, from) = (Buffer::uninit(gpu, U32, len)?, Buffer::from_u32(gpu, &numbers)?);
    launch(gpu, "conformance_hopper_registers", blocks, takers + givers, 0)
        .output("out", &mut out, U32, len)
        .input("in", &from, U32, numbers.len())
        .run()?;
    let mut want = numbers;
    let (words, given) = want.split_at_mut(takers * held);
    // One register after another: the second half adds what the first has become.
    for j in 0..held {
        for thread in 0..takers {
            let other = words[(j + held / 2) % held * takers + thread];
            let own = &mut words[j * takers + thread];
            *own = own.wrapping_add(other.wrapping_mul(3));
        }
    }
    given.iter_mut().for_each(|w| *w = !*w);
    let want = want.repeat(blocks);
    Ok(Finding::exact("setmaxnreg.dec and .inc", &out.to_u32()?, &want))
}
