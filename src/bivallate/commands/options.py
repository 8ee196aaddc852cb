"""Options that several commands share, each said once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from cyclopts import Parameter

from bivallate.errors import UserError
from bivallate.parts import parse_number
from bivallate.run.folder import check_weights

Flag = Annotated[bool, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
class Source:
    """Which of a run's weights, and what it takes to read the run.

    Parameters
    ----------
    weights
        best (on held-out data), last (the file model.safetensors), ema, or epoch-N of a run that keeps it
        (--set keep=N).
    data_dir
        where named sets are looked for. [default: BIVALLATE_DATA]
    model
        package.module:factory, for a run that trained a network of your own.
    seed
        of the choice of points and of random starts.
    """

    weights: str = "best"
    data_dir: str | None = None
    model: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", check_weights(self.weights))


@Parameter(name="*")
@dataclass(frozen=True)
class Subset:
    """Which of the points.

    Parameters
    ----------
    n
        a seeded random subset of so many points. [default: all]
    first
        the first so many points.
    """

    n: int | None = None
    first: int | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class Machine:
    """Where to compute.

    Parameters
    ----------
    device
        auto, cpu, cuda or mps.
    threads
        of the processor; 0 is torch's choice.
    """

    device: str = "auto"
    threads: int = 0

    def prepare(self) -> torch.device:
        """The device; sets the threads. Raises UserError for one that is not there."""
        from bivallate.run.session import pick_device
        from bivallate.run.trainer import limit_threads

        limit_threads(self.threads)
        return pick_device(self.device)


def threat_of(own: Any, norm: str | None, eps: str | None) -> Any:
    """The threat that was asked for; what was left open is a run's own.

    Raises:
        UserError: another norm without its radius.
    """
    from bivallate.lower.threat import threat

    if norm is not None and eps is None:
        same_norm(norm, own)
    return threat(norm or type(own).__name__, parse_number(eps) if eps is not None else own.eps)


def same_norm(norm: str, own: Any) -> None:
    """Raises UserError unless a threat is of that norm: a radius means something else in another."""
    from bivallate.lower.threat import threat

    if type(threat(norm, 0.0)) is not type(own):
        usual = "0.5 (128/255)" if isinstance(own, type(threat("linf", 0.0))) else "8/255"
        raise UserError(
            f"--norm {norm} needs a radius of its own, --eps, such as {usual}: the run's, {own.eps:g}, is of "
            f"{type(own).__name__}"
        )
