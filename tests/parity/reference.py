"""What both `make_fixtures.py` and `check_real.py` ask of PyTorch: log-probabilities, gradients and AdamW steps of a transformers model.

Two arithmetics of the same model:

* f32: transformers as it is, attention by `scaled_dot_product_attention`.
* f64: the reference that errors are measured against. transformers rounds to f32 inside RMSNorm and of the rotary cosines and sines
  even where the model is f64, so `doubled` replaces those two by f64 arithmetic. The rotary ANGLES stay the f32 products that
  transformers forms (position times inverse frequency): they are part of the model, not an error of it.
"""

import copy
import math
import types

import numpy as np
import torch


def doubled(model):
    """A copy of `model` that computes in f64 throughout."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = types.MethodType(_norm_f64, module)
        elif kind.endswith("RotaryEmbedding"):
            module.forward = types.MethodType(_rotary_f64, module)
    return model


def _norm_f64(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


@torch.no_grad()
def _rotary_f64(self, x, position_ids):
    angles = position_ids[..., None].float() * self.inv_freq.float()
    angles = torch.cat((angles, angles), dim=-1).double()
    return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


def logprobs(model, ids, temperature=1.0):
    """log p(ids[i+1] | ids[..=i]) of logits / temperature, in the model's own precision: n ids give n-1 numbers."""
    ids = torch.as_tensor(ids)
    logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
    return torch.log_softmax(logits / temperature, dim=-1).gather(1, ids[1:, None])[:, 0]


def targets(lines):
    """Number of targets in a batch of {"ids", "loss_mask"} lines: loss_mask[0] has no history and does not count."""
    return sum(sum(line["loss_mask"][1:]) for line in lines)


def sft_backward(model, lines):
    """The SFT loss of a batch (mean over all its targets), with its gradient added to `.grad`, one backward pass a line."""
    total, loss = targets(lines), 0.0
    for line in lines:
        mask = torch.tensor(line["loss_mask"][1:], dtype=model.dtype)
        part = -(logprobs(model, line["ids"]) * mask).sum() / total
        part.backward()
        loss += part.item()
    return loss


def trained(model):
    """Name and parameter of all that is trained, the name as files have it (PEFT keeps the adapter's name inside: drop it)."""
    return [(name.replace(".default.", "."), p) for name, p in model.named_parameters() if p.requires_grad]


def gradients(model, lines, folder):
    """Loss and every trained tensor's gradient, in the model's own precision, as arrays mapped from files in `folder`.

    A gradient goes to its file as soon as a line's backward pass has made it: beside the model, one tensor's at a time is in memory.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def keep(path):
        def hook(p):
            grad = p.grad.numpy()
            np.save(path, grad if not path.exists() else np.load(path, mmap_mode="r") + grad)
            p.grad = None

        return hook

    paths = {name: folder / f"{name}.npy" for name, _ in trained(model)}
    hooks = [p.register_post_accumulate_grad_hook(keep(paths[name])) for name, p in trained(model)]
    loss = sft_backward(model, lines)
    for hook in hooks:
        hook.remove()
    return loss, {name: np.load(path, mmap_mode="r") for name, path in paths.items()}


def norm(x):
    return float(np.sqrt(np.sum(np.square(x, dtype=np.float64))))


def total_norm(grads):
    return math.sqrt(sum(norm(g) ** 2 for g in grads.values()))


def relative_error(x, reference):
    """||x - reference|| / ||reference||, or ||x|| where the reference is zero."""
    size = norm(reference)
    return norm(x - reference) / size if size > 0 else norm(x)


def adamw_steps(model, lines, lrs, weight_decay, max_grad_norm, betas=(0.9, 0.999), eps=1e-8):
    """One AdamW step a line. Losses and gradient norms before clipping; the model is changed. Weight decay on matrices only."""
    params = [p for _, p in trained(model)]
    groups = [
        {"params": [p for p in params if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=lrs[0], betas=betas, eps=eps, foreach=False)
    losses, norms = [], []
    for line, lr in zip(lines, lrs, strict=True):
        optimizer.zero_grad()
        losses.append(sft_backward(model, [line]))
        norms.append(torch.nn.utils.clip_grad_norm_(params, max_grad_norm, foreach=False).item())
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return losses, norms


def adamw_steps_lean(model, lines, lrs, weight_decay, max_grad_norm, betas=(0.9, 0.999), eps=1e-8):
    """`adamw_steps` in the memory that a large model in f64 leaves: a first backward pass finds the gradients' norm, a second makes the step,
    a tensor at a time, and the moments are f32 (a relative error of 6e-8 a step)."""
    state = {p: [torch.zeros(p.shape), torch.zeros(p.shape)] for _, p in trained(model)}
    at = {"squares": None, "scale": 0.0, "lr": 0.0, "step": 0}

    @torch.no_grad()
    def use(p):
        grad, p.grad = p.grad, None
        if at["squares"] is not None:
            at["squares"] += grad.square().sum().item()
            return
        grad.mul_(at["scale"])
        first, second = state[p]
        m = betas[0] * first.to(grad.dtype) + (1 - betas[0]) * grad
        v = betas[1] * second.to(grad.dtype) + (1 - betas[1]) * grad.square_()
        first.copy_(m)
        second.copy_(v)
        if p.dim() > 1:
            p.mul_(1 - at["lr"] * weight_decay)
        v.div_(1 - betas[1] ** at["step"]).sqrt_().add_(eps)
        p.addcdiv_(m.div_(1 - betas[0] ** at["step"]), v, value=-at["lr"])

    hooks = [p.register_post_accumulate_grad_hook(use) for p in state]
    losses, norms = [], []
    for step, (line, lr) in enumerate(zip(lines, lrs, strict=True), 1):
        at.update(squares=0.0, lr=lr, step=step)
        losses.append(sft_backward(model, [line]))
        norms.append(math.sqrt(at["squares"]))
        at.update(squares=None, scale=min(1.0, max_grad_norm / (norms[-1] + 1e-6)))
        sft_backward(model, [line])
    for hook in hooks:
        hook.remove()
    return losses, norms


@torch.no_grad()
def greedy(model, prompt, count):
    """The `count` most likely tokens, one after another, and the smallest gap between the best and the second-best logit on the way."""
    ids, margin = list(prompt), math.inf
    for _ in range(count):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        best = logits.topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
    return ids[len(prompt) :], margin
