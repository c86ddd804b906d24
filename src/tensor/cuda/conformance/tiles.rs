//! The wrappers of `kernels/hopper_store.cuh` and `kernels/hopper_cluster.cuh`: fragments to shared memory, boxes to device memory by TMA, and what blocks of a
//! cluster do for one another. Nothing here rounds.

use super::hopper::{Numbers, ROW_BYTES, coordinates};
use super::{Check, Finding, LANES, words};
use crate::Result;
use crate::tensor::cuda::DType::{Bf16, U32};
use crate::tensor::cuda::{Buffer, Gpu, Kernel, Launch, Source};
use std::sync::Arc;

pub(super) fn checks() -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    checks.extend([false, true].map(|transposed| -> Check { Box::new(move |gpu| stmatrix(gpu, transposed)) }));
    checks.extend::<[Check; 5]>([Box::new(store), Box::new(there_and_back), Box::new(cluster), Box::new(arrivals), Box::new(multicast)]);
    checks
}

fn launch<'a>(gpu: &'a Gpu, name: &'static str, blocks: usize, threads: usize, shared: usize) -> Launch<'a> {
    Launch::new(gpu, Kernel { source: Source::CONFORMANCE_TILES, name }, [blocks, 1, 1], [threads, 1, 1], shared)
}

/// Rows in orders drawn at random, each once (the PTX manual, "stmatrix": thread 8i + r has the address of row r of matrix i, thread 4g + t its columns 2t
/// and 2t + 1 of row g; with `.trans` rows and columns are exchanged).
fn stmatrix(gpu: &Arc<Gpu>, transposed: bool) -> Result<Finding> {
    let (warps, registers) = (16, 4);
    let numbers = words(warps * LANES * registers, 31);
    let order: Vec<u32> = (0..warps as u64)
        .flat_map(|warp| {
            let mut rows: Vec<u32> = (0..LANES as u32).collect();
            let keys = words(LANES, 64 + warp);
            rows.sort_by_key(|row| keys[*row as usize]);
            rows
        })
        .collect();
    let [from, rows] = [&numbers, &order].map(|x| Buffer::from_u32(gpu, x));
    let (from, rows, mut out) = (from?, rows?, Buffer::uninit(gpu, U32, numbers.len())?);
    let kernel = if transposed { "conformance_hopper_stmatrix_trans" } else { "conformance_hopper_stmatrix" };
    launch(gpu, kernel, warps, LANES, 0)
        .output("out", &mut out, U32, numbers.len())
        .input("in", &from, U32, numbers.len())
        .input("order", &rows, U32, order.len())
        .run()?;
    let mut want = vec![0; numbers.len()];
    for (i, number) in numbers.iter().enumerate() {
        let (warp, lane, piece) = (i / (LANES * registers), i / registers % LANES, i % registers);
        for half in 0..2 {
            let (g, t) = (lane / 4, lane % 4 * 2 + half);
            let (row, column) = if transposed { (t, g) } else { (g, t) };
            let at = order[warp * LANES + 8 * piece + row] as usize * 8 + column;
            want[(warp * LANES * 8 + at) / 2] |= (number >> (16 * half) & 0xffff) << (16 * (at % 2));
        }
    }
    let name = if transposed { "stmatrix.x4.trans" } else { "stmatrix.x4" };
    Ok(Finding::exact(name, &out.to_u32()?, &want))
}

/// The bits of bf16 numbers in device memory, two a word.
fn pairs(numbers: &Buffer) -> Result<Vec<u32>> {
    let bits: Vec<u32> = numbers.to_f32()?.into_iter().map(|x| x.to_bits() >> 16).collect();
    Ok(bits.chunks_exact(2).map(|pair| pair[0] | pair[1] << 16).collect())
}

/// Boxes over every edge of a matrix: what lies outside is not stored, and what lies beside them stays (the PTX manual, "cp.async.bulk.tensor", "Swizzling
/// modes"). More than there is shared memory for, so that each waits until its place has been read.
fn store(gpu: &Arc<Gpu>) -> Result<Finding> {
    let ([columns, rows], box_rows) = ([200, 100], 16);
    let places = [[0, 0], [128, 92], [-32, 40], [64, 16], [64, 84], [136, -8], [192, 32], [0, 100], [256, 0], [40, 56], [0, 72], [104, 40]];
    let (blocks, boxes) = (3, places.len() / 3);
    let mut matrix = Numbers::new([columns, rows, 1], 33);
    let mut to = matrix.upload(gpu)?;
    let mut tiles = Vec::new();
    for (i, [x, y]) in places.into_iter().enumerate() {
        let tile = Numbers::new([64, box_rows, 1], 34 + i as u64);
        tiles.extend(tile.boxed([0, 0, 0], box_rows, 1));
        for (row, column) in (0..box_rows).flat_map(|row| (0..64).map(move |column| (row, column))) {
            let place = [y + row as i32, x + column as i32].map(usize::try_from);
            if let [Ok(row_of), Ok(column_of)] = place
                && row_of < rows
                && column_of < columns
            {
                matrix.bits[row_of * columns + column_of] = tile.bits[row * 64 + column];
            }
        }
    }
    let at = coordinates(&places.each_ref().map(|p| &p[..]));
    let (tiles, at) = (Buffer::from_u32(gpu, &tiles)?, Buffer::from_u32(gpu, &at)?);
    launch(gpu, "conformance_hopper_store", blocks, 128, 2 * box_rows * ROW_BYTES)
        .output_matrix("map", &mut to, rows, columns, box_rows)
        .input("in", &tiles, U32, tiles.len())
        .input("at", &at, U32, at.len())
        .dim("rows", box_rows)
        .dim("boxes", boxes)
        .run()?;
    let want: Vec<u32> = matrix.bits.chunks_exact(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect();
    Ok(Finding::exact("cp.async.bulk.tensor.2d to device memory", &pairs(&to)?, &want))
}

/// What has arrived is there for the thread that has waited for it (the PTX manual, "cp.async.bulk.wait_group").
fn there_and_back(gpu: &Arc<Gpu>) -> Result<Finding> {
    let (blocks, rows) = (5, 64);
    let numbers = Numbers::new([64, blocks * rows, 1], 50);
    let tiles: Vec<u32> = (0..blocks).flat_map(|b| numbers.boxed([0, (b * rows) as i32, 0], rows, 1)).collect();
    let (mut matrix, from) = (Buffer::zeros(gpu, Bf16, 64 * blocks * rows)?, Buffer::from_u32(gpu, &tiles)?);
    let mut out = Buffer::uninit(gpu, U32, tiles.len())?;
    launch(gpu, "conformance_hopper_back", blocks, 128, rows * ROW_BYTES)
        .output("out", &mut out, U32, tiles.len())
        .output_matrix("map", &mut matrix, blocks * rows, 64, rows)
        .input("matrix", &matrix, Bf16, matrix.len())
        .input("in", &from, U32, tiles.len())
        .dim("rows", rows)
        .run()?;
    let want: Vec<u32> = numbers.bits.chunks_exact(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect();
    Ok(Finding::exact("cp.async.bulk.commit_group, wait_group", &out.to_u32()?, &want))
}

/// Words handed from block to block in `rounds` rounds; `next(i)`: whose word is added to word i.
fn handed(gpu: &Arc<Gpu>, kernel: &'static str, blocks: usize, next: impl Fn(usize) -> usize) -> Result<[Vec<u32>; 2]> {
    let (threads, rounds) = (128, 9);
    let mut want = words(blocks * threads, 51);
    let (from, mut board) = (Buffer::from_u32(gpu, &want)?, Buffer::uninit(gpu, U32, 2 * want.len())?);
    let mut out = Buffer::uninit(gpu, U32, want.len())?;
    launch(gpu, kernel, blocks, threads, 0)
        .output("out", &mut out, U32, want.len())
        .output("board", &mut board, U32, 2 * want.len())
        .input("in", &from, U32, want.len())
        .dim("rounds", rounds)
        .run()?;
    for _ in 0..rounds {
        want = (0..want.len()).map(|i| want[i].wrapping_mul(3).wrapping_add(want[next(i)])).collect();
    }
    Ok([out.to_u32()?, want])
}

/// The PTX manual, "barrier.cluster" and "%cluster_ctarank".
fn cluster(gpu: &Arc<Gpu>) -> Result<Finding> {
    let next = |i: usize| i / 512 * 512 + (i % 512 + 128) % 512;
    let [got, want] = handed(gpu, "conformance_hopper_cluster", 12, next)?;
    Ok(Finding::exact("barrier.cluster, clusters of four", &got, &want))
}

/// The PTX manual, "mapa" and "mbarrier.arrive" with the scope of the cluster.
fn arrivals(gpu: &Arc<Gpu>) -> Result<Finding> {
    let next = |i: usize| ((i / 128) ^ 1) * 128 + 127 - i % 128;
    let [got, want] = handed(gpu, "conformance_hopper_arrivals", 6, next)?;
    Ok(Finding::exact("mbarrier.arrive of another block", &got, &want))
}

/// Boxes for several blocks, inside and over the edges: at the same place in each, and told to the barrier of each (the PTX manual, "cp.async.bulk.tensor",
/// `.multicast::cluster`).
fn multicast(gpu: &Arc<Gpu>) -> Result<Finding> {
    let ([columns, rows], box_rows, of_cluster) = ([200, 100], 16, 4);
    let numbers = Numbers::new([columns, rows, 1], 52);
    let places = [[0, 0], [64, 16], [192, 40], [128, 92], [-16, 8], [72, -8], [0, 100], [136, 50]];
    // All, one, itself left out, some.
    let ranks = [0b1111, 0b0001, 0b1010, 0b0111, 0b0110, 0b1101, 0b1000, 0b1111];
    let [at, to] = [&coordinates(&places.each_ref().map(|p| &p[..]))[..], &ranks].map(|x| Buffer::from_u32(gpu, x));
    let (at, to, from) = (at?, to?, numbers.upload(gpu)?);
    let len = places.len() * of_cluster * box_rows * ROW_BYTES / 4;
    let mut out = Buffer::uninit(gpu, U32, len)?;
    launch(gpu, "conformance_hopper_multicast", places.len(), 128, of_cluster * box_rows * ROW_BYTES)
        .output("out", &mut out, U32, len)
        .matrix("map", Some(&from), rows, columns, box_rows)
        .input("at", &at, U32, at.len())
        .input("ranks", &to, U32, to.len())
        .dim("rows", box_rows)
        .run()?;
    let mut want = Vec::new();
    for (block, other) in (0..places.len()).flat_map(|block| (0..of_cluster).map(move |other| (block, other))) {
        let sender = block / of_cluster * of_cluster + other;
        let [x, y] = places[sender];
        match ranks[sender] >> (block % of_cluster) & 1 {
            1 => want.extend(numbers.boxed([x, y, 0], box_rows, 1)),
            _ => want.extend(std::iter::repeat_n(u32::MAX, box_rows * ROW_BYTES / 4)),
        }
    }
    Ok(Finding::exact("cp.async.bulk.tensor.2d, multicast", &out.to_u32()?, &want))
}
