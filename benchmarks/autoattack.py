"""Agreement with pyautoattack, and speed against it: `python -m benchmarks.autoattack`.

Robust accuracy after each part and of the whole, for models of four kinds, both norms and several seeds, and
the time of both programs on the same model and points, measured in turns in one process. Writes the tables
between the markers of docs/evaluation.md. MNIST is read from $BIVALLATE_DATA/mnist and skipped if it is not
there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

import bivallate as bv
from bivallate import models
from bivallate.evaluate import Progress, evaluate
from bivallate.method import facts_for

DOCS = Path(__file__).parents[1] / "docs" / "evaluation.md"
PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
Points = tuple[Tensor, Tensor]
CLOCK = time.perf_counter
MARKS = "<!-- autoattack:begin -->", "<!-- autoattack:end -->"


@dataclass
class Case:
    """One model with its points and radii."""

    name: str
    build: Callable[[], tuple[nn.Module, Points]]
    linf: float
    l2: float


@dataclass
class Result:
    """What one program found on one case."""

    case: str
    norm: str
    seed: int
    program: str
    accuracy: dict[str, float]
    seconds: dict[str, float]
    alone: dict[str, tuple[float, float]] = field(default_factory=dict)


def train(
    name: str, points: Points, threat: bv.Linf, *, method: str, epochs: int, lr: float = 0.1
) -> nn.Module:
    """A small model, trained from seed 0."""
    x, y = points
    torch.manual_seed(0)
    model = models.create(name, num_classes=int(y.max()) + 1, shape=tuple(x.shape[1:]))
    bound = getattr(bv.methods, method)(threat).bind(facts_for(model, x, int(y.max()) + 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    steps = -(-len(x) // 64)
    for epoch in range(epochs):
        for i, rows in enumerate(torch.randperm(len(x)).split(64)):
            optimizer.param_groups[0]["lr"] = lr * (1 - (epoch + i / steps) / epochs)
            batch = bv.Batch(x[rows], y[rows], rows)
            bv.train_step(model, optimizer, bound, batch, bv.Clock(epoch, epochs, i, steps))
    return model.eval()


def digits() -> tuple[Points, Points]:
    """scikit-learn's digits: 1,297 to train, 500 to attack."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    return (x[:-500], y[:-500]), (x[-500:], y[-500:])


def mnist(rows: int) -> tuple[Points, Points]:
    """The first rows of MNIST's training data and 500 test images."""
    from bivallate import data

    loaded = data.load(os.path.join(os.environ["BIVALLATE_DATA"], "mnist"))
    train_rows = torch.arange(min(rows, len(loaded.train)))
    return loaded.train.tensors(train_rows), loaded.test.tensors(torch.arange(500))


def linear_oracle() -> tuple[nn.Module, Points]:
    """A linear model on the digits, trained to withstand small changes."""
    known, unknown = digits()
    return train("linear", known, bv.Linf(0.05), method="at", epochs=10), unknown


def digits_at() -> tuple[nn.Module, Points]:
    """small-cnn on the digits by adversarial training."""
    known, unknown = digits()
    return train("small-cnn", known, bv.Linf(0.1), method="at", epochs=4, lr=0.05), unknown


def undefended() -> tuple[nn.Module, Points]:
    """tiny-cnn on the digits by plain training."""
    known, unknown = digits()
    return train("tiny-cnn", known, bv.Linf(0.1), method="plain", epochs=15), unknown


def mnist_at() -> tuple[nn.Module, Points]:
    """tiny-cnn on MNIST by adversarial training."""
    known, unknown = mnist(20_000)
    return train("tiny-cnn", known, bv.Linf(0.1), method="at", epochs=2), unknown


CASES = {
    "linear": Case("linear", linear_oracle, 0.05, 0.3),
    "digits-at": Case("digits small-cnn, AT", digits_at, 0.1, 0.5),
    "mnist-at": Case("MNIST tiny-cnn, AT", mnist_at, 0.1, 1.0),
    "undefended": Case("digits tiny-cnn, undefended", undefended, 0.1, 0.5),
}


def ours(model: nn.Module, points: Points, threat: bv.Linf | bv.L2, seed: int, case: str) -> Result:
    """Our ensemble; the time of each part is that between its progress reports."""
    seconds, last = dict.fromkeys(PARTS, 0.0), CLOCK()

    def mark(moment: Progress) -> None:
        nonlocal last
        now = CLOCK()
        if moment.part in seconds:
            seconds[moment.part] += now - last
        last = now

    score = evaluate(model, points, threat, "autoattack", seed=seed, progress=mark)
    return Result(case, type(threat).__name__, seed, "bivallate", dict(score.parts), seconds)


def theirs(model: nn.Module, points: Points, threat: bv.Linf | bv.L2, seed: int, case: str) -> Result:
    """The reference's ensemble in the same way; its parts share their budgets with the standard version."""
    norm, (x, y) = type(threat).__name__, points
    accuracy, seconds = {}, {}
    with torch.no_grad():
        left = (model(x).argmax(1) == y).nonzero()[:, 0]
    accuracy["clean"] = len(left) / len(y)
    for part in PARTS:
        began = CLOCK()
        if len(left):
            adversary = AutoAttack(model, norm=norm, eps=threat.eps, seed=seed, version="standard")
            adversary.attacks_to_run, adversary.verbose = [part], False
            adv, _ = adversary.run_standard_evaluation(x[left], y[left], batch_size=500)
            with torch.no_grad():
                left = left[model(adv).argmax(1) == y[left]]
        seconds[part] = CLOCK() - began
        accuracy[part] = len(left) / len(y)
    return Result(case, norm, seed, "pyautoattack", accuracy, seconds)


def alone(
    model: nn.Module, points: Points, threat: bv.Linf | bv.L2, seed: int
) -> dict[str, tuple[float, float]]:
    """Robust accuracy under each part on its own: (ours, theirs)."""
    found, (x, y) = {}, points
    for part in PARTS:
        mine = evaluate(model, points, threat, part, seed=seed).robust_accuracy
        adversary = AutoAttack(
            model, norm=type(threat).__name__, eps=threat.eps, seed=seed, version="standard"
        )
        adversary.attacks_to_run, adversary.verbose = [part], False
        adv, _ = adversary.run_standard_evaluation(x, y, batch_size=500)
        with torch.no_grad():
            found[part] = mine, float((model(adv).argmax(1) == y).float().mean())
    return found


def run_case(case: Case, built: tuple[nn.Module, Points], options: argparse.Namespace) -> list[Result]:
    """All norms and seeds of one case; which program goes first alternates."""
    model, (x, y) = built
    points, results = (x[: options.points], y[: options.points]), []
    for norm, threat in (("linf", bv.Linf(case.linf)), ("l2", bv.L2(case.l2))):
        if norm not in options.norms:
            continue
        for seed in range(options.seeds):
            order = (ours, theirs) if seed % 2 == 0 else (theirs, ours)
            pair = {
                r.program: r for r in (program(model, points, threat, seed, case.name) for program in order)
            }
            if options.alone:
                pair["bivallate"].alone = alone(model, points, threat, seed)
            results += [pair["bivallate"], pair["pyautoattack"]]
            print(json.dumps([asdict(r) for r in pair.values()]), flush=True)
    return results


def tables(results: list[Result], options: argparse.Namespace) -> str:
    """The two tables as Markdown."""
    unit = "CPU seconds" if options.cpu_time else "seconds"
    text = [
        f"{options.points} points a model, {options.seeds} seed(s), {torch.get_num_threads()} thread(s), "
        f"torch {torch.__version__}, {platform.machine()}; {unit}. Robust accuracy in per cent, after each "
        "part of the sequence, mean over seeds: ours / pyautoattack.",
        "",
        "| model | threat | clean | " + " | ".join(PARTS) + " | spread over seeds |",
        "| --- " * (len(PARTS) + 4) + "|",
    ]
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.case, result.norm), []).append(result)
    for (name, norm), group in groups.items():
        mine, other = ([r for r in group if r.program == p] for p in ("bivallate", "pyautoattack"))
        left = [[100 * mean(r.accuracy[part] for r in side) for side in (mine, other)] for part in PARTS]
        cells = [f"{a:.1f} / {b:.1f}" for a, b in left]
        last = [r.accuracy[PARTS[-1]] for r in other]
        clean = f"{100 * mine[0].accuracy['clean']:.1f}"
        spread = f"{100 * (max(last) - min(last)):.1f}"
        text.append(f"| {name} | {norm} | {clean} | " + " | ".join(cells) + f" | {spread} |")
    singles = [(r, part) for r in results if r.alone for part in PARTS]
    if singles:
        worst = max(abs(r.alone[p][0] - r.alone[p][1]) for r, p in singles)
        more = max(r.alone[p][0] - r.alone[p][1] for r, p in singles)
        text += ["", f"Parts run alone: largest difference {100 * worst:.1f} points; "
                 f"ours above the reference by at most {100 * more:.1f} points."]  # fmt: skip
    text += ["", f"Time of each part in {unit}, mean over seeds: ours / pyautoattack.", ""]
    text += [
        "| model | threat | " + " | ".join(PARTS) + " | whole | ratio |",
        "| --- " * (len(PARTS) + 4) + "|",
    ]
    for (name, norm), group in groups.items():
        mine, other = ([r for r in group if r.program == p] for p in ("bivallate", "pyautoattack"))
        cells = [
            f"{mean(r.seconds[part] for r in mine):.1f} / {mean(r.seconds[part] for r in other):.1f}"
            for part in PARTS
        ]
        a, b = (mean(sum(r.seconds.values()) for r in side) for side in (mine, other))
        text.append(f"| {name} | {norm} | " + " | ".join(cells) + f" | {a:.1f} / {b:.1f} | {a / b:.2f} |")
    return "\n".join(text)


def main() -> None:
    """Runs the cases and rewrites the tables."""
    global CLOCK
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--norms", nargs="*", default=["linf", "l2"], choices=["linf", "l2"])
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="also compare each part run on its own")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, for a machine with other work"
    )
    parser.add_argument(
        "--cache", type=Path, help="folder for the trained models, to save training them again"
    )
    parser.add_argument("--dry", action="store_true", help="print the tables, leave docs/evaluation.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.cpu_time:
        CLOCK = time.process_time
    results = []
    for key in options.models:
        if key == "mnist-at" and not os.environ.get("BIVALLATE_DATA"):
            print("skipped mnist-at: BIVALLATE_DATA does not name a folder that holds mnist")
            continue
        results += run_case(CASES[key], built(key, options.cache), options)
    text = tables(results, options)
    print(text)
    if not options.dry:
        before, rest = DOCS.read_text().split(MARKS[0])
        DOCS.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


def built(key: str, cache: Path | None) -> tuple[nn.Module, Points]:
    """The case's model and points, trained or read from the cache."""
    file = cache / f"{key}.pt" if cache is not None else None
    if file is not None and file.exists():
        kept = torch.load(file, weights_only=True)
        model = models.create(kept["name"], num_classes=10, shape=tuple(kept["x"].shape[1:]))
        model.load_state_dict(kept["state"])
        return model.eval(), (kept["x"], kept["y"])
    model, (x, y) = CASES[key].build()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        name = {"linear": "linear", "digits-at": "small-cnn"}.get(key, "tiny-cnn")
        torch.save({"name": name, "state": model.state_dict(), "x": x, "y": y}, file)
    return model, (x, y)


if __name__ == "__main__":
    main()
