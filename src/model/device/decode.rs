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
use crate::tensor::ops::matmul::cuda as matmul;
use crate::tensor::ops::rope::{Angles, cuda::DeviceAngles};
use crate::tensor::ops::sample::{Choice, Draw, cuda as sample};
use crate::tensor::ops::token_logprob::cuda::Logits;
use crate::tensor::plan::{Plan, TILE};
use std::sync::Arc;

/// The most rows of a class. Up to here the launches of a step, one by one some milliseconds of the processor, are more than the rows that fill a class;
/// larger batches are bound by their work. Those above [`matmul::FEW_ROWS`] take the launches of prefill.
pub(crate) const RECORDED_ROWS: usize = 512;
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
    logits: Logits,
    picks: sample::Picks,
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
    /// Whether a row's token is drawn under filters.
    filtered: bool,
}

/// The tables of a step, in their order among its numbers.
#[derive(Clone, Copy)]
enum Table {
    Ids,
    Slots,
    Positions,
    Temperatures,
    Draws,
    Rotations,
    Starts,
    Items,
    Rows,
    Order,
    Pages,
}

/// The smallest of 1, 2, 3, 4, 6, 8, 12, 16, ... that is not less than n.
fn room(n: usize) -> usize {
    let power = n.next_power_of_two();
    if n <= power / 4 * 3 { power / 4 * 3 } else { power }
}

impl Class {
    fn of(tables: &DecodeTables, angles: usize, draws: &[Draw]) -> Self {
        let items = room((tables.items.len() / 5).max(LEAST));
        let (rows, entries) = (draws.len().next_power_of_two(), tables.rows.len().max(LEAST).next_power_of_two());
        Self { rows, items, entries, angles, filtered: sample::any_filtered(draws) }
    }

    /// Where tables begin among the step's numbers, in the order of [`Table`]; and where the last one ends.
    fn layout(&self) -> [usize; 12] {
        let Self { rows, items, entries, angles, .. } = *self;
        let per_row = [rows, 2 * rows, rows, rows, sample::WORDS * rows, rows * angles, rows + 1];
        let sizes = per_row.into_iter().chain([5 * items, entries, entries, entries * PAGES_OF_ENTRY]);
        let mut layout = [0; 12];
        for (i, size) in sizes.enumerate() {
            layout[i + 1] = layout[i] + size;
        }
        layout
    }

    /// The numbers of a step's tables, up to the last page of the batch.
    fn fill(&self, plan: &Plan, work: &DecodeTables, draws: &[Draw], angles: &Angles) -> Vec<u32> {
        let layout = self.layout();
        let at = |table: Table| layout[table as usize];
        let mut numbers = vec![0; at(Table::Pages) + work.pages.len()];
        let mut put = |table: Table, data: &[u32]| numbers[at(table)..][..data.len()].copy_from_slice(data);
        put(Table::Ids, &plan.ids);
        let slots: Vec<u32> = plan.kv_slots.iter().flat_map(|(page, slot)| [*page, *slot]).collect();
        put(Table::Slots, &slots);
        put(Table::Positions, &plan.positions);
        put(Table::Temperatures, &draws.iter().map(|d| d.divisor().to_bits()).collect::<Vec<_>>());
        put(Table::Draws, &sample::words(draws));
        put(Table::Items, &work.items);
        put(Table::Rows, &work.rows);
        put(Table::Order, &work.order);
        put(Table::Pages, &work.pages);
        let rotations = &mut numbers[at(Table::Rotations)..at(Table::Starts)];
        for (to, position) in rotations.chunks_mut(self.angles).zip(&plan.positions) {
            to.copy_from_slice(bytemuck::cast_slice(angles.row(*position as usize)));
        }
        // What the missing rows need: no place for a key, a temperature that can be divided by, a greedy draw (zeros), no entries.
        let tokens = plan.num_tokens();
        numbers[at(Table::Slots) + 2 * tokens..at(Table::Positions)].fill(NOWHERE);
        numbers[at(Table::Temperatures) + tokens..at(Table::Draws)].fill(1f32.to_bits());
        let starts = &mut numbers[at(Table::Starts)..at(Table::Items)];
        starts[..=tokens].copy_from_slice(&work.starts);
        starts[tokens..].fill(work.rows.len() as u32);
        numbers
    }
}

impl Transformer {
    /// One more token of each sequence of a plan whose segments have a token each, with pages of `kv`, and the logits it is drawn from: the same
    /// bits as [`Transformer::hidden_on`], [`Transformer::logits_on`] and a choice from them. The logits are good until the decoder's next step.
    pub(crate) fn decode_on(
        &self,
        gpu: &Arc<Gpu>,
        plan: &Plan,
        kv: &mut [DeviceKv],
        decoder: &mut Decoder,
        draws: &[Draw],
    ) -> Result<(Vec<Choice>, Logits)> {
        let tokens = plan.num_tokens();
        assert_eq!(tokens, draws.len(), "one draw a row");
        assert!(plan.segments.iter().all(|s| s.tokens.len() == 1), "a step of decoding has a token of each sequence");
        assert!((1..=RECORDED_ROWS).contains(&tokens), "a class has {RECORDED_ROWS} rows at most");
        let work = DecodeTables::new(&plan.segments, self.heads());
        let pages = kv.first().map_or(0, DeviceKv::pages);
        assert!(work.pages.iter().all(|p| (*p as usize) < pages), "the pages that the work reads exist");
        let class = Class::of(&work, 2 * self.inv_freq().len(), draws);
        if std::mem::replace(&mut decoder.pages, pages) != pages {
            decoder.graphs.clear();
        }
        let numbers = class.fill(plan, &work, draws, decoder.angles(&plan.positions, self.inv_freq()));
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
        Ok((step.picks.finish(&step.logits, draws)?, step.logits.first(tokens)))
    }

    /// Records the step of a class.
    fn record(&self, gpu: &Arc<Gpu>, kv: &mut [DeviceKv], class: Class, arena: &mut Arena) -> Result<Step> {
        let record = || {
            let layout = class.layout();
            let tables = Buffer::uninit(gpu, DType::U32, layout[layout.len() - 1])?;
            let table = |t: Table, dtype| tables.part(dtype, layout[t as usize], layout[t as usize + 1] - layout[t as usize]);
            let numbers = |t| table(t, DType::U32);
            let merge = (numbers(Table::Order), numbers(Table::Starts));
            let [items, rows, pages, positions] = [Table::Items, Table::Rows, Table::Pages, Table::Positions].map(numbers);
            let batch = Batch {
                tokens: class.rows,
                ids: DeviceIds::of(numbers(Table::Ids), self.config().vocab_size),
                slots: numbers(Table::Slots),
                copies: PageCopies::default(),
                angles: DeviceAngles::of(table(Table::Rotations, DType::F32), class.angles / 2),
                work: Work::decoding(self.heads(), items, rows, pages, positions, merge)?,
            };
            let pass = self.pass_of(gpu, batch, Adapter::On);
            let hidden = self.trunk_on(&pass, kv)?;
            let logits = self.queue_logits(gpu, &hidden, class.rows, &table(Table::Temperatures, DType::F32))?;
            let picks = sample::queue(&logits, &numbers(Table::Draws), class.filtered)?;
            Ok((tables, logits, picks))
        };
        // Finding out uploads, which a recording cannot; large products ask.
        matmul::takes_wgmma(gpu)?;
        let (graph, (tables, logits, picks)) = Graph::record(gpu, arena, record)?;
        Ok(Step { class, graph, tables, logits, picks })
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
