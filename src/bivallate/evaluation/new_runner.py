"""Prepare the runner of an evaluation: the copy of the model that searches, threads and batch size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bivallate.errors import UserError, unknown
from bivallate.evaluation.batch_size import estimate_batch, example_work
from bivallate.evaluation.inference import CallableModule
from bivallate.evaluation.named_attacks import Attack
from bivallate.evaluation.points import Points, check_images
from bivallate.evaluation.runner import Runner
from bivallate.evaluation.search import at_least_one
from bivallate.evaluation.search_model import PRECISIONS, LowerPrecision, search_model
from bivallate.evaluation.search_pool import SearchPool
from bivallate.evaluation.state import State
from bivallate.lower.folded_norm import listened
from bivallate.lower.threat import ThreatModel

__all__ = ["new_runner", "use_precision"]

WORTH = 50_000  # passes above which it pays to make a faster copy of the model
CLASSES = 10  # assumed for that estimate, which is made before the first forward pass


def new_runner(
    model: nn.Module,
    source: Points,
    index: Tensor,
    threat: ThreatModel,
    attack: Attack,
    seed: int,
    batch_size: int | None,
    device: torch.device,
    dtype: torch.dtype,
    points_of_all: int | None = None,
) -> Runner:
    """Prepare the evaluation of the rows `index`.

    Whether a faster copy of the model is made for the search depends on the points of all processes together
    (`points_of_all`), so that a search rounds as it does on one process.
    """
    if batch_size is not None:
        at_least_one("evaluation", batch_size=batch_size)
    x, _ = source.tensors(index[:2])
    check_images(x)
    x = x.to(device, dtype)
    cost = (points_of_all or len(index)) * sum(stage.cost() * stage.count(CLASSES) for stage in attack.stages)
    searcher = search_model(model, x) if cost > WORTH else model
    one_thread = searcher is model or device.type != "cpu" or _shares_state(searcher)
    threads = 1 if one_thread else torch.get_num_threads()
    return Runner(
        model=model,
        searchers=_searchers(searcher, threads),
        source=source,
        index=index,
        threat=threat,
        attack=attack,
        seed=seed,
        state=State.of(len(index), batch_size or estimate_batch(model, x, threads), threads),
        device=device,
        dtype=dtype,
        multiplications=0 if one_thread else example_work(model, x[:1]),
    )


def _shares_state(searcher: nn.Module) -> bool:
    """Whether copies of a model may share state: functions and hooks are not copied with it."""
    return any(isinstance(m, CallableModule) or listened(m) for m in searcher.modules())


def _searchers(searcher: nn.Module, copies: int) -> SearchPool:
    try:
        return SearchPool(searcher, copies)
    except Exception:  # copying runs the user's code: it may succeed once and fail later
        return SearchPool(searcher, 1)


def use_precision(runner: Runner, precision: str) -> None:
    """Let the search compute in another precision than float32."""
    if precision not in PRECISIONS:
        raise unknown("precision of the search", precision, PRECISIONS)
    if precision == "tf32" and runner.device.type != "cuda":
        raise UserError(f"a search in tf32 is of CUDA devices, and this is {runner.device.type}")
    runner.search_precision = precision
    runner.low_precision_searcher = LowerPrecision(runner.searchers.first_copy, precision)
