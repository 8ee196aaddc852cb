"""Methods whose attack grows during training or stops early on each example."""

from __future__ import annotations

from typing import Literal

from bivallate.errors import UserError, check_range, unknown
from bivallate.lower.curriculum import BatchMixing, Curriculum, Levels
from bivallate.lower.estimated_threshold import EstimatedThreshold
from bivallate.lower.modes import AttackMode
from bivallate.lower.objective import kl_to_clean
from bivallate.lower.pgd import PGD
from bivallate.lower.start import gaussian, uniform
from bivallate.lower.stop import Form, FOSCBelow, Misclassified
from bivallate.lower.threat import Threat
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.schedule import Linear, Milestones
from bivallate.upper.loss import Trades
from bivallate.weighting.base import equal
from bivallate.weighting.rules import OwnLoss

C_MAX = 0.5  # of the paper, in the ball form
FAT_TAU = Milestones(values=(0.0, 1.0, 2.0), at=(50 / 120, 90 / 120))
FAT_TRADES_TAU = Milestones(values=(0.0, 1.0, 2.0, 3.0), at=(30 / 85, 50 / 85, 70 / 85))


@register("dynamic", family="adaptive", paper="Wang et al., ICML 2019", cost="(K+1)F + (K+1)B at most")
def dynamic(
    threat: Threat,
    *,
    c_max: float | None = None,
    until: float = 5 / 6,
    steps: int = 10,
    step_size: float = 0.25,
    form: Form = "ball",
    estimate: bool = False,
    fosc_origin: Literal["clean", "start"] = "clean",
    loss_reweight: bool = False,
) -> Method:
    """Dynamic AT: each example is attacked until its FOSC falls below a threshold that decreases to zero.

    Objective: that of AT, with the lower level solved until FOSC <= c_t = max(c_max (1 - t / T'), 0) at epoch
    t, or for K steps. FOSC is the first-order stationary condition, 0 at a stationary point.

    FOSC depends on the scale of the loss and on the number of pixels, so c_max does not carry over to other
    image sizes or to the other form; the mean FOSC of FGSM points of the first minibatch is a reasonable
    value (`estimate`). The logs hold the mean FOSC of each epoch, over the gradients that were computed.

    Args:
        threat: the set of perturbations.
        c_max: first threshold, in nats; None is the paper's 0.5 in the ball form, and an estimate in the box
            form.
        until: T' / T, fraction of the epochs at which the threshold reaches zero: 100/120 on CIFAR-10, 40/50
            on MNIST.
        steps: K.
        step_size: in units of eps.
        form: of FOSC: "ball", as in eq. 4, or "box", the ball within [0, 1]; see `fosc`.
        estimate: estimate c_max from the first minibatch also in the ball form, see `EstimatedThreshold`.
        fosc_origin: "clean" measures from the clean image; "start" from the random start, as the public code
            does, and needs form="ball".
        loss_reweight: from the second epoch on multiply each loss by itself, as the public code does.

    Cost: at most K + 1 forwards, K + 1 backwards; an example that has stopped costs nothing in eval mode.

    Reference: Wang et al. 2019, eq. 4 and algorithm 1.
    Deviation: the comparison in algorithm 1 is read as c > c_t (the printed one is reversed).
    """
    if c_max is not None:
        check_range("c_max", c_max, 0)
        if estimate:
            raise UserError(f"c_max is either given or estimated, got c_max={c_max:g} and estimate=true")
    estimate = estimate or (c_max is None and form == "box")
    stop = FOSCBelow(Linear(start=C_MAX if c_max is None else c_max, end=0.0, until=until), form, fosc_origin)
    solver = PGD(steps, step_size * threat.eps, uniform, stop=stop)
    solver = EstimatedThreshold(solver) if estimate else solver
    return Method(threat, solver, weighting=OwnLoss() if loss_reweight else equal)


@register("curriculum", family="adaptive", paper="Cai et al., IJCAI 2018", cost="(k+1)F + (k+1)B, k to K")
def curriculum(
    threat: Threat,
    *,
    mode: Literal["schedule", "cai"] = "schedule",
    steps: int = 10,
    step_size: float = 0.25,
    until: float = 5 / 6,
    patience: int = 10,
    threshold: float = 0.9,
    held_out: bool = True,
    attack_mode: AttackMode = "eval",
) -> Method:
    """Curriculum AT: the number of attack steps k grows during training.

    Objective: that of AT. With "schedule" there are k = min(K, floor(t (K + 1) / T')) steps at epoch t, as in
    the comparison of the Dynamic AT paper. With "cai" each minibatch is split into parts with 0, ..., k
    steps, and k rises when accuracy stops improving.

    With equal numbers of steps, examples still differ widely in FOSC: equal steps are not equal convergence.

    Args:
        threat: the set of perturbations.
        mode: "schedule" or "cai".
        steps: K, the last level.
        step_size: in units of eps ("schedule"; "cai" draws its own).
        until: T' / T ("schedule"): this fraction of the epochs is divided equally among the levels 0, ..., K;
            level K so begins at the fraction until K / (K + 1) and stays.
        patience: epochs without improvement after which the level rises ("cai"), if
        threshold: this accuracy on the training passes is reached.
        held_out: judge improvement on held-out data and restore the level's best weights when the level rises
            ("cai"); else judge by the training passes and restore nothing.
        attack_mode: BatchNorm while attacking.

    Cost: k + 1 forwards, k + 1 backwards; in mode "cai" k / 2 + 1 on average.

    Reference: Cai et al. 2018, section 3.
    Deviation: inputs are not quantised; "cai" ends at level K and attacks in eval mode by default, where the
    public code uses train mode (attack_mode). The step size on held-out data is not stated: eps/4 here.
    """
    if mode not in ("schedule", "cai"):
        raise unknown("mode of the curriculum", str(mode), ("schedule", "cai"))
    if mode == "cai":
        mixing = BatchMixing(highest=steps, patience=patience, threshold=threshold, held_out=held_out)
        return Method(threat, mixing, attack_mode=attack_mode)
    solver = Curriculum(PGD(steps, step_size * threat.eps, uniform), Levels(steps, until))
    return Method(threat, solver, attack_mode=attack_mode)


@register("fat", family="adaptive", paper="Zhang et al., ICML 2020", cost="(K+1)F + (K+1)B at most")
def fat(
    threat: Threat,
    *,
    tau: int | None = None,
    steps: int = 10,
    step_size: float = 7 / 31,
    omega: float = 0.001,
) -> Method:
    """FAT: the attack on an example ends tau steps after the example is first misclassified.

    Objective: the loss of AT, at the least adversarial of the misclassified points (PGD-K-tau).

    Keeps clean accuracy high. Its training points are weak, so that robustness against strong attacks is
    lower than with AT while tau is small.

    Args:
        threat: the set of perturbations.
        tau: further steps after misclassification; None is the paper's schedule: 0, 1, 2 from epochs 0, 50,
            90 of 120, scaled to the length of the run.
        steps: K.
        step_size: in units of eps: 0.007 at 0.031.
        omega: standard deviation of the noise added at every step, in pixel units.

    Cost: at most K + 1 forwards, K + 1 backwards; an example that has stopped costs nothing in eval mode.

    Reference: Zhang et al. 2020, algorithm 1.
    Deviation: the public code reorders the minibatch as examples stop; here examples keep their positions.
    """
    stop = Misclassified(FAT_TAU if tau is None else tau)
    return Method(threat, PGD(steps, step_size * threat.eps, uniform, stop=stop, jitter=omega))


@register("fat-trades", family="adaptive", paper="Zhang et al., ICML 2020", cost="(K+3)F + (K+2)B at most")
def fat_trades(
    threat: Threat,
    *,
    beta: float = 6.0,
    tau: int | None = None,
    steps: int = 10,
    step_size: float = 7 / 31,
    omega: float = 0.0,
) -> Method:
    """FAT on TRADES: the attack on the divergence ends tau steps after the example is first misclassified.

    Args:
        threat: the set of perturbations.
        beta: weight of the robust term.
        tau: as `fat`; None is 0, 1, 2, 3 from epochs 0, 30, 50, 70 of 85, the length of the public code's
            TRADES run, scaled to the run: with the recipe's 120 epochs from 42, 71 and 99.
        steps, step_size: as `fat`.
        omega: as `fat`; the public code has 0 here.

    Cost: at most K + 3 forwards, K + 2 backwards (the outer backward runs through two forwards).

    Reference: Zhang et al. 2020, section 4.
    """
    stop = Misclassified(FAT_TRADES_TAU if tau is None else tau)
    solver = PGD(steps, step_size * threat.eps, gaussian, stop=stop, jitter=omega)
    return Method(threat, solver, objective=kl_to_clean, loss=Trades(beta))
