#!/usr/bin/env python3
"""Makes the fixtures of `cargo test --test parity`: tiny random models, and what PyTorch, transformers and peft say of them.

    python tests/parity/make_fixtures.py                                    # rewrites tests/parity/fixtures
    python tests/parity/make_fixtures.py --seed 7 --out /tmp/other          # other models and sequences, then:
    SORFT_PARITY_FIXTURES=/tmp/other cargo test --test parity
    python tests/parity/make_fixtures.py --random 20 --out /tmp/other       # 20 models of random shapes; the test as above
    python tests/parity/make_fixtures.py --real FOLDER --out /tmp/other     # gradients of a real model; the test as above, with --test-threads=1

The versions that made the committed files are in README.md beside this script, and in every `reference.json`.
"""

import argparse
import json
import os
import pathlib
import shutil
import tempfile
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here comes from the hub: peft must not look for its base there

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch
from transformers import AutoModelForCausalLM

import grpo
import reference

GREEDY_TOKENS = 24
"""How many greedy tokens must be the same."""

MIN_MARGIN = 2e-3
"""Prompts whose continuation passes closer than this to a tie (in logits, f64) are drawn again: a tie has no right answer."""

COOL = 0.7
"""The temperature at which the first line is scored as well."""

SKETCH_ABOVE = 4096
"""Gradients of more numbers than this are stored as a sketch."""

SKETCH_BUCKETS = 2048

PIECE = 1 << 22
"""Numbers of a tensor that are sketched at a time: an embedding of 136 million in pieces."""

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

COMMON = {"hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "attention_dropout": 0.0, "initializer_range": 0.02}

# Each model: its config.json word for word (so that both layouts of transformers are read), the dtype and number of its files, and the
# lengths of the sequences that gradients are taken on. Widths are odd on purpose; an attention tile is 64 keys, a chunk of a sum 512 terms.
MODELS = {
    # Llama 3.x: scaling that touches all three ranges of frequencies, transformers 5 layout, sums longer than two chunks (1056).
    "llama3": {
        "config": COMMON
        | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "vocab_size": 301,
            "hidden_size": 40,
            "intermediate_size": 1056,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "rope_parameters": LLAMA3_ROPE | {"rope_theta": 10000.0},
        },
        "dtype": torch.bfloat16,
        "shards": 1,
        "lengths": [70, 131, 200],
    },
    # The same scaling in transformers 4's layout, tied head; SmolLM2's shape (9 heads, 3 of keys).
    "llama3_v4": {
        "config": COMMON
        | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "float16",
            "vocab_size": 290,
            "hidden_size": 54,
            "intermediate_size": 150,
            "num_hidden_layers": 3,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_theta": 500.0,
            "rope_scaling": LLAMA3_ROPE | {"factor": 4.0, "original_max_position_embeddings": 32},
        },
        "dtype": torch.float16,
        "shards": 1,
        "lengths": [70, 131, 200],
    },
    # Biases everywhere that Llama can have them, linear scaling under its oldest name, as many key heads as query heads.
    "llama_linear": {
        "config": COMMON
        | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "float32",
            "vocab_size": 257,
            "hidden_size": 36,
            "intermediate_size": 92,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "linear", "factor": 2.5},
        },
        "dtype": torch.float32,
        "shards": 1,
        "lengths": [64, 65, 129],
    },
    # Qwen2: biases on q, k and v; one key head for all; a vocabulary over two chunks; transformers 4 layout with null scaling.
    "qwen2": {
        "config": COMMON
        | {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "torch_dtype": "float16",
            "vocab_size": 1063,
            "hidden_size": 56,
            "intermediate_size": 136,
            "num_hidden_layers": 2,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "max_position_embeddings": 1024,
            "max_window_layers": 2,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "rope_theta": 1000000.0,
            "rope_scaling": None,
            "sliding_window": 256,
            "use_sliding_window": False,
        },
        "dtype": torch.float16,
        "shards": 1,
        "lengths": [70, 131, 200],
    },
    # Qwen3: normed heads of their own width (4 x 16 on 44), sharded files, a sequence of more than one gradient chunk of tokens (600).
    "qwen3": {
        "config": COMMON
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "dtype": "bfloat16",
            "vocab_size": 333,
            "hidden_size": 44,
            "intermediate_size": 100,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            "max_window_layers": 3,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "sliding_window": None,
            "use_sliding_window": False,
        },
        "dtype": torch.bfloat16,
        "shards": 2,
        "lengths": [600, 33],
    },
}


def random_spec(rng):
    """A model of a random shape: head_dim apart from hidden / heads, 1 to 8 query heads for a key head, sizes that are multiples of nothing.

    No narrower than 16: the norm of a handful of numbers blows up the rounding of a row that happens to be small, in PyTorch as here, and
    which of the two has the better luck says nothing.
    """
    family = rng.choice(["llama", "qwen2", "qwen3"])
    heads_kv, layers = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    heads = heads_kv * int(rng.integers(1, 9))
    theta = float(rng.choice([500.0, 10000.0, 500000.0, 1000000.0]))
    rope = {"rope_type": "default"}
    if family == "llama" and rng.random() < 0.7:
        low = float(rng.choice([1.0, 1.5, 2.0]))
        rope = LLAMA3_ROPE | {
            "factor": float(rng.choice([2.0, 8.0, 32.0])),
            "low_freq_factor": low,
            "high_freq_factor": low * float(rng.choice([1.5, 4.0])),
            "original_max_position_embeddings": int(rng.integers(20, 300)),
        }
    dtype = rng.choice(["float32", "float16", "bfloat16"]).item()
    config = COMMON | {
        "architectures": [{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family] + "ForCausalLM"],
        "model_type": family.item(),
        "vocab_size": int(rng.integers(40, 5000)),
        # transformers takes no Llama whose heads do not divide its width, even where head_dim says theirs.
        "hidden_size": heads * int(rng.integers(-(-16 // heads), 9 + 16 // heads)) if family == "llama" else int(rng.integers(17, 90)),
        "intermediate_size": int(rng.integers(5, 1200)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads_kv,
        "head_dim": 2 * int(rng.integers(1, 24)),
        "max_position_embeddings": 1024,
        "rms_norm_eps": float(rng.choice([1e-5, 1e-6])),
        "tie_word_embeddings": bool(rng.random() < 0.5),
        "attention_bias": bool(rng.random() < 0.3),
    }
    if family == "llama":
        config["mlp_bias"] = bool(rng.random() < 0.3)
    if rng.random() < 0.5:
        config |= {"dtype": dtype, "rope_parameters": rope | {"rope_theta": theta}}
    else:
        config |= {"torch_dtype": dtype, "rope_theta": theta, "rope_scaling": None if rope["rope_type"] == "default" else rope}
    lengths = [int(n) for n in rng.choice([2, 3, 17, 63, 64, 65, 66, 127, 128, 129, 191, 193, 257, 520], 3, replace=False)]
    return {"config": config, "dtype": getattr(torch, dtype), "shards": int(rng.integers(1, 4)), "lengths": lengths}


ALL_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Adapters: (model, folder, rank, alpha, targets).
ADAPTERS = [
    ("llama3", "lora_all", 4, 8, ALL_TARGETS),
    ("qwen2", "lora_some", 3, 4.5, ["q_proj", "v_proj", "down_proj"]),
    ("qwen3", "lora_all", 4, 8, ALL_TARGETS),
]


def random_weights(config, generator):
    """Weights with which every term matters: norms away from one, biases away from zero, logits of a spread of a few units."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = {}
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name:
            w = 1.0 + 0.3 * noise
        elif name.endswith(".bias"):
            w = 0.3 * noise
        elif "embed_tokens" in name:
            w = 0.4 * noise
        elif "lm_head" in name:
            w = 2.5 * noise / p.shape[1] ** 0.5
        else:
            w = 1.2 * noise / p.shape[1] ** 0.5
        weights[name] = w
    return weights


def write_model(folder, spec, generator):
    """config.json as given, and the weights rounded to their dtype, in one file or in shards with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(spec["config"], indent=2) + "\n")
    config = transformers.AutoConfig.from_pretrained(folder)
    weights = {k: v.to(spec["dtype"]).contiguous() for k, v in random_weights(config, generator).items()}
    shards = spec["shards"]
    if shards == 1:
        save_torch(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, index = sorted(weights), {}
    for s in range(shards):
        file = f"model-{s + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names[s::shards]}
        save_torch(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    size = sum(w.numel() * w.element_size() for w in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def sketch(x):
    """The count-sketch of a tensor: number i goes to bucket hash(i) mod BUCKETS with the sign of the hash's top bit.

    Linear, covers every number, and keeps norms without bias (relative deviation about 1/sqrt(2 BUCKETS), 1.6 %): so
    ||sketch(a) - sketch(b)|| / ||sketch(b)|| stands for ||a - b|| / ||b|| at a hundredth of the size.
    """
    x, buckets = x.reshape(-1), np.zeros(SKETCH_BUCKETS)
    for start in range(0, x.size, PIECE):
        piece = x[start : start + PIECE]
        z = np.arange(start + 1, start + piece.size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        signed = np.where(z >> np.uint64(63), -1.0, 1.0) * piece
        buckets += np.bincount((z % np.uint64(SKETCH_BUCKETS)).astype(np.int64), weights=signed, minlength=SKETCH_BUCKETS)
    return buckets


def random_line(rng, vocab, length):
    """A sequence with a mask: a prompt's worth of tokens out, then most in."""
    prompt = int(rng.integers(0, max(1, length // 3)))
    mask = (np.arange(length) >= prompt) & (rng.random(length) < 0.9)
    mask[-1] = True
    return {"ids": rng.integers(0, vocab, length).tolist(), "loss_mask": mask.astype(int).tolist()}


def gradient_reference(model, exact, lines, arrays):
    """Loss and gradients in f64; how far PyTorch's f32 gradient is from them, tensor by tensor. Arrays go to `arrays`."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        loss, grads = reference.gradients(exact, lines, folder / "f64")
        loss_f32, grads_f32 = reference.gradients(model, lines, folder / "f32")
        tensors = {}
        for name, g in grads.items():
            sketched = g.size > SKETCH_ABOVE
            arrays[f"grad.{name}"] = (sketch(g) if sketched else g).astype(np.float32)
            error = reference.relative_error(grads_f32[name], g)
            tensors[name] = {"shape": list(g.shape), "norm": reference.norm(g), "torch_f32_error": error, "sketched": sketched}
        return {
            "loss": loss,
            "loss_f32": loss_f32,
            "grad_norm": reference.total_norm(grads),
            "grad_norm_f32": reference.total_norm(grads_f32),
            "tensors": tensors,
        }


def steps_reference(load, rng, vocab, longest, max_grad_norm):
    """Ten AdamW steps with warm-up, in f32 and, to see how far rounding alone moves them, in f64."""
    lines = [random_line(rng, vocab, int(n)) for n in rng.integers(24, longest, 10)]
    settings = {"weight_decay": 0.1, "max_grad_norm": max_grad_norm, "betas": [0.9, 0.999], "eps": 1e-8}
    lrs = [1e-3 * min(1.0, t / 4) for t in range(1, 11)]
    model = load()
    losses, norms = reference.adamw_steps(model, lines, lrs, **settings)
    exact = reference.doubled(load())
    losses_f64, norms_f64 = reference.adamw_steps(exact, lines, lrs, **settings)
    after = reference.logprobs(model, lines[0]["ids"]).detach().numpy()
    return settings | {
        "lr": lrs,
        "lines": lines,
        "loss": losses,
        "grad_norm": norms,
        "loss_f64": losses_f64,
        "grad_norm_f64": norms_f64,
        "logprobs_after": [float(x) for x in after],
    }


def scores(model, exact, lines, arrays):
    """Log-probabilities of every line in both precisions, and of the first at a temperature."""
    with torch.no_grad():
        arrays["logprobs.cool"] = reference.logprobs(exact, lines[0]["ids"], COOL).numpy()
        for i, line in enumerate(lines):
            arrays[f"logprobs.f32.{i}"] = reference.logprobs(model, line["ids"]).numpy()
            arrays[f"logprobs.f64.{i}"] = reference.logprobs(exact, line["ids"]).numpy()


def greedy_reference(model, exact, rng, vocab):
    """Greedy continuations of prompts of several lengths, the same in f32 and f64 and far from any tie."""
    found = []
    for length in (3, 63, 100):
        while True:
            prompt = rng.integers(0, vocab, length).tolist()
            ids, margin = reference.greedy(exact, prompt, GREEDY_TOKENS)
            ids_f32 = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, length, dtype=torch.long),
                do_sample=False,
                max_new_tokens=GREEDY_TOKENS,
                pad_token_id=0,
            )[0, length:].tolist()
            if margin >= MIN_MARGIN and model.config.eos_token_id not in ids:
                assert ids == ids_f32, "f32 and f64 part far from a tie"
                found.append({"prompt": prompt, "ids": ids, "margin": margin})
                break
    return found


def versions():
    return {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__, "numpy": np.__version__}


def write_reference(folder, numbers, arrays):
    numbers = {"versions": versions()} | numbers
    (folder / "reference.json").write_text(json.dumps(numbers, separators=(",", ":")) + "\n")
    save_numpy({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "reference.safetensors")


def make_model(out, name, seed):
    spec, folder = MODELS[name], out / name
    vocab = spec["config"]["vocab_size"]
    key = [seed, list(MODELS).index(name)]
    rng = np.random.default_rng(key)
    write_model(folder, spec, torch.Generator().manual_seed(key[0] * 1000 + key[1]))

    def load():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")

    model = load()
    exact = reference.doubled(model)
    lines = [random_line(rng, vocab, n) for n in spec["lengths"]]
    arrays = {}
    scores(model, exact, lines, arrays)
    numbers = {
        "lines": lines,
        "sft": gradient_reference(model, exact, lines, arrays),
        "greedy": greedy_reference(model, exact, rng, vocab),
        "steps": steps_reference(load, rng, vocab, 100, 1.0),
    }
    write_reference(folder, numbers, arrays)


def make_real(out, source, seed):
    """What PyTorch says of a real model and of a random adapter on it: log-probabilities and gradients of short sequences, no steps and no
    continuations, which `check_real.py` compares through the binary. The model itself is linked, not copied."""
    folder = out / source.name
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.name == "config.json" or ".safetensors" in file.name:
            (folder / file.name).symlink_to(file.resolve())
    rng = np.random.default_rng([seed, 200])

    def write(place, model, lengths):
        lines = [random_line(rng, model.config.vocab_size, n) for n in lengths]
        exact, arrays = reference.doubled(model), {}
        scores(model, exact, lines, arrays)
        write_reference(place, {"lines": lines, "sft": gradient_reference(model, exact, lines, arrays)}, arrays)

    write(folder, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa"), [65, 40, 129])
    write(folder / "lora_all", write_adapter(out, folder.name, "lora_all", 4, 8, ALL_TARGETS, seed, 0.02)(), [65, 40])


def write_adapter(out, base, folder_name, rank, alpha, targets, seed, size=None):
    """An adapter as peft saves it, B of the given size and not zero; a function that loads base and adapter."""
    folder = out / base / folder_name
    generator = torch.Generator().manual_seed(seed)

    def base_model():
        return AutoModelForCausalLM.from_pretrained(out / base, dtype=torch.float32, attn_implementation="sdpa")

    # The base is named, not placed: the file must not know where it was made.
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", base_model_name_or_path=base
    )
    model = peft.get_peft_model(base_model(), config)
    with torch.no_grad():
        for name, p in reference.trained(model):
            scale = (size or 0.5 / rank**0.5) if "lora_B" in name else 1.0 / p.shape[1] ** 0.5
            p.copy_(scale * torch.randn(p.shape, generator=generator))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["target_modules"] = targets  # peft writes a set, in an order of its own each time
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return lambda: peft.PeftModel.from_pretrained(base_model(), folder, is_trainable=True)


def make_adapter(out, base, folder_name, rank, alpha, targets, seed, size=None):
    vocab = MODELS[base]["config"]["vocab_size"]
    key = [seed, 100 + list(MODELS).index(base)]
    rng = np.random.default_rng(key)
    load = write_adapter(out, base, folder_name, rank, alpha, targets, key[0] * 1000 + key[1], size)
    model = load()
    exact = reference.doubled(model)
    lines = [random_line(rng, vocab, n) for n in (40, 140)]
    arrays = {}
    scores(model, exact, lines, arrays)
    numbers = {
        "lines": lines,
        "sft": gradient_reference(model, exact, lines, arrays),
        # Clipping that bites in some steps and not in others.
        "steps": steps_reference(load, rng, vocab, 80, 8.0),
    }
    write_reference(out / base / folder_name, numbers, arrays)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "fixtures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=MODELS, help="one model, the others left as they are")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="N models of random shapes instead")
    parser.add_argument("--real", type=pathlib.Path, metavar="FOLDER", help="the gradients of a real model instead")
    args = parser.parse_args()
    if (args.random or args.real) and args.out == parser.get_default("out"):
        parser.error("--random and --real need an --out of their own")
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")  # of peft (the base model's name is ours to choose) and of deprecations inside transformers
    if args.real:
        return make_real(args.out, args.real, args.seed)
    for i in range(args.random):
        MODELS[f"random{i}"] = random_spec(np.random.default_rng([args.seed, 300 + i]))
        targets = ALL_TARGETS if i % 2 == 0 else ["q_proj", "o_proj", "up_proj"]
        ADAPTERS.append((f"random{i}", "lora", 1 + i % 5, 8, targets))
    names = [args.only] if args.only else [n for n in MODELS if n.startswith("random") or not args.random]
    for name in names:
        shutil.rmtree(args.out / name, ignore_errors=True)
        make_model(args.out, name, args.seed)
        for adapter in ADAPTERS:
            if adapter[0] == name:
                # Of random shapes a small one: large products of A and B on top of any weights make losses that no f32 agrees on.
                make_adapter(args.out, *adapter, args.seed, 0.1 if args.random else None)
        print(f"{name}: done", flush=True)
    (args.out / "grpo.json").write_text(json.dumps({"versions": versions(), "cases": grpo.cases(args.seed)}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
