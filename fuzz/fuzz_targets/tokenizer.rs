//! See `bodies::tokenizer`.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

// The library panics on some damaged tokenizers, which our reader catches: without this the panic itself would end the fuzzer.
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |data: &[u8]| bodies::tokenizer(data));
