"""Questions of `benchmarks/device_suite.py` on whether the package computes correctly on a GPU."""

from __future__ import annotations

import copy
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tests.device.trial import Trial
from torch import Tensor, nn

import bivallate as bv
from benchmarks.device_suite import Place, Question, Row
from bivallate.data import Dataset
from bivallate.errors import UserError
from bivallate.evaluation import attack_and_score
from bivallate.evaluation.named_attacks import ensemble
from bivallate.lower.apgd import APGD
from bivallate.lower.fab import FAB
from bivallate.lower.square import Square
from bivallate.method import Method, facts_for
from bivallate.methods.entries import create, registry
from bivallate.run.arithmetic import lay_out
from bivallate.run.config import Flat
from bivallate.run.progress import Progress
from bivallate.step import train_step
from bivallate.types import Batch, Clock, StepRecord

EPS = 8 / 255
SAME = 1e-8  # largest difference of parameters between GPU and processor after two steps in float64
COUNTED = ("at", "fast-bat", "done-adam", "fat", "at-l2", "yopo", "free-at", "bilaw")
LAUNCHES = re.compile(r"cudaLaunchKernel|cuLaunchKernel|cudaLaunchKernelExC|cudaGraphLaunch")


def synthetic(rows: int, side: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make uint8 images (rows, 3, side, side) of ten classes that stay separable within 8/255, and labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(rows) % 10
    coarse = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(1)) - 0.5
    shown = nn.functional.interpolate(coarse, (side, side), mode="bilinear")[y]
    x = 0.5 + 0.7 * shown + 0.1 * torch.randn(shown.shape, generator=generator)
    return (255 * x.clamp(0, 1)).round().to(torch.uint8), y


def shown(points: int) -> tuple[Tensor, Tensor]:
    """Make images in [0, 1] that no network was trained on, and labels."""
    x, y = synthetic(points, seed=3)
    return x.float() / 255, y


def dataset_of(rows: int, side: int = 32, held: int = 20) -> Dataset:
    """Make a data set of synthetic images."""
    return bv.data.load((synthetic(rows, side), synthetic(max(held, 20), side, seed=2)), validation=held)


def method_of(name: str) -> Method:
    """The method of that name in the catalogue; `NAME-l2` within the customary L2 ball."""
    plain = name.removesuffix("-l2")
    return create(plain, bv.Linf(EPS) if plain == name else bv.L2(0.5))


def trial_of(name: str, device: str, dtype: torch.dtype = torch.float32, last: bool = False) -> Trial:
    """A narrow network and a method on one device, in one number format and layout, on one minibatch.

    last: channels last.
    """
    x, y = synthetic(16, 16)
    x, y, index = x.to(device, dtype) / 255, y.to(device), torch.arange(len(y), device=device)
    batch = Batch(x, y, index, meta=Batch(x[:8], y[:8], index[:8]))
    model = bv.models.create("preact-resnet18", num_classes=10, shape=(3, 16, 16), seed=0, width=1 / 16)
    lay_out(model, last)
    return Trial(model, method_of(name), batch)


def methods(place: Place) -> Iterator[Row]:
    """Check two steps of every method: finite in float32, and equal to the processor's in float64.

    On the device the convolutions have the usual layout and channels last, for which it has other kernels.
    """
    names = list(registry())[:4] if place.toy else list(registry())
    for last in (False, True):
        yield from _in_layout(place, names, last)


def _in_layout(place: Place, names: list[str], last: bool) -> Iterator[Row]:
    """The rows of `methods` in one memory layout."""
    finite, apart, failed = 0, dict[str, float](), dict[str, str]()
    layout = ", channels last" if last else ""
    for name in names:
        try:
            trial = trial_of(name, place.device, last=last)
            finite += all(math.isfinite(trial.step().loss) for _ in range(2))
            here = trial_of(name, place.device, torch.float64, last)
            there = trial_of(name, "cpu", torch.float64)
            for trial in (here, there):
                trial.step()
                trial.step()
            pairs = zip(here.model.parameters(), there.model.parameters(), strict=True)
            apart[name] = max(float((a.detach().cpu() - b.detach()).abs().max()) for a, b in pairs)
        except Exception as error:  # a failing method must not end the others
            failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
    all_finite = finite == len(names)
    yield Row(f"methods with finite losses{layout}", f"{finite} of {len(names)}", "all", all_finite, finite)
    worst = max(apart, key=lambda name: apart[name], default="none")
    most = apart.get(worst, math.nan)
    told = f"at most {most:.1e} ({worst})"
    yield Row(f"difference from the processor in float64{layout}", told, f"{SAME:g}", most <= SAME, most)
    for name, text in failed.items():
        yield Row(f"{name}{layout}", f"failed: {text}", met=False)
    for name, value in apart.items():
        if value > SAME:
            yield Row(f"{name}{layout} differs by", f"{value:.1e}", number=value)


def counts(place: Place) -> Iterator[Row]:
    """Count the kernels that a step launches, and how often the host waits for the device."""
    if not place.cuda:
        yield Row("launches and waits", "need a CUDA device")
        return
    for name in COUNTED:
        trial = trial_of(name, place.device)
        for _ in range(3):
            trial.step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            trial.step()
        torch.cuda.set_sync_debug_mode("default")
        waits = sum("synchroniz" in str(warning.message) for warning in heard)
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as seen:
            trial.step()
            torch.cuda.synchronize()
        launches = sum(event.count for event in seen.key_averages() if LAUNCHES.search(event.key))
        waits_text = f"{waits} waits, {launches} launches ({trial.method.replays} replays)"
        yield Row(name, waits_text, "at most 1 wait a step", waits <= 1, waits)


class Killed(Progress):
    """Ends the process as a power cut would, after a given number of minibatches."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, session: Any, record: StepRecord, lr: float) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def training(place: Place, name: str, out: Path, progress: Progress | None = None) -> None:
    """Train two epochs with everything that keeps state: momentum, BatchNorm, an average."""
    rows = 64 if place.toy else 512
    name_of, options = ("tiny-cnn", {}) if place.toy else ("preact-resnet18", {"width": 0.25})
    model = bv.models.create(name_of, num_classes=10, shape=(3, 32, 32), seed=0, **options)
    settings: dict[str, Any] = {"device": place.device, "batch_size": 16 if place.toy else 64}
    settings |= {"average": 0.9, "checkpoint_minutes": 1e-6, "rate": Flat()}
    settings |= {"deterministic": True}
    bv.train(
        model,
        dataset_of(rows),
        method_of(name),
        epochs=2,
        out=out,
        overwrite=True,
        progress=progress or Progress(),
        **settings,
    )


KILL = "import sys; from benchmarks.device_questions import *; kill_in(*sys.argv[1:])"


def kill_in(device: str, size: str, name: str, out: str) -> None:
    """Train in a process that is killed."""
    training(Place(device, size, math.inf, Path(out)), name, Path(out), Killed(4 if size == "toy" else 10))


def resume(place: Place) -> Iterator[Row]:
    """Check that a training that is killed in its second epoch and resumed ends with the same bits."""
    for name in ("at",) if place.toy else ("at", "free-at", "done-adam", "bilaw"):
        whole, broken = (place.folder / f"resume-{name}-{kind}" for kind in ("whole", "killed"))
        training(place, name, whole)
        told = [sys.executable, "-c", KILL, place.device, place.size, name, str(broken)]
        status = subprocess.run(told, stderr=subprocess.DEVNULL, timeout=max(place.left(), 1)).returncode
        if status != -signal.SIGKILL:
            yield Row(name, f"failed: the training to be killed ended with status {status}", met=False)
            continue
        bv.resume(broken, dataset=dataset_of(64 if place.toy else 512))
        same = [
            (whole / file).read_bytes() == (broken / file).read_bytes()
            for file in ("model.safetensors", "ema.safetensors")
        ]
        yield Row(
            f"{name}, killed and resumed", "same bits" if all(same) else "other bits", "same", all(same)
        )


def trained(place: Place, model: str, steps: int) -> nn.Module:
    """Train a network on the synthetic classes."""
    x, y = synthetic(2048)
    x, y = x.to(place.device), y.to(place.device)
    network = bv.models.create(model, num_classes=10, shape=(3, 32, 32), seed=0).to(place.device).train()
    bound = method_of("plain").bind(facts_for(network, x[:1].float(), 10))
    optimizer = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
    for step in range(steps):
        rows = torch.arange(128, device=place.device) + 128 * (step % 16)
        batch = Batch(x[rows].float() / 255, y[rows], rows)
        train_step(network, optimizer, bound, batch, Clock(step=step, steps=steps))
    return network.eval()


def radius(model: nn.Module, x: Tensor, y: Tensor, share: float) -> bv.Linf:
    """Find the ball within which about a given share of the points withstands a short attack."""
    tried = [bv.Linf(eps / 255) for eps in (0.5, 1, 2, 4, 8, 12, 16, 24)]
    return min(
        tried, key=lambda ball: abs(attack_and_score(model, (x, y), ball, "pgd-10").robust_accuracy - share)
    )


def verdicts(place: Place) -> Iterator[Row]:
    """Check that AutoAttack breaks the same points on the GPU as on the processor."""
    points = 16 if place.toy else 200
    model = trained(place, "tiny-cnn" if place.toy else "small-cnn", 30 if place.toy else 60)
    x, y = shown(points)
    short = ensemble("autoattack-short", APGD(20), FAB(10), Square(100), targets=2)
    attack = short if place.toy else ensemble("autoattack-500", random_search=Square(500))
    threat = radius(model, x, y, 0.6)
    here = attack_and_score(model, (x, y), threat, attack)
    there = attack_and_score(copy.deepcopy(model).cpu(), (x, y), threat, attack)
    same = int((here.robust == there.robust).sum())
    told = f"{same} of {points} ({here.robust_accuracy:.1%} here, {there.robust_accuracy:.1%} there)"
    yield Row("verdicts that agree", told, "all", same == points, same)
    told = f"{here.clean_accuracy:.1%} clean, eps {255 * threat.eps:g}/255, {here.seconds:.0f} s here"
    yield Row("of " + ", ".join(here.stage_names), told)


def room(place: Place) -> Iterator[Row]:
    """Check the error for a minibatch that is too large, and that validation fits wherever training does."""
    if not place.cuda:
        yield Row("too little memory", "needs a CUDA device")
        return
    whole = torch.cuda.get_device_properties(place.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 6 * 2**30 / whole))
    data = dataset_of(1024, 64)
    try:
        bv.train("resnet18", data, method_of("at"), epochs=1, device=place.device, batch_size=1024)
        yield Row("a minibatch that does not fit", "it did fit in 6 GiB")
    except UserError as error:
        yield Row("a minibatch that does not fit", str(error)[:300], "says which would", "fits" in str(error))
    torch.cuda.empty_cache()
    data = dataset_of(600, 224, held=512)
    run = bv.train("resnet18", data, method_of("at"), epochs=1, device=place.device, batch_size=16)
    yield Row("validation at 224 pixels in 6 GiB", f"done: {run.history[0]['robust']:.1%}", "fits", True)


QUESTIONS = (
    Question("methods", 100, methods),
    Question("resume", 90, resume),
    Question("verdicts", 60, verdicts),
    Question("counts", 40, counts),
    Question("room", 45, room),
)
