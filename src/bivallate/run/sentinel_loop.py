"""The sentinel's work on a session: checks between minibatches and after epochs, alarms, rollbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bivallate import collective
from bivallate.data import Split
from bivallate.noise import Noise, permutation
from bivallate.run.chance import chance_verdict, likely_cause
from bivallate.run.sentinel import FEWEST_STEPS, FINEST, KINDS, SEEN, SentinelState
from bivallate.run.validation import Inspection, inspect_rows
from bivallate.types import Passes

if TYPE_CHECKING:
    from bivallate.run.session import Session

TURN = -3  # turn of the sentinel's noise; no replay, restart or other measurement uses this number


class SentinelLoop:
    """The sentinel of a session, which follows the configuration's `Sentinel`.

    Its whole state is in `session.sentinel` (numbers and texts) and `session.sentinel_tensors` (the weights
    and optimiser states to roll back to). Both are in every checkpoint, so a resumed run raises the same
    alarms and repeats the same rollbacks bit for bit.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.rule = session, session.config.sentinel
        split = session.dataset.validation
        self.split: Split | None = split if self.rule.on and session.method.threat.eps > 0 else None
        if self.rule.on and not session.sentinel.begun:
            session.sentinel.begun = True
            for kind in KINDS:
                self._keep(kind)

    @property
    def state(self) -> SentinelState:
        """The sentinel's state within the session."""
        return self.session.sentinel

    def after_step(self) -> list[str]:
        """Make a check if one is due; return the messages of its alarms."""
        if self.split is None or not len(self.split):
            return []
        rows = self._rows()
        if not rows:
            return []
        seen = self._check(rows)
        fgsm, pgd = seen.fgsm, seen.pgd
        self.state.checks += 1
        self.state.forward += seen.passes.forward
        self.state.backward += seen.passes.backward
        self.state.seen = dict(zip(SEEN, (fgsm, pgd, seen.alignment, rows), strict=True))
        if self.rule.collapsed(fgsm, pgd):
            text = f"{fgsm:.0%} withstand FGSM but {pgd:.0%} PGD-{self.rule.steps}, of {rows} held-out images"
            # A rollback helps only if robustness was higher before, and early in training it is low.
            lost = pgd <= self.state.best / 2
            return self._alarm("catastrophic", f"catastrophic overfitting: {text}", lost=lost)
        # While the radius grows, accuracies under it are too high to compare later ones with.
        if self.session.method.threat == self.session.method.spec.threat:
            self.state.best = max(self.state.best, pgd)
        if self.rule.calm(fgsm, pgd):
            self._over("catastrophic")
            self._keep("catastrophic")
        return []

    def after_epoch(self, line: dict[str, Any]) -> list[str]:
        """Check for robust overfitting and for chance, and add the sentinel's entries to the epoch's line.

        Returns the messages of the alarms.
        """
        if not self.rule.on:
            return []
        rows, forward, backward = self._training()
        attacked = self.split is not None and "robust" in line and forward > rows
        told = self._compare(line) if attacked else []
        told += self._learns(line) if not told else []
        if self.split is not None:
            line |= self._seen(max(1, forward + backward))
        line["alarms"] = self.state.alarms
        self.state.alarms = []
        return told

    def _seen(self, training: int) -> dict[str, Any]:
        """The entries for the epoch's line: results of its last check, and the sentinel's costs."""
        state, total = self.state, self.state.forward + self.state.backward
        line: dict[str, Any] = {f"sentinel_{key}": value for key, value in state.seen.items()}
        state.seen = {}
        line |= {"sentinel_checks": state.checks, "sentinel_share": total / training}
        return line | state.scales()

    def _learns(self, line: dict[str, Any]) -> list[str]:
        """Raise an alarm if the network is still at chance after the allowed share of training."""
        s, state, rule = self.session, self.state, self.rule
        found = chance_verdict(s, line)
        if not found:
            self._over("chance")
            self._keep("chance")
            return []
        done = (s.epoch + 1) / s.config.planned(s.epoch)
        early = (s.epoch + 1) * len(s.batches) < FEWEST_STEPS and done < 1
        if early or done < (rule.chance if state.patience is None else state.patience):
            return []
        line["at_chance"] = True
        text = f"at chance after {done:.0%} of the steps: {found}. {likely_cause(s, line)}"
        return self._alarm("chance", text, lost=done < 1)

    def _training(self) -> tuple[int, int, int]:
        """Rows, forward and backward passes of training so far, over all ranks."""
        s = self.session
        rows, forward, backward = s.tally.everywhere
        return s.epoch * len(s.batches.split) + rows, s.forward + forward, s.backward + backward

    def _rows(self) -> int:
        """Number of rows to check now; 0 for no check."""
        s = self.session
        rows, forward, backward = self._training()
        if forward <= rows:  # one forward pass per example: training does not attack
            return 0
        steps = s.epoch * len(s.batches) + s.step
        per_epoch = (forward + backward) / steps * len(s.batches)
        spent = self.state.forward + self.state.backward
        return self.rule.rows_now(spent, forward + backward, per_epoch, len(self.split or ()))

    def _check(self, rows: int) -> Inspection:
        """Inspect a random subset of the validation rows, drawn for this check."""
        s, number = self.session, self.state.checks
        assert self.split is not None
        chosen = permutation(s.config.seed, "sentinel", number, len(self.split))[:rows]
        x, y = (t.to(s.device) for t in self.split.tensors(chosen))
        noise = Noise(s.config.seed, chosen.to(s.device), number, TURN)
        seen = inspect_rows(s.model, x, y, s.method.threat, noise, self.rule.steps)
        if not collective.is_distributed():
            return seen
        numbers = (seen.fgsm, seen.pgd, seen.alignment, seen.passes.forward, seen.passes.backward)
        told = torch.tensor(numbers, dtype=torch.float64, device=s.device)
        # BatchNorm's statistics differ between ranks within an epoch, and all ranks must decide alike: on an
        # alarm, and by the passes spent, which grow with the rows that withstand FGSM, on the next check.
        collective.broadcast([told])
        fgsm, pgd, alignment, *passes = told.tolist()
        return Inspection(fgsm, pgd, alignment, Passes(*map(int, passes)))

    def _compare(self, line: dict[str, Any]) -> list[str]:
        """Raise an alarm if the epochs so far show robust overfitting."""
        s, state = self.session, self.state
        assert self.split is not None
        lines = [*s.history, line][state.since :]
        held, trained = ([entry[key] for entry in lines] for key in ("robust", "train_robust"))
        fell = self.rule.overfitted(held, trained, min(s.config.validation.rows, len(self.split)))
        if fell is not None:
            best, last = fell
            text = f"held-out robust accuracy fell from {best:.1%} to {last:.1%} while the training one rose"
            return self._alarm("robust", f"robust overfitting: {text}")
        self._over("robust")
        if held[-1] >= max(held):
            self._keep("robust")
        return []

    def _over(self, kind: str) -> None:
        """End an alarm of this kind: the next one is reported again."""
        self.state.alarmed = [k for k in self.state.alarmed if k != kind]

    def _alarm(self, kind: str, text: str, *, lost: bool = True) -> list[str]:
        """Record an alarm, and roll back if the sentinel is set to; return the message.

        An alarm that continues is reported once. `lost`: whether a rollback can help.
        """
        s, state = self.session, self.state
        back = lost and self.rule.answered(kind) and state.rollbacks < self.rule.limit
        if kind in state.alarmed and not back:
            return []
        alarm: dict[str, Any] = {"kind": kind, "epoch": s.epoch + 1, "step": s.step, "text": text}
        alarm["rolled_back"] = back
        if back:
            good = state.good[kind]
            self._roll_back(kind)
            alarm |= {"to_epoch": good["epoch"] + 1, "to_step": good["step"]}
            alarm |= state.scales()
            place = f"epoch {good['epoch'] + 1}, minibatch {good['step']}"
            now = f"attack x {alarm['attack_scale']:g}, rate x {alarm['rate_scale']:g}"
            more = f" in {alarm['attack_steps']:g} times the steps" if "attack_steps" in alarm else ""
            again = ", eps grows anew" if kind == "chance" and self.rule.helps != "rate" else ""
            alarm["text"] += f"; back to the state of {place}, {now}{more}{again}"
        else:
            state.alarmed.append(kind)
        state.alarms.append(alarm)
        return [f"epoch {alarm['epoch']}, minibatch {alarm['step']}: {alarm['text']}"]

    def _keep(self, kind: str) -> None:
        """Keep the present state as the one to roll back to at an alarm of this kind."""
        if not self.rule.answered(kind):
            return
        s = self.session
        tensors, values = s.learned()
        kept = {k: v for k, v in s.sentinel_tensors.items() if not k.startswith(f"{kind}.")}
        s.sentinel_tensors = kept | {f"{kind}.{k}": v.detach().clone() for k, v in tensors.items()}
        s.sentinel.good[kind] = {"epoch": s.epoch, "step": s.step, "values": values}

    def _roll_back(self, kind: str) -> None:
        s, state, rule = self.session, self.state, self.rule
        state.rollbacks += 1
        number = (state.number or 1.0) / rule.lower
        finer = rule.lowers == "finer" and number <= FINEST and s.config.method.solver.can_be_finer()
        if kind == "chance":
            self._help()
        elif kind == "robust" or rule.lowers in ("rate", "both") or (rule.lowers == "finer" and not finer):
            state.rate *= rule.lower
        if kind == "catastrophic" and (finer or rule.lowers in ("attack", "both")):
            state.length *= rule.lower
            state.number = number if finer else state.number
        # Later epochs are judged by the epochs after the rollback alone. The other two kinds of alarm are
        # raised at the end of an epoch, whose line is not in the history yet.
        state.since = len(s.history) + (kind != "catastrophic")
        own = {
            k.removeprefix(f"{kind}."): v.clone()
            for k, v in s.sentinel_tensors.items()
            if k.startswith(f"{kind}.")
        }
        s.restore_learned(own, state.good[kind]["values"])

    def _help(self) -> None:
        """After a rollback at chance: lower the learning rate, let the radius grow again, or both.

        The next alarm for chance is not raised before the allowed share of training has passed again.
        """
        s, state, rule = self.session, self.state, self.rule
        done = (s.epoch + 1) / s.config.planned(s.epoch)
        state.patience = min(1.0, done + rule.chance)
        if rule.helps != "radius":
            state.rate *= rule.lower
        if rule.helps != "rate":
            state.growing = (min(s.config.warm_up or 1.0, (1 - done) / 2), done)
