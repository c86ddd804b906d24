#!/usr/bin/env python3
"""Times PyTorch and transformers on the CPU: prefill, a training step, decode, and plain matrix products.

    python benches/peers/transformers_cpu.py FOLDER                     # a Hugging Face folder, e.g. of SmolLM2-135M-Instruct
    python benches/peers/transformers_cpu.py FOLDER --dtype bf16 --only prefill decode

Prints one JSON line a measurement: what it was, the median of --repeats runs and all of them, in tokens (or GFLOP) per second, loading
and one warm-up run not counted. Random token ids; the time does not depend on them. For a fair comparison run it and the project's own
benches in turn on a quiet machine with the same number of threads.
"""

import argparse
import json
import os
import statistics
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a Hugging Face folder (not needed for --only matmul)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--only", nargs="+", choices=list(BENCHES), default=list(BENCHES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512, help="length of a sequence in prefill and training")
    parser.add_argument("--batch", type=int, default=4, help="sequences in the larger prefill and training batch")
    parser.add_argument("--decode-batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt-tokens", type=int, default=128, help="prompt of the decode benches")
    parser.add_argument("--new-tokens", type=int, default=64)
    args = parser.parse_args()
    if args.model is None and args.only != ["matmul"]:
        parser.error("a model folder is needed for all but --only matmul")
    return args


class Bench:
    """A model, and a way to report."""

    def __init__(self, args):
        import torch
        import transformers

        torch.set_num_threads(args.threads)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.torch, self.args = torch, args
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}

    def load(self):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.args.model, dtype=self.dtype, attn_implementation="sdpa")

    def ids(self, model, rows, length):
        return self.torch.randint(0, model.config.vocab_size, (rows, length))

    def measure(self, name, amount, unit, run, prepare=lambda: None, **shape):
        """Times `run` (given what `prepare` returned, untimed); `amount` of `unit` a run."""
        run(prepare())
        rates = []
        for _ in range(self.args.repeats):
            ready = prepare()
            start = time.perf_counter()
            run(ready)
            rates.append(amount / (time.perf_counter() - start))
        self.report(name, statistics.median(rates), unit, rates, **shape)

    def report(self, name, value, unit, rates, **shape):
        digits = [round(r, 2) for r in rates]
        load = [round(x, 2) for x in os.getloadavg()]
        line = {"peer": "transformers", "bench": name, "dtype": self.args.dtype, **shape, "value": round(value, 2), "unit": unit}
        line |= {"runs": digits, "threads": self.args.threads, "load_average": load, **self.versions}
        print(json.dumps(line), flush=True)


def prefill(bench):
    """A forward pass that fills the cache: with logits for the last position alone (what sampling needs) and for all (what scoring needs)."""
    torch, args, model = bench.torch, bench.args, bench.load().eval()
    for rows in (1, args.batch):
        ids = bench.ids(model, rows, args.tokens)
        for name, keep in (("prefill", 1), ("prefill_all_logits", 0)):

            @torch.no_grad()
            def run(_, ids=ids, keep=keep):
                model(input_ids=ids, use_cache=True, logits_to_keep=keep)

            bench.measure(name, ids.numel(), "tokens/s", run, batch=rows, tokens=args.tokens)


def train(bench):
    """Forward, loss and backward; the same with clipping and AdamW; and AdamW alone (seconds a step, for what it costs)."""
    torch, args, model = bench.torch, bench.args, bench.load().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.1)
    for rows in (1, args.batch):
        ids = bench.ids(model, rows, args.tokens)

        def gradient(_, ids=ids):
            optimizer.zero_grad(set_to_none=True)
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

        def step(_, gradient=gradient):
            gradient(None)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        bench.measure("train_forward_backward", ids.numel(), "tokens/s", gradient, batch=rows, tokens=args.tokens)
        bench.measure("train_step_adamw", ids.numel(), "tokens/s", step, batch=rows, tokens=args.tokens)
    bench.measure("adamw_alone", 1, "steps/s", lambda _: optimizer.step(), parameters=sum(p.numel() for p in model.parameters()))


def decode(bench):
    """Greedy tokens one by one from a filled cache, all sequences of a batch equally long; prefill not counted."""
    torch, args, model = bench.torch, bench.args, bench.load().eval()
    for rows in args.decode_batches:

        @torch.no_grad()
        def prepare(rows=rows):
            out = model(input_ids=bench.ids(model, rows, args.prompt_tokens), use_cache=True, logits_to_keep=1)
            return out.past_key_values, out.logits[:, -1:].argmax(-1)

        @torch.no_grad()
        def run(state):
            cache, token = state
            for _ in range(args.new_tokens):
                out = model(input_ids=token, past_key_values=cache, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)

        shape = {"batch": rows, "prompt_tokens": args.prompt_tokens, "new_tokens": args.new_tokens}
        bench.measure("decode", rows * args.new_tokens, "tokens/s", run, prepare, **shape)


def matmul(bench):
    """x [t, k] times w' for w [n, k], as a linear layer has it."""
    torch = bench.torch
    for t, k, n in ((1024, 576, 1536), (2048, 2048, 2048), (1024, 1536, 576), (16, 576, 49152), (1, 576, 49152)):
        x, w = torch.randn(t, k, dtype=bench.dtype), torch.randn(n, k, dtype=bench.dtype)
        out = torch.empty(t, n, dtype=bench.dtype)
        calls = max(1, int(2e9 / (2 * t * k * n)))

        @torch.no_grad()
        def run(_, x=x, w=w, out=out, calls=calls):
            for _ in range(calls):
                torch.mm(x, w.T, out=out)

        bench.measure("matmul", calls * 2 * t * k * n / 1e9, "GFLOP/s", run, t=t, k=k, n=n)


BENCHES = {"matmul": matmul, "prefill": prefill, "train": train, "decode": decode}


def main():
    args = arguments()
    # Before torch is imported: its thread pools are sized from these.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    bench = Bench(args)
    for name in args.only:
        BENCHES[name](bench)


if __name__ == "__main__":
    main()
