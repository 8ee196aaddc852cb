"""Questions of `benchmarks/device_suite.py` on how fast the package is on a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bivallate as bv
from benchmarks.device_questions import EPS, dataset_of, method_of, radius, shown, synthetic, trained
from benchmarks.device_suite import Place, Question, Row
from bivallate.evaluation import attack_and_score
from bivallate.lower.compiled import Compiled, compiling
from bivallate.lower.cuda_graphs import CudaGraphs, graphing
from bivallate.lower.modes import attacking, frozen
from bivallate.method import facts_for
from bivallate.run.config import Config
from bivallate.run.progress import Progress
from bivallate.run.session import Session
from bivallate.run.trainer import Trainer
from bivallate.step import train_step
from bivallate.types import Batch, Clock

FORMATS = ("float32", "tf32", "bf16")
PER_EPOCH = 391  # minibatches of 128 in 50,000 images
MINUTES = {"at": (60, 12.0), "fast-bat": (20, 3.0)}  # epochs, and the minutes that they may take


@contextmanager
def arithmetic(model: nn.Module, name: str) -> Iterator[None]:
    """Set the number format for the straight loop and for the package."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    model.autocast_dtype = torch.bfloat16 if name == "bf16" else None  # pyright: ignore
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def seconds_of(work: Callable[[], object], place: Place, times: int = 12, warm: int = 3) -> float:
    """Median seconds of a call, with the device idle before and after."""
    found = []
    times, warm = (2, 1) if place.toy else (times, warm)
    for k in range(warm + times):
        if place.cuda:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if place.cuda:
            torch.cuda.synchronize()
        if k >= warm:
            found.append(time.perf_counter() - begun)
    return statistics.median(found)


class Bench:
    """AT PGD-10 on PreActResNet-18, by the package and by a straight loop, on one minibatch."""

    def __init__(self, place: Place, *, channels_last: bool = False) -> None:
        self.place, rows = place, 16 if place.toy else 128
        x, y = synthetic(rows)
        self.x, self.y = x.to(place.device).float() / 255, y.to(place.device)
        name = "tiny-cnn" if place.toy else "preact-resnet18"
        self.model = (
            bv.models.create(name, num_classes=10, shape=(3, 32, 32), seed=0).to(place.device).train()
        )
        if channels_last:
            self.model.to(memory_format=torch.channels_last)  # pyright: ignore
        self.method = method_of("at").bind(facts_for(self.model, self.x, 10))
        self.steps, self.size = (10, EPS / 4)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
        self.batch = Batch(self.x, self.y, torch.arange(rows, device=place.device))

    def ours(self) -> None:
        """One step of the package."""
        train_step(self.model, self.optimizer, self.method, self.batch, Clock())

    def logits(self, x: Tensor) -> Tensor:
        """The logits, in the mixed precision that `arithmetic` has set."""
        dtype = self.model.autocast_dtype
        with torch.autocast(x.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            return self.model(x).float()

    def attack(self, delta: Tensor) -> Tensor:
        """PGD from delta, in eval mode, nothing but the arithmetic."""
        low, high = (-self.x).clamp(min=-EPS), (1 - self.x).clamp(max=EPS)
        for _ in range(self.steps):
            point = delta.detach().requires_grad_()
            loss = F.cross_entropy(self.logits(self.x + point), self.y, reduction="sum")
            (grad,) = torch.autograd.grad(loss, point)
            delta = torch.minimum(torch.maximum(delta + self.size * grad.sign(), low), high)
        return delta

    def descend(self, delta: Tensor) -> None:
        """The outer step."""
        F.cross_entropy(self.logits(self.x + delta), self.y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def straight(self) -> None:
        """One step of a loop written by hand."""
        start = torch.empty_like(self.x).uniform_(-EPS, EPS)
        with attacking(self.model, "eval"), frozen(self.model):
            delta = self.attack(start)
        self.descend(delta)

    def graphed(self) -> Callable[[], None]:
        """The straight loop whose attack is one CUDA graph."""
        start, stream = torch.empty_like(self.x).uniform_(-EPS, EPS), torch.cuda.Stream()
        with attacking(self.model, "eval"), frozen(self.model):
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.attack(start)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = self.attack(start)

        def step() -> None:
            start.uniform_(-EPS, EPS)
            graph.replay()
            self.descend(found)

        return step


def ratios(place: Place) -> Iterator[Row]:
    """Ratio of the package's time to a straight loop's, by number format and memory layout."""
    for channels_last in (False, True):
        layout = "channels last" if channels_last else "as usual"
        for name in FORMATS if place.cuda else ("float32",):
            bench = Bench(place, channels_last=channels_last)
            with arithmetic(bench.model, name):
                ours, straight = (seconds_of(work, place) for work in (bench.ours, bench.straight))
            told = f"{1e3 * ours:.1f} ms, straight {1e3 * straight:.1f} ms: {ours / straight:.2f}"
            yield Row(f"AT step, {name}, {layout}", told, "1.05", ours <= 1.05 * straight, ours / straight)


def graphs(place: Place) -> Iterator[Row]:
    """Measure the speedup by CUDA graphs, of the straight loop and of ours, whose steps must not change."""
    if not place.cuda:
        yield Row("CUDA graphs", "need a CUDA device")
        return
    for name in FORMATS:
        bench = Bench(place, channels_last=name == "bf16")
        with arithmetic(bench.model, name):
            straight = seconds_of(bench.straight, place)
            graphed = seconds_of(bench.graphed(), place)
        told = f"{1e3 * graphed:.1f} ms, without {1e3 * straight:.1f} ms: {graphed / straight:.2f}"
        yield Row(f"straight loop, graph of the attack, {name}", told, number=graphed / straight)
        yield from ours_graphed(place, name)


def ours_graphed(place: Place, name: str) -> Iterator[Row]:
    """Compare steps of ours with and without `graphs=true`: parameters after three steps, and time."""
    plain, quick = (Bench(place, channels_last=name == "bf16") for _ in range(2))
    made = CudaGraphs()
    with arithmetic(plain.model, name), arithmetic(quick.model, name):
        for _ in range(3):
            plain.ours()
            with graphing(made):
                quick.ours()
        pairs = zip(plain.model.parameters(), quick.model.parameters(), strict=True)
        apart = max(float((a - b).detach().abs().max()) for a, b in pairs)
        seconds = seconds_of(plain.ours, place)
        with graphing(made):
            graphed = seconds_of(quick.ours, place)
    limit = 1e-4 if name == "float32" else 1e-2  # kernels may add in a different order at each call
    yield Row(f"ours with graphs, {name}: parameters differ by", f"{apart:.1e}", f"{limit:g}", apart <= limit)
    told = f"{1e3 * graphed:.1f} ms, without {1e3 * seconds:.1f} ms: {graphed / seconds:.2f}"
    yield Row(f"ours with graphs, {name}", told, "recorded", made.launches > 0, graphed / seconds)


def compiled(place: Place) -> Iterator[Row]:
    """Compare steps with and without `compile=true`, and time the first compiled one."""
    for name in ("tf32", "bf16") if place.cuda else ("float32",):
        bench = Bench(place, channels_last=name == "bf16")
        with arithmetic(bench.model, name):
            plain = seconds_of(bench.ours, place)
            backend = "aot_eager" if place.toy else "inductor"
            with compiling(Compiled(bench.model, {tuple(bench.x.shape)}, backend)):
                begun = time.perf_counter()
                bench.ours()
                wait = time.perf_counter() - begun
                ours = seconds_of(bench.ours, place)
            told = (
                f"{1e3 * ours:.1f} ms, without {1e3 * plain:.1f} ms: {ours / plain:.2f}, first {wait:.0f} s"
            )
            yield Row(f"ours, compiled, {name}", told, number=ours / plain)


def configured(place: Place, name: str, precision: str) -> Config:
    """The configuration of a user's training, in one number format."""
    config = Config(method_of(name), device=place.device, batch_size=16 if place.toy else 128, epochs=30)
    if precision == "bf16":
        config = config.set("channels_last", "true")
    return config.set("precision", precision)


def epochs(place: Place) -> Iterator[Row]:
    """Seconds an epoch of the training loop, from some fifty minibatches, and its memory."""
    rows, steps = (256, 4) if place.toy else (20_000, 50)
    data = dataset_of(rows)
    for name, network in (("at", "resnet18"), ("fast-bat", "preact-resnet18"), ("done-adam", "resnet18")):
        for precision in FORMATS if place.cuda else ("float32",):
            if place.cuda:
                torch.cuda.reset_peak_memory_stats()
            model = bv.models.create("tiny-cnn" if place.toy else network, num_classes=10, shape=data.shape)
            session = Session(configured(place, name, precision), data, model)
            paced = Paced(steps, place)
            with arithmetic(session.model, precision), suppress(Enough):
                Trainer(session, None, paced).run()
            each = paced.seconds / steps
            peak = torch.cuda.max_memory_allocated() / 2**30 if place.cuda else 0.0
            whole, goal, met = PER_EPOCH * each, "", None
            if name in MINUTES:
                number, limit = MINUTES[name]
                goal, met = f"{number} epochs in {limit:g} min", number * whole / 60 <= limit
                told = f"{whole:.1f} s an epoch ({number * whole / 60:.1f} min), {peak:.1f} GiB"
            else:
                told = f"{whole:.1f} s an epoch, {peak:.1f} GiB"
            yield Row(f"{name} on {network}, {precision}", told, goal, met, whole)


class Enough(Exception):
    """Raised when enough minibatches were timed."""


class Paced(Progress):
    """Times minibatches of the training loop after a few that warm up, and then ends it."""

    def __init__(self, steps: int, place: Place) -> None:
        self.steps, self.place, self.done, self.seconds = steps, place, -max(1, steps // 5), 0.0

    def step(self, *_: Any) -> None:
        self.done += 1
        if self.done not in (0, self.steps):
            return
        if self.place.cuda:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.seconds  # the moment, then the time since
        if self.done:
            raise Enough


def autoattack(place: Place) -> Iterator[Row]:
    """Images a second of AutoAttack's standard version on ResNet-18, where most images survive to its end."""
    points = 8 if place.toy else 64
    model = trained(place, "tiny-cnn" if place.toy else "resnet18", 30 if place.toy else 100)
    x, y = shown(points)
    threat = radius(model, x, y, 0.8)
    for attack in ("pgd-20", "apgd-ce-5" if place.toy else "autoattack"):
        score = attack_and_score(model, (x, y), threat, attack)
        passes = points * (score.passes["forward"] + score.passes["backward"])
        told = (
            f"{points / score.seconds:.2f} images a second, {passes / score.seconds:.0f} passes a second "
            f"({score.robust_accuracy:.1%} of {points} robust in {255 * threat.eps:g}/255)"
        )
        yield Row(attack, told, number=points / score.seconds)


QUESTIONS = (
    Question("ratios", 60, ratios),
    Question("epochs", 110, epochs),
    Question("graphs", 40, graphs),
    Question("autoattack", 110, autoattack),
    Question("compiled", 80, compiled),
)
