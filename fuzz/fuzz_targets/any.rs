//! The target that `FUZZ_TARGET` names: one program of all targets, which `scripts/fuzz` builds instead of one each.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

/// What this process does with its bytes.
fn body() -> bodies::Body {
    static BODY: std::sync::OnceLock<bodies::Body> = std::sync::OnceLock::new();
    *BODY.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
        // Panics of libraries that our readers catch are no failures; one that comes through ends the process all the same.
        drop(std::panic::take_hook());
        bodies::BODIES.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no target {name}")).1
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| body()(data));
