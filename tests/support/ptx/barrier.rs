//! Barriers in shared memory (the PTX manual, "mbarrier"): phases, arrivals that are missing, bytes that are on their way.

use super::Result;
use super::memory::Shared;
use std::collections::BTreeMap;

/// What the 64 bits of a barrier hold. They are opaque: an access by anything but an instruction for barriers is a mistake.
const OPAQUE: [u8; 8] = *b"mbarrier";
/// The largest count of arrivals, and of bytes that may be missing or have come too early.
const LIMIT: i64 = (1 << 20) - 1;

/// The barriers of a block, by their addresses.
#[derive(Default)]
pub struct Barriers {
    all: BTreeMap<u64, Barrier>,
}

struct Barrier {
    count: i64,
    /// Arrivals that the phase still waits for, and bytes.
    missing: i64,
    bytes: i64,
    /// Phases that have ended.
    ended: u64,
    /// Whether `fence.mbarrier_init` has followed.
    announced: bool,
}

impl Barriers {
    pub fn initialise(&mut self, address: u64, count: u64, shared: &mut Shared) -> Result<()> {
        if !address.is_multiple_of(8) {
            return Err(format!("a barrier at {address:#x}, no multiple of 8"));
        }
        let count =
            i64::try_from(count).ok().filter(|n| (1..=LIMIT).contains(n)).ok_or_else(|| format!("a barrier for {count} arrivals"))?;
        shared.bytes(address, 8)?.copy_from_slice(&OPAQUE);
        match self.all.insert(address, Barrier { count, missing: count, bytes: 0, ended: 0, announced: false }) {
            None => Ok(()),
            Some(_) => Err(format!("the barrier at {address:#x} is initialised already")),
        }
    }

    /// `fence.mbarrier_init`: TMA sees the barriers that have been initialised so far.
    pub fn announce(&mut self) {
        self.all.values_mut().for_each(|b| b.announced = true);
    }

    fn at(&mut self, address: u64, shared: &mut Shared) -> Result<&mut Barrier> {
        let barrier = self.all.get_mut(&address).ok_or_else(|| format!("no barrier was initialised at {address:#x}"))?;
        if shared.bytes(address, 8)? != OPAQUE {
            return Err(format!("something has written over the barrier at {address:#x}"));
        }
        Ok(barrier)
    }

    /// `mbarrier.arrive`, after `expect_tx` of some bytes.
    pub fn arrive(&mut self, address: u64, bytes: u64, shared: &mut Shared) -> Result<()> {
        let barrier = self.at(address, shared)?;
        barrier.add_bytes(i64::try_from(bytes).unwrap_or(i64::MAX), address)?;
        if barrier.missing == 0 {
            return Err(format!("the barrier at {address:#x} has all {} arrivals of its phase already", barrier.count));
        }
        barrier.missing -= 1;
        barrier.end_phase();
        Ok(())
    }

    /// The same by a thread of another block, which must know of the barrier.
    pub fn arrives_from_afar(&mut self, address: u64, shared: &mut Shared) -> Result<()> {
        self.takes_copies(address, shared)?;
        self.arrive(address, 0, shared)
    }

    /// Whether a copy may arrive here.
    pub fn takes_copies(&mut self, address: u64, shared: &mut Shared) -> Result<()> {
        match self.at(address, shared)?.announced {
            true => Ok(()),
            false => Err(format!("no fence.mbarrier_init has followed the initialisation of the barrier at {address:#x}")),
        }
    }

    /// `complete_tx`: so many bytes have landed.
    pub fn land(&mut self, address: u64, bytes: usize, shared: &mut Shared) -> Result<()> {
        let barrier = self.at(address, shared)?;
        barrier.add_bytes(-(bytes as i64), address)?;
        barrier.end_phase();
        Ok(())
    }

    /// `try_wait.parity`: whether the phase of this parity has ended, which before the first phase has ended is that of parity 1.
    pub fn has_ended(&mut self, address: u64, parity: u64, shared: &mut Shared) -> Result<bool> {
        if parity > 1 {
            return Err(format!("a parity of {parity}"));
        }
        Ok(self.at(address, shared)?.ended & 1 != parity)
    }

    /// The same of a barrier that a lane waits for already.
    pub fn lets_pass(&self, address: u64, parity: u64) -> bool {
        self.all.get(&address).is_some_and(|b| b.ended & 1 != parity)
    }

    /// What a barrier still waits for, in words.
    pub fn describe(&self, address: u64) -> String {
        self.all.get(&address).map_or("no barrier".to_owned(), |b| {
            let Barrier { count, missing, bytes, ended, .. } = b;
            format!("the barrier at {address:#x}, whose phase {ended} misses {missing} of {count} arrivals and {bytes} bytes")
        })
    }
}

impl Barrier {
    fn add_bytes(&mut self, bytes: i64, address: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes.abs() > LIMIT {
            return Err(format!("the barrier at {address:#x} cannot count {} bytes on their way", self.bytes));
        }
        Ok(())
    }

    fn end_phase(&mut self) {
        if self.missing == 0 && self.bytes == 0 {
            (self.missing, self.ended) = (self.count, self.ended + 1);
        }
    }
}
