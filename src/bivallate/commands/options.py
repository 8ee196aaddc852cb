"""Options that several commands share, and the ranges of their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from bivallate.errors import UserError, check_seed
from bivallate.from_text import parse_number

if TYPE_CHECKING:
    import torch

    from bivallate.lower.threat import Threat


def _ranging(low: float, high: float = math.inf, *, above: bool = False) -> Parameter:
    """The range of an option's number, checked when the command line is parsed; None was not given.

    Args:
        low, high: bounds, both allowed.
        above: exclude `low`.
    """

    def check(kind: Any, value: float | None) -> None:
        if value is None:
            return
        fits = (low < value if above else low <= value) and value <= high
        if not fits:
            least = f"above {low:g}" if above else f"at least {low:g}"
            most = "" if math.isinf(high) else f" and at most {high:g}"
            whole = "a whole number of " if isinstance(value, int) and not above else ""
            raise ValueError(f"must be {whole}{least}{most}, got {value}")

    return Parameter(validator=check)


def _seeded(kind: Any, value: int | None) -> None:
    try:
        check_seed(0 if value is None else value)
    except UserError as error:
        raise ValueError(str(error).removeprefix("seed ")) from error


def _there(kind: Any, value: str | None) -> None:
    if value is not None and not Path(value).expanduser().is_dir():
        raise ValueError(f"must be a folder: there is none at {value!r}")


def _named(kind: Any, value: str | None) -> None:
    if value is not None and not value.strip():
        raise ValueError("must name a data set, a folder or a file; `bivallate datasets` lists the sets")


Count = Annotated[int, _ranging(1)]
Several = Annotated[int, _ranging(2)]
Amount = Annotated[int, _ranging(0)]
Positive = Annotated[float, _ranging(0, above=True)]
Share = Annotated[float, _ranging(0, 1)]
Seed = Annotated[int, Parameter(validator=_seeded)]
DataName = Annotated[str, Parameter(validator=_named)]
DataFolder = Annotated[str, Parameter(validator=_there)]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]
Settings = Annotated[tuple[str, ...], Parameter(name="--set", negative=(), show_default=False)]
Log = Annotated[str, Parameter(show_default=False)]
Split = Annotated[str, Parameter(help="test, validation or train.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Ball:
    """The threat that images are changed within; by default the run's own, or the data set's.

    Parameters
    ----------
    eps
        radius in pixel units of [0, 1], such as 8/255. [default: the run's own; without a run, the data
        set's customary one]
    norm
        linf, l2 or l1. [default: the run's own; without a run, linf]
    """

    eps: str | None = None
    norm: str | None = None

    @property
    def given(self) -> bool:
        """Whether any of the options was."""
        return (self.eps, self.norm) != (None, None)

    def __post_init__(self) -> None:
        if self.eps is not None:
            parse_number(self.eps, "--eps")
        if self.norm is not None:
            from bivallate.lower.threat import threat

            threat(self.norm, 0.0)

    def of(self, own: Any) -> Any:
        """The threat that the options ask for.

        Args:
            own: threat of the run, which supplies what was not given.

        Raises:
            UserError: another norm than the run's, without a radius.
        """
        from bivallate.lower.threat import threat

        if not self.given:
            return own
        if self.norm is not None and self.eps is None:
            same_norm(self.norm, own)
        eps = own.eps if self.eps is None else parse_number(self.eps)
        return threat(self.norm or type(own).__name__, eps)


@Parameter(name="*")
@dataclass(frozen=True)
class WeightsSource:
    """Which of a run's weights to load, and how; and the seed, as every command that loads weights draws.

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
    data_dir: DataFolder | None = None
    model: str | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.weights == "best":
            return
        from bivallate.run.folder import check_weights

        object.__setattr__(self, "weights", check_weights(self.weights))

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments weights, data_dir and model of `EvaluationTarget.of`."""
        return {"weights": self.weights, "data_dir": self.data_dir, "model": self.model}


@Parameter(name="*")
@dataclass(frozen=True)
class Subset:
    """Which of the points to attack.

    Parameters
    ----------
    n
        size of a seeded random subset of the points. [default: all]
    first
        number of points to take from the start instead.
    """

    n: Count | None = None
    first: Count | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class Machine:
    """Where to compute, and with how many threads.

    Parameters
    ----------
    device
        auto, cpu, cuda, cuda:N or mps.
    threads
        of the processor; 0 is torch's choice.
    """

    device: str = "auto"
    threads: Amount = 0

    def prepare(self) -> torch.device:
        """Set the number of threads and return the device. Raises UserError if it is not available."""
        from bivallate.run.arithmetic import limit_threads
        from bivallate.run.from_config import pick_device

        limit_threads(self.threads)
        return pick_device(self.device)


def same_norm(norm: str, own: Any) -> None:
    """Raise UserError unless the threat `own` has this norm, as radii of two norms do not compare."""
    from bivallate.lower.threat import SUCH_AS, threat

    kind = type(threat(norm, 0.0))
    if kind is not type(own):
        raise UserError(
            f"--norm {norm} needs a radius of its own, --eps, such as {SUCH_AS[kind.__name__]}: the run's, "
            f"{own.eps:g}, is of {type(own).__name__}"
        )


def threats_of(
    texts: Sequence[str], *, beside: bool = False, nor: str = "run's folder"
) -> tuple[Threat, ...]:
    """Read the threats of --threat.

    Args:
        texts: its words, without those that belong to the command.
        beside: whether --eps or --norm was given too.
        nor: what a word of the command would be.

    Raises UserError then, for one that cannot be read, and for one that is named twice.
    """
    from bivallate.evaluation.threat_union import check_different
    from bivallate.lower.threat import Linf

    if texts and beside:
        raise UserError("--threat names norms and radii; leave out --eps and --norm")
    for text in texts:
        if ":" not in text:
            wanted = "a norm and a radius, such as l2:0.5"
            raise UserError(f"--threat must be {wanted}, got {text!r}, which is no {nor} either")
    found = tuple(Linf.from_text(text, "--threat") for text in texts)
    check_different(found, "--threat")
    return found


def without_folders(words: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Split words into those that are no run folders, and those that are.

    An option that takes several words takes all up to the next option, also the runs that stand last.
    """
    from bivallate.run.folder import RunFolder

    folders = [word for word in words if RunFolder(Path(word)).config.exists()]
    return [word for word in words if word not in folders], [Path(word) for word in folders]
