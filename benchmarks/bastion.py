"""Search, ablation and comparison of compositions at a stated cost on MNIST and Fashion-MNIST.

    python -m benchmarks.bastion search | ablate | compare [--data D ...] [--only NAME ...] [--seeds 0 1]
    python -m benchmarks.bastion test --only bastion at [--points 300]
    python -m benchmarks.bastion table

The first command trains what is missing and evaluates it on held-out images, the second runs AutoAttack on
test images, and the third writes docs/bastion.md from the records.

Every training costs at most 220 forward and backward passes an example, as ten epochs of PGD-10 AT do. Each
method gets as many epochs as that allows; everything else is the same. Each training leaves one JSON record
in results/bastion/ and is not repeated, so the command can be interrupted at any time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bivallate as bv
from benchmarks.bastion_page import write_page
from bivallate import Linf, Method
from bivallate.files import write_json
from bivallate.lower.curriculum import Curriculum
from bivallate.lower.pgd import PGD
from bivallate.lower.start import uniform
from bivallate.methods.composed import growth
from bivallate.methods.entries import create
from bivallate.reports.cards import PARTS, one_line
from bivallate.reproduce.machine import commit, machine
from bivallate.reproduce.running import cut
from bivallate.reproduce.running import trained as finished
from bivallate.run.arithmetic import limit_threads
from bivallate.run.budget import affordable
from bivallate.run.config import Config, Data, Model, Validation
from bivallate.run.from_config import load_data
from bivallate.run.optim import SGD
from bivallate.run.rates import Triangle
from bivallate.run.sentinel import Sentinel
from bivallate.upper.loss import Loss, Mart, Trades, adversarial
from bivallate.weighting.base import After, Weighting, equal
from bivallate.weighting.dro import KLDRO
from bivallate.weighting.rules import MAIL

RECORDS, RUNS = Path("results/bastion"), Path("runs/bastion")
DATA = ("fashion-mnist", "mnist")
EPS, BUDGET, ROWS, CLASSES = 0.1, 10 * 22, 1000, 10
HELD, JUDGE = 1000, "apgd-t-20-2"  # number of held-out images, and the attack that they are selected by
THREAT = Linf(EPS)


def short(steps: int, size: float, loss: Loss = adversarial, weighting: Weighting = equal) -> Method:
    """A few long steps on the cross-entropy from a uniform start, whatever the outer loss is."""
    return Method(THREAT, PGD(steps, size * EPS, uniform), weighting=weighting, loss=loss)


def growing(steps: int, loss: Loss = adversarial, weighting: Weighting = equal) -> Method:
    """Like `short`, but the number of steps grows from one over two thirds of the epochs."""
    solver = Curriculum(PGD(steps, 0.75 * EPS, uniform), growth(steps, 2 / 3))
    return Method(THREAT, solver, weighting=weighting, loss=loss)


def of(name: str, **parameters: Any) -> Callable[[], Method]:
    """Name a method of the catalogue, with other parameters."""
    return lambda: create(name, THREAT, **parameters)


SEARCH: dict[str, Callable[[], Method]] = {
    "at": of("at"),
    "at-2": lambda: short(2, 0.75),
    "trades-2": lambda: short(2, 0.75, Trades(6.0)),
    "mart-1": lambda: short(1, 1.0, Mart(5.0)),
    "mart-2": lambda: short(2, 0.75, Mart(5.0)),
    "mart-2-dro": lambda: short(2, 0.75, Mart(5.0), KLDRO(2.0, 1.0)),
    "bastion": of("bastion"),
    "mart-1-to-3": lambda: growing(3, Mart(5.0)),
    "trades-1-to-3-mail": lambda: growing(3, Trades(6.0), After(MAIL(2.0, 0.0), 0.5)),
    "trades-1-to-3-beta12": lambda: growing(3, Trades(12.0)),
    "trades-1-to-5": lambda: growing(5, Trades(6.0)),
    "mart-1-to-3-mail": lambda: growing(3, Mart(5.0), After(MAIL(2.0, 0.0), 0.5)),
    "at-1-to-3": lambda: growing(3),
}
COMPARED: dict[str, Callable[[], Method]] = {
    name: of(name)
    for name in ("at", "trades", "n-fgsm", "fast-bat", "mail-trades", "mart", "done-adam", "gairat", "bilaw")
}
COMPARED |= {"fast-bat": of("fast-bat", step_size=2000 / 255)}  # its public code's above 8/255
COMPARED |= {"fast-at": of("fast-at"), "atta": of("atta", reset=None), "bastion": of("bastion")}
ABLATED = {  # what differs from bastion, or from AT
    "bastion": "all",
    "trades-2": "bastion without growth: two steps throughout",
    "mart-1-to-3": "bastion with MART's loss for TRADES'",
    "at-1-to-3": "bastion with the cross-entropy for TRADES' loss; AT with a short attack that grows",
    "trades": "bastion with ten steps throughout, on the divergence; AT with TRADES' loss",
    "trades-1-to-3-mail": "bastion, and MAIL's weights by the margin from half of the epochs on",
    "at-2": "AT with a short attack: two steps of 0.75 eps",
    "at": "none",
}
EVERY = {**SEARCH, **COMPARED}
LISTS = {"search": list(SEARCH), "ablate": list(ABLATED), "compare": list(COMPARED)}


def configure(method: Method, data: str, seed: int, rows: int) -> Config:
    """The configuration of all: SGD, a rate that rises and falls to zero, averaged and last weights."""
    config = Config(
        method=method,
        data=Data(name=data, validation=HELD, augment="none", meta=rows // 5),
        model=Model("tiny-cnn", normalise=False),
        optimizer=SGD(0.05, weight_decay=2e-4),
        rate=Triangle(0.2),
        batch_size=32,
        seed=seed,
        average=0.99,
        validation=Validation(steps=0, rows=1),
        sentinel=Sentinel(on=False),
        threads=1,
    )
    return affordable(config, BUDGET, rows, CLASSES)[0]


def place(data: str, name: str, seed: int, rows: int) -> Path:
    """The file of a training's record."""
    return RECORDS / f"{data}-{rows}" / f"{name}-seed{seed}.json"


def trained(data: str, name: str, seed: int, rows: int) -> str:
    """Train one method, evaluate it on held-out images, and record it; reads the record if it exists."""
    path, folder = place(data, name, seed, rows), RUNS / f"{data}-{rows}" / f"{name}-seed{seed}"
    if path.exists():
        return f"{path.stem} on {data}: there already"
    limit_threads(1)
    config = configure(EVERY[name](), data, seed, rows)
    dataset = cut(load_data(config.data, 0), rows)
    run, model = finished(config, dataset, folder, "ema")
    judged = bv.evaluate(model, dataset.validation, THREAT, JUDGE)
    history, entry = run.read_metrics(), config.method.to_dict()
    last = history[-1]
    record = {
        "schema": "bivallate-bastion-1",
        "data": data,
        "method": name,
        "seed": seed,
        "parts": {part: one_line(entry[part]) for part in PARTS},
        "rows": rows,
        "epochs": config.epochs,
        "passes": last["total_forward"] + last["total_backward"],
        "train_robust": last["train_robust"],
        "seconds": sum(line["seconds"] for line in history),
        "judge": f"{JUDGE} on {HELD} held-out images",
        "validation": figures(judged),
        "commit": commit(),
        "machine": machine("cpu", 1),
    }
    write_json(path, record)
    return f"{name} on {data}, seed {seed}, {config.epochs} epochs: " + ", ".join(
        f"{what} {value:.3f}" for what, value in figures(judged).items()
    )


def tested(data: str, name: str, seed: int, rows: int, points: int) -> str:
    """Run AutoAttack on random test images once, and add the result to the training's record."""
    path, folder = place(data, name, seed, rows), RUNS / f"{data}-{rows}" / f"{name}-seed{seed}"
    record = json.loads(path.read_text(encoding="utf-8"))
    if "test" in record:
        return f"{path.stem} on {data}: tested already"
    limit_threads(1)
    dataset = load_data(Data(name=data, validation=HELD, augment="none"), 0)
    score = bv.evaluate(bv.load(folder, "ema"), dataset.test, THREAT, "autoattack", n=points)
    found = {"attack": "autoattack", "n": points, **figures(score)}
    write_json(path, {**record, "test": found})
    return f"{path.stem} on {data}: {found}"


def figures(score: bv.Score) -> dict[str, float]:
    """Clean, robust and tail accuracy."""
    return {"clean": score.clean_accuracy, "robust": score.robust_accuracy, "tail_30": score.tail(30)}


def main() -> None:
    """Run one of the lists or the test, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=(*LISTS, "test", "table"))
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA[:1])
    parser.add_argument("--only", nargs="+", choices=sorted(EVERY), default=None)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="training images")
    parser.add_argument("--points", type=int, default=300, help="test images that AutoAttack meets")
    options = parser.parse_args()
    if options.what == "table":
        write_page(RECORDS, LISTS, ABLATED)
        return
    names = options.only or LISTS.get(options.what, [])
    for seed in options.seeds:
        for data in options.data:
            for name in names:
                testing = options.what == "test"
                where = (data, name, seed, options.rows)
                print(tested(*where, options.points) if testing else trained(*where), flush=True)


if __name__ == "__main__":
    main()
