"""Reductions over the whole minibatch, on one process or over the ranks of a group."""

from __future__ import annotations

import atexit
import math
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bivallate.errors import RankError, UserError
from bivallate.types import Batch

# A rank may wait for a long attack on another one. The launcher notices a rank that has died.
PATIENCE = timedelta(days=1)


def is_distributed() -> bool:
    """Whether several processes share each minibatch."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def total(value: Tensor) -> Tensor:
    """The sum over ranks of a tensor without graph; the tensor itself on one process."""
    if is_distributed():
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def totals(values: Sequence[Tensor]) -> list[Tensor]:
    """The sums over ranks of several tensors without graph, in one flat bucket; themselves on one process."""
    if not is_distributed() or not values:
        return list(values)
    flat = torch.cat([value.detach().flatten() for value in values])
    dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return [part.view_as(value).clone() for part, value in zip(parts, values, strict=True)]


def size(batch: Batch) -> int:
    """Rows of the whole minibatch; the ranks add up theirs only if `batch.whole` is None."""
    if batch.whole is not None or not is_distributed():
        return len(batch.y) if batch.whole is None else batch.whole
    return int(total(torch.tensor(len(batch.y), device=batch.y.device)))


def share_of_mean(values: Tensor, batch: Batch) -> Tensor:
    """This process's part of the mean over the whole minibatch of (B,) values, differentiable.

    The sums over the processes of these parts, and of their gradients, are the mean and its gradient.
    """
    rows = size(batch)
    return values.mean() if rows == len(values) else values.sum() / rows


def gather_rows(values: Tensor, whole: int) -> Tensor:
    """The values of all ranks for a minibatch of `whole` rows, in its order: (whole, ...), without graph.

    Rank r holds the rows r, r + world size, ...
    """
    if not is_distributed():
        return values
    every = values.new_zeros(whole, *values.shape[1:])
    every[rank() :: world_size()] = values.detach()
    dist.all_reduce(every)
    return every


def own_rows(places: Tensor) -> Tensor:
    """Positions in the whole minibatch as positions among this rank's rows; other ranks' are dropped."""
    return places[places % world_size() == rank()] // world_size() if is_distributed() else places


def mean(values: Tensor) -> Tensor:
    """Mean over the whole minibatch of (B,) values; differentiable on one process."""
    if not is_distributed():
        return values.mean()
    added = total(torch.stack([values.sum(), values.new_tensor(len(values))]))
    return added[0] / added[1]


def log_mean_exp(values: Tensor) -> Tensor:
    """log of the mean over the whole minibatch of exp(values), without overflow; values is (B,)."""
    if not is_distributed():
        return values.logsumexp(0) - math.log(len(values))
    values = values.detach()
    own = torch.stack([values.logsumexp(0), values.new_tensor(len(values))])
    every = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(every, own)
    logs, rows = torch.stack(every).unbind(1)
    return logs.logsumexp(0) - rows.sum().log()


def sum_gradients(parameters: Iterable[Tensor], besides: Tensor) -> Tensor:
    """Add up the gradients of all ranks, in place, and return `besides` summed over the ranks.

    Each rank's loss is a sum divided by the global count, so that gradients are added: an average of per-rank
    averages would be wrong on uneven minibatches. One flat all-reduce.
    """
    parameters = [p for p in parameters if p.requires_grad]
    own = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    *grads, along = totals([*own, besides.to(own[0])] if own else [besides])
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad
    return along


def gather_objects(value: Any) -> list[Any]:
    """The small picklable values of all ranks, in their order."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """The first rank's value, on every rank."""
    return gather_objects(value if rank() == 0 else None)[0]


def raise_on_all_ranks(error: UserError | None) -> None:
    """Raise the error of any rank on every rank, so that none waits for a rank that has stopped."""
    errors = gather_objects(None if error is None else str(error))
    if error is not None:
        raise error
    for text in errors:
        if text is not None:
            raise RankError(text)


def post(name: str, text: str) -> None:
    """Store a short text under a name, where the other processes can read it at any time."""
    if is_distributed():
        _board().set(name, text)


def posted(name: str) -> str | None:
    """The text stored last under a name; None if there is none."""
    board = _board()
    return board.get(name).decode() if board.check([name]) else None


def _board() -> Any:
    """The key-value store of the process group."""
    return dist.distributed_c10d._get_default_store()  # pyright: ignore  torch has no public name for it


def any_rank(value: bool) -> bool:
    """Whether a condition holds on any of the ranks."""
    return bool(total(torch.tensor(int(value), device=_device()))) if is_distributed() else value


def sums(*numbers: int) -> list[int]:
    """Whole numbers added up over the ranks, in one all-reduce."""
    return total(torch.tensor(numbers, device=_device())).tolist() if is_distributed() else list(numbers)


def _device() -> torch.device:
    """The device for sums of plain numbers.

    It is the CPU, except in a user's own group that can only reduce on CUDA.
    """
    able = "cpu" in dist.get_backend_config()
    return torch.device("cpu") if able else torch.device("cuda", torch.cuda.current_device())


def world_size() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """The rank of this process, also before it has joined; the first one writes files and prints."""
    if is_distributed():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if _launched() and not dist.is_initialized() else 0


def local_rank() -> int:
    """The number of this process on its host, from torchrun's LOCAL_RANK."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _launched() -> bool:
    """Whether torchrun has started several processes."""
    return dist.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def join() -> None:
    """Join the group that torchrun has started, if it has, until this process ends.

    gloo reduces tensors on the CPU, and NCCL those on CUDA, where it is available.

    Raises:
        UserError: Slurm has started several processes that do not know of each other.
    """
    if not _launched() or dist.is_initialized():
        _check_alone()
        return
    both = torch.cuda.is_available() and dist.is_nccl_available()
    store, number, count = next(dist.rendezvous("env://"))  # pyright: ignore[reportPrivateImportUsage]
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun reuses the store of a failed attempt, keys and all
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt-{attempt}", store)  # pyright: ignore[reportPrivateImportUsage]
    back_ends = "cpu:gloo,cuda:nccl" if both else "gloo"
    dist.init_process_group(back_ends, store=store, rank=number, world_size=count, timeout=PATIENCE)
    atexit.register(leave)


def _check_alone() -> None:
    """Raise UserError where srun has started the same command several times over."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or "1"
    if "WORLD_SIZE" in os.environ or dist.is_initialized() or not tasks.isdigit() or int(tasks) < 2:
        return
    raise UserError(
        f"Slurm has this command in {tasks} tasks, none of which knows of the others: all would train "
        "the same run into one folder. Let them share it: start `torchrun ... -m -- bivallate ...` once a "
        "machine, or set RANK=$SLURM_PROCID, LOCAL_RANK=$SLURM_LOCALID, WORLD_SIZE=$SLURM_NTASKS, and "
        "MASTER_ADDR and MASTER_PORT, in each (docs/cluster.md has both scripts). For one process alone: "
        "`srun -n 1`, or WORLD_SIZE=1 before the command"
    )


def peer_is_gone(error: BaseException) -> bool:
    """Whether a collective has failed because another process of the group has gone."""
    words = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
    return (
        is_distributed() and isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    )


def leave() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks, so that none leaves while another still writes or waits for it."""
    if is_distributed():
        any_rank(False)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every rank the first rank's values, in place: one flat bucket for each type and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors if is_distributed() else ():
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor.data)
    for same in kinds.values():
        flat = torch.cat([tensor.flatten() for tensor in same])
        dist.broadcast(flat, 0)
        for tensor, part in zip(same, flat.split([t.numel() for t in same]), strict=True):
            tensor.copy_(part.view_as(tensor))
