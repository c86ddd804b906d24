//! Files with bytes changed at random: they are read or refused, never a panic.

use crate::make;
use proptest::prelude::*;
use std::fs;

/// Reads all that can be read.
fn use_up(path: &std::path::Path) {
    if let Ok(files) = sorft_native::model::weights::open(path.to_str().unwrap()) {
        for name in files.weights.names() {
            let shape = files.weights.shape(&name).unwrap();
            let _ = files.weights.read(&name, &shape);
        }
        if let Some(tokenizer) = &files.tokenizer {
            let _ = tokenizer.encode("the <s>é 12", true).and_then(|ids| tokenizer.decode(&ids, true));
        }
    }
}

/// Changes a few bytes, preferring those near the start (headers), and maybe cuts the file.
fn mutated(mut bytes: Vec<u8>, header: usize, changes: &[(usize, u8)], cut: Option<usize>) -> Vec<u8> {
    for (at, value) in changes {
        let at = at % header.min(bytes.len());
        bytes[at] = *value;
    }
    if let Some(cut) = cut {
        let len = bytes.len();
        bytes.truncate(cut % len);
    }
    bytes
}

/// Whole numbers that headers like to be wrong by.
fn nasty() -> impl Strategy<Value = u8> {
    prop_oneof![any::<u8>(), Just(0), Just(1), Just(0x7F), Just(0x80), Just(0xFF)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn gguf(changes in proptest::collection::vec((any::<usize>(), nasty()), 0..8), near in 30usize..12_000, cut in proptest::option::weighted(0.2, any::<usize>())) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        fs::write(&path, mutated(make::gguf("llama").bytes(), near, &changes, cut)).unwrap();
        use_up(&path);
    }

    /// Eight bytes at once, so that lengths and offsets become huge.
    #[test]
    fn gguf_numbers(at in 0usize..12_000, value in prop_oneof![any::<u64>(), Just(u64::MAX), Just(u64::MAX / 2), Just(1 << 62), 0u64..1000]) {
        let mut bytes = make::gguf("qwen2").bytes();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        fs::write(&path, bytes).unwrap();
        use_up(&path);
    }

    #[test]
    fn safetensors(changes in proptest::collection::vec((any::<usize>(), prop_oneof![nasty(), Just(b'9'), Just(b'-'), Just(b','), Just(b'0')]), 0..8), near in 8usize..4000, cut in proptest::option::weighted(0.2, any::<usize>())) {
        let dir = tempfile::tempdir().unwrap();
        make::folder_without_weights(dir.path(), "llama");
        let bytes = make::safetensors_file(&make::tensors("llama"), "F16");
        fs::write(dir.path().join("model.safetensors"), mutated(bytes, near, &changes, cut)).unwrap();
        use_up(dir.path());
    }
}
