"""Compiled training steps and CUDA graphs of attacks, if a configuration asks for them."""

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
    """Ways to make training steps faster with the same results.

    Attributes:
        compiled: the network compiled by torch.compile, or None.
        graphs: CUDA graphs of the attacks, or None.
    """

    compiled: Compiled | None = None
    graphs: CudaGraphs | None = None

    @contextmanager
    def used(self, tell: Callable[[str], object]) -> Iterator[None]:
        """Accelerate the steps in this context; `tell` receives a note of attacks that cannot be recorded."""
        if self.graphs is not None:
            self.graphs.report = tell
        with compiling(self.compiled), graphing(self.graphs):
            yield


def acceleration_of(
    config: Config, model: nn.Module, batches: Iterable[Batches], device: torch.device
) -> Acceleration:
    """Make what the configuration asks for; nothing is compiled or recorded before the first pass.

    Raises:
        UserError: the method, the device or sync_batchnorm does not allow it.
    """
    return Acceleration(_compiled(config, model, batches), _graphs(config, device))


def _compiled(config: Config, model: nn.Module, batches: Iterable[Batches]) -> Compiled | None:
    """The compiled network, for minibatches of full size; None without `compile`."""
    if not config.compile:
        return None
    if isinstance(config.method.solver, YOPO):
        raise UserError(
            f"compile=true: {config.method.name} reads the first layer's output in the middle of each pass, "
            "which a compiled network does not give: train it with compile=false"
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
        raise UserError(f"graphs=true needs CUDA, and this is {device.type}: train with graphs=false")
    if config.sync_batchnorm and collective.is_distributed() and config.method.attack_mode != "eval":
        raise UserError(
            "graphs=true: with sync_batchnorm the processes wait for each other in the middle of an attack "
            "in train mode, which is not recorded: choose one of the two"
        )
    return CudaGraphs()
