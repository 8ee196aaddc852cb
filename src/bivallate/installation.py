"""Describe the machine for a bug report, and test the installation.

The description has versions, devices, threads and the data that was found; the test takes some seconds.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

from bivallate import data, methods, models
from bivallate.data.cache import cache_folder
from bivallate.data.registry import describe
from bivallate.evaluation import attack_and_score
from bivallate.gradcheck import check_gradient
from bivallate.lower.threat import Linf
from bivallate.reproduce.machine import machine
from bivallate.run.arithmetic import has_bfloat16
from bivallate.run.load_model import load
from bivallate.run.origin import commit
from bivallate.run.training import train
from bivallate.version import __version__


@dataclass(frozen=True)
class Diagnosis:
    """One line of the report: what was checked, what was found, and whether that is as it should be."""

    name: str
    value: str
    ok: bool = True


def examine(data_dir: str | None = None) -> Iterator[Diagnosis]:
    """Report versions, devices, threads and data, one by one."""
    facts = machine("cpu", 0)
    yield Diagnosis("bivallate", f"{__version__}, {_origin()}")
    yield Diagnosis("python", f"{facts['python']} on {facts['system']} {platform.release()}")
    yield from packages()
    bf16 = "with" if has_bfloat16(torch.device("cpu")) else "without"
    yield Diagnosis("processor", f"{facts['processor']}, {facts['cores']} cores, {bf16} bfloat16")
    asked = os.environ.get("OMP_NUM_THREADS")
    yield Diagnosis(
        "threads", f"{torch.get_num_threads()}" + (f" (OMP_NUM_THREADS={asked})" if asked else "")
    )
    yield from devices()
    room = shutil.disk_usage(_existing(cache_folder())).free / 2**30
    yield Diagnosis("cache", f"{_short(cache_folder())}, {room:.0f} GiB free", ok=room >= 1)
    for name in data.registry.names():
        yield Diagnosis(f"data {name}", _short(describe(name, data_dir)["found"] or "not found"))


def packages() -> Iterator[Diagnosis]:
    """Every package that bivallate's own metadata asks for, and timm, with its version."""
    wanted = [Requirement(text) for text in metadata.requires("bivallate") or ()]
    for need in wanted:
        optional = need.marker is not None and not need.marker.evaluate({"extra": ""})
        try:
            found = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            if not optional:
                yield Diagnosis(need.name, f"not installed, and {need.specifier} is needed", ok=False)
            continue
        if optional and need.name != "timm":
            continue
        fits = need.specifier.contains(found, prereleases=True)
        yield Diagnosis(need.name, found if fits else f"{found}, and {need.specifier} is needed", fits)


def devices() -> Iterator[Diagnosis]:
    """Accelerators that torch can see."""
    for k in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(k)
        yield Diagnosis(
            f"cuda:{k}", f"{of.name}, {of.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        )
    if torch.backends.mps.is_available():
        yield Diagnosis("mps", "available; not tested by this project")
    if not torch.cuda.device_count():
        build = (
            "a build for processors"
            if torch.version.cuda is None
            else f"a build for CUDA {torch.version.cuda}"
        )
        yield Diagnosis("cuda", f"no device (torch is {build})")


def self_test() -> Iterator[Diagnosis]:
    """Run small, timed versions of the package's main tasks: a gradient check, a training, attacks.

    A check that fails yields a `Diagnosis` that is not ok; none raises.
    """
    with tempfile.TemporaryDirectory() as place:
        for name, check in (
            ("a gradient against finite differences", _gradient),
            ("training, saving, loading", lambda: _training(Path(place) / "run")),
            ("attacks in their ball", lambda: _attacks(Path(place) / "run")),
        ):
            began = time.perf_counter()
            try:
                value, ok = check()
            except Exception as error:  # any error is a finding
                value, ok = f"{type(error).__name__}: {error}", False
            yield Diagnosis(name, f"{value} ({time.perf_counter() - began:.1f} s)", ok)


def _gradient() -> tuple[str, bool]:
    network = models.create("tiny-cnn", num_classes=10, shape=(1, 8, 8), activation="softplus")
    x, y = data.load("digits").train.tensors(slice(0, 8))
    found = check_gradient(network, methods.done_adam(Linf(0.1)), (x, y), seed=0, directions=3)
    return f"of {found.method}: they differ by {found.surrogate_error:.0e}", found.ok


def _training(place: Path) -> tuple[str, bool]:
    torch.manual_seed(0)
    network = models.create("tiny-cnn", num_classes=10, shape=(1, 8, 8))
    run = train(network, "digits", methods.at(Linf(0.1), steps=3), epochs=3, out=place, seed=0)
    again = load(place, weights="last").state_dict()
    same = all(
        torch.equal(again[key], value) for key, value in run.model.state_dict().items() if key in again
    )
    learned = float(run.history[-1]["train_robust"])
    return f"{100 * learned:.0f} % robust in training, weights {'equal' if same else 'DIFFER'}", same


def _attacks(place: Path) -> tuple[str, bool]:
    test = data.load("digits").test
    scores = [
        attack_and_score(load(place, weights="last"), test, Linf(0.1), attack=a, n=40)
        for a in ("fgsm", "autoattack")
    ]
    weak, strong = (score.robust_accuracy for score in scores)
    return f"FGSM leaves {100 * weak:.0f} %, AutoAttack {100 * strong:.0f} % of 40", strong <= weak


def _origin() -> str:
    known = commit()
    if not known:
        return "installed as a package"
    return f"commit {known['id'][:9]}" + (", modified" if known["modified"] else "")


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _short(place: Path | str) -> str:
    """A path without the name of the user's home."""
    return str(place).replace(str(Path.home()), "~", 1) if Path.home() != Path("/") else str(place)
