//! Launches that are recorded once and queued again and again, with the very same arguments.
//!
//! A step of generation on a small model is a few hundred short kernels: queuing them one by one takes longer than running them. While a
//! thread records ([`Graph::record`]), its launches are noted down instead of queued, and its buffers come from an [`Arena`], whose memory
//! stays where it is; everything else (uploads, downloads) is an error. What changes from one step to the next lies in buffers that are
//! uploaded before [`Graph::launch`]. A launch whose kernel waits by itself may begin before those before it have ended
//! (programmatic dependent launch; on Hopper and later). The driver makes one graph of the list, on a stream of its own; on the emulator, or where the driver
//! refuses, the list is queued launch by launch: the same arguments, the same bits.

use crate::tensor::cuda::Gpu;
use crate::tensor::cuda::buffer::Memory;
use crate::tensor::cuda::launch::Call;
use crate::{Error, Result};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::thread::ThreadId;

/// Memory for what recorded launches compute on the way. Recordings share it, since their graphs run one after another: what one leaves there
/// is good until the next is launched.
#[derive(Default)]
pub struct Arena {
    blocks: Vec<Block>,
}

struct Block {
    memory: Arc<Memory>,
    grain: usize,
    /// The buffer of the recording under way that has it.
    tenant: Weak<Memory>,
}

impl Arena {
    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|b| b.memory.bytes).sum()
    }

    /// The smallest block that is free and large enough, or a new one.
    fn take(&mut self, gpu: &Arc<Gpu>, bytes: usize, grain: usize) -> Result<Arc<Memory>> {
        let fits = |b: &&mut Block| b.memory.bytes >= bytes && b.grain <= grain && b.tenant.strong_count() == 0;
        if let Some(block) = self.blocks.iter_mut().filter(fits).min_by_key(|b| b.memory.bytes) {
            return Ok(block.let_to(gpu));
        }
        let mut block = Block { memory: gpu.lasting_memory(bytes, grain)?, grain, tenant: Weak::new() };
        let memory = block.let_to(gpu);
        self.blocks.push(block);
        Ok(memory)
    }
}

impl Block {
    fn let_to(&mut self, gpu: &Arc<Gpu>) -> Arc<Memory> {
        let (address, bytes) = (self.memory.address, self.memory.bytes);
        let tenant = Arc::new(Memory { gpu: gpu.clone(), address, bytes, of: Some(self.memory.clone()) });
        self.tenant = Arc::downgrade(&tenant);
        tenant
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} blocks, {} bytes)", self.blocks.len(), self.bytes())
    }
}

/// What a thread has recorded so far.
#[derive(Debug)]
pub(super) struct Recording {
    pub thread: ThreadId,
    arena: Arena,
    calls: Vec<Call>,
    /// What the calls' arguments point into, each once: blocks of the arena, and other memory.
    blocks: HashMap<usize, Arc<Memory>>,
    others: HashMap<usize, Weak<Memory>>,
}

impl Recording {
    fn new(arena: Arena) -> Self {
        let (blocks, others) = Default::default();
        Self { thread: std::thread::current().id(), arena, calls: Vec::new(), blocks, others }
    }

    /// Notes a launch down. The buffers of its arguments are not kept: the arena's blocks are let again as soon as they are dropped.
    pub fn note(&mut self, call: Call, memory: &[Arc<Memory>]) {
        self.calls.push(call);
        for memory in memory {
            match &memory.of {
                Some(block) => self.blocks.insert(Arc::as_ptr(block).addr(), block.clone()).map(drop),
                None => self.others.insert(Arc::as_ptr(memory).addr(), Arc::downgrade(memory)).map(drop),
            };
        }
    }

    pub fn memory(&mut self, gpu: &Arc<Gpu>, bytes: usize, grain: usize) -> Result<Arc<Memory>> {
        self.arena.take(gpu, bytes, grain)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.bytes, self.address)
    }
}

/// Launches that are queued together.
#[derive(Debug)]
pub struct Graph {
    gpu: Arc<Gpu>,
    calls: Vec<Call>,
    /// The arena's memory that they name.
    _arena: Vec<Arc<Memory>>,
    /// Other memory that they name. It is not theirs to keep, but must be there.
    needs: Vec<Weak<Memory>>,
    launched: bool,
    /// What the driver has made of them.
    made: Option<u64>,
}

/// Ends the recording, also when what records panics.
struct End<'a>(&'a Gpu);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.set_recording(None);
    }
}

impl Graph {
    /// Records the launches of `record` on this thread; none of them runs. Buffers that it makes are the arena's: those that it returns keep
    /// their place, but what is in them is overwritten by the arena's other graphs.
    ///
    /// # Errors
    /// As `record`; if it uploads, downloads, copies or clears memory; if the device is out of memory.
    ///
    /// # Panics
    /// If another recording is under way on the device.
    pub fn record<T>(gpu: &Arc<Gpu>, arena: &mut Arena, record: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        arena.blocks.iter_mut().for_each(|b| b.tenant = Weak::new());
        let before = gpu.set_recording(Some(Recording::new(std::mem::take(arena))));
        let end = End(gpu);
        assert!(before.is_none(), "one recording at a time");
        let made = record();
        let Recording { arena: used, mut calls, blocks, others, .. } = gpu.set_recording(None).expect("it was under way");
        std::mem::forget(end); // it is ended
        *arena = used;
        let made = made?;
        calls.iter_mut().skip(1).for_each(Call::follow);
        let (blocks, needs) = (blocks.into_values().collect(), others.into_values().collect());
        Ok((Self { gpu: gpu.clone(), calls, _arena: blocks, needs, launched: false, made: None }, made))
    }

    /// How many launches there are.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether nothing was launched.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Queues the launches. The first time one by one, as a launch's code may have to be loaded, and since graphs that are wanted once are
    /// not worth making.
    ///
    /// # Errors
    /// If memory that was not the arena's has been given back since; if the device failed. A driver that makes no graphs is none:
    /// [`Gpu::graph_warning`] tells of it.
    pub fn launch(&mut self) -> Result<()> {
        let alive =
            |needed: &Weak<Memory>| needed.upgrade().ok_or_else(|| Error::device("recorded launches name memory that was given back"));
        let _alive: Vec<Arc<Memory>> = self.needs.iter().map(alive).collect::<Result<_>>()?;
        if std::mem::replace(&mut self.launched, true) && self.made.is_none() && !self.gpu.graphs_refused(None) {
            match self.gpu.backend().make_graph(&mut self.calls) {
                Ok(made) => self.made = made,
                Err(e) => {
                    self.gpu.graphs_refused(Some(&e));
                }
            }
        }
        self.gpu.count_graph();
        // SAFETY: the graph is the backend's; the arena's memory is kept, and the rest has just been found to be there.
        match self.made {
            Some(made) => unsafe { self.gpu.backend().launch_graph(made) },
            None => self.calls.iter_mut().try_for_each(|call| unsafe { call.queue(self.gpu.backend()) }),
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(made) = self.made {
            self.gpu.backend().destroy_graph(made);
        }
    }
}
