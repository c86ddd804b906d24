"""Reference numbers of the GRPO loss: padded f64 tensors and autograd, the formulas as TRL's GRPOTrainer has them (`loss_type` "dapo" for
the mean over tokens, "grpo" for the mean over sequences of token means; `scale_rewards="group"`; k3 as the KL estimate).

No model: log-probabilities, entropies and rewards are drawn, the loss and its derivatives are computed. Knows nothing of the project.
"""

import itertools

import numpy as np
import torch

ADVANTAGE_EPS = 1e-4


def advantages(rewards, group_size):
    """(r - mean) / (std + eps) inside each group of `group_size` rewards, std with Bessel's correction (torch.std's default)."""
    groups = torch.tensor(rewards, dtype=torch.float64).view(-1, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + ADVANTAGE_EPS)).view(-1)


def loss(new, old, ref, entropy, advantage, mask, low, high, beta, entropy_coef, aggregation):
    ratio = torch.exp(new - old)
    clipped = ratio.clamp(1 - low, 1 + high)
    per_token = -torch.min(ratio * advantage[:, None], clipped * advantage[:, None])
    if beta:
        per_token = per_token + beta * (torch.exp(ref - new) - (ref - new) - 1)
    per_token = per_token - entropy_coef * entropy
    if aggregation == "token":
        return (per_token * mask).sum() / mask.sum()
    return ((per_token * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def rows(x, lengths):
    """The unpadded rows of a tensor."""
    return [x[i, :n].tolist() for i, n in enumerate(lengths)]


def f32(x):
    """Rounded to f32, so that what is written is exactly what another program reads as f32."""
    return torch.tensor(np.asarray(x, dtype=np.float32).astype(np.float64))


def one_case(rng, low, high, beta, entropy_coef, aggregation, spread):
    group_size, groups = 4, 2
    lengths = rng.integers(1, 12, group_size * groups)
    lengths[3] = 0
    longest = int(lengths.max())
    mask = torch.tensor(np.arange(longest)[None] < lengths[:, None], dtype=torch.float64)
    shape = (group_size * groups, longest)
    old = f32(-rng.exponential(1.5, shape))
    new = f32((old.numpy() + spread * rng.standard_normal(shape)).clip(max=0)).requires_grad_()
    ref = f32((old.numpy() + 0.5 * rng.standard_normal(shape)).clip(max=0))
    entropy = f32(rng.exponential(1.0, shape)).requires_grad_()
    rewards = rng.choice([0.0, 0.25, 0.5, 1.0], group_size * groups)
    rewards[0] = 1.0 - rewards[1]
    advantage = advantages(rewards, group_size)
    value = loss(new, old, ref, entropy, advantage, mask, low, high, beta, entropy_coef, aggregation)
    value.backward()
    d_entropy = entropy.grad if entropy.grad is not None else torch.zeros_like(entropy)
    return {
        "clip_low": low,
        "clip_high": high,
        "kl_coef": beta,
        "entropy_coef": entropy_coef,
        "aggregation": aggregation,
        "group_size": group_size,
        "rewards": rewards.tolist(),
        "advantages": advantage.tolist(),
        "logprob": rows(new.detach(), lengths),
        "old_logprob": rows(old, lengths),
        "ref_logprob": rows(ref, lengths),
        "entropy": rows(entropy.detach(), lengths),
        "loss": value.item(),
        "d_logprob": rows(new.grad, lengths),
        "d_entropy": rows(d_entropy, lengths),
    }


def cases(seed):
    rng = np.random.default_rng([seed, 200])
    settings = itertools.product([(0.2, 0.2), (0.1, 0.28)], [(0.0, 0.0), (0.04, 0.0), (0.1, 0.01)], ["token", "sequence"], [0.0, 0.3])
    return [one_case(rng, low, high, beta, entropy, aggregation, spread) for (low, high), (beta, entropy), aggregation, spread in settings]
