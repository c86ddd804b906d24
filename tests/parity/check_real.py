#!/usr/bin/env python3
"""Compares the real binary with PyTorch on a real model (any Hugging Face folder of a supported family): other sequences each run.

    python tests/parity/check_real.py FOLDER                                # everything
    python tests/parity/check_real.py FOLDER --only score greedy --seed 7
    python tests/parity/check_real.py FOLDER --only train lora --steps 3    # large models: training holds 16 bytes a parameter in PyTorch
    python tests/parity/check_real.py FOLDER --only train --exact           # steps against f64, where f32 itself is beyond the limits

The checks, each with the worst error it found and its limit:

    score    per-token log-probabilities, random ids and Python source text, at temperature 1 and 0.7, against transformers in f64 and f32
    greedy   24 greedy tokens after each prompt; a difference counts only where transformers itself is not within 1e-3 of a tie
    record   log-probabilities that `sample` reports are, digit for digit, those that `score` gives for prompt + answer
    train    losses and gradient norms of AdamW steps on {"ids", "loss_mask"} lines; the folder that `train` saved, read by transformers
    lora     the same for an adapter that peft made, its steps against f64; the adapter that `train` saved, read by peft

Prints one line a number and exits with 1 if any is beyond its limit. Needs torch, transformers and peft (versions: README.md).
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import sysconfig
import tempfile
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from transformers import AutoModelForCausalLM

import reference

LOGPROB_LIMIT = 1e-4
STEP_LIMIT = 1e-4
TIE = 1e-3
ALL_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Checks:
    """Collects what was measured."""

    def __init__(self):
        self.failed = 0

    def at_most(self, what, value, limit):
        ok = value <= limit
        self.failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {what}: {value:.3g} (at most {limit:g})", flush=True)

    def same(self, what, ok, otherwise=""):
        self.failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {what}{'' if ok else ': ' + otherwise}", flush=True)

    def note(self, what, values):
        print(f"note {what}: {', '.join(f'{v:.3g}' for v in values)}", flush=True)


class Binary:
    """The program under test."""

    def __init__(self, path, threads):
        self.path, self.threads = path, threads

    def run(self, *args, lines=None):
        text = None if lines is None else "".join(json.dumps(line) + "\n" for line in lines)
        command = [str(self.path), *map(str, args), "--threads", str(self.threads)]
        done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} exited with {done.returncode}; it said: {done.stdout[-2000:]}")
        return done.stdout

    def json_lines(self, *args, lines):
        return [json.loads(line) for line in self.run(*args, lines=lines).splitlines()]


def load(folder, attention="sdpa"):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()


def sources(rng, tokenizer, lengths):
    """Pieces of the standard library's source, as ids."""
    files = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
    pieces = []
    while len(pieces) < len(lengths):
        ids = tokenizer.encode(rng.choice(files).read_text(encoding="utf-8", errors="replace"), add_special_tokens=False)
        length = lengths[len(pieces)]
        if len(ids) > length:
            start = rng.randrange(len(ids) - length)
            pieces.append(ids[start : start + length])
    return pieces


def sequences(rng, args, lengths):
    """Half random ids, half text (all random where there is no tokenizer)."""
    vocab = transformers.AutoConfig.from_pretrained(args.model).vocab_size
    found = [[rng.randrange(vocab) for _ in range(n)] for n in lengths]
    if (args.model / "tokenizer.json").is_file():
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
        found[::2] = sources(rng, tokenizer, lengths[::2])
    return found


def worst(got, want):
    return max((abs(a - b) for a, b in zip(got, want, strict=True)), default=0.0)


def torch_logprobs(model, ids, temperature=1.0):
    with torch.no_grad():
        return reference.logprobs(model, ids, temperature).tolist()


def compare_scores(what, checks, binary, options, model, batch, temperature=1.0):
    """Log-probabilities against transformers in f64, and in f32: there transformers' own distance from f64 is allowed on top, because
    real models have tokens (the first few, with their huge activations) where it alone is several times the limit."""
    got = [
        line["logprobs"]
        for line in binary.json_lines("score", *options, "--temperature", temperature, lines=[{"ids": ids} for ids in batch])
    ]
    f32 = [torch_logprobs(model, ids, temperature) for ids in batch]
    exact = reference.doubled(model)
    f64 = [torch_logprobs(exact, ids, temperature) for ids in batch]
    del exact
    got, f32, f64 = sum(got, []), sum(f32, []), sum(f64, [])
    what = f"{what}, lengths {', '.join(str(len(ids)) for ids in batch)}"
    checks.at_most(f"{what}, against f64", worst(got, f64), LOGPROB_LIMIT)
    beyond = max(abs(g - a) - abs(a - b) for g, a, b in zip(got, f32, f64, strict=True))
    note = f"against f32 {worst(got, f32):.3g} (f32 from f64: {worst(f32, f64):.3g}), beyond f32's own error"
    checks.at_most(f"{what}, {note}", max(beyond, 0.0), LOGPROB_LIMIT)


def check_score(checks, binary, args, rng):
    model = load(args.model)
    options = ["--model", args.model]
    batch = sequences(rng, args, [rng.randrange(600, 900), rng.randrange(129, 300), rng.randrange(65, 129), 64, 2, 5])
    compare_scores("score", checks, binary, options, model, batch)
    compare_scores("score at temperature 0.7", checks, binary, options, model, batch[1:3], 0.7)


def check_greedy(checks, binary, args, rng):
    model = load(args.model)
    prompts = sequences(rng, args, [rng.randrange(3, 20), rng.randrange(20, 64), 64, rng.randrange(130, 260)])
    options = ["--model", args.model, "--json", "--temperature", 0, "--max-new-tokens", 24]
    answers = binary.json_lines("sample", *options, lines=[{"ids": p} for p in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        want, _ = reference.greedy(model, prompt, len(answer["ids"]))
        agree = next((i for i, (a, b) in enumerate(zip(answer["ids"], want)) if a != b), len(want))
        what = f"greedy after {len(prompt)} tokens: {agree} of {len(want)} the same, {answer['finish_reason']}"
        if agree == len(want):
            checks.same(what, len(want) == 24 or answer["finish_reason"] == "eos", "ended early")
            continue
        _, margin = reference.greedy(model, prompt + want[:agree], 1)
        checks.same(
            f"{what}; transformers' best two are {margin:.2g} apart", margin < TIE, f"{answer['ids']} where transformers has {want}"
        )


def check_record(checks, binary, args, rng):
    prompts = sequences(rng, args, [7, 63, 130])
    options = ["--model", args.model]
    for temperature in (0, 1, 0.8):
        sampling = [
            "--json",
            "--temperature",
            temperature,
            "-n",
            1 if temperature == 0 else 3,
            "--max-new-tokens",
            40,
            "--seed",
            rng.randrange(1000),
        ]
        answers = binary.json_lines("sample", *options, *sampling, lines=[{"ids": p} for p in prompts])
        whole = [prompts[a["prompt_index"]] + a["ids"] for a in answers]
        scored = binary.json_lines("score", *options, "--temperature", temperature or 1, lines=[{"ids": ids} for ids in whole])
        ok = all(s["logprobs"][-len(a["ids"]) :] == a["logprobs"] for a, s in zip(answers, scored, strict=True))
        checks.same(f"record: {len(answers)} answers at temperature {temperature} recorded what score gives", ok, "they differ")


def training_lines(rng, args):
    lines = []
    for ids in sequences(rng, args, [rng.randrange(24, 160) for _ in range(args.steps)]):
        start = rng.randrange(1, len(ids) // 2)
        lines.append({"ids": ids, "loss_mask": [int(i >= start and rng.random() < 0.9) for i in range(len(ids))]})
        lines[-1]["loss_mask"][-1] = 1
    return lines


def train(binary, args, folder, lines, adapter=None):
    """Runs `train` on the lines, one a step; its metrics, and the settings that PyTorch is to use."""
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"weight_decay": 0.1, "max_grad_norm": 1.0, "betas": [0.9, 0.999], "eps": 1e-8}
    optim = {"lr": 1e-4, "warmup": 3, "schedule": "cosine"} | settings
    config = [f"model = {json.dumps(str(args.model.resolve()))}", 'algorithm = "sft"', f"steps = {len(lines)}", "batch_prompts = 1"]
    if adapter:
        config.append(f"adapter = {json.dumps(str(adapter.resolve()))}")
    config += ["[data]", 'train = "lines.jsonl"', "shuffle = false", "[optim]", *(f"{k} = {json.dumps(v)}" for k, v in optim.items())]
    (folder / "run.toml").write_text("\n".join(config) + "\n")
    binary.run("train", folder / "run.toml", "--out", folder / "run")
    metrics = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [m for m in metrics if "loss" in m], settings


def apart(steps, others):
    """The largest relative differences of losses and of gradient norms."""
    return [max(abs(a / b - 1) for a, b in zip(x, y, strict=True)) for x, y in zip(steps, others, strict=True)]


def compare_training(what, checks, metrics, steps, exact=None):
    """Losses and gradient norms against PyTorch's in f32 (`steps`), or where there are steps in f64, against those, as log-probabilities
    are compared: a gradient norm can be where f32 is several times the limit from f64."""
    warms_up = 0 < metrics[0]["lr"] < metrics[2]["lr"] if len(metrics) > 2 else True
    checks.same(f"{what}: a learning rate that warms up", warms_up, str(metrics))
    here = [m["loss"] for m in metrics], [m["grad_norm"] for m in metrics]
    if exact:
        rows = zip(["losses", "gradient norms"], apart(here, exact), apart(here, steps), apart(steps, exact), strict=True)
        for name, error, other, own in rows:
            note = f"against f32 {other:.3g}, f32 from f64 {own:.3g}"
            checks.at_most(f"{what}: {name} of {len(metrics)} steps against f64, relative ({note})", error, STEP_LIMIT)
    else:
        for name, error in zip(["losses", "gradient norms"], apart(here, steps), strict=True):
            checks.at_most(f"{what}: {name} of {len(metrics)} steps, relative", error, STEP_LIMIT)


def in_f64(checks, folder, lines, lrs, settings, steps, probe, trained):
    """The same steps in f64: losses, gradient norms, and log-probabilities of the trained model. Notes as a measure how far PyTorch's f32
    parts from itself, with its other attention, which is the same in exact arithmetic."""

    def again(model):
        made = reference.adamw_steps_lean(model, lines, lrs, **settings)
        return made, [torch_logprobs(model, ids) for ids in probe]

    def note(what, made, logprobs):
        saved = max(worst(a, b) for a, b in zip(logprobs, trained, strict=True))
        checks.note(f"train: {what}: losses, gradient norms, the trained model", [*apart(steps, made), saved])

    eager = again(load(folder, "eager"))
    note("PyTorch's sdpa against its eager attention, f32", *eager)
    exact = again(reference.doubled(load(folder)))
    note("PyTorch's f32 against f64", *exact)
    return exact


def check_train(checks, binary, args, rng):
    lines, probe = training_lines(rng, args), sequences(rng, args, [90, 140])
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        metrics, settings = train(binary, args, folder, lines)
        lrs = [m["lr"] for m in metrics]
        model = load(args.model)
        steps = reference.adamw_steps(model, lines, lrs, **settings)
        want, exact = [torch_logprobs(model, ids) for ids in probe], None
        del model  # with its gradients: what follows holds other models, in f32 and in f64
        if args.exact:
            exact, want = in_f64(checks, args.model, lines, lrs, settings, steps, probe, want)
        compare_training("train", checks, metrics, steps, exact)
        saved = folder / "run/model"
        # Two trainings of the same steps end close together, not equal: AdamW's first steps have the size of the learning rate whatever
        # the gradient's, so gradients near zero may be rounded to either side.
        after = load(saved)
        error = max(worst(torch_logprobs(after, ids), logprobs) for ids, logprobs in zip(probe, want, strict=True))
        checks.at_most("train: the saved folder in transformers, against the model that PyTorch trained", error, 10 * LOGPROB_LIMIT)
        compare_scores("train: the saved folder, here and in transformers", checks, binary, ["--model", saved], after, probe)


def random_adapter(args, rng, folder):
    """An adapter as peft makes it, with random B so that it does something."""
    torch.manual_seed(rng.randrange(2**31))  # peft draws A
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=ALL_TARGETS, lora_dropout=0.0, task_type="CAUSAL_LM")
    model = peft.get_peft_model(load(args.model), config)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    with torch.no_grad():
        for name, p in reference.trained(model):
            if "lora_B" in name:
                p.copy_(0.02 * torch.randn(p.shape, generator=generator))
    model.save_pretrained(folder)


def check_lora(checks, binary, args, rng):
    lines, probe = training_lines(rng, args), sequences(rng, args, [90, 140])
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        random_adapter(args, rng, folder / "start")
        model = peft.PeftModel.from_pretrained(load(args.model), folder / "start", is_trainable=True)
        compare_scores("lora: peft's adapter", checks, binary, ["--model", args.model, "--adapter", folder / "start"], model, probe)
        metrics, settings = train(binary, args, folder, lines, adapter=folder / "start")
        exact, lrs = reference.doubled(model), [m["lr"] for m in metrics]
        steps = reference.adamw_steps(model, lines, lrs, **settings)
        compare_training("lora", checks, metrics, steps, reference.adamw_steps(exact, lines, lrs, **settings))
        del model, exact
        saved = folder / "run/adapter"
        after = peft.PeftModel.from_pretrained(load(args.model), saved).eval()
        compare_scores(
            "lora: the saved adapter, here and in peft", checks, binary, ["--model", args.model, "--adapter", saved], after, probe
        )


CHECKS = {"score": check_score, "greedy": check_greedy, "record": check_record, "train": check_train, "lora": check_lora}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path, help="a Hugging Face folder")
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path("target/release/sorft-native"))
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--seed", type=int, help="default: another one each run; it is printed")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps")
    parser.add_argument("--exact", action="store_true", help="train: compare with the same steps in f64 (16 bytes a parameter, 4 passes a step)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"{args.model.name}, seed {seed}, torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    checks, binary = Checks(), Binary(args.binary, args.threads)
    for name in args.only:
        CHECKS[name](checks, binary, args, random.Random(f"{seed} {name}"))
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
