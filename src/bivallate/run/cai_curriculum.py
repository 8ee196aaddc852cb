"""Cai et al.'s curriculum: when held-out accuracy stalls, return to the best weights and raise the level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bivallate import collective
from bivallate.errors import UserError
from bivallate.lower.curriculum import BoundBatchMixing
from bivallate.run.validation import held_out

if TYPE_CHECKING:
    from bivallate.run.session import Session

KIND = "level"  # key of the best state among the sentinel's tensors


class CaiCurriculum:
    """Raise the level of a session's curriculum by held-out accuracy; other methods are left alone.

    The best state of the current level is kept in `session.sentinel.level` and `session.sentinel_tensors`.
    Both are in every checkpoint, so that a resumed run returns to the same state.

    Raises:
        UserError: nothing is held out.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        split = session.dataset.validation
        if self.on and (split is None or not len(split)):
            raise UserError(
                "this curriculum rises by held-out accuracy, and nothing is held out: say "
                "--set data.validation=0.02 (the paper's share), or held_out=false for the accuracy of the "
                "training passes"
            )

    @property
    def on(self) -> bool:
        """Whether the method has a level that is raised by held-out accuracy."""
        solver = self.session.method.solver
        return isinstance(solver, BoundBatchMixing) and solver.rule.held_out

    def after_epoch(self, line: dict[str, Any]) -> None:
        """Measure at the current level; keep the state if it is the best, or return to the best and rise."""
        if not self.on:
            return
        solver = self._solver()
        level, accuracy = solver.level, self._accuracy(solver.level, line)
        line |= {"level_held_out": accuracy}
        best, rises = solver.outcome(accuracy, line["train_robust"], self.session.epoch)
        if best:
            self._keep()
        if rises and self.session.epoch + 1 < self.session.config.epochs:
            line |= {"level_reloaded": self._reload(level + 1) + 1}

    def _solver(self) -> BoundBatchMixing:
        solver = self.session.method.solver
        assert isinstance(solver, BoundBatchMixing)
        return solver

    def _accuracy(self, level: int, line: dict[str, Any]) -> float:
        """Held-out accuracy under PGD with `level` steps of eps/4; clean accuracy at level 0."""
        s, watched = self.session, self.session.config.validation
        split, threat = s.dataset.validation, s.method.spec.threat
        assert split is not None
        clean, robust, passes = held_out(
            s.model, split, (threat,), steps=level, rows=watched.rows, seed=s.config.seed, device=s.device
        )
        rows = len(s.batches.split)
        line["validation_forward"] = line.get("validation_forward", 0) + passes.forward / rows
        line["validation_backward"] = line.get("validation_backward", 0) + passes.backward / rows
        told = torch.tensor([clean if level == 0 else robust], dtype=torch.float64, device=s.device)
        collective.broadcast([told])  # ranks may differ in BatchNorm's statistics and must decide alike
        return float(told)

    def _keep(self) -> None:
        s = self.session
        tensors, values = s.learned()
        kept = {k: v for k, v in s.sentinel_tensors.items() if not k.startswith(f"{KIND}.")}
        s.sentinel_tensors = kept | {f"{KIND}.{k}": v.detach().clone() for k, v in tensors.items()}
        s.sentinel.level = {"epoch": s.epoch, "values": values}

    def _reload(self, level: int) -> int:
        """Restore the best state and begin the given level; return the epoch of that state."""
        s = self.session
        own = {k: v.clone() for k, v in s.sentinel_tensors.items() if k.startswith(f"{KIND}.")}
        kept = s.sentinel.level
        assert kept is not None
        s.restore_learned({k.removeprefix(f"{KIND}."): v for k, v in own.items()}, kept["values"])
        self._solver().rise(level, s.epoch)
        return kept["epoch"]
