"""What the sentinel saves, without and with rollback: `python -m benchmarks.sentinel`.

Prints two lines a method, on scikit-learn's digits: clean, FGSM and PGD-20 accuracy of the last weights on
the test set, the share of the passes that the sentinel took, and its rollbacks.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch

import bivallate as bv
from bivallate.method import create
from bivallate.run.sentinel import Sentinel


def measure(
    method: bv.Method, sentinel: Sentinel, options: argparse.Namespace, data: Any
) -> dict[str, float]:
    """Trains once and attacks the last weights."""
    run = bv.train(
        options.model,
        data,
        method,
        epochs=options.epochs,
        batch_size=64,
        optimizer=bv.SGD(options.lr),
        rate=bv.Flat(),
        sentinel=sentinel,
        seed=options.seed,
    )
    fgsm, pgd = (bv.evaluate(run.model, data.test, method.threat, a) for a in ("fgsm", "pgd-20"))
    alarms = [alarm for line in run.history for alarm in line["alarms"]]
    return {
        "clean": pgd.clean_accuracy,
        "fgsm": fgsm.robust_accuracy,
        "pgd": pgd.robust_accuracy,
        "share": run.history[-1]["sentinel_share"],
        "alarms": len(alarms),
        "rollbacks": sum(alarm["rolled_back"] for alarm in alarms),
        "rate": run.history[-1]["rate_scale"],
    }


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["fgsm-at"])
    parser.add_argument("--model", default="tiny-cnn")
    parser.add_argument("--eps", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--lower", type=float, default=Sentinel().lower)
    parser.add_argument("--lowers", default=Sentinel().lowers)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = bv.data.load("digits")
    print("| method | sentinel | SA | RA-FGSM | RA-PGD-20 | its passes | alarms | rollbacks | rate x |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in options.methods:
        for rule in (Sentinel(), Sentinel(rollback=True)):
            rule = replace(rule, lower=options.lower, lowers=options.lowers)  # pyright: ignore
            row = measure(create(name, bv.Linf(options.eps)), rule, options, data)
            print(
                f"| {name} | {'rolls back' if rule.rollback else 'watches'} | {row['clean']:.1%} "
                f"| {row['fgsm']:.1%} | {row['pgd']:.1%} | {row['share']:.1%} | {row['alarms']} "
                f"| {row['rollbacks']} | {row['rate']:.3g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
