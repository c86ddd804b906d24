"""Compares this project's reading of a GGUF file with the Python package `gguf`, bit for bit.

    python check_gguf.py MODEL.gguf FOLDER    FOLDER: the same model saved by this project as float32
    python check_gguf.py --blocks OUT.json    writes blocks.json: random blocks of every type and what they expand to

Needs numpy and gguf (blocks.json was made with gguf 0.19.0 and numpy 2.4.6).
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, dequantize

TYPES = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]

PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{PARTS[part]}.{kind}"


def read_safetensors(path):
    data = np.memmap(path, dtype=np.uint8, mode="r")
    length = int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8 : 8 + length]))
    header.pop("__metadata__", None)
    for name, info in header.items():
        assert info["dtype"] == "F32", (name, info["dtype"])
        start, end = info["data_offsets"]
        yield name, data[8 + length + start : 8 + length + end].view("<u4").reshape(info["shape"])


def unpermuted(x, heads):
    """Rows of q and k back from llama.cpp's order (pairs of neighbours) to Hugging Face's (pairs of halves)."""
    return x.reshape(heads, x.shape[0] // heads // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def compare(gguf_path, folder):
    reader = GGUFReader(gguf_path)
    arch = reader.fields["general.architecture"].contents()
    saved = dict(read_safetensors(Path(folder) / "model.safetensors"))
    numbers = 0
    kinds = {}
    for tensor in reader.tensors:
        expected = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        expected = expected.reshape([int(d) for d in reversed(tensor.shape)])
        part = tensor.name.rsplit(".", 2)[-2]
        if arch == "llama" and part in ("attn_q", "attn_k"):
            key = "head_count" if part == "attn_q" else "head_count_kv"
            expected = unpermuted(expected, reader.fields[f"llama.attention.{key}"].contents())
        found = saved.pop(hf_name(tensor.name))
        assert found.shape == expected.shape, (tensor.name, found.shape, expected.shape)
        same = np.array_equal(found, np.ascontiguousarray(expected).view(np.uint32))
        assert same, f"{tensor.name} ({tensor.tensor_type.name}) differs"
        numbers += expected.size
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
    assert not saved, f"saved, but not in the GGUF file: {sorted(saved)}"
    print(f"{gguf_path}: {sum(kinds.values())} tensors {kinds}, {numbers} numbers, equal to the bit")


def blocks(out):
    rng = np.random.default_rng(2026)
    result = {}
    for name in TYPES:
        kind = GGMLQuantizationType[name]
        length, size = GGML_QUANT_SIZES[kind]
        n = 3 * 256 // length if length > 1 else 64
        while True:
            raw = rng.integers(0, 256, (n, size), dtype=np.uint8)
            numbers = np.ascontiguousarray(dequantize(raw.reshape(1, -1), kind), dtype=np.float32).reshape(-1)
            # Random scales may be NaN or infinite: those of the first finite draw, block by block.
            finite = np.isfinite(numbers).reshape(n, -1).all(axis=1)
            if finite.sum() >= 2:
                break
        raw = raw[finite][:16]
        numbers = numbers.reshape(n, -1)[finite][:16]
        result[name] = {"bytes": raw.tobytes().hex(), "f32_bits": numbers.astype("<f4").tobytes().hex()}
    Path(out).write_text(json.dumps(result, indent=0) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--blocks":
        blocks(sys.argv[2])
    else:
        compare(sys.argv[1], sys.argv[2])
