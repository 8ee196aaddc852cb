"""Run a cell: train and evaluate what is missing, and write its record."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bivallate.data import Dataset
from bivallate.evaluation.points import model_fingerprint
from bivallate.files import write_json
from bivallate.models import Classifier
from bivallate.parts import encode, portable
from bivallate.reproduce import definition
from bivallate.reproduce.cell import Cell, configure, slug
from bivallate.reproduce.definition import SOURCE_SEED, source_names
from bivallate.reproduce.machine import commit, machine
from bivallate.reproduce.measuring import columns_of, measured
from bivallate.reproduce.paper_table import Scale
from bivallate.reproduce.sharing import find_equal_run, training_of, with_all_kept
from bivallate.run.arithmetic import limit_threads
from bivallate.run.config import Config
from bivallate.run.execution import execute
from bivallate.run.folder import RunFolder
from bivallate.run.from_config import create_model, load_data, pick_device
from bivallate.run.load_model import load
from bivallate.run.progress import Progress
from bivallate.run.resuming import computable, resume

__all__ = ["SCHEMA", "Job", "record_path", "run_job", "train_for", "trained"]

SCHEMA = "bivallate-reproduction-1"


@dataclass(frozen=True)
class Job:
    """A cell with a seed, and the folders for its results.

    Attributes:
        table, scale, cell, seed: what to run.
        out: folder of the records.
        runs: folder of the trainings.
        sources: other networks for transfer columns, by name.
        device, threads: as in a run's configuration.
        together: number of jobs that share the device, with this one.
    """

    table: str
    scale: Scale
    cell: Cell
    seed: int
    out: Path
    runs: Path
    sources: dict[str, Cell] = field(default_factory=dict)
    device: str = "auto"
    threads: int = 1
    together: int = 1

    @property
    def trainings(self) -> dict[str | None, str]:
        """Source, or None for the cell -> its training, as a text that is equal for shared ones."""
        found: dict[str | None, str] = {
            name: training_of(self.sources[name], self.seed + SOURCE_SEED)
            for name in sorted(source_names(self.cell))
        }
        return {**found, None: training_of(self.cell, self.seed)}

    @property
    def title(self) -> str:
        """Title of the job in messages."""
        return f"{self.table} {self.scale}: {self.cell.row}, {self.cell.group}, seed {self.seed}"


def record_path(out: Path, table: str, scale: str, cell: Cell, seed: int) -> Path:
    """Path of a cell's record."""
    return out / table / scale / f"{cell.name}-seed{seed}.json"


def run_job(job: Job, progress: Progress | None = None) -> Path:
    """Train and evaluate a cell, continuing an interrupted attempt; return the path of its record.

    Raises UserError if the data do not exist, and whatever a training or an attack raises.
    """
    begun, made = time.monotonic(), commit()
    cell, seed = job.cell, job.seed
    config, dataset = _prepared(job)
    folder, model = _own(job, config, dataset, progress)
    needed = {name: job.sources[name] for name in sorted(source_names(cell))}
    sources = {name: _source(job, source, dataset, progress) for name, source in needed.items()}
    more = {m.weights for m in cell.measures} - {"", cell.weights}
    models = {cell.weights: model} | {w: load(folder.path, w).to(pick_device(config.device)) for w in more}
    history = folder.read_metrics()
    scores = measured(models, cell, dataset, folder.evaluation, sources)
    record = {
        "schema": SCHEMA,
        "table": job.table,
        "scale": job.scale,
        "row": cell.row,
        "group": cell.group,
        "seed": seed,
        "weights": cell.weights,
        "commit": made,
        "machine": machine(config.device, job.threads) | _company(job),
        "config": portable(encode(Config.read(folder.config))),
        "sources": {
            n: definition.recorded_training(configure(s, seed + SOURCE_SEED), s)
            | {"fingerprint": model_fingerprint(sources[n])}
            for n, s in needed.items()
        },
        "data": {"train": len(dataset.train), "rows": cell.rows, "fingerprint": dataset.fingerprint},
        "training": _training(history),
        "columns": columns_of(cell, scores, history),
        "scores": scores,
        "session_seconds": time.monotonic() - begun,
    }
    path = record_path(job.out, job.table, job.scale, cell, seed)
    write_json(path, record)
    return path


def train_for(job: Job, source: str | None) -> None:
    """Train a job's cell, or one of its sources, unless that is done; `run_job` then finds it.

    Raises UserError if the data do not exist, and whatever a training raises.
    """
    config, dataset = _prepared(job)
    if source is None:
        _own(job, config, dataset, None)
    else:
        _source(job, job.sources[source], dataset, None)


def _prepared(job: Job) -> tuple[Config, Dataset]:
    limit_threads(job.threads)
    cell = with_all_kept(job.cell, job.scale)
    config = computable(configure(cell, job.seed, job.device, job.threads))
    return config, cut(load_data(config.data, job.seed), cell.rows)


def _own(
    job: Job, config: Config, dataset: Dataset, progress: Progress | None
) -> tuple[RunFolder, Classifier]:
    place = job.runs / job.table / job.scale / f"{job.cell.name}-seed{job.seed}"
    return trained(config, dataset, place, job.cell.weights, progress)


def _company(job: Job) -> dict[str, int]:
    """The number of jobs that shared the device, if there were several, because it affects their times."""
    return {"together": job.together} if job.together > 1 else {}


def trained(
    config: Config, dataset: Dataset, place: Path, weights: str, progress: Progress | None = None
) -> tuple[RunFolder, Classifier]:
    """Train the run of a configuration, unless it exists; return its folder and its model.

    An existing run at `place`, or of another cell at the same scale, is used, and continued if it is not
    finished. If `place` holds a run of another configuration or other data, because the definition of the
    cell has changed, it is renamed to `PLACE.before-N`. Device and threads do not count as a difference.
    """
    folder = find_equal_run(place, config, dataset.fingerprint)
    if folder is None:
        folder = RunFolder(place)
        _put_aside(place)
        network = create_model(config.model, dataset, config.seed)
        execute(config, dataset, network, place, progress=progress)
    elif len(folder.read_metrics()) < config.epochs or not (folder.path / "model.safetensors").exists():
        here = {"device": config.device, "threads": config.threads}  # may differ from where it began
        resume(folder.path, dataset=dataset, progress=progress or False, **here)
    return folder, load(folder.path, weights).to(pick_device(config.device))


def _put_aside(place: Path) -> None:
    if place.exists() and any(place.iterdir()):
        number = next(
            n for n in itertools.count(1) if not place.with_name(f"{place.name}.before-{n}").exists()
        )
        place.rename(place.with_name(f"{place.name}.before-{number}"))


def cut(dataset: Dataset, rows: int) -> Dataset:
    """The data with only the first `rows` training images, which are in random order; 0 keeps all."""
    return dataset.but(train=dataset.train.subset(slice(0, rows))) if rows else dataset


def _source(job: Job, cell: Cell, dataset: Dataset, progress: Progress | None) -> Classifier:
    config = computable(configure(cell, job.seed + SOURCE_SEED, job.device, job.threads))
    place = job.runs / job.table / job.scale / f"source-{slug(cell.row)}-{slug(cell.group)}-seed{job.seed}"
    return trained(config, dataset, place, cell.weights, progress)[1]


def _training(history: list[dict[str, Any]]) -> dict[str, Any]:
    last = history[-1]
    return {
        "epochs": len(history),
        "seconds": sum(line["seconds"] for line in history),
        "forward_per_row": last["total_forward"],
        "backward_per_row": last["total_backward"],
        "history": [{k: v for k, v in line.items() if not k.startswith("watched")} for line in history],
    }
