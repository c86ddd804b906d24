//! All that work units do on the processor, in one pool of threads: what `scripts/sanitize thread` runs.
//!
//! ThreadSanitizer sees no lock of a standard library that was built without it, and reports whatever two threads hand to one another by one.
//! Here main hands one job to the pool and waits for its end. All else is handed over by rayon's and crossbeam's own atomics, which are built
//! with the checker, so that what it reports is a race. (Under libtest every test would be a thread that hands work to the pool and back.)

#[path = "../../fuzz/step.rs"]
mod training;

/// Family; then, each less one: number of prompts, lengths of three prompts, answers to each, their lengths, batch of decoding.
const SHAPES: [[u8; 8]; 6] = [
    [0, 2, 139, 70, 20, 2, 40, 8],
    [1, 2, 33, 128, 5, 2, 69, 3],
    [2, 2, 64, 31, 90, 1, 17, 8],
    [0, 0, 0, 0, 0, 0, 1, 0],
    [1, 1, 100, 2, 0, 0, 30, 1],
    [2, 1, 7, 119, 0, 2, 64, 5],
];

fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().expect("a pool");
    pool.install(|| SHAPES.iter().for_each(|shape| training::step(shape)));
    println!("races: {} shapes sampled and trained on by 4 threads", SHAPES.len());
}
