//! Global and shared memory, checked.

use super::Result;
use super::block::Block;
use super::cluster::Cluster;
use super::decode::Space;
use super::leave::Store;
use std::collections::BTreeMap;

/// What nobody has written: NaN in bf16 and f32, as in the emulator.
pub const POISON: u8 = 0xff;

/// Where shared memory lies among generic addresses: nowhere near a buffer.
pub const SHARED_WINDOW: u64 = 1 << 62;

/// Where the parameters of a launch do.
pub const PARAMETER_WINDOW: u64 = 1 << 61;

/// Bytes that become visible to TMA and to products together.
const GRAIN: usize = 16;

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
    /// Of each grain, 1 + the thread that has stored to it and not made it visible to TMA and products (`fence.proxy.async`).
    stored: Vec<u16>,
}

impl Shared {
    pub fn new(arrays: Vec<(u64, u64)>) -> Self {
        let end = arrays.iter().map(|(first, bytes)| first + bytes).max().unwrap_or(0);
        Self { bytes: vec![POISON; end as usize], arrays, stored: vec![0; (end as usize).div_ceil(GRAIN)] }
    }

    /// As a new block finds it.
    pub fn forget(&mut self) {
        self.bytes.fill(POISON);
        self.stored.fill(0);
    }

    /// Marks what a thread stores, within one array.
    fn mark(&mut self, address: u64, bytes: usize, mark: u16) {
        let (first, last) = (address as usize / GRAIN, (address as usize + bytes).div_ceil(GRAIN));
        self.stored[first..last].fill(mark);
    }

    /// `fence.proxy.async` by a thread.
    pub fn make_visible(&mut self, thread: usize) {
        let own = thread as u16 + 1;
        self.stored.iter_mut().filter(|s| **s == own).for_each(|s| *s = 0);
    }

    /// Bytes that a thread's store changes.
    pub fn stored_by(&mut self, thread: usize, address: u64, bytes: usize) -> Result<&mut [u8]> {
        self.bytes(address, bytes)?;
        self.mark(address, bytes, thread as u16 + 1);
        self.bytes(address, bytes)
    }

    /// Bytes that a copy by TMA changes.
    pub fn copied(&mut self, address: u64, bytes: usize) -> Result<&mut [u8]> {
        self.bytes(address, bytes)?;
        self.mark(address, bytes, 0);
        self.bytes(address, bytes)
    }

    /// Bytes of one grain that a product reads.
    pub fn visible(&mut self, address: u64, bytes: usize) -> Result<&[u8]> {
        match self.stored.get(address as usize / GRAIN) {
            Some(0) | None => self.bytes(address, bytes).map(|b| &*b),
            Some(by) => Err(format!("no fence.proxy.async since thread {} has stored to {address:#x} of shared memory", by - 1)),
        }
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

/// All that a block's instructions reach.
pub struct Spaces<'a> {
    pub global: &'a mut Memory,
    pub shared: Shared,
    pub parameters: &'a [u8],
    pub block: Block,
    /// What threads that have ended have stored by TMA: there when the launch has ended.
    pub late: Vec<Store>,
    /// The block's cluster.
    pub cluster: Cluster,
}

impl Spaces<'_> {
    /// Bytes of an aligned parameter, by its generic address.
    pub fn parameters(&self, address: u64, bytes: usize) -> Result<&[u8]> {
        let first = address.wrapping_sub(PARAMETER_WINDOW);
        let inside = usize::try_from(first)
            .ok()
            .filter(|first| first.is_multiple_of(64))
            .and_then(|first| self.parameters.get(first..first + bytes));
        inside.ok_or_else(|| format!("{bytes} bytes at {address:#x}: no parameter that is aligned to 64"))
    }

    /// What a thread's store of `bytes` bytes changes, which must be aligned to that.
    pub fn store(&mut self, thread: usize, space: Space, address: u64, bytes: usize) -> Result<&mut [u8]> {
        aligned(address, bytes)?;
        match space {
            Space::Generic if address >= SHARED_WINDOW => self.shared.stored_by(thread, address - SHARED_WINDOW, bytes),
            Space::Global | Space::Generic => self.global.bytes(address, bytes),
            Space::Shared => self.shared.stored_by(thread, address, bytes),
        }
    }

    /// One access of `bytes` bytes, which must be aligned to that.
    pub fn access(&mut self, space: Space, address: u64, bytes: usize) -> Result<&mut [u8]> {
        aligned(address, bytes)?;
        match space {
            Space::Generic if address >= SHARED_WINDOW => self.shared.bytes(address - SHARED_WINDOW, bytes),
            Space::Global | Space::Generic => self.global.bytes(address, bytes),
            Space::Shared => self.shared.bytes(address, bytes),
        }
    }
}

fn aligned(address: u64, bytes: usize) -> Result<()> {
    match address.is_multiple_of(bytes as u64) {
        true => Ok(()),
        false => Err(format!("misaligned access of {bytes} bytes at {address:#x}")),
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
