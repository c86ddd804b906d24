//! Copies of tiles from device memory (the PTX manual, "cp.async.bulk.tensor"): boxes of 64 columns of a tensor of bf16, rows of 128 bytes in shared
//! memory with the 128-byte swizzle, zeros outside the tensor.

use super::Result;
use super::barrier::Barriers;
use super::memory::{Memory, POISON, Shared, load};
use std::ops::Range;

/// Bytes of what tells of a tensor.
pub const MAP_BYTES: usize = 128;
/// Bytes of a row of a box.
pub const ROW: u64 = 128;
/// The first of a map's words: what the maps of tests begin with. (The driver's are opaque.)
const MAGIC: u64 = 0x7061_6d20_656c_6974;

/// What a map tells of a tensor: its first number, its sizes from the innermost dimension on, from one row and plane to the next in bytes, and the
/// box's rows and planes. A matrix has one plane.
pub struct Map {
    address: u64,
    sizes: [i64; 3],
    strides: [u64; 2],
    of_box: [u64; 2],
    pub dimensions: usize,
}

impl Map {
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let words: Vec<u64> = bytes.chunks_exact(8).map(load).collect();
        let [magic, address, columns, rows, stride, box_rows, planes, plane_stride, box_planes] = words[..9] else { unreachable!("nine") };
        if magic != MAGIC {
            return Err("no map of a tensor".to_owned());
        }
        let (dimensions, planes, box_planes) = if planes == 0 { (2, 1, 1) } else { (3, planes, box_planes) };
        let sizes = [columns as i64, rows as i64, planes as i64];
        Ok(Self { address, sizes, strides: [stride, plane_stride], of_box: [box_rows, box_planes], dimensions })
    }

    /// Rows of a box, plane after plane.
    pub fn rows_of_box(&self) -> u64 {
        self.of_box[0] * self.of_box[1]
    }

    /// Of a row of the box that begins at these coordinates: where what of it lies inside the tensor is, and which of its bytes that is.
    pub fn part(&self, at: [i64; 3], row: u64) -> Option<(u64, Range<usize>)> {
        let [columns, rows, planes] = self.sizes;
        let (y, z) = (at[1] + (row % self.of_box[0]) as i64, at[2] + (row / self.of_box[0]) as i64);
        let (first, last) = (at[0].clamp(0, columns), (at[0] + ROW as i64 / 2).clamp(0, columns));
        if first >= last || !(0..rows).contains(&y) || !(0..planes).contains(&z) {
            return None;
        }
        let address = self.address + z as u64 * self.strides[1] + y as u64 * self.strides[0] + 2 * first as u64;
        Some((address, 2 * (first - at[0]) as usize..2 * (last - at[0]) as usize))
    }
}

/// A tile on its way.
pub struct Tile {
    map: Map,
    to: u64,
    barrier: u64,
    /// Of its first number, from the innermost dimension on.
    at: [i64; 3],
    /// The instruction that asked for it.
    line: usize,
}

impl Tile {
    /// Takes a copy on. What is in its place is lost at once: the tile may land at any time from here on.
    pub fn new(map: &[u8], to: u64, barrier: u64, at: &[i32], line: usize, shared: &mut Shared) -> Result<Self> {
        let map = Map::read(map)?;
        if map.dimensions != at.len() {
            return Err(format!("{} coordinates in a tensor of {} dimensions", at.len(), map.dimensions));
        }
        if !to.is_multiple_of(ROW) {
            return Err(format!("a tile to {to:#x}, no multiple of {ROW}"));
        }
        let at = std::array::from_fn(|i| at.get(i).map_or(0, |x| i64::from(*x)));
        let tile = Self { map, to, barrier, at, line };
        shared.copied(to, tile.bytes())?.fill(POISON);
        Ok(tile)
    }

    fn bytes(&self) -> usize {
        (self.map.rows_of_box() * ROW) as usize
    }

    pub fn line(&self) -> usize {
        self.line
    }

    /// Writes the tile and tells its barrier.
    pub fn land(&self, global: &mut Memory, shared: &mut Shared, barriers: &mut Barriers) -> Result<()> {
        let of = |e| format!("PTX line {}: a tile lands: {e}", self.line);
        for row in 0..self.map.rows_of_box() {
            let mut numbers = [0; ROW as usize];
            if let Some((from, inside)) = self.map.part(self.at, row) {
                numbers[inside.clone()].copy_from_slice(global.bytes(from, inside.len()).map_err(of)?);
            }
            let to = self.to + row * ROW;
            let line = shared.bytes(to, ROW as usize).map_err(of)?;
            for (i, chunk) in numbers.chunks_exact(16).enumerate() {
                // The swizzle: bits 4 to 6 of an address are exchanged by bits 7 to 9.
                let place = (i as u64 ^ (to / ROW % 8)) as usize * 16;
                line[place..place + 16].copy_from_slice(chunk);
            }
        }
        barriers.land(self.barrier, self.bytes(), shared).map_err(of)
    }
}
