"""Writes adamw_reference.json: what torch.optim.AdamW makes of given gradients, in float64 and in its own float32.

    python tests/ops/adamw_reference.py > tests/ops/adamw_reference.json

Made with Python 3.11 and torch 2.15.0 on a CPU. The float32 run is the plain loop (foreach=False, fused=False).
"""

import json

import torch

STEPS, N = 12, 8
CONFIGS = [
    dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01),
    dict(lr=3e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    dict(lr=5e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0),
]


def run(start, grads, dtype, config):
    p = torch.nn.Parameter(start.to(dtype).clone())
    optimizer = torch.optim.AdamW([p], foreach=False, fused=False, **config)
    after = []
    for g in grads:
        p.grad = g.to(dtype)
        optimizer.step()
        after.append(p.detach().clone())
    state = optimizer.state[p]
    return after, state["exp_avg"], state["exp_avg_sq"]


torch.manual_seed(0)
cases = []
for config in CONFIGS:
    start = torch.randn(N)
    grads = [torch.randn(N) * 10.0 ** torch.randint(-4, 2, (N,)) for _ in range(STEPS)]
    for g in grads:
        g[0] = 0.0  # a weight that never gets a gradient: decay alone
    grads[7][:] = 0.0
    exact, m, v = run(start, grads, torch.float64, config)
    own, m32, v32 = run(start, grads, torch.float32, config)
    numbers = lambda x: x.tolist()
    cases.append(
        dict(
            config=dict(config, betas=list(config["betas"])),
            start=numbers(start),
            grads=[numbers(g) for g in grads],
            float64=dict(p=[numbers(p) for p in exact], m=numbers(m), v=numbers(v)),
            float32=dict(p=[numbers(p) for p in own], m=numbers(m32), v=numbers(v32)),
        )
    )
print(json.dumps(dict(torch=torch.__version__.split("+")[0], cases=cases)))
