//! A step of decoding on a device as one graph: recorded once for each class of batches, launched again for every batch of the class.
//!
//! A class is a number of rows and room for tables. The rows that a batch lacks are computed like others, from token 0, but write no key and
//! attend to nothing; no row's bits depend on another row, so they change none. All tables of a step are one upload, to where the launches
//! that were recorded read them.

use super::batch::Batch;
use crate::Result;
use crate::model::linear::Adapter;
use crate::model::transformer::Transformer;
use crate::tensor::cuda::{Arena, Buffer, DType, Gpu, Graph};
use crate::tensor::ops::attention::cuda::{DecodeTables, DeviceKv, NOWHERE, PageCopies, Work};
use crate::tensor::ops::embedding::cuda::DeviceIds;
use crate::tensor::ops::rope::{Angles, cuda::DeviceAngles};
use crate::tensor::ops::token_logprob::cuda::{Logits, Queued};
use crate::tensor::plan::{Plan, TILE};
use std::sync::Arc;

/// The most rows of a class. Larger batches are bound by their work, not by its launches.
const MAX_ROWS: usize = 256;
/// Graphs that are kept; beyond them the one goes that was not used for longest.
const MAX_GRAPHS: usize = 16;
/// Tables have room for at least so many items and entries.
const LEAST: usize = 8;
/// Pages in a split of the history: each entry has at most so many.
const PAGES_OF_ENTRY: usize = crate::tensor::ops::attention::cuda::work::SPLIT / TILE;

/// The graphs of an engine. They name the model's weights and the cache's pages.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    arena: Arena,
    /// The one used last is the last.
    graphs: Vec<Step>,
    /// Pages of the cache that they were recorded with: a larger cache lies elsewhere.
    pages: usize,
    angles: Option<Angles>,
}

/// The recorded step of a class.
#[derive(Debug)]
struct Step {
    class: Class,
    graph: Graph,
    tables: Buffer,
    logits: Queued,
}

/// Room in a step's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Class {
    rows: usize,
    /// Blocks of attention for each kv head.
    items: usize,
    /// Splits of all rows' histories.
    entries: usize,
    /// Numbers of a row's rotation.
    angles: usize,
}

/// The smallest of 1, 2, 3, 4, 6, 8, 12, 16, ... that is not less than n.
fn room(n: usize) -> usize {
    let power = n.next_power_of_two();
    if n <= power / 4 * 3 { power / 4 * 3 } else { power }
}

impl Class {
    fn of(tokens: usize, tables: &DecodeTables, angles: usize) -> Self {
        let items = room((tables.items.len() / 5).max(LEAST));
        Self { rows: tokens.next_power_of_two(), items, entries: tables.rows.len().max(LEAST).next_power_of_two(), angles }
    }

    /// Where tables begin among the step's numbers: ids, slots, positions, temperatures, rotations, starts, items, rows, order, pages; and
    /// where the last one ends.
    fn layout(&self) -> [usize; 11] {
        let Self { rows, items, entries, angles } = *self;
        let sizes = [rows, 2 * rows, rows, rows, rows * angles, rows + 1, 5 * items, entries, entries, entries * PAGES_OF_ENTRY];
        let mut layout = [0; 11];
        for (i, size) in sizes.into_iter().enumerate() {
            layout[i + 1] = layout[i] + size;
        }
        layout
    }

    /// The numbers of a step's tables, up to the last page of the batch.
    fn fill(&self, plan: &Plan, work: &DecodeTables, temperatures: &[f32], angles: &Angles) -> Vec<u32> {
        let layout = self.layout();
        let mut numbers = vec![0; layout[9] + work.pages.len()];
        let mut put = |table: usize, data: &[u32]| numbers[layout[table]..][..data.len()].copy_from_slice(data);
        put(0, &plan.ids);
        let slots: Vec<u32> = plan.kv_slots.iter().flat_map(|(page, slot)| [*page, *slot]).collect();
        put(1, &slots);
        put(2, &plan.positions);
        put(3, bytemuck::cast_slice(temperatures));
        put(6, &work.items);
        put(7, &work.rows);
        put(8, &work.order);
        put(9, &work.pages);
        let rotations = &mut numbers[layout[4]..layout[5]];
        for (to, position) in rotations.chunks_mut(self.angles).zip(&plan.positions) {
            to.copy_from_slice(bytemuck::cast_slice(angles.row(*position as usize)));
        }
        // What the missing rows need: no place for a key, a temperature that can be divided by, no entries.
        let tokens = plan.num_tokens();
        numbers[layout[1] + 2 * tokens..layout[2]].fill(NOWHERE);
        numbers[layout[3] + tokens..layout[4]].fill(1f32.to_bits());
        let starts = &mut numbers[layout[5]..layout[6]];
        starts[..=tokens].copy_from_slice(&work.starts);
        starts[tokens..].fill(work.rows.len() as u32);
        numbers
    }
}

impl Transformer {
    /// Logits of one more token of each sequence: of a plan whose segments have a token each, with pages of `kv`. The same bits as
    /// [`Transformer::hidden_on`] and [`Transformer::logits_on`]. They are good until the decoder's next step.
    pub(crate) fn decode_on(
        &self,
        gpu: &Arc<Gpu>,
        plan: &Plan,
        kv: &mut [DeviceKv],
        decoder: &mut Decoder,
        temperatures: &[f32],
    ) -> Result<Logits> {
        let tokens = plan.num_tokens();
        assert!(plan.segments.iter().all(|s| s.tokens.len() == 1), "a step of decoding has a token of each sequence");
        if tokens == 0 || tokens > MAX_ROWS {
            let rows: Vec<u32> = (0..tokens as u32).collect();
            let hidden = self.hidden_on(gpu, plan, kv, &rows, Adapter::On)?;
            return self.logits_on(gpu, &hidden, temperatures);
        }
        let work = DecodeTables::new(&plan.segments, self.heads());
        let pages = kv.first().map_or(0, DeviceKv::pages);
        assert!(work.pages.iter().all(|p| (*p as usize) < pages), "the pages that the work reads exist");
        let class = Class::of(tokens, &work, 2 * self.inv_freq().len());
        if std::mem::replace(&mut decoder.pages, pages) != pages {
            decoder.graphs.clear();
        }
        let numbers = class.fill(plan, &work, temperatures, decoder.angles(&plan.positions, self.inv_freq()));
        let step = match decoder.graphs.iter().position(|s| s.class == class) {
            Some(i) => decoder.graphs.remove(i),
            None => self.record(gpu, kv, class, &mut decoder.arena)?,
        };
        if decoder.graphs.len() == MAX_GRAPHS {
            decoder.graphs.remove(0);
        }
        decoder.graphs.push(step);
        let step = decoder.graphs.last_mut().expect("it was just pushed");
        step.tables.upload_u32(&numbers)?;
        step.graph.launch()?;
        step.logits.first(tokens)
    }

    /// Records the step of a class.
    fn record(&self, gpu: &Arc<Gpu>, kv: &mut [DeviceKv], class: Class, arena: &mut Arena) -> Result<Step> {
        let record = || {
            let layout = class.layout();
            let tables = Buffer::uninit(gpu, DType::U32, layout[10])?;
            let table = |i: usize, dtype| tables.part(dtype, layout[i], layout[i + 1] - layout[i]);
            let numbers = |i| table(i, DType::U32);
            let batch = Batch {
                tokens: class.rows,
                ids: DeviceIds::of(numbers(0), self.config().vocab_size),
                slots: numbers(1),
                copies: PageCopies::default(),
                angles: DeviceAngles::of(table(4, DType::F32), class.angles / 2),
                work: Work::decoding(self.heads(), numbers(6), numbers(7), numbers(9), numbers(2), (numbers(8), numbers(5)))?,
            };
            let pass = self.pass_of(gpu, batch, Adapter::On);
            let hidden = self.trunk_on(&pass, kv)?;
            let logits = self.queue_logits(gpu, &hidden, class.rows, &table(3, DType::F32))?;
            Ok((tables, logits))
        };
        let (graph, (tables, logits)) = Graph::record(gpu, arena, record)?;
        Ok(Step { class, graph, tables, logits })
    }
}

impl Decoder {
    /// The angles of all positions from 0 on, at least up to the largest of `positions`.
    fn angles(&mut self, positions: &[u32], inv_freq: &[f32]) -> &Angles {
        let angles = self.angles.get_or_insert_with(|| Angles::new(&[], inv_freq));
        let (from, last) = (angles.tokens(), positions.iter().max().map_or(0, |p| *p as usize));
        if last >= from {
            let to = (last + 1).next_multiple_of(TILE);
            angles.extend(&(from as u32..to as u32).collect::<Vec<_>>(), inv_freq);
        }
        angles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_are_at_most_half_empty() {
        let rooms: Vec<usize> = [1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 96, 97].map(room).into();
        assert_eq!(rooms, [1, 2, 3, 4, 6, 8, 8, 12, 12, 16, 96, 128]);
        assert!((2..5000).all(|n| n <= room(n) && 2 * room(n) <= 3 * n));
    }
}
