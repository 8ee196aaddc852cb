"""What a step costs beyond the passes it must make: time of each method over its floor, and peak memory.

In one process and interleaved, so that a busy machine disturbs numerator and denominator alike:

    F   forward pass
    G   input gradient, parameters frozen
    1   forward and backward to the parameters
    D   the same, with the gradient in delta differentiated in theta

The floor of a method is the sum of the units that it cannot do without. `python -m benchmarks.passes --help`
has the sizes.
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

import bivallate as bv
from bivallate import Linf, methods, models
from bivallate.lower.problem import attacking, frozen
from bivallate.method import Method, facts_for
from bivallate.types import Batch, Clock

EPS = 8 / 255
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Floor = Callable[[dict[str, float]], float]


def catalogue(k: int) -> dict[str, tuple[Method, Floor, float]]:
    """Method, floor in the units, and the target for measured / floor."""
    threat = Linf(EPS)
    return {
        "plain": (methods.plain(threat), lambda u: u["1"], 1.10),
        "at": (methods.at(threat, steps=k), lambda u: k * u["G eval"] + u["1"], 1.10),
        "fast-at": (methods.fast_at(threat), lambda u: u["G train"] + u["1"], 1.10),
        "trades": (
            methods.trades(threat, steps=k),
            lambda u: u["F eval"] + k * u["G eval"] + 2 * u["1"],
            1.10,
        ),
        "fast-bat": (methods.fast_bat(threat), lambda u: u["G train"] + u["D"] + u["1"], 1.15),
        "done-gd": (methods.done_gd(threat, steps=k), lambda u: k * u["G train"] + u["D"], 1.15),
        "done-pgd": (methods.done_pgd(threat, steps=k), lambda u: k * u["G train"] + u["D"], 1.15),
        "done-adam": (methods.done_adam(threat, steps=k), lambda u: k * u["G train"] + u["D"], 1.15),
        "done-fast": (methods.done_fast(threat), lambda u: 2 * u["G train"] + u["D"], 1.15),
    }


def units(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], None]]:
    """Straight-line passes; nothing of the package but the modes of the model."""

    def forward() -> None:
        with attacking(model, "eval"), torch.no_grad():
            model(x)

    def input_gradient(mode: str) -> None:
        with attacking(model, "eval" if mode == "eval" else "train"), frozen(model):
            point = torch.zeros_like(x).requires_grad_()
            torch.autograd.grad(F.cross_entropy(model(x + point), y, reduction="sum"), point)

    def full() -> None:
        F.cross_entropy(model(x), y).backward()
        model.zero_grad()

    def double() -> None:
        point = torch.zeros_like(x).requires_grad_()
        loss = F.cross_entropy(model(x + point), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, point, create_graph=True)
        (loss + (grad * grad.detach()).sum()).backward()
        model.zero_grad()

    return {
        "F eval": forward,
        "G eval": lambda: input_gradient("eval"),
        "G train": lambda: input_gradient("train"),
        "1": full,
        "D": double,
    }


def step(model: nn.Module, method: Method, batch: Batch, classes: int) -> Callable[[], None]:
    """One training step of a method, optimiser included."""
    bound = method.bind(facts_for(model, batch.x, classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    clock = Clock()

    def run() -> None:
        bv.train_step(model, optimizer, bound, batch, clock)

    return run


def seconds(run: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    """Time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def peak(run: Callable[[], None], device: torch.device) -> float | None:
    """Bytes that a call needs at most beyond what was there before; None where nobody can say."""
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
    """Sizes of the benchmark."""
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
    """Prints the table; whether every method met its target."""
    sizes = arguments([] if given is None else given)
    torch.set_num_threads(sizes.threads)
    device, (model, batch) = torch.device(sizes.device), _subject(sizes)
    wanted = sizes.methods.split(",") if sizes.methods else list(catalogue(sizes.steps))
    chosen = {n: v for n, v in catalogue(sizes.steps).items() if n in wanted}
    runs = {n: step(model, method, batch, 10) for n, (method, _, _) in chosen.items()}
    measured = {**units(model, batch.x, batch.y), **{f"method {n}": run for n, run in runs.items()}}
    plain = peak(step(model, methods.plain(Linf(EPS)), batch, 10), device)  # the first call warms up as well
    memory = {n: peak(run, device) for n, run in {"plain": measured["1"], **runs}.items()}
    times: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(sizes.rounds):
        for name, run in measured.items():
            times[name].append(seconds(run, device, CLOCKS[sizes.clock]))
    return _print(sizes, chosen, times, memory, plain)


def _subject(sizes: argparse.Namespace) -> tuple[nn.Module, Batch]:
    model = models.create(sizes.model, num_classes=10, shape=(3, 32, 32), seed=0).to(sizes.device).train()
    generator = torch.Generator().manual_seed(0)
    n = sizes.batch_size
    x, y = torch.rand(n, 3, 32, 32, generator=generator), torch.randint(0, 10, (n,), generator=generator)
    return model, Batch(x, y, torch.arange(n)).to(sizes.device)


def _print(
    sizes: argparse.Namespace,
    chosen: dict[str, tuple[Method, Floor, float]],
    times: dict[str, list[float]],
    memory: dict[str, float | None],
    plain: float | None,
) -> bool:
    middle = {name: statistics.median(t) for name, t in times.items()}
    least = {name: min(t) for name, t in times.items()}
    one = middle["1"]
    print(
        f"{sizes.model}, batch {sizes.batch_size}, K = {sizes.steps}, {sizes.rounds} interleaved rounds, "
        f"{sizes.threads} threads, {sizes.device}; a plain forward and backward takes {one * 1e3:.0f} ms"
    )
    print("units: " + ", ".join(f"{n} = {middle[n] / one:.2f}" for n in ("F eval", "G eval", "G train", "D")))
    print(
        f"{'method':<12}{'floor':>8}{'measured':>10}{'ratio':>8}{'of minima':>11}{'target':>8}{'memory':>8}"
    )
    met = True
    for name, (_, floor, target) in chosen.items():
        time_, low = middle[f"method {name}"], least[f"method {name}"]
        ratio, best = time_ / floor(middle), low / floor(least)
        bytes_, base = memory.get(name), memory.get("plain") or plain
        relative = f"{bytes_ / base:.2f}" if bytes_ is not None and base else "-"
        reached = ratio <= target
        met &= reached
        print(
            f"{name:<12}{floor(middle) / one:>8.2f}{time_ / one:>10.2f}{ratio:>8.3f}{best:>11.3f}"
            f"{target:>8.2f}{relative:>8}{'' if reached else '   MISSED'}"
        )
    return met


if __name__ == "__main__":
    raise SystemExit(0 if main(sys.argv[1:]) else 1)
