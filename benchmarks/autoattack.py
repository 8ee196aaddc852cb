"""Compare this package's AutoAttack with pyautoattack: `python -m benchmarks.autoattack`.

Measures robust accuracy after each stage and after all, for models of four kinds, two norms and several
seeds, and the time of both programs on the same model and points, in turns in one process. Every pair is
recorded in results/autoattack and not measured again; the tables between the markers of docs/evaluation.md
are made from the records. MNIST is read from $BIVALLATE_DATA/mnist and skipped if it is not there.
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
from typing import Literal

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

import bivallate as bv
from benchmarks.autoattack_tables import PARTS, agreement, read, speed
from bivallate import models
from bivallate.evaluation import EvaluationProgress, attack_and_score
from bivallate.evaluation.named_attacks import square
from bivallate.files import write_json
from bivallate.lower.square import Square
from bivallate.method import facts_for
from bivallate.reproduce.machine import commit

DOCS = Path(__file__).parents[1] / "docs" / "evaluation.md"
Points = tuple[Tensor, Tensor]
MARKS = "<!-- autoattack:begin -->", "<!-- autoattack:end -->"


@dataclass
class Case:
    """A model with its points and radii."""

    name: str
    build: Callable[[], tuple[nn.Module, Points]]
    linf: float
    l2: float


@dataclass
class Result:
    """The result of one program on one case."""

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
    """Train a small model from seed 0."""
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
    """Load scikit-learn's digits: 1,297 images to train on and 500 to attack."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    return (x[:-500], y[:-500]), (x[-500:], y[-500:])


def mnist(rows: int) -> tuple[Points, Points]:
    """Load the first rows of MNIST's training data and 500 test images."""
    from bivallate import data

    loaded = data.load(os.path.join(os.environ["BIVALLATE_DATA"], "mnist"))
    train_rows = torch.arange(min(rows, len(loaded.train)))
    return loaded.train.tensors(train_rows), loaded.test.tensors(torch.arange(500))


def linear_oracle() -> tuple[nn.Module, Points]:
    """Train a linear model on the digits that withstands small changes."""
    known, unknown = digits()
    return train("linear", known, bv.Linf(0.05), method="at", epochs=10), unknown


def digits_at() -> tuple[nn.Module, Points]:
    """small-cnn on the digits by adversarial training, to be attacked where it withstands a third: there a
    difference between two programs shows."""
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
    "digits-at": Case("digits small-cnn, AT", digits_at, 0.2, 0.8),
    "mnist-at": Case("MNIST tiny-cnn, AT", mnist_at, 0.1, 1.0),
    "undefended": Case("digits tiny-cnn, undefended", undefended, 0.1, 0.5),
}


def ours(model: nn.Module, points: Points, threat: bv.Linf | bv.L2, seed: int, case: str) -> Result:
    """Run this package's ensemble; the time of a stage is that between its progress reports."""
    seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    last = time.perf_counter()

    def mark(moment: EvaluationProgress) -> None:
        nonlocal last
        now = time.perf_counter()
        if moment.stage in seconds:
            seconds[moment.stage] += now - last
        last = now

    score = attack_and_score(model, points, threat, "autoattack", seed=seed, progress=mark)
    return Result(case, type(threat).__name__, seed, "bivallate", dict(score.stages), seconds)


def norm_of(threat: bv.Linf | bv.L2) -> Literal["Linf", "L2"]:
    """The norm's name in the reference."""
    return "Linf" if isinstance(threat, bv.Linf) else "L2"


def theirs(model: nn.Module, points: Points, threat: bv.Linf | bv.L2, seed: int, case: str) -> Result:
    """Run the reference's ensemble, whose stages have the budgets of the standard version."""
    norm, (x, y) = norm_of(threat), points
    accuracy, seconds = {}, {}
    with torch.no_grad():
        left = (model(x).argmax(1) == y).nonzero()[:, 0]
    accuracy["clean"] = len(left) / len(y)
    for part in PARTS:
        began = time.perf_counter()
        if len(left):
            adversary = AutoAttack(model, norm=norm, eps=threat.eps, seed=seed, version="standard")
            adversary.attacks_to_run, adversary.verbose = [part], False
            adv, _ = adversary.run_standard_evaluation(x[left], y[left], batch_size=500)
            with torch.no_grad():
                left = left[model(adv).argmax(1) == y[left]]
        seconds[part] = time.perf_counter() - began
        accuracy[part] = len(left) / len(y)
    return Result(case, norm, seed, "pyautoattack", accuracy, seconds)


def alone(
    part: str, model: nn.Module, points: Points, threat: bv.Linf | bv.L2, seed: int
) -> tuple[float, float]:
    """Robust accuracy under one stage on its own: (ours, theirs)."""
    own = square(Square(edges=False, shrink=False)) if part == "square" else part
    mine, (x, y) = attack_and_score(model, points, threat, own, seed=seed).robust_accuracy, points
    adversary = AutoAttack(model, norm=norm_of(threat), eps=threat.eps, seed=seed, version="standard")
    adversary.attacks_to_run, adversary.verbose = [part], False
    adv, _ = adversary.run_standard_evaluation(x, y, batch_size=500)
    with torch.no_grad():
        return mine, float((model(adv).argmax(1) == y).float().mean())


def run_case(key: str, built: tuple[nn.Module, Points], options: argparse.Namespace) -> None:
    """All norms and seeds of one case; which program goes first alternates. Each pair is kept as it ends, and
    each stage alone likewise."""
    case, (model, (x, y)) = CASES[key], built
    points = x[: options.points], y[: options.points]
    for norm, threat in (("linf", bv.Linf(case.linf)), ("l2", bv.L2(case.l2))):
        for seed in range(options.seeds) if norm in options.norms else ():
            name = f"{key}-{norm}-{seed}-{len(points[0])}-points-{options.threads}-threads.json"
            file = options.records / name
            if not file.exists():
                order = (ours, theirs) if seed % 2 == 0 else (theirs, ours)
                pair = [asdict(program(model, points, threat, seed, case.name)) for program in order]
                facts = {"points": len(points[0]), "threads": options.threads, "machine": machine()}
                write_json(file, {**facts, "pair": pair})
                print(name, {r["program"]: round(sum(r["seconds"].values()), 1) for r in pair}, flush=True)
            record = json.loads(file.read_text(encoding="utf-8"))
            (mine,) = (r for r in record["pair"] if r["program"] == "bivallate")
            for part in PARTS if options.alone else ():
                if part not in mine["alone"]:
                    mine["alone"][part] = alone(part, model, points, threat, seed)
                    write_json(file, record)
                    print(name, part, "alone", mine["alone"][part], flush=True)


def machine() -> str:
    """The machine and the versions that the numbers were measured with."""
    made = commit().get("id", "unknown")[:7]
    return f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, bivallate {made}"


def main() -> None:
    """Run the cases and rewrite the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--norms", nargs="*", default=["linf", "l2"], choices=["linf", "l2"])
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="also compare each stage run on its own")
    parser.add_argument("--records", type=Path, default=DOCS.parents[1] / "results" / "autoattack")
    parser.add_argument(
        "--cache", type=Path, help="folder for the trained models, to save training them again"
    )
    parser.add_argument("--dry", action="store_true", help="print the tables, leave docs/evaluation.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.records.mkdir(parents=True, exist_ok=True)
    for key in options.models:
        if key == "mnist-at" and not os.environ.get("BIVALLATE_DATA"):
            print("skipped mnist-at: BIVALLATE_DATA does not name a folder that holds mnist")
            continue
        run_case(key, built(key, options.cache), options)
    groups = read(options.records)
    machines = sorted({r["machine"] for group in groups.values() for r in group})
    radii = "; ".join(f"{case.name} {case.linf:g}, {case.l2:g}" for case in CASES.values())
    foot = [f"Radii (Linf, L2): {radii}.", "", f"Measured on: {'; '.join(machines)}."]
    text = "\n".join([*agreement(groups), "", *speed(groups), "", *foot])
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
