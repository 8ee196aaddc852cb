"""Test whether SORA's signal, the linearity of the loss along the attack step, would serve the sentinel.

`python -m benchmarks.agreement` trains the settings of `benchmarks.sentinel` that collapse, and PGD-10 AT
on the same data as a control that does not. The sentinel only watches, and SORA's signal is recorded in
every minibatch. The table shows which of three signals separates the epochs of a collapse from others, and
how early: the sentinel's own rule, the alignment that it records, and SORA's signal. It is written between
the markers of docs/sentinel.md; records are in results/agreement.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bivallate as bv
from benchmarks.sentinel import SETTINGS, Setting, load, perceptron
from bivallate.coupling.implicit import Leaf
from bivallate.files import write_json, write_text
from bivallate.lower.problem import LowerProblem
from bivallate.lower.solver import Remembering, Solver
from bivallate.methods.entries import create
from bivallate.reproduce.machine import commit
from bivallate.run.config import Validation
from bivallate.types import Evidence, Facts, Solution

RECORDS, PAGE = Path("results/agreement"), Path("docs/sentinel.md")
BEGIN, END = "<!-- agreement: begin -->", "<!-- agreement: end -->"
CONTROL, LEAST = "at", 0.1  # LEAST: a run below this robust accuracy cannot collapse
SKIPPED = 0.25  # share of the first epochs that is left out: early gradients vary much, in the control too
SIGNALS = ("gap", "alignment", "agreement")


@bv.part
class Heard(Remembering):
    """PGD that records how the gradient g' at its end agrees with the signs of the gradient g at its start.

    The signal is SORA's <sgn g, g'> / ||g||_1. The pass at the start is repeated for this benchmark.
    """

    inner: bv.PGD

    def bind(self, facts: Facts) -> Solver:
        """The state of one run."""
        return BoundHeard(self.inner)


class BoundHeard(Solver, nn.Module):
    """The state of `Heard` in one run: what a solve leaves for its feedback."""

    def __init__(self, inner: bv.PGD) -> None:
        nn.Module.__init__(self)
        self.inner, self._first = inner, torch.zeros(0)

    def solve(self, problem: LowerProblem) -> Solution:
        """The inner solver's solution."""
        _, self._first = problem.logits_and_gradient(self.inner.start(problem))
        return self.inner.solve(problem)

    def feedback(self, problem: LowerProblem, delta: Tensor, evidence: Evidence) -> None:
        """Record the agreement of this minibatch."""
        assert delta.grad is not None
        direction, last = self._first.sign(), delta.grad * len(problem.y)
        along = [(direction * g).flatten(1).sum(1) for g in (last, self._first)]
        problem.log["agreement"] = float((along[0] / along[1].clamp(min=1e-12)).clamp(-1, 1).mean())


def train(name: str, setting: Setting, seed: int) -> dict[str, Any]:
    """Train once and return the signals of every epoch."""
    method = create(name, bv.Linf(setting.eps))
    assert isinstance(method.solver, bv.PGD)
    method = method.but(solver=Heard(method.solver), coupling=Leaf())
    data = load(setting)
    run = bv.train(
        perceptron(setting, data, seed) if setting.hidden else setting.model,
        data,
        replace(method, made=None),
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        optimizer=bv.SGD(setting.lr),
        rate=setting.rate,
        validation=Validation(10, 500),
        seed=seed,
        threads=1,
    )
    keys = {"robust": "robust", "alignment": "sentinel_alignment", "agreement": "agreement"}
    lines = [{k: line.get(v) for k, v in keys.items()} for line in run.history]
    for line, full in zip(lines, run.history, strict=True):
        fgsm, pgd = full.get("sentinel_fgsm"), full.get("sentinel_pgd")
        line["gap"] = None if fgsm is None or pgd is None else fgsm - pgd
        line["alarm"] = any(alarm["kind"] == "catastrophic" for alarm in full["alarms"])
    return {"method": name, "setting": setting.about, "seed": seed, "epochs": lines,
            "commit": commit().get("id", "unknown")[:7]}  # fmt: skip


def collapsed(epochs: list[dict[str, Any]]) -> list[bool]:
    """Whether held-out PGD-10 accuracy has fallen below half of its best so far, `LEAST` or more."""
    best, found = 0.0, []
    for line in epochs:
        best = max(best, line["robust"])
        found.append(best >= LEAST and line["robust"] < best / 2)
    return found


def first(flags: list[bool]) -> int | None:
    """The first epoch, counted from 1, whose flag is set; epochs that are left out do not count."""
    skipped = round(SKIPPED * len(flags))
    return next((k + 1 for k, flag in enumerate(flags) if flag and k >= skipped), None)


def worse(line: dict[str, Any], key: str) -> float | None:
    """The signal with its sign such that higher is worse."""
    value = line[key]
    return None if value is None else value if key == "gap" else -value


def beyond(line: dict[str, Any], key: str, limit: float) -> bool:
    """Whether a signal is worse than its limit."""
    value = worse(line, key)
    return value is not None and value > limit


def read(record: dict[str, Any]) -> list[tuple[dict[str, Any], bool]]:
    """The epochs that are evaluated, each with whether the run had collapsed by then."""
    epochs = record["epochs"]
    return list(zip(epochs, collapsed(epochs), strict=True))[round(SKIPPED * len(epochs)) :]


def area(bad: list[float], good: list[float]) -> float:
    """Probability that an epoch of a collapse has a worse signal than another epoch; ties count half."""
    if not bad or not good:
        return math.nan
    wins = sum((b > g) + 0.5 * (b == g) for b in bad for g in good)
    return wins / (len(bad) * len(good))


HEAD = (
    "| setting | seed | collapsed from epoch | alarm | gap beyond the control's "
    "| alignment below the control's | SORA's signal below the control's |\n"
    "| --- | --: | --: | --: | --: | --: | --: |"
)


def table(records: list[dict[str, Any]]) -> str:
    """The table: when each signal first appears, and how well it separates the epochs."""
    rows, lines = [], {key: ([], []) for key in SIGNALS}
    controls = [r for r in records if r["method"] == CONTROL]
    false = dict.fromkeys(SIGNALS, 0)
    for record in records:
        for line, bad in read(record):
            for key in SIGNALS:
                if (value := worse(line, key)) is not None:
                    lines[key][0 if bad else 1].append(value)
    for record in (r for r in records if r["method"] != CONTROL):
        own = [c for c in controls if c["setting"] == record["setting"]]
        cells = [record["setting"], record["seed"], first(collapsed(record["epochs"]))]
        cells.append(first([line["alarm"] for line in record["epochs"]]))
        for key in SIGNALS:
            limit = max(v for c in own for line, _ in read(c) if (v := worse(line, key)) is not None)
            cells.append(first([beyond(line, key, limit) for line in record["epochs"]]))
            false[key] += sum(beyond(line, key, limit) and not bad for line, bad in read(record))
        rows.append("| " + " | ".join("-" if c is None else str(c) for c in cells) + " |")
    areas = ", ".join(f"{key} {area(*lines[key]):.2f}" for key in SIGNALS)
    early = ", ".join(f"{key} {count}" for key, count in false.items())
    bad, good = (len(part) for part in lines["agreement"])
    alarms = sum(line["alarm"] for c in controls for line in c["epochs"])
    return "\n".join(
        [HEAD, *rows, "", f"Area under the curve, {bad} epochs of collapse against {good} others: {areas}.",
         f"Epochs beyond the control's worst that are no collapse: {early}. Alarms in {len(controls)} "
         f"controls ({CONTROL}): {alarms}.", "",
         f"`python -m benchmarks.agreement`, commit {', '.join(sorted({r['commit'] for r in records}))}, one "
         f"thread. \"-\": never. The first quarter of the epochs is not read."]
    )  # fmt: skip


def main() -> None:
    """Train what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--keep-page", action="store_true", help="print only, and leave the docs alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RECORDS.mkdir(parents=True, exist_ok=True)
    records = []
    for key in options.settings:
        setting = SETTINGS[key]
        for seed in setting.seeds:
            for name in (setting.method, CONTROL):
                path = RECORDS / f"{key}-{name}-{seed}.json"
                if not path.exists():
                    write_json(path, train(name, setting, seed))
                    print(path, flush=True)
                records.append(json.loads(path.read_text(encoding="utf-8")))
    text = table(records)
    print(text)
    if not options.keep_page:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, tail = rest.partition(END)
        write_text(PAGE, f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
