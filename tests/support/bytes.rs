//! A byte-level tokenizer without merges.

use serde_json::{Map, Value, json};

/// Bytes, an end and the marks of two roles. The model has more ids than that, as padded vocabularies do.
pub fn tokenizer_json() -> Value {
    // Byte-level vocabularies write a byte that is no printable character as one beyond U+0100.
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..);
    let mut beyond = 0x100;
    let mut vocab = Map::new();
    for byte in 0..=255u8 {
        let c = match printable(byte) {
            true => char::from(byte),
            false => {
                beyond += 1;
                char::from_u32(beyond - 1).unwrap()
            }
        };
        vocab.insert(c.to_string(), json!(byte));
    }
    let added = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [added(256, "<end>"), added(257, "<user>"), added(258, "<assistant>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}
