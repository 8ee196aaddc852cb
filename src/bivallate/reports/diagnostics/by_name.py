"""Every diagnostic of a run folder, by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bivallate.errors import UserError, unknown
from bivallate.lower.threat import Linf
from bivallate.reports.collect import collect
from bivallate.reports.diagnostics import several_runs
from bivallate.reports.diagnostics.curves import learning_curves
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.easy_and_hard import easy_and_hard
from bivallate.reports.diagnostics.fosc import fosc, fosc_traces
from bivallate.reports.diagnostics.gradients import gradient_alignment
from bivallate.reports.diagnostics.landscape import loss_landscape
from bivallate.reports.diagnostics.per_class import confusion, per_class
from bivallate.reports.diagnostics.plane import plane
from bivallate.reports.diagnostics.ranks import accuracy_over_eps, adversarial_rank
from bivallate.reports.diagnostics.subject import Subject
from bivallate.reports.diagnostics.weighed_points import WeighedPoints
from bivallate.reports.diagnostics.weights import (
    extremes,
    likelihood_pca,
    pictured,
    weights_by_class,
)
from bivallate.reports.diagnostics.weights_epochs import weights_by_margin, weights_over_epochs


def subject(paths: Sequence[Path], **settings: object) -> Subject:
    """Read the runs to diagnose. Raises UserError if there are none, or their data sets differ."""
    runs = tuple(collect(list(paths)))
    if not runs:
        raise UserError("name at least one run folder")
    first = runs[0].config.data
    for run in runs[1:]:
        same = os.path.abspath(run.config.data.name) == os.path.abspath(first.name)  # names may be paths
        if not same or run.classes != runs[0].classes:
            raise UserError(
                f"{run.label} was trained on {run.config.data.name or 'tensors'}, {runs[0].label} on "
                f"{first.name or 'tensors'}: name runs on the same data together"
            )
    return replace(Subject(runs), **settings)  # pyright: ignore[reportArgumentType]


def _landscape(s: Subject) -> Diagnostic:
    if not isinstance(s.threat, Linf):
        raise UserError("the loss landscape is drawn along signs, for Linf runs")
    return loss_landscape(s.first, s.data.test, s.threat, n=1, seed=s.seed)


def _first(s: Subject) -> WeighedPoints:
    return s.weighed(s.runs[0])


Diagnosis = Callable[[Subject], Diagnostic]
DIAGNOSES: dict[str, Diagnosis] = {
    "curves": lambda s: learning_curves({run.label: run.history for run in s.runs}),
    "alignment": lambda s: gradient_alignment(dict(s.models), s.data.test, s.threat, n=s.n, seed=s.seed),
    "alignment-over-epochs": several_runs.alignment_over_epochs,
    "alignment-by-epoch": several_runs.alignment_by_epoch,
    "fosc": lambda s: fosc(s.first, s.data.test, s.threat, n=s.n, seed=s.seed, form=s.form),
    "fosc-traces": lambda s: fosc_traces(
        s.first, s.data.test, s.threat, n=min(20, s.n), seed=s.seed, form=s.form
    ),
    "fosc-over-epochs": several_runs.fosc_over_epochs,
    "landscape": _landscape,
    "landscapes": several_runs.landscapes,
    "classes": lambda s: per_class(s.scores, s.runs[0].classes),
    "plane": lambda s: plane(s.scores, s.runs[0].classes),
    "confusion": lambda s: confusion(s.scores[s.runs[0].label], s.runs[0].classes),
    "attacked": lambda s: easy_and_hard(
        s.first, s.data.test, s.threat, s.scores[s.runs[0].label], s.runs[0].classes, seed=s.seed
    ),
    "eps": lambda s: accuracy_over_eps(
        dict(s.models), s.data.test, s.threat, trained=several_runs.trained(s), n=s.n, seed=s.seed
    ),
    "training-eps": several_runs.training_eps,
    "ranks": lambda s: adversarial_rank(dict(s.models), s.data.test, s.threat, n=s.n, seed=s.seed),
    "weights": lambda s: weights_by_class(_first(s), s.runs[0].classes, s.runs[0].label),
    "weights-over-epochs": lambda s: weights_over_epochs({run.label: run.history for run in s.runs}),
    "weights-by-margin": lambda s: weights_by_margin(s.runs[0].label, s.runs[0].history),
    "omega": several_runs.omega_of,
    "examples": lambda s: extremes(_first(s), s.runs[0].classes),
    "likelihoods": lambda s: likelihood_pca(
        s.weighed(s.runs[0], "train"), s.runs[0].classes, pictured(s.runs[0].classes)
    ),
    "weight-scatter": several_runs.scatter,
    "weightings": several_runs.weightings,
    "cross": several_runs.cross,
    "transfer": several_runs.transfer,
}
RUNS_NEEDED = {
    "weight-scatter": (2, 2), "weightings": (2, 2), "transfer": (2, 99), "cross": (2, 99),
    "training-eps": (2, 99), "landscapes": (2, 99), "plane": (2, 99),
}  # fewest and most runs; the other pictures need one  # fmt: skip


def choose(what: Sequence[str], runs: int) -> list[str]:
    """The names of the diagnoses to make; without names all that this number of runs allows.

    Raises UserError for an unknown name.
    """
    for name in what:
        if name not in DIAGNOSES:
            raise unknown("diagnosis", name, DIAGNOSES)
    if what:
        return list(what)
    needed = {name: RUNS_NEEDED.get(name, (1, 99)) for name in DIAGNOSES}
    return [name for name, (fewest, most) in needed.items() if fewest <= runs <= most]
