//! One kernel launch. Geometry and arguments are given together and checked together, against the shapes that the op states; then they become
//! the array of pointers that both `cuLaunchKernel` and the emulator take.

use crate::tensor::cuda::buffer::Memory;
use crate::tensor::cuda::gpu::Backend;
use crate::tensor::cuda::tensor_map::{Boxes, Planes, TensorMap};
use crate::tensor::cuda::{Buffer, DType, Gpu, Source};
use crate::{Error, Result};
use std::ffi::c_void;
use std::sync::Arc;

/// An entry point: the source that holds it, and its name there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The source file.
    pub source: Source,
    /// The `extern "C"` name.
    pub name: &'static str,
}

/// Threads and shared memory of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Whether it may begin before the launches before it have ended: see [`Launch::waits`].
    pub early: bool,
}

/// The value of one argument, as it lies in memory for the driver.
#[derive(Clone, Copy, Debug)]
enum Value {
    Pointer(u64),
    I32(i32),
    U32(u32),
    I64(i64),
    F32(f32),
    Map(TensorMap),
}

impl Value {
    fn as_pointer(&mut self) -> *mut c_void {
        match self {
            Value::Pointer(v) => (&raw mut *v).cast(),
            Value::I32(v) => (&raw mut *v).cast(),
            Value::U32(v) => (&raw mut *v).cast(),
            Value::I64(v) => (&raw mut *v).cast(),
            Value::F32(v) => (&raw mut *v).cast(),
            Value::Map(v) => (&raw mut *v).cast(),
        }
    }
}

/// A launch that has been checked: it can be queued, again and again with the same arguments.
#[derive(Debug)]
pub struct Call {
    /// What is launched.
    pub kernel: Kernel,
    /// With how many threads.
    pub geometry: Geometry,
    values: Vec<Value>,
    signature: String,
    waits: bool,
}

impl Call {
    /// Lets the launch begin early, behind another one of a graph, where its kernel waits by itself.
    pub fn follow(&mut self) {
        self.geometry.early = self.waits;
    }

    /// Queues the launch.
    ///
    /// # Safety
    /// The memory that its arguments name is there.
    pub unsafe fn queue(&mut self, backend: &dyn Backend) -> Result<()> {
        let mut arguments = self.arguments();
        // SAFETY: each argument points to a value of the type that the signature says, which lives as long as `self` (the driver copies
        // it); `Launch::pointer` has compared every buffer's size with what the op stated, and the memory is there.
        unsafe { backend.launch(self.kernel, &self.geometry, &mut arguments, &self.signature) }.map_err(|e| self.at(e))
    }

    /// Pointers to the arguments' values, good for as long as the call stays where it is.
    pub fn arguments(&mut self) -> Vec<*mut c_void> {
        self.values.iter_mut().map(Value::as_pointer).collect()
    }

    /// The error, with the kernel that it is about.
    pub fn at(&self, e: Error) -> Error {
        e.at(format_args!("kernels/{}: {}", self.kernel.source.file, self.kernel.name))
    }
}

/// A launch under construction: arguments in the kernel's order, then [`Launch::run`].
///
/// The signature that the arguments spell (`m` or `c` and the element for a mutable or const pointer, `i`, `u`, `l` and `f` for scalars, `t` for a
/// tensor map) is what the emulator compares with the kernel's own, so a swapped or forgotten argument is found by any test that launches the kernel.
#[must_use = "nothing is launched before run()"]
#[derive(Debug)]
pub struct Launch<'a> {
    gpu: &'a Gpu,
    kernel: Kernel,
    geometry: [usize; 7],
    values: Vec<Value>,
    signature: String,
    /// What the pointers point into.
    memory: Vec<Arc<Memory>>,
    waits: bool,
    error: Option<Error>,
}

impl<'a> Launch<'a> {
    /// A launch of `grid` blocks of `block` threads, with `shared_bytes` of dynamic shared memory a block.
    pub fn new(gpu: &'a Gpu, kernel: Kernel, grid: [usize; 3], block: [usize; 3], shared_bytes: usize) -> Self {
        let geometry = [grid[0], grid[1], grid[2], block[0], block[1], block[2], shared_bytes];
        Self { gpu, kernel, geometry, values: Vec::new(), signature: String::new(), memory: Vec::new(), waits: false, error: None }
    }

    /// A buffer that the kernel only reads, with at least `len` elements.
    pub fn input(mut self, name: &str, buffer: &Buffer, dtype: DType, len: usize) -> Self {
        self.pointer('c', name, Some(buffer), dtype, len);
        self
    }

    /// The same, or a null pointer.
    pub fn optional_input(mut self, name: &str, buffer: Option<&Buffer>, dtype: DType, len: usize) -> Self {
        self.pointer('c', name, buffer, dtype, len);
        self
    }

    /// A part of a buffer that the kernel only reads: at least `len` elements from the element `first` on.
    pub fn input_from(mut self, name: &str, buffer: &Buffer, dtype: DType, first: usize, len: usize) -> Self {
        self.pointer('c', name, Some(buffer), dtype, first + len);
        self.advance(first, dtype);
        self
    }

    /// A buffer that the kernel writes, with at least `len` elements.
    pub fn output(mut self, name: &str, buffer: &mut Buffer, dtype: DType, len: usize) -> Self {
        self.pointer('m', name, Some(buffer), dtype, len);
        self
    }

    /// A part of a buffer that the kernel writes: at least `len` elements from the element `first` on.
    pub fn output_from(mut self, name: &str, buffer: &mut Buffer, dtype: DType, first: usize, len: usize) -> Self {
        self.pointer('m', name, Some(buffer), dtype, first + len);
        self.advance(first, dtype);
        self
    }

    /// Moves the last pointer by `elements`.
    fn advance(&mut self, elements: usize, dtype: DType) {
        if let Some(Value::Pointer(address)) = self.values.last_mut().filter(|_| self.error.is_none()) {
            *address += (elements * dtype.size()) as u64;
        }
    }

    /// The same, or a null pointer.
    pub fn optional_output(mut self, name: &str, buffer: Option<&mut Buffer>, dtype: DType, len: usize) -> Self {
        self.pointer('m', name, buffer.map(|b| &*b), dtype, len);
        self
    }

    /// A bf16 matrix `[rows, columns]` that the kernel copies to shared memory in boxes of `box_rows` rows and 64 columns, by TMA. Without a buffer a
    /// map that the kernel must not use.
    pub fn matrix(mut self, name: &str, buffer: Option<&Buffer>, rows: usize, columns: usize, box_rows: usize) -> Self {
        let Some(buffer) = buffer else {
            self.push('t', None, Value::Map(TensorMap::default()));
            return self;
        };
        self.matrix_from(name, buffer, 0, rows, columns, box_rows)
    }

    /// The same of one that the kernel writes, in whole boxes or parts of them at its edges.
    pub fn output_matrix(self, name: &str, buffer: &mut Buffer, rows: usize, columns: usize, box_rows: usize) -> Self {
        self.matrix_from(name, buffer, 0, rows, columns, box_rows)
    }

    /// The same of rows `first..first + rows` of a matrix.
    pub fn matrix_from(self, name: &str, buffer: &Buffer, first: usize, rows: usize, columns: usize, box_rows: usize) -> Self {
        self.boxes(name, buffer, first * columns, &Boxes { address: 0, planes: None, rows, columns, box_rows })
    }

    /// Bf16 planes `[count, rows, columns]` that the kernel copies to shared memory in boxes of some planes, `box_rows` rows and 64 columns, by TMA.
    pub fn planes(self, name: &str, buffer: &Buffer, planes: Planes, rows: usize, columns: usize, box_rows: usize) -> Self {
        self.boxes(name, buffer, 0, &Boxes { address: 0, planes: Some(planes), rows, columns, box_rows })
    }

    /// `boxes` of a buffer from its element `first` on.
    fn boxes(mut self, name: &str, buffer: &Buffer, first: usize, boxes: &Boxes) -> Self {
        let numbers = boxes.planes.map_or(1, |p| p.count) * boxes.rows * boxes.columns;
        // The same checks, of a pointer that is not passed.
        self.pointer('c', name, Some(buffer), DType::Bf16, first + numbers);
        let (Some(Value::Pointer(address)), None) = (self.values.pop(), &self.error) else { return self };
        let address = address + (first * DType::Bf16.size()) as u64;
        self.signature.truncate(self.signature.rfind(' ').unwrap_or(0));
        match self.gpu.backend().tensor_map(&Boxes { address, ..*boxes }) {
            Ok(map) => self.push('t', None, Value::Map(map)),
            Err(e) => self.error = Some(e),
        }
        self
    }

    /// A dimension or count, as `i32`.
    pub fn dim(mut self, name: &str, value: usize) -> Self {
        match i32::try_from(value) {
            Ok(v) => self.push('i', None, Value::I32(v)),
            Err(_) => self.fail(format!("{name} = {value} is more than a kernel's 32-bit dimension holds")),
        }
        self
    }

    /// A count that may go beyond 32 bits, as `i64`.
    pub fn count(mut self, value: usize) -> Self {
        self.push('l', None, Value::I64(i64::try_from(value).expect("no memory holds more")));
        self
    }

    /// 32 bits.
    pub fn u32(mut self, value: u32) -> Self {
        self.push('u', None, Value::U32(value));
        self
    }

    /// A number.
    pub fn f32(mut self, value: f32) -> Self {
        self.push('f', None, Value::F32(value));
        self
    }

    /// The kernel waits by itself for the launches before it (`ptx::wait_for_earlier_launches`), and until then reads only what nobody else writes: in a
    /// [`Graph`](super::Graph) it may begin while they still run.
    pub fn waits(mut self) -> Self {
        self.waits = true;
        self
    }

    /// Queues the launch, or notes it down where this thread records a [`Graph`](super::Graph).
    ///
    /// # Errors
    /// If an argument does not fit what the op stated, the geometry goes over the device's limits, the kernel cannot be compiled, or the
    /// device refuses the launch. On the emulator the kernel has run when this returns, and its mistakes are errors.
    pub fn run(mut self) -> Result<()> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let geometry = self.checked_geometry()?;
        let Self { gpu, kernel, values, signature, memory, waits, .. } = self;
        gpu.queue(Call { kernel, geometry, values, signature, waits }, &memory)
    }

    fn pointer(&mut self, access: char, name: &str, buffer: Option<&Buffer>, dtype: DType, len: usize) {
        let address = match buffer {
            None => 0,
            Some(buffer) if buffer.dtype() != dtype => {
                return self.fail(format!("{name} holds {} where the kernel takes {dtype}", buffer.dtype()));
            }
            Some(buffer) if buffer.len() < len => {
                return self.fail(format!("{name} holds {} numbers where the kernel takes {len}", buffer.len()));
            }
            Some(buffer) if !std::ptr::eq(&**buffer.gpu(), self.gpu) => return self.fail(format!("{name} is memory of another device")),
            Some(buffer) => {
                self.memory.push(buffer.memory().clone());
                buffer.address()
            }
        };
        self.push(access, Some(dtype), Value::Pointer(address));
    }

    fn push(&mut self, letter: char, element: Option<DType>, value: Value) {
        if !self.signature.is_empty() {
            self.signature.push(' ');
        }
        self.signature.push(letter);
        self.signature.extend(element.map(DType::letter));
        self.values.push(value);
    }

    fn fail(&mut self, message: String) {
        let place = format!("kernels/{}: {}", self.kernel.source.file, self.kernel.name);
        self.error.get_or_insert_with(|| Error::device(message).at(place));
    }

    /// The geometry in the driver's types, within CUDA's limits and the device's.
    fn checked_geometry(&self) -> Result<Geometry> {
        let [gx, gy, gz, bx, by, bz, shared] = self.geometry;
        let limit = |what: &str, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(value as u32);
            }
            let place = format!("kernels/{}: {}", self.kernel.source.file, self.kernel.name);
            Err(Error::device(format!("launch with {what} = {value}; it can be {least} to {most}")).at(place))
        };
        limit("threads of a block", bx.saturating_mul(by).saturating_mul(bz), 1, 1024)?;
        Ok(Geometry {
            grid: [limit("grid.x", gx, 1, i32::MAX as usize)?, limit("grid.y", gy, 1, 65535)?, limit("grid.z", gz, 1, 65535)?],
            block: [limit("block.x", bx, 1, 1024)?, limit("block.y", by, 1, 1024)?, limit("block.z", bz, 1, 64)?],
            shared_bytes: limit("shared memory in bytes", shared, 0, self.gpu.info().shared_bytes_per_block)?,
            early: false,
        })
    }
}
