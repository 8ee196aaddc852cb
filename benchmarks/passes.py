"""Measure the time of each method's step relative to the passes that it needs at least, and its peak memory.

All are timed in turns in one process, so that other work on the machine affects them alike. The units are:

    F   forward pass
    G   input gradient, parameters frozen
    1   forward and backward to the parameters
    D   the same, with the gradient in delta differentiated in theta
    J   forward pass with a tangent along the parameters
    S   forward and backward of the first layer alone

The floor of a method is the sum of the units that it needs at least. `python -m benchmarks.passes --help`
lists the sizes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

import bivallate as bv
from benchmarks.floors import EPS, UNITS, Floor, catalogue
from bivallate import Linf, methods, models
from bivallate.evaluation.progress_display import duration
from bivallate.lower.modes import AttackMode, attacking, frozen
from bivallate.lower.replay import named_first_layer
from bivallate.lower.second_order import twice_differentiable
from bivallate.method import Method, facts_for
from bivallate.models.batchnorm_folding import fold_batchnorm
from bivallate.types import Batch, Clock

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def units(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], None]]:
    """Build the units as plain PyTorch code, with the faster passes that the package has for a network.

    They are its modes, BatchNorm folded into convolutions where an attack is in eval mode (here once, by
    torch's own folding of the whole network), and BatchNorm's second derivative.
    """
    folded = fold_batchnorm(model)

    def forward(mode: AttackMode) -> None:
        with attacking(model, mode), torch.no_grad():
            model(x)

    def input_gradient(mode: AttackMode) -> None:
        network = folded if mode == "eval" else model
        with attacking(network, mode), frozen(network):
            point = torch.zeros_like(x).requires_grad_()
            torch.autograd.grad(F.cross_entropy(network(x + point), y, reduction="sum"), point)

    def full() -> None:
        F.cross_entropy(model(x), y).backward()
        model.zero_grad()

    def double() -> None:
        point = torch.zeros_like(x).requires_grad_()
        with twice_differentiable():
            loss = F.cross_entropy(model(x + point), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, point, create_graph=True)
        (loss + (grad * grad.detach()).sum()).backward()
        model.zero_grad()

    @torch.no_grad()
    def tangent() -> None:
        with forward_ad.dual_level():
            dual = {n: forward_ad.make_dual(p, torch.ones_like(p)) for n, p in model.named_parameters()}
            F.cross_entropy(functional_call(model, dual, (x,)), y, reduction="none")

    def first_layer() -> None:
        stem, first = named_first_layer(model)
        point = torch.zeros_like(x).requires_grad_()
        with frozen(stem):
            torch.autograd.grad(first(x + point).sum(), point)

    return {
        "F eval": lambda: forward("eval"),
        "F train": lambda: forward("train"),
        "G eval": lambda: input_gradient("eval"),
        "G train": lambda: input_gradient("train"),
        "1": full,
        "D": double,
        "J": tangent,
        "S": first_layer,
    }


def step(model: nn.Module, method: Method, batch: Batch, classes: int) -> Callable[[], None]:
    """One minibatch of a method with all its replays, optimiser included: the sixth of ten in the last epoch
    of twelve, with no burn-in and the curriculum at its height; LIET looks at a grey image in the first."""
    batch = batch if method.weighting.needs_meta else Batch(batch.x, batch.y, batch.index)
    bound = method.bind(facts_for(model, batch.x, classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)

    def run() -> None:
        for replay in range(method.replays):
            bv.train_step(model, optimizer, bound, batch, Clock(11, 12, 5, 10, replay))

    return run


def seconds(run: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    """The seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def peak(run: Callable[[], None], device: torch.device) -> float | None:
    """Peak bytes that a call needs beyond those in use before it; None if they cannot be measured."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return float(torch.cuda.max_memory_allocated() - before)
    if not sys.platform.startswith("linux"):
        return None
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024.0 * int(found.group(1)) if found else 0.0


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Parse the sizes of the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.passes", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", default="preact-resnet18")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="K, attack steps of at, trades and done")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time, for a machine that others use too",
    )
    parser.add_argument("--methods", default="", help="comma-separated; all by default")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> bool:
    """Print the table; returns whether every method met its target."""
    sizes = arguments([] if given is None else given)
    torch.set_num_threads(sizes.threads)
    device, (model, batch) = torch.device(sizes.device), _subject(sizes)
    wanted = sizes.methods.split(",") if sizes.methods else list(catalogue(sizes.steps))
    chosen = {n: v for n, v in catalogue(sizes.steps).items() if n in wanted}
    runs = {n: step(model, method, batch, 10) for n, (method, _, _) in chosen.items()}
    measured = {**units(model, batch.x, batch.y), **{f"method {n}": run for n, run in runs.items()}}
    print(f"memory of {len(runs)} methods", file=sys.stderr, flush=True)
    plain = methods.plain(Linf(EPS))
    step(model, plain, batch, 10)()  # which warms up
    each = {"plain": step(model, plain, batch, 10), **runs}
    memory = {n: peak(run, device) for n, run in each.items()}
    times: dict[str, list[float]] = {name: [] for name in measured}
    for number in range(1, sizes.rounds + 1):
        begun = time.perf_counter()
        for name, run in measured.items():
            times[name].append(seconds(run, device, CLOCKS[sizes.clock]))
        left = duration((sizes.rounds - number) * (time.perf_counter() - begun))
        print(f"round {number} of {sizes.rounds}, about {left} left", file=sys.stderr, flush=True)
    return _print(sizes, chosen, times, memory)


def _subject(sizes: argparse.Namespace) -> tuple[nn.Module, Batch]:
    model = models.create(sizes.model, num_classes=10, shape=(3, 32, 32), seed=0).to(sizes.device).train()
    generator = torch.Generator().manual_seed(0)
    n = sizes.batch_size
    x, y = torch.rand(n, 3, 32, 32, generator=generator), torch.randint(0, 10, (n,), generator=generator)
    meta = Batch(x.flip(0), y.flip(0), torch.arange(n))
    return model, Batch(x, y, torch.arange(n), None, meta).to(sizes.device)


def _print(
    sizes: argparse.Namespace,
    chosen: dict[str, tuple[Method, Floor, float]],
    times: dict[str, list[float]],
    memory: dict[str, float | None],
) -> bool:
    middle = {name: statistics.median(t) for name, t in times.items()}
    least = {name: min(t) for name, t in times.items()}
    one = middle["1"]
    print(
        f"{sizes.model}, batch {sizes.batch_size}, K = {sizes.steps}, {sizes.rounds} interleaved rounds, "
        f"{sizes.threads} threads, {sizes.device}; a plain forward and backward takes {one * 1e3:.0f} ms"
    )
    print("units: " + ", ".join(f"{n} = {middle[n] / one:.2f}" for n in UNITS.values() if n != "1"))
    print(
        f"{'method':<20}{'floor':>8}{'measured':>10}{'ratio':>8}{'of minima':>11}{'target':>8}{'memory':>8}"
    )
    met = True
    for name, (_, floor, target) in chosen.items():
        time_, low = middle[f"method {name}"], least[f"method {name}"]
        ratio, best = time_ / floor(middle), low / floor(least)
        bytes_, base = memory.get(name), memory["plain"]
        relative = f"{bytes_ / base:.2f}" if bytes_ is not None and base else "-"
        reached = ratio <= target
        met &= reached
        print(
            f"{name:<20}{floor(middle) / one:>8.2f}{time_ / one:>10.2f}{ratio:>8.3f}{best:>11.3f}"
            f"{target:>8.2f}{relative:>8}{'' if reached else '   MISSED'}"
        )
    return met


if __name__ == "__main__":
    raise SystemExit(0 if main(sys.argv[1:]) else 1)
