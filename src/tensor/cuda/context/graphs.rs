//! Graphs of the CUDA driver: launches that a stream captures, where the driver can so that they begin before those before them have ended.

use super::Context;
use crate::tensor::cuda::launch::{Call, Geometry};
use crate::tensor::cuda::probe::CudaVersion;
use crate::{Error, Result};
use cudarc::driver::{result, sys};
use std::ffi::c_void;

/// What graphs take besides; they came with CUDA 11.4, and without them launches are queued one by one.
const GRAPHS: [&str; 6] = [
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
];

/// The driver that first captures launches which begin early, and what it takes for them.
const EARLY_SINCE: CudaVersion = CudaVersion { major: 12, minor: 3 };
const EARLY_LAUNCH: &str = "cuLaunchKernelEx";

impl Context {
    /// A graph of the calls that can be launched: with early launches where there are such, and else without.
    pub(super) fn graph_of(&self, calls: &mut [Call]) -> Result<u64> {
        // SAFETY: the driver's library is there; symbols are only looked up.
        let missing = unsafe { GRAPHS.iter().find(|name| sys::culib().get::<*const c_void>(name.as_bytes()).is_err()) };
        if let Some(missing) = missing {
            return Err(Error::device(format!("the CUDA driver (CUDA {}) has no {missing}", self.driver)));
        }
        if self.begins_early() {
            // A driver that refuses is asked for the plain graph.
            if let Ok(made) = self.make_graph_of(calls, true) {
                return Ok(made);
            }
        }
        self.make_graph_of(calls, false)
    }

    /// [`Context::launch_on`] of a launch that begins before those before it have ended: programmatic dependent launch.
    ///
    /// # Safety
    /// As [`Context::launch_on`]; the driver has [`EARLY_LAUNCH`].
    unsafe fn launch_early_on(
        &self,
        stream: sys::CUstream,
        function: sys::CUfunction,
        geometry: &Geometry,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let Geometry { grid, block, shared_bytes, .. } = *geometry;
        let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block[0],
            blockDimY: block[1],
            blockDimZ: block[2],
            sharedMemBytes: shared_bytes,
            hStream: stream,
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        // SAFETY: as the caller promises; the attribute lives until the call has returned.
        let status = unsafe { sys::cuLaunchKernelEx(&raw const config, function, arguments.as_mut_ptr(), std::ptr::null_mut()) };
        status.result().map_err(|e| self.failed("launching early", e))
    }

    /// Whether launches in a graph may begin early.
    fn begins_early(&self) -> bool {
        // SAFETY: the driver's library is there; the symbol is only looked up.
        let there = unsafe { sys::culib().get::<*const c_void>(EARLY_LAUNCH.as_bytes()).is_ok() };
        there && self.driver >= EARLY_SINCE && self.info.compute_capability >= (9, 0)
    }

    /// A graph of the calls: what a stream that captures is given. Nobody else knows the stream, so nothing of another thread gets into it. `early`: those
    /// that may begin early do.
    fn capture(&self, stream: sys::CUstream, calls: &mut [Call], early: bool) -> Result<sys::CUgraph> {
        // Compiling and loading are done before: they are not allowed in a capture.
        let functions = calls.iter().map(|c| self.prepared(c.kernel, c.geometry.shared_bytes).map_err(|e| c.at(e)));
        let functions = functions.collect::<Result<Vec<_>>>()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: an open stream.
        unsafe { result::stream::begin_capture(stream, mode) }.map_err(|e| self.failed("beginning a capture", e))?;
        // SAFETY: the calls' arguments are what their kernels take (`Launch`).
        let launch = |(call, function): (&mut Call, _)| unsafe {
            let mut arguments = call.arguments();
            let launched = match early && call.geometry.early {
                true => self.launch_early_on(stream, function, &call.geometry, &mut arguments),
                false => self.launch_on(stream, function, &call.geometry, &mut arguments),
            };
            launched.map_err(|e| call.at(e))
        };
        let launched = calls.iter_mut().zip(functions).try_for_each(launch);
        // SAFETY: the stream captures; it is to stop also where a launch was refused.
        let graph = unsafe { result::stream::end_capture(stream) };
        if let (Err(_), Ok(part)) = (&launched, &graph) {
            // SAFETY: the graph of the launches before the one that was refused, which nobody else knows.
            let _ = unsafe { result::graph::destroy(*part) };
        }
        launched?;
        graph.map_err(|e| self.failed("ending a capture", e))
    }

    /// A graph that can be launched; see [`Context::capture`].
    fn make_graph_of(&self, calls: &mut [Call], early: bool) -> Result<u64> {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(|e| self.failed("creating a stream", e))?;
        let graph = self.capture(stream, calls, early);
        // SAFETY: the stream is our own and idle; the graph is whole, and is not needed once it is instantiated.
        unsafe {
            let _ = result::stream::destroy(stream);
            let graph = graph?;
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            let made = made.map_err(|e| self.failed(&format!("making a graph of {} launches", calls.len()), e))?;
            Ok(made.expose_provenance() as u64)
        }
    }
}
