"""Reference numbers for the objectives, from an independent implementation in double precision.

    python3 tests/rl/make_objectives.py > tests/rl/objectives.json

Plain Python, no packages. Inputs are rounded to f32 first, since that is what the objectives are given. Derivatives are written out by hand
from the formulas in the papers, and checked here against central differences.
"""

import json
import math
import random
import struct


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def token_loss(new, old, ref, entropy, adv, s):
    """GRPO's loss of one token, as a function of its new log-probability and entropy."""
    ratio = math.exp(new - old)
    held = min(max(ratio, 1 - s["low"]), 1 + s["high"])
    loss = -min(ratio * adv, held * adv)
    if ref is not None:
        loss += s["kl_coef"] * (math.exp(ref - new) - (ref - new) - 1)
    return loss - s["entropy_coef"] * entropy


def token_slope(new, old, ref, adv, s):
    ratio = math.exp(new - old)
    free = ratio * adv
    held = min(max(ratio, 1 - s["low"]), 1 + s["high"]) * adv
    slope = 0.0 if held < free else -free
    if ref is not None:
        slope += s["kl_coef"] * (1 - math.exp(ref - new))
    return slope


def grpo(samples, s):
    tokens = sum(len(x["new"]) for x in samples)
    loss, d_logprob, kl, clipped, ratio_max, entropy = 0.0, [], 0.0, 0, 0.0, 0.0
    for x in samples:
        n = len(x["new"])
        weight = 1 / max(tokens, 1) if s["aggregation"] == "token" else 1 / (len(samples) * max(n, 1))
        for i in range(n):
            new, old, h, adv = x["new"][i], x["old"][i], x["entropy"][i], x["advantage"]
            ref = x["ref"][i] if s["reference"] else None
            loss += weight * token_loss(new, old, ref, h, adv, s)
            slope = token_slope(new, old, ref, adv, s)
            d_logprob.append(weight * slope)
            ratio = math.exp(new - old)
            ratio_max = max(ratio_max, ratio)
            clipped += (ratio > 1 + s["high"] and adv > 0) or (ratio < 1 - s["low"] and adv < 0)
            entropy += h
            if ref is not None:
                kl += math.exp(ref - new) - (ref - new) - 1
            edge = min(abs(ratio - 1 + s["low"]), abs(ratio - 1 - s["high"]))
            if edge > 1e-4:
                e = 1e-6
                difference = (token_loss(new + e, old, ref, h, adv, s) - token_loss(new - e, old, ref, h, adv, s)) / (2 * e)
                assert abs(difference - slope) <= 1e-6 * max(1, abs(slope)), (difference, slope)
    return {
        "loss": loss,
        "d_logprob": d_logprob,
        "ratio_max": ratio_max,
        "clip_fraction": clipped / max(tokens, 1),
        "entropy": entropy / max(tokens, 1),
        "kl": kl / tokens if s["reference"] and tokens else None,
    }


def group(lengths, spread, rng):
    samples = []
    for n in lengths:
        new = [f32(-abs(rng.gauss(0, 2))) for _ in range(n)]
        samples.append({
            "new": new,
            "old": [f32(x + rng.gauss(0, spread)) for x in new],
            "ref": [f32(x + rng.gauss(0, 2 * spread)) for x in new],
            "entropy": [f32(abs(rng.gauss(0, 2))) for _ in new],
            "advantage": f32(rng.gauss(0, 1.5)),
        })
    return samples


def advantages(rewards, scale, eps):
    n = len(rewards)
    mean = math.fsum(rewards) / n
    squares = math.fsum((r - mean) ** 2 for r in rewards)
    if squares == 0:
        return [0.0] * n
    std = {"sample": math.sqrt(squares / max(n - 1, 1)), "population": math.sqrt(squares / n)}.get(scale)
    return [(r - mean) / (std + eps) if std is not None else r - mean for r in rewards]


def main():
    rng = random.Random(20250221)
    cases = []
    for aggregation in ["token", "sequence"]:
        for reference, kl_coef, entropy_coef, low, high in [
            (False, 0.0, 0.0, 0.2, 0.2),
            (True, 0.04, 0.0, 0.2, 0.2),
            (True, 0.5, 0.01, 0.2, 0.28),
            (True, 0.0, 0.0, 0.1, 0.5),
        ]:
            for lengths, spread in [([5, 1, 17, 0, 3], 0.3), ([16] * 4, 0.01), ([2, 2], 5.0), ([0, 0], 0.1), ([1], 12.0)]:
                settings = {"aggregation": aggregation, "reference": reference, "kl_coef": kl_coef,
                            "entropy_coef": entropy_coef, "low": low, "high": high}
                samples = group(lengths, spread, rng)
                if not reference:
                    for x in samples:
                        del x["ref"]
                cases.append({"settings": settings, "samples": samples, "expected": grpo(samples, settings)})
    groups = []
    for scale in ["sample", "population", "none"]:
        for rewards in [[1.0, 0.0, 0.0, 0.5], [0.1] * 6, [rng.random() for _ in range(16)], [1e-9, 0.0], [-1.0, 1.0, 1.0]]:
            groups.append({"scale": scale, "eps": 1e-4, "rewards": rewards, "expected": advantages(rewards, scale, 1e-4)})
    print(json.dumps({"grpo": cases, "advantages": groups}))


main()
