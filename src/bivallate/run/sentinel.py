"""The sentinel: watches a run for robustness that is being lost, for at most 3 % of its passes."""

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
FEWEST_STEPS = 50  # of a training that may be called at chance before its end
FINEST = 8  # times the steps: an attack of one step then is the usual one of training
SEEN = ("fgsm", "pgd", "alignment", "rows")


@dataclass
class SentinelState:
    """What a run remembers of its alarms, in every checkpoint.

    Attributes:
        checks, forward, backward: looks that were taken, and the passes they took.
        alarms: of this epoch. alarmed: kinds that are not over yet.
        rollbacks: that were made. rate, length, number: what they have left of the learning rate, of the
            length of the attack's steps, and factor of their number, where that was changed.
        since: line of the history from which robust overfitting is judged.
        good: place and plain values of the states to come back to, by kind of alarm.
        best: accuracy under PGD of the best look so far. seen: the last look since the epoch began.
        patience: share of the steps before which chance is no alarm, after a rollback.
        growing: (share, beginning) of a radius that grows anew. level: of a curriculum, its best state.
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
        """For JSON."""
        return dict(vars(self))

    @staticmethod
    def from_dict(values: dict[str, Any]) -> SentinelState:
        """The inverse; also of what version 0.1.0 wrote, a table without the last look and `begun`."""
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
        """What the rollbacks have left of rate and steps, for the record."""
        steps = {} if self.number is None else {"attack_steps": self.number}
        return {"attack_scale": self.length, **steps, "rate_scale": self.rate}


@part
class Sentinel:
    """What is watched during training, and what happens at an alarm.

    Between two minibatches, whenever the allowance has grown enough for it, a fresh slice of the validation
    set is attacked by FGSM and then, where that failed, by a short PGD; the alignment of its gradients is
    recorded beside. *Catastrophic* overfitting: FGSM leaves much more than PGD does. *Robust* overfitting,
    from the accuracies that are measured after every epoch anyway: those on held-out data fall while those on
    training data rise. Methods that do not attack at all have nothing to lose and are not watched for these;
    without a validation set there is nothing to watch on. *Chance*, of every training: after a share of its
    steps its answers still have nothing to do with held-out images (without any, with the training images
    that are watched).

    Attributes:
        on: whether anything is watched.
        share: allowance, as a fraction of the passes that training has made so far; never exceeded.
        rows, fewest: most and fewest validation rows of a check; between them, so many that the allowance
            covers about one check an epoch.
        steps: of PGD, with steps of eps/2 from a random start.
        gap: the alarm is raised where FGSM's accuracy exceeds PGD's by this fraction of the rows and is at
            least twice as high.
        drop: robust overfitting is a fall of the held-out robust accuracy, from the best mean over `window`
            epochs to the last, by this fraction and by two standard errors, while the training one rose by
            this fraction.
        window: epochs.
        chance: share of the steps after which a training at chance, within two standard errors, is an alarm,
            at the end of an epoch and after `FEWEST_STEPS` minibatches; also what it is given after every
            rollback for that.
        rollback: return to the last good state and lower the step; at catastrophic overfitting only if PGD's
            accuracy has fallen below half of its best so far. The clock goes on: the order of the data
            and the schedules are those of the epoch and minibatch at hand, and nothing in the record is
            rewritten.
        answers: which alarm is answered so: "catastrophic", "robust", or "both" of these; "chance"; or
            "every" one. Robust overfitting is also answered by keeping the best weights, as every run does.
        lower: factor of every rollback.
        lowers: what is lowered at catastrophic overfitting: "attack", every `step_size` in the method's
            solver and coupling; "rate", the learning rate; "both"; or "finer", every `step_size`, with as
            many more `steps` where a part has them. At robust overfitting the learning rate. A shorter attack
            trains for a smaller ball, so "attack" can cost robustness at the full one; a finer one reaches
            as far as before and costs more passes from then on. No finer than a factor of FINEST: beyond it,
            and where a schedule sets the number of steps (Curriculum), the rate is lowered.
        helps: what is done at chance, back at the last weights that were better, which may be the first:
            "rate", the learning rate is lowered; "radius", that of training grows anew, over the share
            `warm_up` of all steps, and over half of what is left at most; or "both".
        limit: most rollbacks of a run.

    Cost: 2 `steps` + 6 passes a row of a check at most; two of them see how gradients turn within the ball.
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
        """Passes of one row of a check, at most."""
        return 2 * self.steps + 6

    def rows_now(self, spent: int, training: int, per_epoch: float, available: int) -> int:
        """How many rows to check now; 0 where the allowance does not cover it yet.

        Args:
            spent: passes of all checks so far. training: passes of training so far.
            per_epoch: passes of training in one epoch, as known by now. available: rows of the validation
                set.
        """
        most = min(self.rows, available)
        wanted = int(self.share * per_epoch / self.cost)
        rows = max(min(self.fewest, most), min(wanted, most))
        return rows if rows and spent + rows * self.cost <= self.share * training else 0

    def answered(self, kind: str) -> bool:
        """Whether an alarm of this kind is answered by a rollback."""
        either = self.answers in (kind, "every") or (self.answers == "both" and kind != "chance")
        return self.rollback and either

    def collapsed(self, fgsm: float, pgd: float) -> bool:
        """Whether this looks like catastrophic overfitting."""
        # Either alone misleads: at a large radius one step is so weak that FGSM leaves much more than PGD of
        # a sound model too, and where both leave a few points, chance makes one twice the other.
        return fgsm - pgd >= self.gap and pgd <= fgsm / 2

    def calm(self, fgsm: float, pgd: float) -> bool:
        """Whether a state is good enough to come back to."""
        # Half the alarm's gap: a state close to the alarm would raise it again at the next check.
        return fgsm - pgd < self.gap / 2

    def overfitted(self, held: list[float], trained: list[float], rows: int) -> tuple[float, float] | None:
        """(best mean, last mean) of the held-out robust accuracy if it has fallen, as the class says.

        Args:
            held, trained: robust accuracy on held-out and on training data, a value an epoch.
            rows: of the held-out data.
        """
        w = self.window
        if len(held) < 2 * w:
            return None
        means = [sum(held[k : k + w]) / w for k in range(len(held) - w + 1)]
        gains = [sum(trained[k : k + w]) / w for k in range(len(held) - w + 1)]
        peak = max(
            range(len(means) - w + 1), key=means.__getitem__
        )  # the last window shares no epoch with it
        # An accuracy of 0 or 1 has no variance by the formula; one of its rows could still have been another.
        error = 2 * math.sqrt(max(means[peak] * (1 - means[peak]), 1 / rows) / rows)
        fell = means[peak] - means[-1] >= max(self.drop, error)
        return (means[peak], means[-1]) if fell and gains[-1] - gains[peak] >= self.drop else None
