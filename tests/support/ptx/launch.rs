//! A module's kernels, and their launches: blocks, or clusters of them, one after another.

use super::Result;
use super::block::Block;
use super::cluster::{self, Cluster};
use super::decode::{Instruction, decode};
use super::memory::{Memory, Shared, Spaces};
use super::text::{self, Entry};
use super::warp::Warp;
use std::collections::BTreeMap;

/// A compiled module.
pub struct Module {
    kernels: BTreeMap<String, (Entry, Vec<Instruction>)>,
}

/// Threads of a launch, and its bytes of dynamic shared memory.
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic: u32,
}

impl Module {
    /// # Errors
    /// If a line is not understood.
    pub fn parse(text: &str) -> Result<Self> {
        let decoded = text::parse(text)?.into_iter().map(|(name, entry)| {
            let code = decode(&entry)?;
            Ok::<_, String>((name, (entry, code)))
        });
        Ok(Self { kernels: decoded.collect::<Result<_>>()? })
    }

    /// The kernels' names.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.keys().map(String::as_str)
    }

    /// The sizes of a kernel's parameters in bytes.
    pub fn parameters(&self, kernel: &str) -> Result<Vec<usize>> {
        Ok(self.kernel(kernel)?.0.parameters.iter().map(|(_, bytes)| *bytes).collect())
    }

    fn kernel(&self, name: &str) -> Result<&(Entry, Vec<Instruction>)> {
        self.kernels.get(name).ok_or_else(|| format!("the PTX has no kernel {name}"))
    }

    /// Runs a kernel; `arguments` are the bytes of each.
    ///
    /// # Errors
    /// What the kernel does wrong, with the line of the PTX and the block.
    pub fn launch(&self, kernel: &str, shape: &Shape, arguments: &[Vec<u8>], memory: &mut Memory) -> Result<u64> {
        let (entry, code) = self.kernel(kernel)?;
        let mut parameters = Vec::new();
        for (argument, (first, bytes)) in arguments.iter().zip(&entry.parameters) {
            parameters.resize(*first as usize, 0);
            assert_eq!(argument.len(), *bytes, "the argument's size");
            parameters.extend_from_slice(argument);
        }
        assert_eq!(arguments.len(), entry.parameters.len(), "as many arguments as parameters");
        let threads = shape.block.iter().product::<u32>() as usize;
        let mut arrays = entry.shared.clone();
        arrays.push((entry.dynamic, u64::from(shape.dynamic)));
        let of_cluster = entry.cluster.max(1);
        if !shape.grid[0].is_multiple_of(of_cluster) {
            return Err(format!("a grid of {:?} blocks in clusters of {of_cluster}", shape.grid));
        }
        let warps = || (0..threads.div_ceil(32)).map(|i| Warp::new(entry, code, i, threads)).collect();
        let mut blocks: Vec<Vec<Warp>> = (0..of_cluster).map(|_| warps()).collect();
        let cluster = Cluster::new(&arrays, blocks.len(), threads);
        let mut spaces = Spaces {
            global: memory,
            shared: Shared::new(arrays),
            parameters: &parameters,
            block: Block::default(),
            late: Vec::new(),
            cluster,
        };
        let [x, y, z] = shape.grid;
        for first in (0..x * y * z).step_by(of_cluster as usize) {
            let place = |block: u32| [block % x, block / x % y, block / x / y];
            spaces.cluster.begin();
            for (rank, warps) in blocks.iter_mut().enumerate() {
                let block = place(first + rank as u32);
                spaces.switch_to(rank);
                spaces.shared.forget();
                spaces.block = Block::new(entry, warps.len());
                warps.iter_mut().for_each(|w| w.begin(entry, |name, thread| special(name, thread as u32, shape, block, rank as u32)));
            }
            cluster::run(code, &mut spaces, &mut blocks).map_err(|e| format!("{e}; block {:?}", place(first)))?;
        }
        std::mem::take(&mut spaces.late).into_iter().try_for_each(|store| store.land(spaces.global))?;
        Ok(blocks.iter().flatten().map(|w| w.executed).sum())
    }
}

/// A special register of one thread.
fn special(name: &str, thread: u32, shape: &Shape, block: [u32; 3], rank: u32) -> u32 {
    let [x, y, _] = shape.block;
    let of = |values: [u32; 3]| values[name.bytes().last().map_or(0, |c| usize::from(c - b'x'))];
    match name.split('.').next().unwrap_or_default() {
        "%tid" => of([thread % x, thread / x % y, thread / x / y]),
        "%ntid" => of(shape.block),
        "%ctaid" => of(block),
        "%nctaid" => of(shape.grid),
        "%cluster_ctarank" => rank,
        _ => thread % 32, // %laneid
    }
}
