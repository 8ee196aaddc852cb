"""Reductions over the whole minibatch, whether it lies on one process or is split over the ranks of a
group."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bivallate.errors import UserError


def together() -> bool:
    """Whether several processes share each minibatch."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def total(value: Tensor) -> Tensor:
    """The sum over ranks of a tensor without graph; the tensor itself on one process."""
    if together():
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def count(n: int, device: torch.device) -> int:
    """Examples of the whole minibatch when this rank holds n; `device` is where the ranks add them up."""
    return int(total(torch.tensor(n, device=device))) if together() else n


def mean(values: Tensor) -> Tensor:
    """Mean over the whole minibatch of (B,) values; differentiable on one process."""
    return total(values.sum()) / count(len(values), values.device) if together() else values.mean()


def log_mean_exp(values: Tensor) -> Tensor:
    """log of the mean over the whole minibatch of exp(values), without overflow; values is (B,)."""
    if not together():
        return values.logsumexp(0) - math.log(len(values))
    peak = values.max().detach().clone()
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return peak + mean((values - peak).exp()).log()


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Adds the gradients of all ranks, in place; each rank's loss was a sum divided by the global count.

    One flat all-reduce: an average of per-rank averages would be wrong on uneven batches.
    """
    if not together():
        return
    parameters = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = grad.view_as(parameter).clone()


def gathered(value: Any) -> list[Any]:
    """A small picklable value of every rank, in their order; on one process, its own."""
    if not together():
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


class Echo(UserError):
    """What another rank has met, and says."""


def agree(error: UserError | None) -> None:
    """Raises on every rank what one of them has met, so that none waits for another that has gone."""
    told = gathered(None if error is None else str(error))
    if error is not None:
        raise error
    for text in told:
        if text is not None:
            raise Echo(text)


def any_rank(value: bool) -> bool:
    """Whether it holds on one of the ranks."""
    return bool(total(torch.tensor(int(value), device=_device()))) if together() else value


def _device() -> torch.device:
    """Where the group's collectives compute."""
    return torch.device("cuda", local_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")


def world() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if together() else 1


def rank() -> int:
    """Which of them this is, also before they have joined; the first one writes files and speaks."""
    if together():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if _launched() and not dist.is_initialized() else 0


def local_rank() -> int:
    """The number of this process on its host, as torchrun says it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _launched() -> bool:
    """Whether torchrun has started several processes."""
    return dist.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def join() -> None:
    """Joins the group that torchrun has started, if it has: NCCL with CUDA, gloo without."""
    if _launched() and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank())  # where objects are gathered, and ranks wait
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def meet() -> None:
    """Waits for all ranks: none leaves while another still writes, or asks it for something."""
    if together():
        dist.barrier()


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Gives every rank the first rank's values, in place."""
    if together():
        for tensor in tensors:
            dist.broadcast(tensor.data, 0)
