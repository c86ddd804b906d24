//! Global and shared memory, checked.

use super::Result;
use super::decode::Space;
use std::collections::BTreeMap;

/// What nobody has written: NaN in bf16 and f32, as in the emulator.
const POISON: u8 = 0xff;

/// Where shared memory lies among generic addresses: nowhere near a buffer.
pub const SHARED_WINDOW: u64 = 1 << 62;

/// Global memory: buffers at the addresses that kernels are given.
#[derive(Default)]
pub struct Memory {
    buffers: BTreeMap<u64, Vec<u8>>,
}

impl Memory {
    /// Adds a buffer that nobody has written to.
    pub fn add(&mut self, address: u64, bytes: usize) {
        self.buffers.insert(address, vec![POISON; bytes]);
    }

    pub fn remove(&mut self, address: u64) {
        self.buffers.remove(&address);
    }

    /// Every buffer with its address.
    pub fn buffers(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.buffers.iter().map(|(address, bytes)| (*address, &bytes[..]))
    }

    /// Bytes within one buffer.
    pub fn bytes(&mut self, address: u64, bytes: usize) -> Result<&mut [u8]> {
        let found = self.buffers.range_mut(..=address).next_back();
        let (first, buffer) = found.ok_or_else(|| format!("{bytes} bytes at {address:#x}, below every buffer"))?;
        let (at, len) = ((address - first) as usize, buffer.len());
        match at.checked_add(bytes).filter(|end| *end <= len) {
            Some(end) => Ok(&mut buffer[at..end]),
            None => Err(format!("{bytes} bytes at byte {at} of a buffer of {len}: out of bounds")),
        }
    }
}

/// A block's shared memory.
pub struct Shared {
    bytes: Vec<u8>,
    /// First bytes and sizes of arrays; what lies between them belongs to nobody.
    arrays: Vec<(u64, u64)>,
}

impl Shared {
    pub fn new(arrays: Vec<(u64, u64)>) -> Self {
        let end = arrays.iter().map(|(first, bytes)| first + bytes).max().unwrap_or(0);
        Self { bytes: vec![POISON; end as usize], arrays }
    }

    /// As a new block finds it.
    pub fn forget(&mut self) {
        self.bytes.fill(POISON);
    }

    /// Bytes within one array.
    pub fn bytes(&mut self, address: u64, bytes: usize) -> Result<&mut [u8]> {
        let last = address.wrapping_add(bytes as u64);
        let inside = self.arrays.iter().any(|(first, size)| *first <= address && address <= last && last <= first + size);
        if !inside {
            return Err(format!("{bytes} bytes at {address:#x} of shared memory: outside every array"));
        }
        Ok(&mut self.bytes[address as usize..last as usize])
    }
}

/// Both.
pub struct Spaces<'a> {
    pub global: &'a mut Memory,
    pub shared: Shared,
}

impl Spaces<'_> {
    /// One access of `bytes` bytes, which must be aligned to that.
    pub fn access(&mut self, space: Space, address: u64, bytes: usize) -> Result<&mut [u8]> {
        if !address.is_multiple_of(bytes as u64) {
            return Err(format!("misaligned access of {bytes} bytes at {address:#x}"));
        }
        match space {
            Space::Generic if address >= SHARED_WINDOW => self.shared.bytes(address - SHARED_WINDOW, bytes),
            Space::Global | Space::Generic => self.global.bytes(address, bytes),
            Space::Shared => self.shared.bytes(address, bytes),
        }
    }
}

/// The number in up to 8 bytes.
pub fn load(bytes: &[u8]) -> u64 {
    let mut value = [0; 8];
    value[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(value)
}

/// The other way.
pub fn store(bytes: &mut [u8], value: u64) {
    let len = bytes.len();
    bytes.copy_from_slice(&value.to_le_bytes()[..len]);
}
