"""The built-in loggers: CSV files, TensorBoard, Weights & Biases, trackio.

All but CSV need an extra of the same name. Their packages are imported only when the logger is used.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy import asarray

from bivallate.errors import UserError, unknown
from bivallate.files import make_folder, write_text
from bivallate.run.logger import Logger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECT = "bivallate"


def loggers(log: str | Sequence[str | Logger]) -> list[Logger]:
    """Make loggers from their names ("tensorboard,csv"); `Logger` objects are taken as they are.

    Raises:
        UserError: a name is unknown or given twice, or a package is not installed.
    """
    asked = [word.strip() for word in log.split(",") if word.strip()] if isinstance(log, str) else list(log)
    names = [one for one in asked if isinstance(one, str)]
    if len(set(names)) < len(names):
        raise UserError(f"a logger is named twice: {', '.join(names)}")
    for name in names:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
    return [LOGGERS[one]() if isinstance(one, str) else one for one in asked]


def _package(name: str, package: str = "") -> Any:
    try:
        return import_module(package or name)
    except ImportError as error:
        raise UserError(
            f"the logger {name} needs its package ({error}): pip install 'bivallate[{name}]', or leave it out"
        ) from error


def _place(folder: Path | None, name: str) -> Path:
    """Folder of a logger's files: in the run's folder, or in `runs/logs` if the run has none."""
    place = (folder / "logs" if folder is not None else Path("runs") / "logs") / name
    make_folder(place)
    return place


class Csv:
    """A logger that writes `steps.csv`, `epochs.csv` and `alarms.csv` into the run's `logs/csv`.

    A column is added when a number is first logged. A file is rewritten whole when a column is added, or when
    a run continues from an earlier step.
    """

    name = "csv"

    def begin(self, config: Mapping[str, Any], folder: Path | None, step: int) -> None:
        """Open the files and keep their lines up to `step`."""
        self._folder = _place(folder, self.name)
        self._rows = {kind: self._read(kind, step) for kind in ("steps", "epochs", "alarms")}
        for kind in self._rows:
            self._write(kind)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line to steps.csv."""
        self._add("steps", {"step": step, **values})

    def epoch(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line to epochs.csv."""
        self._add("epochs", {"step": step, **values})

    def alarm(self, step: int, text: str) -> None:
        """Add a line to alarms.csv."""
        self._add("alarms", {"step": step, "alarm": text})

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Write the figure as SVG."""
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        write_text(self._folder / f"{name}.svg", out.getvalue())

    def end(self) -> None:
        """Do nothing: all lines are written."""

    def _file(self, kind: str) -> Path:
        return self._folder / f"{kind}.csv"

    def _read(self, kind: str, step: int) -> list[dict[str, Any]]:
        if step == 0 or not self._file(kind).is_file():
            return []
        with self._file(kind).open(encoding="utf-8", newline="") as stream:
            return [row for row in csv.DictReader(stream) if int(row["step"]) <= step]

    def _add(self, kind: str, row: dict[str, Any]) -> None:
        rows = self._rows[kind]
        fits = bool(rows) and row.keys() <= rows[0].keys()
        rows.append(row)
        if not fits:
            self._write(kind)
            return
        with self._file(kind).open("a", encoding="utf-8", newline="") as stream:
            csv.DictWriter(stream, list(rows[0])).writerow(row)

    def _write(self, kind: str) -> None:
        rows = self._rows[kind]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        rows[:] = [{key: row.get(key, "") for key in columns} for row in rows]
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._file(kind), out.getvalue() if rows else "")


class TensorBoard:
    """A logger of event files in the run's `logs/tensorboard`; tags are `step/...` and `epoch/...`."""

    name = "tensorboard"

    def __init__(self) -> None:
        _package(self.name)
        self._writer_of = _package(self.name, "torch.utils.tensorboard").SummaryWriter

    def begin(self, config: Mapping[str, Any], folder: Path | None, step: int) -> None:
        """Open an event file; TensorBoard discards earlier events after `step`."""
        self._writer = self._writer_of(str(_place(folder, self.name)), purge_step=step + 1 if step else None)
        self._writer.add_text("configuration", "\n".join(f"    {k} = {v}" for k, v in _flat(config)), step)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Add a scalar for each number."""
        self._scalars("step", step, values)

    def epoch(self, step: int, values: Mapping[str, float]) -> None:
        """Add a scalar for each number, and flush the file so that it can be viewed."""
        self._scalars("epoch", step, values)
        self._writer.flush()

    def alarm(self, step: int, text: str) -> None:
        """Add a text."""
        self._writer.add_text("alarm", text, step)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Add an image."""
        self._writer.add_image(name, _pixels(figure), step, dataformats="HWC")

    def end(self) -> None:
        """Close the file."""
        self._writer.close()

    def _scalars(self, what: str, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(f"{what}/{key}", value, step)


class WandB:
    """A logger to Weights & Biases, with its local files in the run's `logs/wandb`.

    The project is `bivallate`, or the one in WANDB_PROJECT. WANDB_MODE=offline uploads nothing. A resumed run
    appears as a new run in the same group.
    """

    name = "wandb"

    def __init__(self) -> None:
        self._wandb = _package(self.name)

    def begin(self, config: Mapping[str, Any], folder: Path | None, step: int) -> None:
        """Open the run."""
        self._run = self._wandb.init(
            project=None if os.environ.get("WANDB_PROJECT") else PROJECT,
            name=_title(config, folder) + (f" from step {step}" if step else ""),
            group=_title(config, folder),
            config=dict(_flat(config)),
            dir=str(_place(folder, self.name)),
            reinit="create_new",
        )

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """A number each, below `step/`."""
        self._run.log({f"step/{key}": value for key, value in values.items()}, step=step)

    def epoch(self, step: int, values: Mapping[str, float]) -> None:
        """A number each, below `epoch/`."""
        self._run.log({f"epoch/{key}": value for key, value in values.items()}, step=step)

    def alarm(self, step: int, text: str) -> None:
        """An alert."""
        self._run.alert(title="alarm", text=text)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """An image."""
        self._run.log({name: self._wandb.Image(_pixels(figure))}, step=step)

    def end(self) -> None:
        """Close the run."""
        self._run.finish()


class Trackio:
    """A logger to trackio, in project `bivallate`; its files are in trackio's folder (TRACKIO_DIR)."""

    name = "trackio"

    def __init__(self) -> None:
        self._trackio = _package(self.name)

    def begin(self, config: Mapping[str, Any], folder: Path | None, step: int) -> None:
        """Open the run."""
        name = _title(config, folder) + (f" from step {step}" if step else "")
        self._trackio.init(project=PROJECT, name=name, config=dict(_flat(config)), embed=False)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """A number each, below `step/`."""
        self._trackio.log({f"step/{key}": value for key, value in values.items()}, step=step)

    def epoch(self, step: int, values: Mapping[str, float]) -> None:
        """A number each, below `epoch/`."""
        self._trackio.log({f"epoch/{key}": value for key, value in values.items()}, step=step)

    def alarm(self, step: int, text: str) -> None:
        """An alert."""
        self._trackio.alert(title="alarm", text=text)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """An image."""
        self._trackio.log({name: self._trackio.Image(_pixels(figure))}, step=step)

    def end(self) -> None:
        """Close the run."""
        self._trackio.finish()


def _title(config: Mapping[str, Any], folder: Path | None) -> str:
    return folder.name if folder is not None else str(config["method"]["name"])


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The configuration as pairs of a dotted name and a plain value."""
    pairs: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value if isinstance(value, int | float | str) else str(value)))
    return pairs


def _pixels(figure: Figure) -> Any:
    """The figure as an array (H, W, 3) of uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return asarray(canvas.buffer_rgba())[..., :3].copy()


LOGGERS: dict[str, Callable[[], Logger]] = {
    "csv": Csv,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
