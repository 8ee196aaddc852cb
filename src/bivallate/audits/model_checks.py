"""Checks of an audit on the model's own predictions and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bivallate.audits.battery import Battery
from bivallate.audits.exact_tests import gap
from bivallate.audits.result import GAP_FLAG, LEARNED, Check
from bivallate.evaluation.preflight import Preflight
from bivallate.evaluation.preparation import RETRAIN
from bivallate.evaluation.statistics import at_chance
from bivallate.lower.input_guard import call_unharmed

__all__ = ["accuracy", "learned", "symptoms"]

SYMPTOMS = {
    *("ignores-eval", "random", "gradient-mode", "batch", "stateful", "probabilities", "no-gradient"),
    *("nonfinite", "quantised", "dead", "saturated", "false-gradient"),
}
BLIND = {"quantised", "dead", "saturated", "false-gradient"}  # gradients that tell an attack nothing


def accuracy(left: Tensor) -> float:
    """The share of points that are still robust, from (n,) bool."""
    return int(left.sum()) / len(left)


def learned(battery: Battery) -> Check:
    """Check whether the clean accuracy is better than chance, without which robustness means nothing."""
    x, y = battery.points
    with torch.no_grad():
        answers = torch.cat([call_unharmed(battery.model, some).argmax(1) for some in x.split(256)])
    clean, given = accuracy(answers == y), len(answers.unique())
    numbers = {"clean": clean, "classes_given": given}
    question = "have its answers to images that nobody attacked anything to do with them?"
    if len(y.unique()) < 2 or not at_chance(y.cpu().numpy(), answers.cpu().numpy()):
        return Check(LEARNED, question, "pass", numbers, f"{clean:.1%} of them are right")
    text = f"{clean:.1%} are right, which is chance; it gives {given} class{'es' if given > 1 else ''}"
    return Check(LEARNED, question, "note", numbers, text, RETRAIN)


def symptoms(battery: Battery, found: Preflight) -> Check:
    """Check that the pre-flight has found no sign of hidden gradients, or none that attacks mind."""
    bad = [f for f in found.findings if f.name in SYMPTOMS and f.severity != "note"]
    numbers = {f"{where}_{k}": v for where in ("clean", "near") for k, v in _shares(getattr(found, where))}
    question = "does the model answer repeatably, in logits, with gradients that describe it?"
    if not bad:
        return Check("gradients", question, "pass", numbers, "they agree with finite differences")
    if {f.name for f in bad} <= BLIND and _constant(battery):
        words = (
            "one class for every image, whatever it shows: the model has learned nothing, and hides nothing"
        )
        return Check("gradients", question, "note", numbers, words, RETRAIN)
    words = "; ".join(f"{f.what} ({f.got})" for f in bad)
    if {f.name for f in bad} == {"saturated"} and _agreed(battery):
        words += "; yet attacks that do not mind find no more than PGD"
        return Check("gradients", question, "note", numbers, words, f"{bad[0].fix}.")
    return Check("gradients", question, "flag", numbers, words, " ".join(f"{f.fix}." for f in bad))


def _agreed(battery: Battery) -> bool:
    """Whether all attacks together break at most 5 % of the points that PGD leaves, up to chance."""
    return not gap(battery.left["pgd"], battery.worst, GAP_FLAG).significant


def _constant(battery: Battery) -> bool:
    """Whether the model gives all points, of several classes, one class, and no attack changes that.

    The accuracy of such a model is the share of that class among the points. None of it is robustness, also
    if the attacks fail because gradients are hidden.

    Cost: one forward a point.
    """
    x, y = battery.points
    with torch.no_grad():
        given = torch.cat([call_unharmed(battery.model, some).argmax(1) for some in x.split(256)])
    same = bool((given == given[0]).all()) and len(y.unique()) > 1
    return same and all(torch.equal(left, battery.left["subtle"]) for left in battery.left.values())


def _shares(probe: Any) -> list[tuple[str, float]]:
    names = ("nonfinite", "dead", "saturated", "flat", "false")
    return [(name, getattr(probe, name)) for name in names] if probe is not None else []
