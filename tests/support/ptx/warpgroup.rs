//! Products of a warpgroup, four warps together (the PTX manual, "Asynchronous warpgroup level matrix instructions"): operands in shared memory as
//! descriptors tell, or the left one in registers; each warp forms 16 of the 64 rows.
//!
//! A product is carried out when its group is waited for, no sooner: operands are read then. Until then its registers may not be touched.

use super::Result;
use super::decode::{Instruction, UNKNOWN, registers};
use super::forms::Lanes;
use super::matrix::pair;
use super::memory::{Shared, load};
use super::text;
use std::collections::VecDeque;
use std::sync::Arc;

/// Terms of a product.
const TERMS: usize = 16;
/// Rows of a warp.
const ROWS: usize = 16;

/// `wgmma.mma_async.m64nNk16` of bf16: d [64, N] = a [64, 16] b [16, N] (+ d).
pub struct Product {
    pub line: usize,
    pub d: Vec<usize>,
    pub a: Left,
    pub b: usize,
    /// The predicate under which d is added to.
    pub keep: usize,
    /// Whether an operand's numbers lie side by side along the rows of a, or the columns of b ("MN-major"), and not along the terms.
    pub by_rows: [bool; 2],
}

/// The left operand.
pub enum Left {
    /// The register of a descriptor.
    Described(usize),
    Registers([usize; 4]),
}

impl Product {
    fn columns(&self) -> usize {
        2 * self.d.len()
    }

    fn left(&self) -> &[usize] {
        match &self.a {
            Left::Described(_) => &[],
            Left::Registers(a) => a,
        }
    }
}

/// `wgmma.mma_async d, a, b, scale-d, imm-scale-a, imm-scale-b, imm-trans-a, imm-trans-b`, the next to last not with a in registers.
pub fn decode(entry: &text::Entry, line: usize, opcode: &str, operands: &[text::Operand]) -> Result<Product> {
    use text::Operand::{Register, Vector};
    let columns = opcode.strip_prefix("wgmma.mma_async.sync.aligned.m64n").and_then(|rest| rest.strip_suffix("k16.f32.bf16.bf16"));
    let columns = columns.and_then(|n| n.parse::<usize>().ok()).filter(|n| n.is_multiple_of(8) && (8..=256).contains(n)).ok_or(UNKNOWN)?;
    let [Vector(d), a, Register(b), Register(keep), immediates @ ..] = operands else { return Err(UNKNOWN.to_owned()) };
    let immediates = registers(immediates)?.into_iter().map(|r| entry.constant(r)).collect::<Option<Vec<u64>>>();
    let (a, by_rows) = match (a, immediates.as_deref()) {
        (Register(a), Some([1, 1, a_by_rows @ (0 | 1), b_by_rows @ (0 | 1)])) => (Left::Described(*a), [*a_by_rows == 1, *b_by_rows == 1]),
        (Vector(a), Some([1, 1, b_by_rows @ (0 | 1)])) => {
            (Left::Registers(registers(a)?.try_into().map_err(|_| "four registers of a are expected")?), [false, *b_by_rows == 1])
        }
        _ => return Err(UNKNOWN.to_owned()),
    };
    let d = registers(d)?;
    if d.len() != columns / 2 {
        return Err(format!("{} registers of d for {columns} columns", d.len()));
    }
    let distinct = d.iter().collect::<std::collections::BTreeSet<_>>().len() == d.len();
    distinct.then_some(Product { line, d, a, b: *b, keep: *keep, by_rows }).ok_or_else(|| "a register is there twice in d".to_owned())
}

/// A product that has been issued: with its descriptors.
struct Issued {
    product: Arc<Product>,
    a: u64,
    b: u64,
    keep: bool,
}

/// A warp's products under way, and what its registers have been through.
#[derive(Default)]
pub struct Products {
    open: Vec<Issued>,
    groups: VecDeque<Vec<Issued>>,
    /// The time, in instructions.
    clock: u64,
    /// Of the last `wgmma.fence`.
    fenced: Option<u64>,
    /// Of each register, when it was last touched.
    touched: Vec<u64>,
    /// How many products under way sum up in a register, and how many read it.
    sums: Vec<u16>,
    reads: Vec<u16>,
}

impl Products {
    pub fn new(registers: usize) -> Self {
        Self { touched: vec![0; registers], sums: vec![0; registers], reads: vec![0; registers], ..Self::default() }
    }

    fn under_way(&self) -> impl Iterator<Item = &Issued> {
        self.groups.iter().flatten().chain(&self.open)
    }

    /// An instruction of another kind. It may touch nothing that a product under way sums up in, and change nothing that one reads.
    pub fn note(&mut self, instruction: &Instruction) -> Result<()> {
        self.clock += 1;
        let mut wrong = None;
        instruction.action.each_register(|register, written| {
            self.touched[register] = self.clock;
            if self.sums[register] > 0 || written && self.reads[register] > 0 {
                wrong = Some(register);
            }
        });
        let Some(register) = wrong else { return Ok(()) };
        let of = |p: &&Issued| p.product.d.contains(&register) || p.product.left().contains(&register);
        let line = self.under_way().find(of).map_or(0, |p| p.product.line);
        Err(format!("a register of the product of PTX line {line} is touched, which has not been waited for"))
    }

    /// `wgmma.fence`.
    pub fn fence(&mut self) {
        self.fenced = Some(self.clock);
    }

    /// Takes a product on.
    pub fn issue(&mut self, product: &Arc<Product>, registers: &[Lanes]) -> Result<[u64; 3]> {
        let same = |register: usize| {
            let lanes = &registers[register];
            lanes.iter().all(|x| *x == lanes[0]).then_some(lanes[0]).ok_or("the lanes of a warp differ in descriptors or in scale-d")
        };
        let a = match product.a {
            Left::Described(a) => Operand::check(same(a)?)?,
            Left::Registers(_) => 0,
        };
        let (b, keep) = (Operand::check(same(product.b)?)?, same(product.keep)? & 1 == 1);
        let fenced = self.fenced.ok_or("no wgmma.fence before the first product")?;
        let chained = |p: &Issued| p.product.d == product.d;
        let (sums, left) = (&product.d, product.left());
        if sums.iter().any(|r| self.reads[*r] > 0) || left.iter().any(|r| self.sums[*r] > 0) {
            return Err("registers of a product under way are taken for something else".to_owned());
        }
        // Products of one shape may follow one another in the same registers.
        if sums.iter().any(|r| self.sums[*r] > 0) && !self.under_way().any(chained) {
            return Err("sums of a product under way are those of another shape".to_owned());
        }
        if sums.iter().chain(left).any(|r| self.touched[*r] > fenced) {
            return Err("no wgmma.fence since a register of the product was touched".to_owned());
        }
        sums.iter().for_each(|r| self.sums[*r] += 1);
        left.iter().for_each(|r| self.reads[*r] += 1);
        self.open.push(Issued { product: product.clone(), a, b, keep });
        Ok([a, b, u64::from(keep)])
    }

    /// `wgmma.commit_group`.
    pub fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }

    /// `wgmma.wait_group`, by one of a warpgroup's four warps.
    pub fn wait(&mut self, pending: usize, warp: usize, registers: &mut [Lanes], shared: &mut Shared) -> Result<()> {
        while self.groups.len() > pending {
            for issued in self.groups.pop_front().into_iter().flatten() {
                let of = |e| format!("the product of PTX line {}: {e}", issued.product.line);
                issued.carry_out(warp, registers, shared).map_err(of)?;
                issued.product.d.iter().for_each(|r| self.sums[*r] -= 1);
                issued.product.left().iter().for_each(|r| self.reads[*r] -= 1);
            }
        }
        Ok(())
    }

    /// The end of a thread.
    pub fn end(&self) -> Result<()> {
        self.under_way().next().map_or(Ok(()), |p| Err(format!("a thread ends with the product of PTX line {} under way", p.product.line)))
    }
}

/// A matrix in shared memory ("Matrix Descriptor Format"): where it begins, and the strides that its descriptor has.
struct Operand {
    start: u64,
    leading: u64,
    stride: u64,
    by_rows: bool,
}

impl Operand {
    /// Refuses what is not the 128-byte swizzle with base offset 0.
    fn check(descriptor: u64) -> Result<u64> {
        const UNUSED: u64 = 0x3fff_c000_c000_c000;
        match (descriptor >> 62, descriptor & UNUSED) {
            (1, 0) => Ok(descriptor),
            _ => Err(format!("descriptor {descriptor:#x}: only the 128-byte swizzle with base offset 0 is known")),
        }
    }

    fn new(descriptor: u64, by_rows: bool) -> Self {
        let field = |at: u32| (descriptor >> at & 0x3fff) << 4;
        Self { start: field(0), leading: field(16), stride: field(32), by_rows }
    }

    /// Where 8 numbers side by side lie: 8 terms of a row from a term on, or 8 rows of a term from a row on. The canonical layouts in T = 8 numbers
    /// are, along the terms, ((8, m), (T, 2)) : ((8T, stride), (1, T)); along the rows ((T, 8, m), (8, k)) : ((1, T, leading), (8T, stride)).
    fn chunk(&self, row: usize, term: usize) -> u64 {
        let (row, term) = (row as u64, term as u64);
        let offset = if self.by_rows {
            row / 8 % 8 * 16 + row / 64 * self.leading + term % 8 * 128 + term / 8 * self.stride
        } else {
            row % 8 * 128 + row / 8 * self.stride + term / 8 * 16
        };
        let address = self.start + offset;
        address ^ address >> 3 & 0x70
    }

    /// Numbers [terms, rows], from a row on.
    fn read(&self, first: usize, rows: usize, numbers: &mut [f64], shared: &mut Shared) -> Result<()> {
        let mut chunk = |row: usize, term: usize| -> Result<[f64; 8]> {
            let address = self.chunk(first + row, term);
            let bytes = shared.visible(address, 16)?;
            Ok(std::array::from_fn(|i| f64::from(f32::from_bits((load(&bytes[2 * i..2 * i + 2]) as u32) << 16))))
        };
        if self.by_rows {
            for (term, line) in numbers.chunks_exact_mut(rows).enumerate() {
                for (i, to) in line.chunks_exact_mut(8).enumerate() {
                    to.copy_from_slice(&chunk(8 * i, term)?);
                }
            }
        } else {
            for row in 0..rows {
                for term in [0, 8] {
                    for (i, x) in chunk(row, term)?.into_iter().enumerate() {
                        numbers[(term + i) * rows + row] = x;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Issued {
    /// A sum is formed in f64, in the order of the terms, and rounded once, as `mma.sync`'s.
    fn carry_out(&self, warp: usize, registers: &mut [Lanes], shared: &mut Shared) -> Result<()> {
        let columns = self.product.columns();
        let (mut a, mut b) = ([0f64; TERMS * ROWS], vec![0f64; TERMS * columns]);
        match &self.product.a {
            Left::Described(_) => Operand::new(self.a, self.product.by_rows[0]).read(warp % 4 * ROWS, ROWS, &mut a, shared)?,
            // The four pieces of mma.m16n8k16: left above, left below, right above, right below.
            Left::Registers(pieces) => (0..32).for_each(|lane| {
                for (piece, register) in pieces.iter().enumerate() {
                    let (row, term) = (lane / 4 + piece % 2 * 8, lane % 4 * 2 + piece / 2 * 8);
                    [a[term * ROWS + row], a[(term + 1) * ROWS + row]] = pair(registers[*register][lane]);
                }
            }),
        }
        Operand::new(self.b, self.product.by_rows[1]).read(0, columns, &mut b, shared)?;
        // Rows of zeros, of which tiles at the edge of a matrix are full, add nothing to what is finite.
        let finite = b.iter().all(|x| x.is_finite());
        let mut sums = vec![0f64; columns];
        for row in 0..ROWS {
            // Register 4 j + 2 i + e of lane 4 g + t has row g + 8 i, column 8 j + 2 t + e.
            let place = |column: usize| (self.product.d[column / 8 * 4 + row / 8 * 2 + column % 2], row % 8 * 4 + column % 8 / 2);
            for (column, sum) in sums.iter_mut().enumerate() {
                let (register, lane) = place(column);
                *sum = if self.keep { f64::from(f32::from_bits(registers[register][lane] as u32)) + 0.0 } else { 0.0 };
            }
            let terms: [f64; TERMS] = std::array::from_fn(|term| a[term * ROWS + row]);
            if !(finite && terms.iter().all(|x| *x == 0.0)) {
                for (x, line) in terms.iter().zip(b.chunks_exact(columns)) {
                    sums.iter_mut().zip(line).for_each(|(sum, y)| *sum += x * y);
                }
            }
            for (column, sum) in sums.iter().enumerate() {
                let (register, lane) = place(column);
                registers[register][lane] = u64::from((*sum as f32).to_bits());
            }
        }
        Ok(())
    }
}

/// What the four warps of a warpgroup must do alike, in the order in which the first of them came to it: an instruction's line and its operands.
#[derive(Default)]
pub struct Together {
    steps: Vec<(usize, [u64; 3])>,
    of_warp: [usize; 4],
}

impl Together {
    /// A warp's next step.
    pub fn step(&mut self, warp: usize, line: usize, operands: [u64; 3]) -> Result<()> {
        let place = &mut self.of_warp[warp % 4];
        *place += 1;
        match self.steps.get(*place - 1) {
            None => self.steps.push((line, operands)),
            Some(first) if *first == (line, operands) => {}
            Some((first, _)) if *first != line => return Err(format!("another warp of the warpgroup is at PTX line {first} instead")),
            Some(_) => return Err("the warps of a warpgroup differ in their operands".to_owned()),
        }
        Ok(())
    }

    /// The end of a block.
    pub fn end(&self) -> Result<()> {
        match self.of_warp.iter().position(|steps| *steps != self.steps.len()) {
            None => Ok(()),
            Some(warp) => {
                let (line, _) = self.steps[self.of_warp[warp]];
                Err(format!("PTX line {line}: warp {warp} of a warpgroup never came here, and others did"))
            }
        }
    }
}
