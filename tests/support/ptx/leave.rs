//! Tiles on their way to device memory (the PTX manual, "cp.async.bulk.tensor", "cp.async.bulk.wait_group"): read when their thread waits for that and no
//! sooner; there when it waits for all, or behind the whole launch.

use super::Result;
use super::memory::{Memory, Shared};
use super::tma::{Map, ROW};
use std::collections::VecDeque;

/// The store of a box.
pub struct Store {
    map: Map,
    from: u64,
    /// Of its first number, from the innermost dimension on.
    at: [i64; 3],
    line: usize,
    /// What has been read.
    rows: Option<Vec<[u8; ROW as usize]>>,
}

impl Store {
    /// Takes a store on, whose source must be visible to TMA.
    pub fn new(map: &[u8], from: u64, at: &[i32], line: usize, shared: &mut Shared) -> Result<Self> {
        let map = Map::read(map)?;
        if map.dimensions != at.len() {
            return Err(format!("{} coordinates in a tensor of {} dimensions", at.len(), map.dimensions));
        }
        if !from.is_multiple_of(ROW) {
            return Err(format!("a tile from {from:#x}, no multiple of {ROW}"));
        }
        let at = std::array::from_fn(|i| at.get(i).map_or(0, |x| i64::from(*x)));
        let store = Self { map, from, at, line, rows: None };
        store.source(shared)?;
        Ok(store)
    }

    fn source(&self, shared: &mut Shared) -> Result<Vec<[u8; ROW as usize]>> {
        (0..self.map.rows_of_box()).map(|row| self.row(row, shared)).collect()
    }

    /// One row of the box, its chunks in order: bits 4 to 6 of an address are exchanged by bits 7 to 9.
    fn row(&self, row: u64, shared: &mut Shared) -> Result<[u8; ROW as usize]> {
        let (from, mut line) = (self.from + row * ROW, [0; ROW as usize]);
        for (i, chunk) in line.chunks_exact_mut(16).enumerate() {
            chunk.copy_from_slice(shared.visible(from + (i as u64 ^ (from / ROW % 8)) * 16, 16)?);
        }
        Ok(line)
    }

    fn read(&mut self, shared: &mut Shared) -> Result<()> {
        if self.rows.is_none() {
            self.rows = Some(self.source(shared).map_err(|e| format!("the store of PTX line {}: {e}", self.line))?);
        }
        Ok(())
    }

    /// What has been read arrives.
    pub fn land(self, global: &mut Memory) -> Result<()> {
        for (row, numbers) in self.rows.iter().flatten().enumerate() {
            let Some((to, inside)) = self.map.part(self.at, row as u64) else { continue };
            let of = |e| format!("the store of PTX line {}: {e}", self.line);
            global.bytes(to, inside.len()).map_err(of)?.copy_from_slice(&numbers[inside]);
        }
        Ok(())
    }
}

/// A thread's stores under way.
#[derive(Default)]
pub struct Stores {
    open: Vec<Store>,
    groups: VecDeque<Vec<Store>>,
}

impl Stores {
    pub fn push(&mut self, store: Store) {
        self.open.push(store);
    }

    pub fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }

    /// All groups but the last `pending` are read, or have arrived.
    pub fn wait(&mut self, pending: usize, read: bool, global: &mut Memory, shared: &mut Shared) -> Result<()> {
        let done = self.groups.len().saturating_sub(pending);
        self.groups.iter_mut().take(done).flatten().try_for_each(|store| store.read(shared))?;
        if read {
            return Ok(());
        }
        self.groups.drain(..done).flatten().try_for_each(|store| store.land(global))
    }

    /// The end of the thread: what of its stores has not arrived.
    pub fn end(&mut self) -> Result<Vec<Store>> {
        let unread = self.open.first().or_else(|| self.groups.iter().flatten().find(|s| s.rows.is_none()));
        match unread {
            Some(store) => Err(format!("a thread ends before the store of PTX line {} has been read", store.line)),
            None => Ok(std::mem::take(&mut self.groups).into_iter().flatten().collect()),
        }
    }
}
