"""The runs under diagnosis, with the models, scores and weights that their pictures share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from bivallate.data import Dataset, Split
from bivallate.evaluation import Score, attack_and_score
from bivallate.lower.stop import Form
from bivallate.models import Classifier
from bivallate.reports.collect import RunRecord
from bivallate.reports.diagnostics.fosc_epochs import stationarity
from bivallate.reports.diagnostics.training_eps import OwnRadius
from bivallate.reports.diagnostics.weighed_points import WeighedPoints, weigh_points
from bivallate.run import checkpoint
from bivallate.run.evaluation_data import moved_data
from bivallate.run.folder import KEPT, RunFolder
from bivallate.run.load_model import load_run
from bivallate.run.packing import unpack
from bivallate.run.session import Session
from bivallate.types import Clock


@dataclass(frozen=True)
class Subject:
    """One or several runs under diagnosis; pictures of a single run show the first.

    Attributes:
        runs: the runs.
        weights: best, last, ema or epoch-N.
        n: largest number of points.
        seed: seed of the points and of the attacks.
        attack: attack for accuracies by class and confusions.
        form: form of FOSC, "ball" or "box".
        data_dir: folder of named data sets, if it has moved.
        model: `package.module:factory` for runs with the user's own network.
        moved_to: where the runs' data are now, if they have moved.
        device: where to compute.
        given: the data that all runs were trained on, in place of what their configurations name.
    """

    runs: tuple[RunRecord, ...]
    weights: str = "best"
    n: int = 500
    seed: int = 0
    attack: str = "pgd-20"
    form: Form = "ball"
    data_dir: str | None = None
    model: str | None = None
    moved_to: str | None = None
    device: torch.device | str = "cpu"
    given: Dataset | None = None

    @cached_property
    def data(self) -> Dataset:
        """The data of the first run."""
        return self._data(self.runs[0])

    def _data(self, run: RunRecord) -> Dataset:
        if self.given is not None:
            return self.given
        config = run.config
        config = config.set("data.data_dir", self.data_dir) if self.data_dir is not None else config
        return moved_data(run.path, config, self.moved_to)

    @cached_property
    def models(self) -> dict[str, Classifier]:
        """The runs' models by label."""
        return {run.label: load_run(run.path, self.weights, self.model).to(self.device) for run in self.runs}

    @property
    def first(self) -> Classifier:
        """The model of the first run."""
        return self.models[self.runs[0].label]

    @property
    def threat(self):
        """The threat that the first run was trained for."""
        return self.runs[0].config.method.threat

    @cached_property
    def scores(self) -> dict[str, Score]:
        """Scores of all runs by label, under the same attack on the same points."""
        return {
            label: attack_and_score(
                model, self.data.test, self.threat, self.attack, n=self.points, seed=self.seed
            )
            for label, model in self.models.items()
        }

    @property
    def points(self) -> int:
        """Number of test points to use."""
        return min(self.n, len(self.data.test))

    @cached_property
    def _weighed(self) -> dict[tuple[str, str], WeighedPoints]:
        return {}

    def weighed(self, run: RunRecord, split: str = "test") -> WeighedPoints:
        """The example weights that a run's own method gives to test or training points of the first run.

        The method has its state from the run's last checkpoint. Its schedules are at the epoch that the
        model's weights are from.
        """
        if (run.label, split) not in self._weighed:
            self._weighed[run.label, split] = self._weigh(run, getattr(self.data, split))
        return self._weighed[run.label, split]

    def _weigh(self, run: RunRecord, points: Split) -> WeighedPoints:
        session, kept, last = self.session(run), KEPT.fullmatch(self.weights), len(run.history)
        epoch = int(kept[1]) if kept else (run.best_epoch or last) if self.weights == "best" else last
        clock = Clock(epoch - 1, run.config.epochs, seed=self.seed)
        model = self.models[run.label].to(session.device)
        return weigh_points(model, session.method, points, clock, n=self.n, seed=self.seed)

    def session(self, run: RunRecord) -> Session:
        """The run's state at its last checkpoint, with the attack steps that the sentinel has set.

        It computes in float32, without the run's CUDA graphs and compilation: this device may have neither.

        Raises UserError if the run's method is not installed here.
        """
        run.written.check_own_method()
        device = str(self.device)
        here = replace(run.config, device=device, precision="float32", graphs=False, compile=False)
        with torch.random.fork_rng(devices=[]):  # unpacking restores the run's generators
            session = Session(here, self._data(run), load_run(run.path, "last", self.model))
            unpack(session, checkpoint.newest(RunFolder(run.path).checkpoints))
        return session

    def own_radius(self, run: RunRecord) -> list[OwnRadius]:
        """Robust accuracy of the run's best and last weights at the radius that it was trained for."""
        found: list[OwnRadius] = []
        threat, method = run.config.method.threat, run.config.method.name
        for weights in ("best", "last"):
            model = load_run(run.path, weights, self.model).to(self.device)
            score = attack_and_score(
                model, self.data.test, threat, self.attack, n=self.points, seed=self.seed
            )
            at = (score.robust_accuracy, score.interval_95)
            found.append(OwnRadius(run.label, method, threat.eps, weights, *at))
        return found

    def stationarity(self, run: RunRecord) -> dict[int, np.ndarray]:
        """FOSC of training points under the run's own attack: epoch -> (n,), for kept epochs and the last."""
        session, last = self.session(run), len(run.history)
        kept = [epoch for epoch in run.config.keep if epoch <= last]
        found: dict[int, np.ndarray] = {}
        for epoch in sorted({*kept, last}):
            name = f"epoch-{epoch}" if epoch in kept else "last"
            model = load_run(run.path, name, self.model).to(session.device)
            clock = Clock(epoch - 1, run.config.epochs, seed=self.seed)
            found[epoch] = stationarity(
                model, session.method, self.data.train, clock, n=self.n, seed=self.seed, form=self.form
            )
        return found
