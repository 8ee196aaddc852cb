"""Compositions against their rivals at equal cost and with equal tuning: the records of docs/contest.md.

    python -m benchmarks.contest tune [--data D ...] [--cost low high] [--only NAME ...] [--jobs 2]
    python -m benchmarks.contest judge [--data D ...] [--cost low high] [--jobs 2]
    python -m benchmarks.contest table

`tune` trains everyone once with each of three values of one parameter, and measures held-out images. `judge`
chooses by them: the best rival and the best composition, the rival and the composition with the highest worst
class among all trials that lose at most half a point to the most robust of all, and the yardstick of that
cost. It trains these with two more seeds and runs AutoAttack on test images, once. A training leaves one JSON
record in results/contest/ and is not repeated; the commands can be interrupted at any time, and continue.

Costs are forward and backward passes an example over the whole training: low is what N-FGSM costs in 20
epochs, high what PGD-10 AT costs in them. Everyone has as many epochs as the cost allows, the same network,
images, optimiser and rate, and the averaged weights (EMA). A training that exceeds its cost leaves no record;
one whose gradient is not finite any more has diverged: it counts as 0 %.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import bivallate as bv
from benchmarks.contest_entrants import PASSES
from benchmarks.contest_trials import (
    CLASSES,
    SETTINGS,
    Trial,
    configure,
    judged,
    repeats,
    settings,
    trials,
)
from bivallate.files import write_json
from bivallate.record import NonFinite
from bivallate.reports.cards import PARTS, one_line
from bivallate.reproduce.machine import commit, machine
from bivallate.reproduce.running import cut
from bivallate.reproduce.running import trained as finished
from bivallate.run.arithmetic import limit_threads
from bivallate.run.config import Config
from bivallate.run.from_config import load_data
from bivallate.run.resuming import computable

JUDGE, TEST = "apgd-t-20-2", "autoattack"  # on held-out images, and on test images
ROUNDING = "device", "gpu", "processor", "instructions", "threads", "torch"  # of a machine, for the bits


def train(trial: Trial, device: str = "auto") -> str:
    """Train one trial, measure it on held-out images and record it, unless there is a record.

    Raises:
        ValueError: the training has cost more than its budget.
    """
    if trial.recorded and trial.read()["epochs"] == configure(trial, device).epochs:
        return f"{trial.label} on {trial.data}: there already"
    if trial.record.exists():  # of another value, beyond the budget, or of other epochs than it pays for
        shutil.rmtree(trial.folder, ignore_errors=True)
    record = measured(trial, device)
    if record["passes"] > trial.budget:
        raise ValueError(f"{trial.label} has cost {record['passes']:.4g} passes, of {trial.budget} it may")
    write_json(trial.record, record)
    came = f"diverged: {record['diverged']}" if "diverged" in record else told(record["held_out"])
    return f"{trial.label} on {trial.data}, {record['epochs']} epochs: {came}"


def measured(trial: Trial, device: str) -> dict[str, Any]:
    """The record of a trial; trains it unless its run is there, and keeps the record beside the run.

    That of a training that diverges has `nothing` and says why.
    """
    limit_threads(1)
    config = computable(configure(trial, device))
    dataset = cut(load_data(config.data, 0), trial.images)
    try:
        run, model = finished(config, dataset, trial.folder, "ema")
    except NonFinite as stopped:
        return described(trial, config) | {"diverged": str(stopped).split(". ")[0]}
    if (kept := run.path / f"{trial.label}.json").exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    held = bv.evaluate(model, dataset.validation, config.method.threat, JUDGE)
    history = run.read_metrics()
    record = described(trial, config) | {
        "passes": history[-1]["total_forward"] + history[-1]["total_backward"],
        "train_robust": history[-1]["train_robust"],
        "seconds": sum(line["seconds"] for line in history),
        "held_out": figures(held),
    }
    write_json(kept, record)
    return record


def described(trial: Trial, config: Config) -> dict[str, Any]:
    """What a record says of a trial before it is trained, with no passes and no accuracy."""
    entry, setting = config.method.to_dict(), SETTINGS[trial.data]
    return {
        "schema": "bivallate-contest-1",
        "data": trial.data,
        "cost": trial.cost,
        "name": trial.name,
        "seed": trial.seed,
        "parameter": trial.entrant.parameter,
        "value": trial.value,
        "number": trial.number,
        "parts": {part: one_line(entry[part]) for part in PARTS},
        "config": settings(config),
        "rows": trial.images,
        "epochs": config.epochs,
        "passes": 0.0,
        "train_robust": 0.0,
        "seconds": 0.0,
        "judge": JUDGE,
        "held_out": nothing(setting.held),
        "commit": commit(),
        "machine": machine(config.device, 1),
    }


def nothing(points: int) -> dict[str, Any]:
    """The `figures` of a training that has diverged: nobody is right."""
    none = dict.fromkeys(("clean", "robust", "worst_class", "tail_30"), 0.0)
    return {"n": points, **none, "worst_class_n": points // CLASSES}


def attack(trial: Trial, device: str = "auto") -> str:
    """Run AutoAttack on test images, once, and add what it leaves to the record of the trial.

    A training that diverges has `nothing` there too. A network that is gone is trained again. On another
    machine it is another network: its figures on held-out images, its commit and its machine stand in the
    record beside those of the tuning, which has chosen.

    Raises:
        ValueError: that training is not the recorded one, though the machine computes alike.
    """
    record = trial.read()
    if "test" in record:
        return f"{trial.label} on {trial.data}: tested already"
    setting = SETTINGS[trial.data]
    found = record if "diverged" in record else measured(trial, device)
    if alike(found["machine"], record["machine"]) and not repeats(found["held_out"], record["held_out"]):
        raise ValueError(
            f"{trial.label}: the training does not repeat its record, on a machine that computes alike: "
            f"{found['held_out']} at commit {found['commit']}, recorded {record['held_out']} at "
            f"{record['commit']}; find the change, or remove the record and tune"
        )
    network = {key: found[key] for key in ("held_out", "commit", "machine")}
    if "diverged" in found:
        of, right = nothing(setting.points) | {"diverged": True}, "0" * setting.points
    else:
        points, threat = load_data(configure(trial, device).data, 0).test, trial.method.threat
        score = bv.evaluate(bv.load(trial.folder, "ema"), points, threat, TEST, n=setting.points)
        of = figures(score)
        right = "".join(str(int(r)) for r in score.robust.tolist())  # of each point, the same for all trials
    test = {"attack": TEST, **of, "right": right, "network": network}
    write_json(trial.record, {**record, "test": test})
    return f"{trial.label} on {trial.data}, test: {'diverged' if 'diverged' in of else told(of)}"


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two machines round alike; one of an older record, whose instructions are unknown, does not."""
    return all(one.get(key) == other.get(key) for key in ROUNDING)


def figures(score: bv.Score) -> dict[str, Any]:
    """The number of points, of those of the worst class, and clean, robust, worst-class and tail accuracy."""
    counts = score.y.bincount(minlength=len(score.per_class)).tolist()
    worst, points = min((c, n) for c, n in zip(score.per_class, counts, strict=True) if c is not None)
    return {
        "n": score.n,
        "clean": score.clean_accuracy,
        "robust": score.robust_accuracy,
        "worst_class": worst,
        "worst_class_n": points,
        "tail_30": score.tail(30),
    }


def told(found: dict[str, Any]) -> str:
    """Accuracies in one line."""
    return ", ".join(f"{what} {value:.3f}" for what, value in found.items() if isinstance(value, float))


def main() -> None:
    """Train, judge, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("tune", "judge", "table"))
    parser.add_argument("--data", nargs="+", choices=SETTINGS, default=list(SETTINGS)[:2])
    parser.add_argument("--cost", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, one thread each")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if options.what == "table":
        from benchmarks.contest_page import write_page

        write_page()
        return
    failed = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for data in options.data:
            for cost in options.cost:
                if options.what == "tune":
                    failed += _all(pool, train, trials(data, cost, options.only), options.device)
                    continue
                if not (those := judged(data, cost)):
                    print(f"{data}, {cost} cost: tune everyone first", flush=True)
                failed += _all(pool, train, those, options.device)
                failed += _all(pool, attack, [t for t in those if t.recorded], options.device)
    sys.exit(failed > 0)


def _all(pool: ProcessPoolExecutor, work: Any, those: Sequence[Trial], device: str) -> int:
    """Work on all, and say what came of each; the number of those that failed."""
    failed = 0
    for job in [pool.submit(work, trial, device) for trial in those]:
        if (error := job.exception()) is None:
            print(job.result(), flush=True)
        else:
            failed += 1
            print(f"failed: {error!r}", flush=True)
    return failed


if __name__ == "__main__":
    main()
