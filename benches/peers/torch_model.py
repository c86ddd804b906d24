"""A Llama or Qwen2 in plain PyTorch, for `torch_device.py`: what somebody would write who wants it fast and has no other library.

SDPA, fused AdamW over f32 masters under autocast, torch.compile for training, a static KV cache and one CUDA graph a decoded token. Weights are
random: times do not depend on them.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


class Config:
    def __init__(self, folder):
        c = json.loads((Path(folder) / "config.json").read_text())
        self.hidden, self.layers, self.feed = c["hidden_size"], c["num_hidden_layers"], c["intermediate_size"]
        self.heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.head_dim = c.get("head_dim") or self.hidden // self.heads
        self.vocab, self.eps, self.bias = c["vocab_size"], c["rms_norm_eps"], c["model_type"] == "qwen2"
        self.theta = c.get("rope_theta") or c.get("rope_parameters", {}).get("rope_theta", 10_000.0)


class LoraLinear(nn.Module):
    """y = x W' + 2 (x A') B', the base frozen; rank 16."""

    def __init__(self, base, rank=16):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features, device=base.weight.device) / rank)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x):
        return self.base(x) + 2.0 * F.linear(F.linear(x, self.a), self.b)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.q, self.k = nn.Linear(c.hidden, q, c.bias), nn.Linear(c.hidden, kv, c.bias)
        self.v, self.o = nn.Linear(c.hidden, kv, c.bias), nn.Linear(q, c.hidden, False)
        self.gate, self.up = nn.Linear(c.hidden, c.feed, False), nn.Linear(c.hidden, c.feed, False)
        self.down = nn.Linear(c.feed, c.hidden, False)
        self.norm1, self.norm2 = nn.RMSNorm(c.hidden, c.eps), nn.RMSNorm(c.hidden, c.eps)

    def forward(self, x, cos, sin, cache=None, at=None, mask=None):
        c, (batch, n, _) = self.c, x.shape
        h = self.norm1(x)
        q = self.q(h).view(batch, n, c.heads, c.head_dim).transpose(1, 2)
        k = self.k(h).view(batch, n, c.kv_heads, c.head_dim).transpose(1, 2)
        v = self.v(h).view(batch, n, c.kv_heads, c.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            cache[0].index_copy_(2, at, k)
            cache[1].index_copy_(2, at, v)
            if n == 1:
                k, v = cache
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=n > 1, enable_gqa=c.heads != c.kv_heads)
        x = x + self.o(a.transpose(1, 2).reshape(batch, n, -1))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, self.embed = c, nn.Embedding(c.vocab, c.hidden)
        self.blocks, self.norm = nn.ModuleList(Block(c) for _ in range(c.layers)), nn.RMSNorm(c.hidden, c.eps)

    def angles(self, at, dtype):
        half = self.c.head_dim // 2
        inverse = self.c.theta ** (-torch.arange(half, device=at.device, dtype=torch.float32) / half)
        angles = at.float()[:, None] * inverse
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def hidden(self, ids, at, caches=None, mask=None):
        x = self.embed(ids)
        cos, sin = self.angles(at, x.dtype)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, caches[i] if caches else None, at, mask)
        return self.norm(x)

    def loss(self, ids):
        h = self.hidden(ids, torch.arange(ids.shape[1], device=ids.device))
        logits = F.linear(h[:, :-1], self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


class Decoder:
    """Tokens one by one at temperature 1: a static cache, and on a GPU one graph a token."""

    def __init__(self, model, prompts, new_tokens):
        c, (batch, length) = model.c, prompts.shape
        self.model, self.prompts, self.length, self.device = model, prompts, length, prompts.device
        shape = (batch, c.kv_heads, length + new_tokens + 1, c.head_dim)
        dtype = model.embed.weight.dtype
        self.caches = [tuple(torch.zeros(shape, device=self.device, dtype=dtype) for _ in range(2)) for _ in range(c.layers)]
        self.token = torch.zeros(batch, 1, dtype=torch.long, device=self.device)
        self.at, self.positions = torch.zeros(1, dtype=torch.long, device=self.device), torch.arange(shape[2], device=self.device)
        self.graph = None

    @torch.no_grad()
    def prefill(self):
        at, rows = torch.arange(self.length, device=self.device), max(1, 65536 // self.length)
        for i in range(0, len(self.prompts), rows):
            part = [(k[i : i + rows], v[i : i + rows]) for k, v in self.caches]
            h = self.model.hidden(self.prompts[i : i + rows], at, part)
            self.token[i : i + rows] = self.choose(h[:, -1:])
        self.at.fill_(self.length)

    def choose(self, h):
        logits = F.linear(h, self.model.embed.weight).float()
        # The largest of the logits with Gumbel noise: a sample at temperature 1.
        return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)

    @torch.no_grad()
    def one(self):
        mask = (self.positions <= self.at)[None, None, None]
        self.token.copy_(self.choose(self.model.hidden(self.token, self.at, self.caches, mask)))
        self.at.add_(1)

    def step(self):
        if self.device.type != "cuda":
            return self.one()
        if self.graph is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.one()
            torch.cuda.current_stream().wait_stream(stream)
            self.at.sub_(1)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.one()
        self.graph.replay()


def decode_rows(t, model, sizes):
    ids = lambda *shape: torch.randint(0, model.c.vocab, shape, device=t.device)  # noqa: E731
    peer = "static cache, CUDA graph" if t.gpu else "static cache"
    for name, batch, length in sizes["decode"]:
        decoder, n = Decoder(model, ids(batch, length), sizes["decoded"]), sizes["decoded"]
        decoder.prefill()

        def tokens(decoder=decoder, length=length, n=n):
            decoder.at.fill_(length)
            for _ in range(n):
                decoder.step()

        t.run(name, peer, "tokens/s", batch * n, tokens, rounds=1)
        del decoder
    n, length = sizes["sequences"]
    prompts = ids(n, length)
    decoder = Decoder(model, prompts, 1)
    label = f"{n}x{length}" if n > 1 else str(length)
    t.run(f"model prefill {label}", "eager", "tokens/s", n * length, decoder.prefill, rounds=1)


def train_rows(t, loss_of, vocab, sizes, name, trained, who=""):
    n, length = sizes["sequences"]
    ids = torch.randint(0, vocab, (n, length), device=t.device)
    for peer, loss in ((who + "eager", loss_of), (who + "compiled", torch.compile(loss_of))):
        adam = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.01, fused=t.gpu)

        def step(adam=adam, loss=loss):
            with torch.autocast(t.device.type, torch.bfloat16):
                value = loss(ids)
            value.backward()
            nn.utils.clip_grad_norm_(trained, 1.0, foreach=t.gpu)
            adam.step()
            adam.zero_grad(set_to_none=True)

        label = f"{n}x{length}" if n > 1 else str(length)
        t.run(f"model {name} {label}", peer, "tokens/s", n * length, step, rounds=1)


def grpo_row(t, model, sizes):
    """Answers sampled for every prompt on its own copy, then one update; what TRL does, without its overhead."""
    prompts, group, length, answer = sizes["grpo"]
    ids = torch.randint(0, model.c.vocab, (prompts, length), device=t.device).repeat_interleave(group, 0)
    half = Model(model.c).to(t.device, torch.bfloat16)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=t.gpu)
    loss = torch.compile(model.loss) if t.gpu else model.loss

    def step():
        half.load_state_dict(model.state_dict())
        decoder, said = Decoder(half, ids, answer), []
        decoder.prefill()
        for _ in range(answer):
            said.append(decoder.token.clone())
            decoder.step()
        whole = torch.cat([ids, *said], 1)
        del decoder
        for part in whole.split(max(1, 32768 // whole.shape[1])):
            with torch.autocast(t.device.type, torch.bfloat16):
                value = loss(part)
            value.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    name = f"model GRPO step {prompts}x{group}, {length}+{answer}"
    t.run(name, "static cache, compiled", "tokens/s", prompts * group * answer, step, rounds=1)


def run(t, folder):
    if t.shrink == 1:
        sizes = {
            "decoded": 64,
            "decode": [
                ("model decode alone", 1, 1024),
                ("model decode at batch 64", 64, 1024),
                ("model decode at batch 256", 256, 1024),
                ("model decode, a group of 16 on 4096", 16, 4096),
                ("model decode, 16 prompts of 4096", 16, 4096),
            ],
            "sequences": (16, 1024),
            "grpo": (32, 16, 1024, 512),
        }
    else:
        decode = [("model decode alone", 1, 4), ("model decode at batch 2", 2, 4)]
        sizes = {"decoded": 2, "decode": decode, "sequences": (2, 8), "grpo": (2, 2, 4, 3)}
    c = Config(folder)
    decode_rows(t, Model(c).to(t.device, torch.bfloat16).eval(), sizes)
    model = Model(c).to(t.device)
    train_rows(t, model.loss, c.vocab, sizes, "training step", list(model.parameters()))
    grpo_row(t, model, sizes)
    for block in model.blocks:
        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            setattr(block, name, LoraLinear(getattr(block, name)))
    model.requires_grad_(False)
    trained = [p for m in model.modules() if isinstance(m, LoraLinear) for p in (m.a.requires_grad_(), m.b.requires_grad_())]
    train_rows(t, model.loss, c.vocab, sizes, "LoRA training step", trained)
    del model, trained
    transformers_rows(t, folder, sizes)


def transformers_rows(t, folder, sizes):
    """The same training steps by transformers, and by peft, where they are installed."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        return
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(t.device).train()
    loss = lambda ids: model(input_ids=ids, labels=ids, use_cache=False).loss  # noqa: E731
    train_rows(t, loss, config.vocab_size, sizes, "training step", list(model.parameters()), "transformers, ")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=modules))
    loss = lambda ids: adapted(input_ids=ids, labels=ids, use_cache=False).loss  # noqa: E731
    trained = [p for p in adapted.parameters() if p.requires_grad]
    train_rows(t, loss, config.vocab_size, sizes, "LoRA training step", trained, "peft, ")
