"""Whether the steps of a run are compiled, and of what size; whether its attacks are CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from bivallate import collective
from bivallate.data import Batches
from bivallate.errors import UserError
from bivallate.lower.compiled import Compiled, compiling
from bivallate.lower.cuda_graphs import CudaGraphs, graphing
from bivallate.lower.replay import YOPO

if TYPE_CHECKING:
    from bivallate.run.config import Config

__all__ = ["Acceleration", "acceleration_of"]


@dataclass(frozen=True)
class Acceleration:
    """What makes the steps of a run quicker and leaves them the same.

    Attributes:
        compiled: the network by torch.compile, or None. graphs: of its attacks, or None.
    """

    compiled: Compiled | None = None
    graphs: CudaGraphs | None = None

    @contextmanager
    def used(self, tell: Callable[[str], object]) -> Iterator[None]:
        """Within, steps are made so. tell: hears of an attack that cannot be recorded."""
        if self.graphs is not None:
            self.graphs.tell = tell
        with compiling(self.compiled), graphing(self.graphs):
            yield


def acceleration_of(
    config: Config, model: nn.Module, batches: Iterable[Batches], device: torch.device
) -> Acceleration:
    """What the configuration asks for; nothing is compiled or recorded before the first pass.

    Raises:
        UserError: it cannot be had.
    """
    return Acceleration(_compiled(config, model, batches), _graphs(config, device))


def _compiled(config: Config, model: nn.Module, batches: Iterable[Batches]) -> Compiled | None:
    """The network as this run's steps go through it, for its whole minibatches; None without `compile`."""
    if not config.compile:
        return None
    if isinstance(config.method.solver, YOPO):
        raise UserError(
            f"compile=true: {config.method.name} reads what the first layer says in the middle of each pass, "
            "and a compiled network does not tell: train it with compile=false"
        )
    if config.sync_batchnorm and collective.is_distributed():
        raise UserError(
            "compile=true: with sync_batchnorm the processes wait for each other in the middle of a pass, "
            "which is not compiled: choose one of the two"
        )
    return Compiled(model, {shape for each in batches for shape in each.shapes()})


def _graphs(config: Config, device: torch.device) -> CudaGraphs | None:
    """The CUDA graphs of this run's attacks; None without `graphs`."""
    if not config.graphs:
        return None
    if device.type != "cuda":
        raise UserError(f"graphs=true are CUDA's, and this is {device.type}: train with graphs=false")
    if config.sync_batchnorm and collective.is_distributed() and config.method.attack_mode != "eval":
        raise UserError(
            "graphs=true: with sync_batchnorm the processes wait for each other in the middle of an attack "
            "in train mode, which is not recorded: choose one of the two"
        )
    return CudaGraphs()
