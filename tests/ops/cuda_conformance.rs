//! Every wrapper of inline assembly by itself (`src/tensor/cuda/conformance/`), by its host twin on the emulator: no bit is another than in the manual's words,
//! under every schedule, and nothing races.

use crate::cuda_checker::modes;
use crate::emulator;
use crate::ptx_witness::conforms;
use rayon::prelude::*;

#[test]
fn wrappers_conform_under_every_schedule() {
    modes().into_par_iter().for_each(|mode| conforms(&emulator::gpu(mode)));
}
