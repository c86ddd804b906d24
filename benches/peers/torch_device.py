#!/usr/bin/env python3
"""Times PyTorch on a GPU at what `sorft-native bench --device cuda:0 [--model FOLDER]` times, under the same names.

    python benches/peers/torch_device.py                              # kernels
    python benches/peers/torch_device.py --model FOLDER --only model  # decode, prefill, training and GRPO steps of a Hugging Face folder
    python benches/peers/torch_device.py --device cpu --shrink 64     # to see that it runs

Needs torch alone: the model is written out below, with SDPA, a static KV cache and CUDA graphs, so that it is not held back by Python. Where
transformers and peft are there they are timed as well. Prints a JSON line a measurement: the row's name, the peer (eager, compiled, an SDPA back
end, cuBLAS, ...), seconds, and amount a second in the row's unit. `compare.py` sets these beside the program's own.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parent))
import torch_model  # noqa: E402

ROUNDS = 20


class Timer:
    """Times a function as the program times a launch: some rounds between two looks at the clock, the median of what fits in the time."""

    def __init__(self, args):
        self.device, self.seconds, self.shrink = torch.device(args.device), args.seconds, args.shrink
        self.gpu = self.device.type == "cuda"
        self.name = torch.cuda.get_device_name() if self.gpu else "CPU"

    def size(self, n):
        return -(-(n // self.shrink) // 8) * 8

    def random(self, *shape, dtype=torch.bfloat16):
        return torch.rand(shape, device=self.device, dtype=torch.float32).sub_(0.5).to(dtype)

    def synchronize(self):
        if self.gpu:
            torch.cuda.synchronize()

    def run(self, name, peer, unit, amount, work, rounds=ROUNDS):
        """`amount`: bytes, operations or tokens of a call. A peer that fails (memory, no such back end) is reported and passed over."""
        rounds = rounds if self.shrink == 1 else 1
        try:
            for _ in range(3):
                work()
            self.synchronize()
            times, begin = [], time.perf_counter()
            while not times or time.perf_counter() - begin < self.seconds:
                start = time.perf_counter()
                for _ in range(rounds):
                    work()
                self.synchronize()
                times.append((time.perf_counter() - start) / rounds)
        except Exception as error:  # noqa: BLE001: whatever a back end says, the other rows are wanted
            print(f"{name}, {peer}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            return
        seconds = statistics.median(times)
        rate = amount / seconds / (1e9 if unit.startswith("G") else 1)
        line = {"name": name, "peer": peer, "seconds": seconds, "unit": unit, "rate": rate, "torch": torch.__version__, "device": self.name}
        print(json.dumps(line), flush=True)

    def both(self, name, unit, amount, f, *inputs):
        """Eager and compiled."""
        self.run(name, "eager", unit, amount, lambda: f(*inputs))
        compiled = torch.compile(f, mode="max-autotune-no-cudagraphs" if self.gpu else "default")
        self.run(name, "compiled", unit, amount, lambda: compiled(*inputs))

    def gradients(self, name, unit, amount, f, inputs, upstream):
        """The backward pass alone, eager and compiled."""
        for peer, g in (("eager", f), ("compiled", torch.compile(f))):
            try:
                out = g(*inputs)
            except Exception as error:  # noqa: BLE001
                print(f"{name}, {peer}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            self.run(name, peer, unit, amount, lambda out=out: torch.autograd.grad(out, inputs, upstream, retain_graph=True))


def rows(t):
    n, d = t.size(16384), t.size(2048)
    x, y, w = t.random(n, d), t.random(n, d), t.random(d)
    size = 2 * n * d
    t.both(f"rmsnorm forward {n}x{d}", "GB/s", 2 * size, lambda x, w: F.rms_norm(x, (d,), w, 1e-5), x, w)

    def of_sum(x, y, w):
        s = x + y
        return s, F.rms_norm(s, (d,), w, 1e-5)

    t.both(f"rmsnorm forward of a sum {n}x{d}", "GB/s", 4 * size, of_sum, x, y, w)
    inputs = (x.clone().requires_grad_(), w.clone().requires_grad_())
    t.gradients(f"rmsnorm backward {n}x{d}", "GB/s", 5 * size, lambda x, w: F.rms_norm(x, (d,), w, 1e-5), inputs, y)
    ids = torch.arange(n, device=t.device) * 7919 % 4000
    table = t.random(4000, d).requires_grad_()
    t.run("embedding forward", "eager", "GB/s", 2 * size, lambda: F.embedding(ids, table))
    t.gradients("embedding backward", "GB/s", size + 8 * min(4000, n) * d, lambda w: F.embedding(ids, w), (table,), y)


def elements(t):
    n = t.size(16384) * t.size(4864)
    gate, up, dy = t.random(n), t.random(n), t.random(n)
    swiglu = lambda gate, up: F.silu(gate) * up  # noqa: E731
    t.both("swiglu forward", "GB/s", 6 * n, swiglu, gate, up)
    t.gradients("swiglu backward", "GB/s", 10 * n, swiglu, (gate.clone().requires_grad_(), up.clone().requires_grad_()), dy)
    t.run("sum of two", "eager", "GB/s", 6 * n, lambda: gate.add_(dy))
    n = t.size(64 << 20)
    p = torch.nn.Parameter(t.random(n, dtype=torch.float32))
    p.grad = t.random(n, dtype=torch.float32)
    adam = torch.optim.AdamW([p], lr=1e-6, fused=t.gpu)
    w = torch.empty(n, device=t.device, dtype=torch.bfloat16)

    def step():
        adam.step()
        w.copy_(p.detach())

    # The program's step writes the bf16 weight as well, so the peer does.
    t.run("adamw 64M", "fused, and a cast" if t.gpu else "eager, and a cast", "GB/s", 30 * n, step)
    t.run("sum of squares 64M", "eager", "GB/s", 4 * n, lambda: torch.linalg.vector_norm(p.grad))


def products(t):
    for m, n, k in ((8192, 8192, 8192), (16384, 4864, 896), (64, 4864, 896)):
        m, n, k = t.size(m), t.size(n), t.size(k)
        x, dy, w, flops = t.random(m, k), t.random(m, n), t.random(n, k), 2 * m * n * k
        peer = "cuBLAS" if t.gpu else "eager"
        t.run(f"linear forward {m}x{k}x{n}", peer, "GFLOP/s", flops, lambda: x @ w.T)
        if m < 1024 and t.shrink == 1:
            continue
        a, b = t.random(16, k), t.random(n, 16)
        t.both(f"linear with rank 16 {m}x{k}x{n}", "GFLOP/s", flops, lambda x, w, a, b: x @ w.T + 0.5 * ((x @ a.T) @ b.T), x, w, a, b)
        t.run(f"linear dx {m}x{k}x{n}", peer, "GFLOP/s", flops, lambda: dy @ w)
        t.run(f"linear dw {m}x{k}x{n}", peer, "GFLOP/s", flops, lambda: dy.T @ x)


def attention(t):
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    for d, h, kv in ((64, 14, 2), (128, 16, 4)):
        for length in (2048, 16384):
            n = t.size(length)
            q, k, v, g = t.random(1, h, n, d), t.random(1, kv, n, d), t.random(1, kv, n, d), t.random(1, h, n, d)
            flops = 2 * n * n * h * d
            # Not every back end takes fewer key heads: keys and values are repeated for it, untimed.
            inputs = [x.requires_grad_() for x in (q, k.repeat_interleave(h // kv, 1), v.repeat_interleave(h // kv, 1))]
            for backend in backends if t.gpu else backends[:1]:
                peer = backend.name.lower().replace("_attention", "")
                with sdpa_kernel(backend):
                    f = lambda: F.scaled_dot_product_attention(*inputs, is_causal=True)  # noqa: E731
                    t.run(f"attention forward d{d} {n}", peer, "GFLOP/s", flops, f)
                    try:
                        out = f()
                    except RuntimeError:
                        continue
                    back = lambda out=out: torch.autograd.grad(out, inputs, g, retain_graph=True)  # noqa: E731
                    t.run(f"attention backward d{d} {n}", peer, "GFLOP/s", 2.5 * flops, back)
    n, samples = t.size(4096), 16
    q, k, v = t.random(samples, 14, 1, 64), t.random(samples, 2, n, 64), t.random(samples, 2, n, 64)
    amount = n * 2 * 128 * 2
    t.run(f"attention decode 16 on {n}", "sdpa, the prompt sixteen times", "GB/s", amount, lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))


def head(t):
    rows, vocab, width = t.size(8192), t.size(151_936), t.size(896)
    h, w = t.random(rows, width), t.random(vocab, width)
    targets = torch.arange(rows, device=t.device) * 7919 % vocab
    flops = 2 * rows * width * vocab

    def logprob_and_entropy(h, w):
        logits = (h @ w.T).float()
        lse = logits.logsumexp(-1)
        entropy = lse - (torch.softmax(logits, -1) * logits).sum(-1)
        return logits.gather(1, targets[:, None])[:, 0] - lse, entropy

    t.both(f"head forward {rows}x{width}x{vocab}", "GFLOP/s", flops, logprob_and_entropy, h, w)
    inputs, seeds = (h.clone().requires_grad_(), w.clone().requires_grad_()), torch.full((rows,), 0.01, device=t.device)
    # The program's backward makes the logits once more: four products where a graph that keeps them has two.
    loss = lambda h, w: logprob_and_entropy(h, w)[0]  # noqa: E731
    t.gradients(f"head backward {rows}x{width}x{vocab}", "GFLOP/s", 4 * flops, loss, inputs, seeds)
    few = t.random(8, width)
    t.run(f"head logits 8x{width}x{vocab}", "cuBLAS" if t.gpu else "eager", "GB/s", 2 * vocab * width, lambda: few @ w.T)
    sampling(t, (t.random(t.size(256), width) @ w.T).float())


def sampling(t, logits):
    rows, vocab = logits.shape
    peer = "cuda" if t.gpu else "eager"
    amount = rows * (min(2048, vocab) + 3 * -(-vocab // 2048)) * 4
    t.run(f"sample {rows}x{vocab}", peer, "GB/s", amount, lambda: torch.multinomial(torch.softmax(logits, -1), 1))

    def top_k():
        values, ids = logits.topk(50, -1)
        return ids.gather(1, torch.multinomial(torch.softmax(values, -1), 1))

    t.run(f"sample top-k 50 {rows}x{vocab}", peer, "GB/s", 2 * rows * vocab * 4, top_k)

    def top_p():
        masses, ids = torch.softmax(logits, -1).sort(descending=True)
        masses = masses.masked_fill(masses.cumsum(-1) - masses >= 0.95, 0)
        return ids.gather(1, torch.multinomial(masses, 1))

    t.run(f"sample top-p 0.95 {rows}x{vocab}", peer, "GB/s", 2 * rows * vocab * 4, top_p)


def floors(t):
    """What the chip gives anybody: a copy, and a large product."""
    n = t.size(128 << 20)
    x, y = t.random(n, dtype=torch.float32), torch.empty(n, device=t.device)
    t.run("copy", "copy_", "GB/s", 8 * n, lambda: y.copy_(x))


KERNELS = {"floors": floors, "rows": rows, "elements": elements, "products": products, "attention": attention, "head": head}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", help="a Hugging Face folder, for --only model")
    parser.add_argument("--only", nargs="+", choices=[*KERNELS, "model"], default=list(KERNELS))
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement")
    parser.add_argument("--shrink", type=int, default=1, help="sizes are divided by it")
    args = parser.parse_args()
    if "model" in args.only and not args.model:
        parser.error("--only model needs --model FOLDER")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; --device cpu --shrink 64 shows that the script runs")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    timer = Timer(args)
    for name in args.only:
        if name == "model":
            torch_model.run(timer, args.model)
        else:
            KERNELS[name](timer)


if __name__ == "__main__":
    main()
