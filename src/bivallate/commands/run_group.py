"""The models of several runs on the same data, for commands that compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from bivallate.commands.options import Machine, WeightsSource, same_norm
from bivallate.errors import UserError
from bivallate.evaluation.threat_union import listed_radii
from bivallate.lower.threat import threat as make
from bivallate.reports.diagnostics.by_name import subject
from bivallate.reports.diagnostics.ranks import FACTORS
from bivallate.terminal import literal_console, say


@dataclass(frozen=True, eq=False)
class RunGroup:
    """Runs that can be attacked on the same points.

    Attributes:
        models: label -> network, on the device.
        threats: label -> what the run was trained under.
        test_split: of the first run's data; all runs are attacked on it.
        classes: their names.
    """

    models: dict[str, nn.Module]
    threats: dict[str, tuple[Any, ...]]
    test_split: Any
    classes: tuple[str, ...]

    @classmethod
    def of(cls, runs: Sequence[Path], source: WeightsSource, machine: Machine, data: str | None) -> RunGroup:
        """Load runs.

        Args:
            runs: their folders.
            source: weights to load.
            machine: the device.
            data: where the runs' data are now, if they were moved.

        Raises:
            UserError: no run, or runs on different data.
        """
        device = machine.prepare()
        shown = subject(runs, **asdict(source), moved_to=data, device=device)
        models: dict[str, nn.Module] = dict(shown.models)
        threats = [run.config.method.threats for run in shown.runs]
        labelled = dict(zip(models, threats, strict=True))
        return cls(models, labelled, shown.data.test, shown.runs[0].classes)

    def own(self, norm: str | None = None) -> Any:
        """The first run's threat in a norm; its first one if it has none there, or without a norm."""
        found = next(iter(self.threats.values()))
        kind = norm_of(norm, found[0])
        return next((threat for threat in found if norm_of(None, threat) == kind), found[0])

    def trained(self, kind: str) -> dict[str, float]:
        """Label -> training radius of the runs that were trained in the norm `kind`."""
        pairs = [(label, threat) for label, found in self.threats.items() for threat in found]
        return {label: threat.eps for label, threat in pairs if norm_of(None, threat) == kind}

    def tell_of_others(self, kind: str) -> None:
        """Say of which runs the norm `kind` is not all that they were trained under."""
        for label, threats in self.threats.items():
            if len(threats) > 1:
                say(
                    f"{label} was trained under {listed_radii(threats)}: this is {norm_name(kind)} alone, "
                    "--norm takes another one",
                    to_stderr=True,
                )


def norm_of(norm: str | None, own: Any) -> str:
    """The norm as "linf", "l2" or "l1": `norm` if given, else that of the threat `own`."""
    return type(make(norm, 0.0) if norm is not None else own).__name__.lower()


def norm_name(kind: str) -> str:
    """The norm as "Linf", "L2" or "L1"."""
    return type(make(kind, 0.0)).__name__


def radii_of(eps: str | None, kind: str, threat: Any) -> list[float]:
    """Parse radii such as "0,2/255,4/255".

    Args:
        eps: radii with commas; multiples of the run's own from 0 to 2 if None.
        kind: the norm.
        threat: of the run.

    Raises:
        UserError: a radius that is no number, a run of another norm, or a run with eps 0.
    """
    if eps is not None:
        return [make(kind, part.strip()).eps for part in eps.split(",")]
    same_norm(kind, threat)
    own = threat.eps
    if own == 0:
        raise UserError("this run was trained with eps 0: say the radii, such as --eps 0,2/255,4/255,8/255")
    limit = 1.0 if kind == "linf" else float("inf")
    return [min(limit, factor * own) for factor in FACTORS]


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column is aligned to the left and the others to the right."""
    console = literal_console()
    console.print(title)
    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for k, head in enumerate(columns):
        drawn.add_column(head, justify="left" if k == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)
