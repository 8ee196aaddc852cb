"""The diagnostics of several runs, or of several epochs of a run."""

from __future__ import annotations

import numpy as np

from bivallate.errors import UserError
from bivallate.lower.solver import Remembering
from bivallate.lower.threat import Linf
from bivallate.reports.collect import RunRecord
from bivallate.reports.diagnostics.cross_attack import cross_attack
from bivallate.reports.diagnostics.curves import learning_curves
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.reports.diagnostics.fosc_epochs import fosc_over_epochs as over_epochs
from bivallate.reports.diagnostics.gradients import AlignmentByEpoch, gradient_alignment
from bivallate.reports.diagnostics.landscape import Landscapes, loss_landscape
from bivallate.reports.diagnostics.omega import omega
from bivallate.reports.diagnostics.ranks import transfer as transferred
from bivallate.reports.diagnostics.subject import Subject
from bivallate.reports.diagnostics.training_eps import training_eps as own_radii
from bivallate.reports.diagnostics.weighed_points import weigh_points
from bivallate.reports.diagnostics.weights import weight_scatter
from bivallate.run.load_model import load_run
from bivallate.types import Clock


def scatter(s: Subject) -> Diagnostic:
    """The weights that the methods of two runs give to the same points, each on its own network."""
    if len(s.runs) != 2:
        raise UserError(f"weight-scatter compares two runs, got {len(s.runs)}: name the second one too")
    first, second = map(s.weighed, s.runs)
    return weight_scatter(first, second, (s.runs[0].label, s.runs[1].label))


def transfer(s: Subject) -> Diagnostic:
    """Accuracy of each run's model on the adversarial points of every other."""
    if len(s.runs) < 2:
        raise UserError("transfer needs at least two runs: name the others too")
    return transferred(dict(s.models), s.data.test, s.threat, n=s.n, seed=s.seed)


def alignment_over_epochs(s: Subject) -> Diagnostic:
    """The cosine of gradients that the sentinel recorded during training."""
    drawn = learning_curves({run.label: run.history for run in s.runs}, ("sentinel_alignment",))
    if not drawn.panels:
        raise UserError(
            "no run recorded the alignment: the sentinel records it if it makes checks (sentinel.on, eps "
            "above 0, a method that attacks, and enough passes for a check)"
        )
    return drawn


def fosc_over_epochs(s: Subject) -> Diagnostic:
    """FOSC under each run's own attack, at its kept epochs and its last one."""
    if not any(run.config.keep for run in s.runs):
        raise UserError("no run keeps weights of earlier epochs: train it with --set keep=1,10,20, say")
    values: dict[str, dict[int, np.ndarray]] = {}
    for run in s.runs:
        try:
            values[_attacked(run)] = s.stationarity(run)
        except UserError as error:
            raise UserError(f"{run.label}: {error}") from error
    return over_epochs(values, s.form)


def _attacked(run: RunRecord) -> str:
    """The run's label; for an attack with a memory also the attack that replaces it."""
    remembers = isinstance(run.config.method.solver, Remembering)
    return f"{run.label}, under PGD-20" if remembers else run.label


def training_eps(s: Subject) -> Diagnostic:
    """Robust accuracy of each run at the radius that it was trained for."""
    threats = [run.config.method.threat for run in s.runs]
    if len({t.eps for t in threats}) < 2 or len(set(map(type, threats))) > 1:
        raise UserError(
            "training-eps compares runs that were trained at several radii of one norm: name them"
        )
    points = [point for run in s.runs for point in s.own_radius(run)]
    return own_radii(s.attack, type(s.threat).__name__, points)


def trained(s: Subject) -> dict[str, float]:
    """Label -> training radius, of the runs that were trained in the norm that is drawn."""
    pairs = [(run.label, threat) for run in s.runs for threat in run.config.method.threats]
    return {label: threat.eps for label, threat in pairs if type(threat) is type(s.threat)}


def weightings(s: Subject) -> Diagnostic:
    """The weights that the methods of two runs give on the network of the first."""
    if len(s.runs) != 2:
        raise UserError(f"weightings compares two methods, got {len(s.runs)}: name the second run too")
    own, other = s.runs
    clock = Clock(len(other.history) - 1, other.config.epochs, seed=s.seed)
    session = s.session(other)
    network = s.models[own.label].to(session.device)
    found = weigh_points(network, session.method, s.data.test, clock, n=s.n, seed=s.seed)
    labels = (own.label, f"{other.label} on it")
    return weight_scatter(s.weighed(own), found, labels)


def omega_of(s: Subject) -> Diagnostic:
    """BiLAW's weights at the clean and the adversarial margins of training points."""
    run = s.runs[0]
    session = s.session(run)
    clock = Clock(len(run.history) - 1, run.config.epochs, seed=s.seed)
    model = s.models[run.label].to(session.device)
    return omega(run.label, model, session.method, s.data.train, clock, n=s.n, seed=s.seed)


def cross(s: Subject) -> Diagnostic:
    """Every run under every run's training attack."""
    if len(s.runs) < 2:
        raise UserError("cross compares runs under each other's attacks: name the others too")
    methods = {run.label: s.session(run).method for run in s.runs}
    clock = Clock(len(s.runs[0].history) - 1, s.runs[0].config.epochs, seed=s.seed)
    return cross_attack(
        dict(s.models), methods, s.data.test, s.data.train, clock, n=s.n, seed=s.seed, form=s.form
    )


def landscapes(s: Subject) -> Diagnostic:
    """The loss around the same test point for every run."""
    if not isinstance(s.threat, Linf):
        raise UserError("the loss landscape is drawn along signs, for Linf runs")
    drawn = {k: loss_landscape(m, s.data.test, s.threat, n=1, seed=s.seed) for k, m in s.models.items()}
    return Landscapes(drawn)


def alignment_by_epoch(s: Subject) -> Diagnostic:
    """The GA score on test points for every epoch with kept weights and for the last epoch."""
    found: dict[str, dict[int, float]] = {}
    for run in s.runs:
        last = len(run.history)
        names = {epoch: f"epoch-{epoch}" for epoch in run.config.keep if epoch <= last}
        if names:
            names |= {last: "last"}
            models = {str(e): load_run(run.path, w, s.model).to(s.device) for e, w in names.items()}
            drawn = gradient_alignment(dict(models), s.data.test, s.threat, n=s.n, seed=s.seed)
            found[run.label] = {int(epoch): value for epoch, value in drawn.score.items()}
    if not found:
        raise UserError("no run keeps weights of earlier epochs: train it with --set keep=1,10,20, say")
    return AlignmentByEpoch(s.threat.eps, found)
