"""The sentinel: checks a run for lost robustness, by default with at most 3 % of training's passes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from bivallate.errors import UserError, unknown
from bivallate.parts import part

KINDS = ("catastrophic", "robust", "chance")
ANSWERS = (*KINDS, "both", "every")
LOWERS = ("attack", "rate", "both", "finer")
HELPS = ("rate", "radius", "both")
FEWEST_STEPS = 50  # minibatches before which a training is not called at chance, unless it has ended
FINEST = 8  # largest factor of the number of steps: a one-step attack then has about as many as AT's PGD
SEEN = ("fgsm", "pgd", "alignment", "rows")


@dataclass
class SentinelState:
    """The sentinel's state, which every checkpoint holds.

    Attributes:
        checks, forward, backward: number of checks so far, and the passes they took.
        alarms: alarms of this epoch.
        alarmed: kinds of alarm that were raised and are not over yet.
        rollbacks: number of rollbacks so far.
        rate, length: factors by which rollbacks have changed the learning rate and the attack's step size.
        number: factor by which they have changed the attack's number of steps; None if they have not.
        since: first line of the history that counts for robust overfitting.
        good: places and plain values of the states to roll back to, by kind of alarm.
        best: highest accuracy under PGD of all checks so far.
        seen: results of the last check in this epoch.
        patience: fraction of training before which chance raises no alarm, after a rollback; None before one.
        growing: (share, beginning) of a radius that grows again after a rollback.
        level: best state of the current level of a curriculum (`CaiCurriculum`).
        begun: whether the sentinel has kept its first states.
    """

    checks: int = 0
    forward: int = 0
    backward: int = 0
    alarms: list[dict[str, Any]] = field(default_factory=list)
    alarmed: list[str] = field(default_factory=list)
    rollbacks: int = 0
    rate: float = 1.0
    length: float = 1.0
    number: float | None = None
    since: int = 0
    good: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: float = 0.0
    seen: dict[str, float] = field(default_factory=dict)
    patience: float | None = None
    growing: tuple[float, float] | None = None
    level: dict[str, Any] | None = None
    begun: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The state as a dictionary for JSON."""
        return dict(vars(self))

    @staticmethod
    def from_dict(values: dict[str, Any]) -> SentinelState:
        """Restore what `to_dict` gave, in this version or in 0.1.0, which had other fields."""
        given = dict(values)
        if "begun" not in given:
            attack = given.pop("attack", 1.0)
            scales = attack if isinstance(attack, dict) else {"step_size": attack}
            given |= {"length": scales["step_size"], "number": scales.get("steps")}
            given["seen"] = {key: given.pop(key) for key in SEEN if key in given}
            given["begun"] = "checks" in given
        growing = given.get("growing")
        return SentinelState(**{**given, "growing": None if growing is None else tuple(growing)})

    def scales(self) -> dict[str, float]:
        """The factors of the learning rate and of the attack's steps, for the epoch's line."""
        steps = {} if self.number is None else {"attack_steps": self.number}
        return {"attack_scale": self.length, **steps, "rate_scale": self.rate}


@part
class Sentinel:
    """What is checked during training, and what is done at an alarm.

    There are three kinds of alarm:

    * *Catastrophic overfitting*: accuracy under FGSM is much higher than under PGD. Between two minibatches,
      whenever `share` allows for it, a random subset of the validation set is attacked by FGSM, and what
      withstands it by a short PGD. The gradient alignment of the subset is recorded too.
    * *Robust overfitting*: robust accuracy falls on held-out data while it rises on training data. Both are
      measured after every epoch.
    * *Chance*: after a fraction of training the predictions are still independent of the labels, on held-out
      images, or on the watched training images if none are held out.

    The first two need a validation set and a method that attacks. Chance is checked in every training.

    Attributes:
        on: whether to check at all.
        share: largest cost of the checks, as a fraction of the passes that training has made so far.
        rows, fewest: largest and smallest number of validation rows in a check. Within these bounds a check
            has as many rows as allow about one check per epoch.
        steps: number of PGD steps of eps/2 from a random start.
        gap: there is catastrophic overfitting if accuracy under FGSM exceeds that under PGD by this much, and
            is at least twice as high.
        drop: there is robust overfitting if the mean of the robust accuracy over `window` epochs has fallen
            from its best value by this much and by two standard errors on held-out data, and has risen by
            this much on training data.
        window: number of epochs in a mean.
        chance: fraction of training after which a network at chance raises an alarm, at the end of an epoch
            and after `FEWEST_STEPS` minibatches at the earliest. After a rollback it has this time again.
        rollback: at an alarm, return to the last good state and lower what `lowers` or `helps` says; at
            catastrophic overfitting only if accuracy under PGD has fallen to half of its best so far or less.
            Training continues at the present epoch and minibatch, with their data and schedules, and no
            recorded line is changed.
        answers: which alarms cause a rollback: "catastrophic", "robust", "both" of these, "chance" or
            "every". Whatever is chosen, the best weights are kept, which helps against robust overfitting.
        lower: factor of each lowering.
        lowers: what to lower at catastrophic overfitting: "attack" (every `step_size` in the method's solver
            and coupling), "rate" (the learning rate), "both", or "finer" (every `step_size`, with more
            `steps` in the same proportion). At robust overfitting it is always the learning rate. A shorter
            attack trains for a smaller radius, so "attack" can cost robustness at the full one. A finer
            attack reaches as far as before, but costs more passes. If its factor would exceed FINEST, or a
            schedule sets the number of steps (Curriculum), the learning rate is lowered instead.
        limit: largest number of rollbacks in a run.
        helps: what to do at chance, after a return to the last weights that were better (or to the initial
            ones): "rate" (lower the learning rate), "radius" (let the training radius grow from 0 again, over
            the fraction `warm_up` of training, but at most half of the rest), or "both".

    Cost: at most 2 `steps` + 6 passes per row of a check.
    """

    on: bool = True
    share: float = 0.03
    rows: int = 256
    fewest: int = 32
    steps: int = 4
    gap: float = 0.25
    drop: float = 0.03
    window: int = 3
    chance: float = 0.5
    rollback: bool = False
    answers: Literal["catastrophic", "robust", "both", "chance", "every"] = "catastrophic"
    lower: float = 0.5
    lowers: Literal["attack", "rate", "both", "finer"] = "finer"
    limit: int = 10
    helps: Literal["rate", "radius", "both"] = "both"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("alarm to answer", self.answers, ANSWERS),
            ("thing to lower", self.lowers, LOWERS),
            ("help at chance", self.helps, HELPS),
        ):
            if value not in known:
                raise unknown(name, str(value), known)
        for name in ("rows", "fewest", "steps", "window"):
            count = getattr(self, name)
            if not (isinstance(count, int) and count >= 1):
                raise UserError(f"sentinel.{name} must be a whole number of at least 1, got {count!r}")
        for name in ("share", "gap", "drop", "chance", "lower"):
            fraction = getattr(self, name)
            if not 0 < fraction < 1:
                raise UserError(f"sentinel.{name} must lie between 0 and 1, got {fraction!r}")
        if self.rollback and self.lowers == "finer" and (1 / self.lower) % 1:
            raise UserError(
                "sentinel.lowers=finer takes 1 / lower times the steps, which must be whole, such as with "
                f"sentinel.lower=0.5; got {self.lower!r}"
            )

    @property
    def cost(self) -> int:
        """Largest number of passes per row of a check."""
        return 2 * self.steps + 6

    def rows_now(self, spent: int, training: int, per_epoch: float, available: int) -> int:
        """Number of rows to check now; 0 if `share` does not allow for a check yet.

        Args:
            spent: passes of all checks so far.
            training: passes of training so far.
            per_epoch: passes of training in one epoch, estimated from those so far.
            available: rows of the validation set.
        """
        most = min(self.rows, available)
        wanted = int(self.share * per_epoch / self.cost)
        rows = max(min(self.fewest, most), min(wanted, most))
        return rows if rows and spent + rows * self.cost <= self.share * training else 0

    def answered(self, kind: str) -> bool:
        """Whether an alarm of this kind causes a rollback."""
        either = self.answers in (kind, "every") or (self.answers == "both" and kind != "chance")
        return self.rollback and either

    def collapsed(self, fgsm: float, pgd: float) -> bool:
        """Whether these accuracies show catastrophic overfitting."""
        # Neither condition suffices alone. At a large radius one step is so weak an attack that the gap is
        # large for a sound model too; and where both accuracies are low, chance can make one twice the other.
        return fgsm - pgd >= self.gap and pgd <= fgsm / 2

    def calm(self, fgsm: float, pgd: float) -> bool:
        """Whether a state is good enough to roll back to."""
        # Half of the alarm's gap, because a state close to the alarm would raise it again at the next check.
        return fgsm - pgd < self.gap / 2

    def overfitted(self, held: list[float], trained: list[float], rows: int) -> tuple[float, float] | None:
        """Best and last mean of the held-out robust accuracy if there is robust overfitting, else None.

        Args:
            held, trained: robust accuracies on held-out and on training data, one per epoch.
            rows: number of held-out rows.
        """
        w = self.window
        if len(held) < 2 * w:
            return None
        means = [sum(held[k : k + w]) / w for k in range(len(held) - w + 1)]
        gains = [sum(trained[k : k + w]) / w for k in range(len(held) - w + 1)]
        peak = max(
            range(len(means) - w + 1), key=means.__getitem__
        )  # windows that share at most one epoch with the last one
        # The formula gives accuracies of 0 and 1 no variance, although one row could be different by chance:
        # the variance is at least 1 / rows.
        error = 2 * math.sqrt(max(means[peak] * (1 - means[peak]), 1 / rows) / rows)
        fell = means[peak] - means[-1] >= max(self.drop, error)
        return (means[peak], means[-1]) if fell and gains[-1] - gains[peak] >= self.drop else None
