"""Reference numbers for advantages, KL estimates, the policy loss and the value loss.

    python tests/rl/make_reference.py > tests/rl/reference.json        (PyTorch 2; any version gives the same to 1e-12)

Padded float64 tensors with masks and autograd, by the formulas of TRL, verl and OpenRLHF; the program has neither padding nor masks, so the
two agree only if what is masked counts for nothing. Inputs are rounded to f32 first, since that is what the program is given.
"""

import json
import random

import torch

D = torch.float64


def f32(x):
    return torch.tensor(x, dtype=torch.float32).to(D).item()


def pad(rows, longest):
    return torch.tensor([list(r) + [0.0] * (longest - len(r)) for r in rows], dtype=D)


def mask_of(lengths, longest):
    return torch.tensor([[1.0] * n + [0.0] * (longest - n) for n in lengths], dtype=D)


def unpad(x, lengths):
    return [x[i, :n].tolist() for i, n in enumerate(lengths)]


# Advantages ---------------------------------------------------------------------------------------------------------------------------


def rloo(r):
    n = len(r)
    return r.clone() if n == 1 else r * n / (n - 1) - r.mean() * n / (n - 1)


def group_baseline(r):
    return r.clone() if len(r) == 1 else r - r.mean()


def token_rewards(score, kl, mask, coef):
    """OpenRLHF's compute_reward: -coef kl everywhere, the score scattered to the last token of the mask."""
    rewards = -coef * kl * mask
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return rewards.scatter_add(1, last[:, None], score[:, None])


def gae(rewards, values, mask, gamma, lam):
    """verl's compute_gae_advantage_return."""
    next_value = torch.zeros(len(rewards), dtype=D)
    last = torch.zeros(len(rewards), dtype=D)
    out = []
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        step = delta + gamma * lam * last
        next_value = values[:, t] * mask[:, t] + (1 - mask[:, t]) * next_value
        last = step * mask[:, t] + (1 - mask[:, t]) * last
        out.append(last)
    advantages = torch.stack(out[::-1], 1)
    return advantages * mask, (advantages + values) * mask


def to_go(rewards, mask, gamma):
    """OpenRLHF's get_cumulative_returns."""
    running, out = torch.zeros(len(rewards), dtype=D), []
    for t in reversed(range(rewards.shape[1])):
        running = (rewards[:, t] + gamma * running) * mask[:, t]
        out.append(running)
    return torch.stack(out[::-1], 1)


def whiten(x, mask, kind):
    n = mask.sum()
    mean = (x * mask).sum() / n
    squares = ((x - mean) ** 2 * mask).sum()
    if kind == "sample":  # TRL's and verl's masked_whiten: Bessel's correction, rsqrt(var + 1e-8)
        return (x - mean) * torch.rsqrt(squares / n * (n / (n - 1)) + 1e-8) * mask
    return (x - mean) * (squares / n).clamp(min=1e-8).rsqrt() * mask  # OpenRLHF


# Losses -------------------------------------------------------------------------------------------------------------------------------


def kl_estimate(new, ref, kind):
    d = new - ref
    return {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) + d - 1}[kind]


def aggregate(loss, mask, kind, longest):
    if kind == "token":
        return (loss * mask).sum() / mask.sum()
    if kind == "sequence":
        return ((loss * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    return (loss * mask).sum() / (len(mask) * longest)


def policy_loss(new, old, ref, advantage, mask, s):
    difference = new - old
    if s["ratio"] == "sequence":  # verl's compute_policy_loss_gspo
        mean = ((difference * mask).sum(1) / mask.sum(1).clamp(min=1)).detach()
        difference = mean[:, None] + new - new.detach()
    ratio = torch.exp(difference)
    surrogate = torch.min(ratio * advantage, ratio.clamp(1 - s["low"], 1 + s["high"]) * advantage)
    if s["dual"]:
        surrogate = torch.where(advantage < 0, torch.max(surrogate, s["dual"] * advantage), surrogate)
    return aggregate(-surrogate + s["kl_coef"] * kl_estimate(new, ref, s["kl"]), mask, s["aggregation"], s["longest"])


def value_loss(value, old, returns, mask, clip):
    free = (value - returns) ** 2
    held = (old + (value - old).clamp(-clip, clip) - returns) ** 2 if clip else free
    return 0.5 * (torch.max(free, held) * mask).sum() / mask.sum(), ((held > free) * mask).sum() / mask.sum()


# Cases --------------------------------------------------------------------------------------------------------------------------------


def group_cases(rng):
    groups = [[1.0, 0.0, 0.0, 0.5], [0.1] * 5, [0.7], [rng.random() for _ in range(8)], [1e-9, 0.0], [-1.0, 1.0, 1.0]]
    return [{"rewards": r, "rloo": rloo(torch.tensor(r, dtype=D)).tolist(), "group_baseline": group_baseline(torch.tensor(r, dtype=D)).tolist(),
             "dr_grpo": (torch.tensor(r, dtype=D) - torch.tensor(r, dtype=D).mean()).tolist()} for r in groups]


def token_case(rng, lengths, gamma, lam, coef, kind):
    longest = max(lengths)
    mask = mask_of(lengths, longest)
    rows = lambda spread: [[f32(rng.gauss(0, spread)) for _ in range(n)] for n in lengths]
    new = [[f32(-abs(rng.gauss(0, 2))) for _ in range(n)] for n in lengths]
    ref = [[f32(x + rng.gauss(0, 0.5)) for x in row] for row in new]
    score, values = [rng.random() for _ in lengths], rows(1)
    kl = kl_estimate(pad(new, longest), pad(ref, longest), kind)
    rewards = token_rewards(torch.tensor(score, dtype=D), kl, mask, coef)
    advantages, returns = gae(rewards, pad(values, longest), mask, gamma, lam)
    go = to_go(rewards, mask, gamma)
    out = {"gamma": gamma, "lambda": lam, "kl_coef": coef, "kl": kind, "new": new, "ref": ref, "score": score, "values": values}
    expected = {"kl": kl, "rewards": rewards, "advantages": advantages, "returns": returns, "to_go": go}
    if sum(lengths) > 1:
        expected |= {f"whitened_{k}": whiten(advantages, mask, k) for k in ["sample", "population"]}
        expected |= {f"reinforce_{k}": whiten(go, mask, k) for k in ["sample", "population"]}
    return out | {"expected": {k: unpad(v, lengths) for k, v in expected.items()}}


def policy_case(rng, lengths, spread, per_token, s):
    longest = max(lengths)
    mask = mask_of(lengths, longest)
    new = [[f32(-abs(rng.gauss(0, 2))) for _ in range(n)] for n in lengths]
    old = [[f32(x + rng.gauss(0, spread)) for x in row] for row in new]
    ref = [[f32(x + rng.gauss(0, 0.5)) for x in row] for row in new]
    one = [f32(rng.choice([0.0, rng.gauss(0, 1.5)])) for _ in lengths]
    advantage = [[f32(rng.gauss(0, 1)) if per_token else a for _ in range(n)] for a, n in zip(one, lengths)]
    x = pad(new, longest).requires_grad_()
    loss = policy_loss(x, pad(old, longest), pad(ref, longest), pad(advantage, longest), mask, s)
    loss.backward()
    return {"settings": s, "new": new, "old": old, "ref": ref, "advantage": advantage,
            "expected": {"loss": loss.item(), "d_logprob": unpad(x.grad, lengths)}}


def value_case(rng, lengths, spread, clip):
    longest = max(lengths)
    mask = mask_of(lengths, longest)
    rows = lambda s: [[f32(rng.gauss(0, s)) for _ in range(n)] for n in lengths]
    old, returns = rows(1), rows(1)
    value = [[f32(x + rng.gauss(0, spread)) for x in row] for row in old]
    x = pad(value, longest).requires_grad_()
    loss, clipped = value_loss(x, pad(old, longest), pad(returns, longest), mask, clip)
    loss.backward()
    return {"clip": clip, "value": value, "old": old, "returns": returns,
            "expected": {"loss": loss.item(), "clip_fraction": clipped.item(), "d_value": unpad(x.grad, lengths)}}


def main():
    rng = random.Random(20250519)
    shapes = [[5, 1, 9, 3], [6] * 3, [1], [1, 1, 12]]
    tokens = [token_case(rng, lengths, *s) for lengths in shapes
              for s in [(1.0, 0.95, 0.01, "k1"), (0.97, 0.8, 0.2, "k3"), (1.0, 1.0, 0.0, "k2"), (0.9, 0.0, 0.5, "k1")]]
    settings = [dict(zip(["aggregation", "ratio", "low", "high", "dual", "kl", "kl_coef", "longest"], s)) for s in [
        ("token", "token", 0.2, 0.2, None, "k1", 0.0, 16),
        ("token", "token", 0.2, 0.28, 3.0, "k1", 0.05, 16),
        ("sequence", "token", 0.2, 0.2, 1.5, "k2", 0.1, 16),
        ("constant", "token", 0.2, 0.28, None, "k3", 0.1, 20),
        ("sequence", "sequence", 3e-4, 4e-4, None, "k3", 0.0, 16),
        ("token", "sequence", 0.2, 0.28, 3.0, "k3", 0.02, 16)]]
    policy = [policy_case(rng, lengths, spread, per_token, s) for s in settings for per_token in [False, True]
              for lengths, spread in [([5, 1, 9, 3], 0.3), ([4] * 3, 0.01), ([1, 2], 3.0)]]
    value = [value_case(rng, lengths, spread, clip) for lengths in shapes for spread in [0.05, 0.8] for clip in [0.2, 0.5, None]]
    print(json.dumps({"groups": group_cases(rng), "tokens": tokens, "policy": policy, "value": value}))


main()
