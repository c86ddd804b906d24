//! Loads, stores, atomics, and copies by `cp.async`, lane by lane.

use super::Result;
use super::decode::{Kind, Place, Space, Update};
use super::memory::{Spaces, load, store};
use super::warp::{Warp, lanes};
use std::collections::VecDeque;

/// An asynchronous copy of 16 bytes: what of them comes from memory, where to.
struct Copy {
    to: u64,
    from: u64,
    read: usize,
}

/// A lane's copies under way.
#[derive(Default)]
pub struct Copies {
    open: Vec<Copy>,
    groups: VecDeque<Vec<Copy>>,
}

impl Copies {
    pub fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }

    /// All groups but the last `pending` land.
    pub fn wait(&mut self, pending: usize, thread: usize, spaces: &mut Spaces) -> Result<()> {
        while self.groups.len() > pending {
            self.groups.pop_front().into_iter().flatten().try_for_each(|copy| copy.land(thread, spaces))?;
        }
        Ok(())
    }

    /// The end of the thread.
    pub fn end(&mut self) -> Result<()> {
        if !self.open.is_empty() || self.groups.iter().any(|g| !g.is_empty()) {
            return Err("a thread ends with copies under way".to_owned());
        }
        self.groups.clear();
        Ok(())
    }
}

impl Copy {
    fn land(&self, thread: usize, spaces: &mut Spaces) -> Result<()> {
        let mut bytes = [0; 16];
        if self.read > 0 {
            bytes[..self.read].copy_from_slice(spaces.global.bytes(self.from, self.read)?);
        }
        spaces.shared.stored_by(thread, self.to, 16)?.copy_from_slice(&bytes);
        Ok(())
    }
}

impl Warp {
    pub fn load(&mut self, active: u32, space: Space, kind: Kind, to: &[usize], at: Place, spaces: &mut Spaces) -> Result<()> {
        for lane in lanes(active) {
            let bytes = spaces.access(space, self.address(lane, at), kind.bytes * to.len())?;
            for (part, to) in bytes.chunks_exact(kind.bytes).zip(to) {
                self.registers[*to][lane] = widened(load(part), kind);
            }
        }
        Ok(())
    }

    pub fn store(&mut self, active: u32, space: Space, kind: Kind, from: &[usize], at: Place, spaces: &mut Spaces) -> Result<()> {
        for lane in lanes(active) {
            let bytes = spaces.store(self.thread(lane), space, self.address(lane, at), kind.bytes * from.len())?;
            for (part, from) in bytes.chunks_exact_mut(kind.bytes).zip(from) {
                store(part, self.registers[*from][lane]);
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // one instruction's operands
    pub fn atomic(
        &mut self,
        active: u32,
        (space, bytes): (Space, usize),
        update: Update,
        old: Option<usize>,
        at: Place,
        [from, compare]: [usize; 2],
        spaces: &mut Spaces,
    ) -> Result<()> {
        let cut = |value: u64| if bytes == 4 { value & u64::from(u32::MAX) } else { value };
        for lane in lanes(active) {
            let place = spaces.store(self.thread(lane), space, self.address(lane, at), bytes)?;
            let before = load(place);
            store(place, update(before, cut(self.registers[from][lane]), cut(self.registers[compare][lane])));
            if let Some(old) = old {
                self.registers[old][lane] = before;
            }
        }
        Ok(())
    }

    pub fn copy_async(&mut self, active: u32, to: Place, from: Place, read: Option<usize>, spaces: &mut Spaces) -> Result<()> {
        for lane in lanes(active) {
            let read = read.map_or(16, |r| self.registers[r][lane] as u32 as usize);
            let (to, from) = (self.shared_address(lane, to), self.address(lane, from));
            spaces.access(Space::Shared, to, 16)?;
            if !from.is_multiple_of(16) || read > 16 {
                return Err(format!("a copy of {read} bytes from {from:#x}"));
            }
            if read > 0 {
                spaces.global.bytes(from, read)?;
            }
            self.copies[lane].open.push(Copy { to, from, read });
        }
        Ok(())
    }
}

/// As a wider register holds it.
pub fn widened(value: u64, kind: Kind) -> u64 {
    let unused = 64 - 8 * kind.bytes as u32;
    if kind.signed { ((value << unused) as i64 >> unused) as u64 } else { value }
}
