//! What a warp does together on pieces of matrices: `ldmatrix`, `stmatrix` and `mma.sync`. Lane 4g + t has, of a piece of 8 x 8, columns 2t and 2t + 1 of
//! row g.

use super::Result;
use super::decode::Place;
use super::forms::Lanes;
use super::memory::{Shared, load as number};
use super::warp::Warp;

/// `ldmatrix.x4`: lane 8i + r gives the address of row r of piece i.
pub fn load(registers: &mut [Lanes], transposed: bool, to: &[usize], at: Place, shared: &mut Shared) -> Result<()> {
    let addresses = registers[at.base].map(|a| a.wrapping_add(at.offset) & u64::from(u32::MAX));
    for (piece, to) in to.iter().enumerate() {
        let mut rows = [[0u16; 8]; 8];
        for (row, &address) in rows.iter_mut().zip(&addresses[8 * piece..]) {
            if !address.is_multiple_of(16) {
                return Err(format!("a row at {address:#x}, no multiple of 16"));
            }
            let bytes = shared.bytes(address, 16)?.chunks_exact(2);
            row.iter_mut().zip(bytes).for_each(|(x, b)| *x = number(b) as u16);
        }
        registers[*to] = std::array::from_fn(|lane| {
            let (g, t) = (lane / 4, lane % 4 * 2);
            let pair = if transposed { [rows[t][g], rows[t + 1][g]] } else { [rows[g][t], rows[g][t + 1]] };
            u64::from(pair[1]) << 16 | u64::from(pair[0])
        });
    }
    Ok(())
}

/// `stmatrix.x4`, the other way: lane 4g + t has columns 2t and 2t + 1 of row g, transposed rows 2t and 2t + 1 of column g.
pub fn store(warp: &Warp, transposed: bool, from: &[usize], at: Place, shared: &mut Shared) -> Result<()> {
    for (piece, from) in from.iter().enumerate() {
        for (lane, half) in (0..32).flat_map(|lane| [(lane, 0), (lane, 1)]) {
            let (g, t) = (lane / 4, lane % 4 * 2 + half);
            let (row, column) = if transposed { (t, g) } else { (g, t) };
            let address = warp.shared_address(8 * piece + row, at);
            if !address.is_multiple_of(16) {
                return Err(format!("a row at {address:#x}, no multiple of 16"));
            }
            let bits = (warp.registers[*from][lane] >> (16 * half)) as u16;
            shared.stored_by(warp.thread(lane), address + 2 * column as u64, 2)?.copy_from_slice(&bits.to_le_bytes());
        }
    }
    Ok(())
}

/// `mma.m16n8k16` of bf16: d [16, 8] = a [16, 16] b [16, 8] + c.
pub struct Product {
    pub d: [usize; 4],
    pub a: [usize; 4],
    pub b: [usize; 2],
    pub c: [usize; 4],
}

impl Product {
    /// A sum is formed in f64, in the order of k, and rounded once: what the emulator does. The chip's way is not published.
    pub fn run(&self, registers: &mut [Lanes]) {
        let (mut a, mut b) = ([[0f64; 16]; 16], [[0f64; 16]; 8]); // b by columns
        (0..32).for_each(|lane| {
            let (g, t) = (lane / 4, lane % 4 * 2);
            // The four pieces of a: left above, left below, right above, right below; the two of b: above, below.
            for (piece, register) in self.a.iter().enumerate() {
                let (row, column) = (g + piece % 2 * 8, t + piece / 2 * 8);
                [a[row][column], a[row][column + 1]] = pair(registers[*register][lane]);
            }
            for (piece, register) in self.b.iter().enumerate() {
                [b[g][t + piece * 8], b[g][t + piece * 8 + 1]] = pair(registers[*register][lane]);
            }
        });
        // Lines of zeros, of which tiles at the edge of a matrix are full, add nothing to what is finite.
        let empty = |line: &[f64; 16]| line.iter().all(|x| *x == 0.0);
        let finite = |line: &[f64; 16]| line.iter().all(|x| x.is_finite());
        let rows = a.map(|line| (empty(&line), finite(&line)));
        let columns = b.map(|line| (empty(&line), finite(&line)));
        let sums: [Lanes; 4] = std::array::from_fn(|i| {
            let start = registers[self.c[i]];
            std::array::from_fn(|lane| {
                let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
                let start = f64::from(f32::from_bits(start[lane] as u32)) + 0.0;
                let skip = rows[row].0 && columns[column].1 || columns[column].0 && rows[row].1;
                let sum = if skip { start } else { (0..16).fold(start, |sum, k| sum + a[row][k] * b[column][k]) };
                u64::from((sum as f32).to_bits())
            })
        });
        self.d.iter().zip(sums).for_each(|(d, sum)| registers[*d] = sum);
    }
}

/// Two bf16, the low half first.
pub fn pair(bits: u64) -> [f64; 2] {
    [bits << 16, bits & 0xffff_0000].map(|b| f64::from(f32::from_bits(b as u32)))
}
