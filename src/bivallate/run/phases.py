"""Training in phases, each with its own image size and batch size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bivallate import collective
from bivallate.data import Augment, Batches, Split
from bivallate.data.resident import resident
from bivallate.errors import UserError, check_range
from bivallate.lower.modes import evaluating
from bivallate.models import Classifier
from bivallate.parts import part
from bivallate.run.rates import epoch_of


@part
class Phase:
    """A phase of training with its own image size and batch size.

    Attributes:
        until: fraction of the epochs at which the phase ends.
        scale: side of the images as a fraction of the data's.
        batch: batch size as a fraction of the run's.

    Example:
        >>> Phase(until=0.4, scale=128 / 288).sides((288, 288))
        (128, 128)
    """

    until: float = 1.0
    scale: float = 1.0
    batch: float = 1.0

    def __post_init__(self) -> None:
        for name in ("until", "scale", "batch"):
            check_range(f"phases: {name}", getattr(self, name), 1e-6, 1)

    def sides(self, whole: tuple[int, int]) -> tuple[int, int]:
        """Size (H, W) of the images in this phase; `whole`: that of the data."""
        return max(1, round(self.scale * whole[0])), max(1, round(self.scale * whole[1]))


def check_phases(phases: object) -> None:
    """Raise UserError unless `phases` is a tuple of phases with rising ends, the last at 1."""
    whole = isinstance(phases, tuple) and all(isinstance(item, Phase) for item in phases)
    ends = [item.until for item in phases] if whole else []  # pyright: ignore[reportGeneralTypeIssues]
    if not whole or ends != sorted(set(ends)) or (ends and ends[-1] != 1):
        raise UserError(
            "phases is a tuple of Phase, each `until` a larger fraction of the epochs and the last until "
            f"1.0, got {phases!r}"
        )


def phase_at(phases: Sequence[Phase], epoch: int, epochs: int) -> int:
    """The number of the phase that an epoch, counted from 0, is in; 0 if there are no phases.

    Example:
        >>> [phase_at((Phase(0.4), Phase(0.8), Phase()), epoch, 5) for epoch in range(6)]
        [0, 0, 1, 1, 2, 2]
    """
    ends = [epoch_of(phase.until, epochs) for phase in phases[:-1]]
    return sum(epoch >= end for end in ends)


def batches_by_phase(
    phases: Sequence[Phase],
    train: Split,
    meta: Split | None,
    augment: Augment,
    size: int,
    seed: int,
    device: torch.device,
    fewest: int = 2,
    resident_data: str = "never",
) -> tuple[Batches, ...]:
    """The minibatches of each phase, or of the whole training if there are no phases.

    Args:
        phases: the phases.
        train, meta: rows of training and of the second stream.
        augment: the augmentation.
        size: batch size over all processes, before a phase scales it.
        seed: seed of the order and of the augmentation.
        device: where the minibatches are needed.
        fewest: least number of rows on each process.
        resident_data: whether to keep the images on the device, as `Data.resident`.
    """
    _, h, w = train.shape
    there = resident(train, device, resident_data)
    return tuple(
        Batches(
            train, max(1, round(phase.batch * size)), seed, augment, meta=meta, device=device,
            rank=collective.rank(), world=collective.world_size(), sides=phase.sides((h, w)),
            fewest=fewest, resident=there,
        )
        for phase in phases or (Phase(),)
    )  # fmt: skip


def take_sizes(model: Classifier, phases: Sequence[Phase]) -> None:
    """Let the network accept the image sizes of all phases, and try each size.

    Raises:
        UserError: the network cannot take one of the sizes.
    """
    c, h, w = model.shape
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    sizes = {phase.sides((h, w)) for phase in phases} - {(h, w)}
    model.other_sizes = tuple(sorted(sizes))
    for size in model.other_sizes:
        with torch.random.fork_rng(devices=[]), evaluating(model), torch.no_grad():
            _try(model, torch.zeros(2, c, *size, device=device))


def _try(model: nn.Module, x: torch.Tensor) -> None:
    try:
        model(x)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the network cannot take images of {x.shape[2]} x {x.shape[3]}, which a phase of training has "
            f"({error}): choose one that averages over places before its last layer, such as resnet18, or "
            "train without phases (--set phases=none)"
        ) from error
