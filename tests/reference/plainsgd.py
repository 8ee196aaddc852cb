"""The few lines that every transcription needs: the optimiser, the box, two divergences, and still
statistics.

All references take `draws(purpose, step, shape_like, index)`: unit draws in float64 with the shape of
`shape_like`, one row for each entry of `index`; `step` is the number of the minibatch, from 0. The kind is
the end of the purpose: ":uniform" on (0, 1), ":normal" standard normal, ":sign" in {-1, +1}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Draws = Callable[[str, int, Tensor, Tensor], Tensor]
MiniBatch = tuple[Tensor, Tensor, Tensor]
Rate = float | Sequence[float]


def at(value: float | Sequence[float], update: int) -> float:
    """A constant, or the entry of a list that belongs to this update."""
    return float(value) if isinstance(value, int | float) else float(value[update])


def sgd(
    params: list[nn.Parameter],
    grads: Sequence[Tensor],
    buffers: list[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """g <- g + wd p;  buf <- momentum buf + g (the first time g itself);  p <- p - lr buf. `buffers` starts
    empty.
    """
    first = len(buffers) == 0
    with torch.no_grad():
        for i, p in enumerate(params):
            g = grads[i].detach() + weight_decay * p
            if first:
                buffers.append(g.clone())
            else:
                buffers[i] = momentum * buffers[i] + g
            p.copy_(p - lr * buffers[i])


def box(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """lo = max(-eps, -x) and up = min(eps, 1 - x), element-wise."""
    eps_everywhere = torch.full_like(x, eps)
    return torch.maximum(-eps_everywhere, -x), torch.minimum(eps_everywhere, 1 - x)


def clip(delta: Tensor, lo: Tensor, up: Tensor) -> Tensor:
    """The projection on the box."""
    return torch.minimum(torch.maximum(delta, lo), up)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) log sum_k exp(z_k) - z_y."""
    rows = torch.arange(len(y))
    return torch.logsumexp(logits, 1) - logits[rows, y]


def kl(clean_logits: Tensor, adv_logits: Tensor) -> Tensor:
    """(B,) KL(p || q) = sum_k p_k (log p_k - log q_k), p from the first argument."""
    log_p = clean_logits - torch.logsumexp(clean_logits, 1, keepdim=True)
    log_q = adv_logits - torch.logsumexp(adv_logits, 1, keepdim=True)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) inner products of rows."""
    return (a * b).flatten(1).sum(1)


def rows(value: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ..., 1)."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


@contextmanager
def still(model: nn.Module, mode: str) -> Iterator[None]:
    """Passes in "eval" mode, or in "train" mode with batch statistics that leave the running ones alone.

    Dropout is off in both.
    """
    batch_norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracked = [m.track_running_stats for m in batch_norms]
    was_training = model.training
    model.train(mode == "train")
    if mode == "train":
        for m in batch_norms:
            m.track_running_stats = False
        for m in model.modules():
            if isinstance(m, nn.modules.dropout._DropoutNd):
                m.eval()
    try:
        yield
    finally:
        for m, track in zip(batch_norms, tracked, strict=True):
            m.track_running_stats = track
        model.train(was_training)
