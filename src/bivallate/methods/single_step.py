"""Methods with a one-step attack, and their means against catastrophic overfitting."""

from __future__ import annotations

from bivallate.errors import check_range
from bivallate.lower.distances import DistanceName
from bivallate.lower.guided_objectives import GuidedCrossEntropy
from bivallate.lower.objective import kl_to_clean
from bivallate.lower.pgd import PGD, Wider
from bivallate.lower.start import BackwardSmoothing, Signs, Uniform, uniform, zero
from bivallate.lower.threat import Threat
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.schedule import Linear, Milestones, Schedule
from bivallate.upper.loss import Trades, adversarial
from bivallate.upper.regulariser import grad_align
from bivallate.upper.smoothness_losses import Abnormal, Guided, LocallyLinear


@register("fgsm-at", family="single step", paper="Goodfellow et al., ICLR 2015", cost="2F + 2B")
def fgsm_at(threat: Threat, *, step_size: float = 1.0) -> Method:
    """FGSM-AT: one sign step from the clean image.

    Objective: min mean_i CE(x_i + Pi(eps sign grad CE(x_i))).

    Collapses (catastrophic overfitting): PGD accuracy falls to zero while FGSM accuracy rises, at smaller eps
    than with a random start.

    Args:
        threat: the set of perturbations.
        step_size: in units of eps; more than 1 is clamped to the ball.

    Cost: 2 forwards, 2 backwards.

    Reference: Goodfellow et al. 2015, section 6.
    """
    return Method(threat, PGD(1, step_size * threat.eps, zero), attack_mode="train")


@register("n-fgsm", family="single step", paper="de Jorge et al., NeurIPS 2022", cost="2F + 2B")
def n_fgsm(threat: Threat, *, k: float = 2.0, step_size: float = 1.0) -> Method:
    """N-FGSM: one sign step from noise in a ball of radius k eps, without projection onto the ball.

    Objective: min mean_i CE(x_i + eta_i + eps sign grad CE(x_i + eta_i)), eta_i uniform in [-k eps, k eps],
    both sums clipped to [0, 1].

    Robust for its low cost; loses clean accuracy at large eps. It did not collapse on CIFAR-10 at 16/255
    with two seeds (docs/papers.md), and ended at 3 % under PGD on digits at 0.3 (docs/sentinel.md). Its
    training points lie up to (k + 1) eps away by design.

    Args:
        threat: the set of perturbations; the solver's own ball has radius k + step_size times eps.
        k: half-width of the noise in units of eps: 2; 3 for SVHN at 12/255, 4 for wide nets at 16/255.
        step_size: in units of eps.

    Cost: 2 forwards, 2 backwards.

    Reference: de Jorge et al. 2022, algorithm 1.
    """
    inner = PGD(1, step_size * threat.eps, Uniform(k))
    return Method(threat, Wider(inner, k + step_size), attack_mode="train")


@register("fast-at-ga", family="single step", paper="Andriushchenko et al., NeurIPS 2020", cost="3F + 5B")
def fast_at_ga(threat: Threat, *, coefficient: float | None = None, step_size: float = 1.25) -> Method:
    """Fast-AT with GradAlign: FGSM from the clean image, and a penalty on gradients that differ in the ball.

    Objective: FGSM-AT + coefficient (1 - mean_i cos(grad CE(x_i), grad CE(x_i + eta_i))), eta_i uniform.

    Prevents collapse if the coefficient is large enough, at the cost of a double backward.

    Args:
        threat: the set of perturbations.
        coefficient: of the penalty; None follows the published function of eps (0.2 at 8/255, 2 at 16/255 and
            beyond); 0 is FGSM-AT.
        step_size: in units of eps; from the clean image a step above 1 is clamped to the ball.

    Cost: 3 forwards, 5 backwards (a double backward counts as two); the penalty reuses the attack's gradient.

    Reference: Andriushchenko and Flammarion 2020, eq. 4-5.
    Deviation: the gradient at the clean image is held constant, as in both public codes, though the formula
    is symmetric (`but(loss__detach=False)`).
    """
    solver = PGD(1, step_size * threat.eps, zero)
    return Method(threat, solver, loss=grad_align(adversarial, coefficient), attack_mode="train")


@register("backward-smoothing", family="single step", paper="Chen et al., AAAI 2022", cost="(K+3)F + (K+3)B")
def backward_smoothing(
    threat: Threat, *, gamma: float = 1.0, beta: float = 10.0, steps: int = 1, step_size: float = 1.0
) -> Method:
    """Backward Smoothing: TRADES with a start that moves the logits towards randomly perturbed ones.

    Objective: TRADES. The start is one step from the clean image on -KL(softmax(q + psi) || softmax f), with
    q the clean logits and psi uniform in [-gamma, gamma].

    It costs twice the passes of N-FGSM, and on digits at eps 0.3 it stays below AT with PGD-10
    (docs/sentinel.md). On CIFAR-10 at 16/255 PGD-50-10 leaves 14 % and AutoAttack 4: judge it by AutoAttack
    (docs/papers.md).

    Args:
        threat: the set of perturbations.
        gamma: size of psi, in logits; at 0 the start's gradient is rounding noise.
        beta: weight of the robust term; the public command uses 10, its argument's default is 6.
        steps: K ascent steps after the start.
        step_size: of the start and of every step, in units of eps.

    Cost: K + 3 forwards, K + 3 backwards (the outer backward runs through two forwards); the start's pass
    also gives the clean logits.

    Reference: Chen et al. 2022, section 4.
    """
    start = BackwardSmoothing(gamma, step_size)
    solver = PGD(steps, step_size * threat.eps, start)
    return Method(threat, solver, objective=kl_to_clean, loss=Trades(beta))


def _guided(threat: Threat, weight: float | Schedule, distance: DistanceName, noise: float) -> Method:
    """One step from a corner of the smaller ball, on the guided objective in every other minibatch."""
    solver = PGD(1, threat.eps, Signs(noise))
    return Method(
        threat, solver, objective=GuidedCrossEntropy(weight, distance), loss=Guided(weight, distance)
    )


@register("gat", family="single step", paper="Sriramanan et al., NeurIPS 2020", cost="4F + 3B at most")
def gat(threat: Threat, *, weight: float = 10.0, last: float = 4.0, noise: float = 0.5) -> Method:
    """GAT: one attack step, guided every other minibatch by the distance of predictions, which the loss adds.

    Minimises mean CE(x) + weight mean ||p(x) - p(x')||^2. The attack is one step of eps from x plus a random
    corner of the ball of radius noise eps, alternately on CE and on CE + weight ||p(x) - p||^2.

    The cross-entropy is taken at the clean points only, so that robustness depends on the weight, which grows
    late in training. On CIFAR-10 at 16/255 it did not collapse, with one seed, and was better than N-FGSM
    on clean images and worse under AutoAttack (docs/papers.md).

    Args:
        threat: the set of perturbations.
        weight: lambda; the default is for 8/255 on CIFAR-10.
        last: factor of the weight in the last 14 % of the epochs.
        noise: of the start, in units of eps.

    Cost: 4 forwards, 3 backwards in guided minibatches, and one forward fewer in the others (the outer
    backward runs through two forwards).

    Reference: Sriramanan et al. 2020, public code (GAT_cifar10.py).
    Deviation: see `GuidedCrossEntropy`.
    """
    check_range("weight", weight, 0)
    check_range("last", last, 0)
    grown = Milestones(values=(weight, last * weight), at=(0.86,))
    return _guided(threat, grown, "softmax", noise)


@register("nuat", family="single step", paper="Sriramanan et al., NeurIPS 2021", cost="4F + 3B at most")
def nuat(threat: Threat, *, weight: float = 4.5, until: float = 0.9, noise: float = 0.5) -> Method:
    """NuAT: as `gat`, with the nuclear norm of the change of the minibatch's logits as distance.

    Minimises mean CE(x) + weight ||F(X) - F(X')||_* / B, F the matrix of logits; the weight grows from 0.

    The norm is the sum of the singular values of one matrix, so results depend on the batch size. With small
    minibatches, or more classes than rows, the matrix has low rank and the norm means less.

    Args:
        threat: the set of perturbations.
        weight: lambda at the end; the default is for ResNet-18 on CIFAR-10 at 8/255.
        until: fraction of the epochs at which it is reached.
        noise: of the start, in units of eps.

    Cost: 4 forwards, 3 backwards in guided minibatches, and one forward fewer in the others (the outer
    backward runs through two forwards); a singular value decomposition of B x K numbers.

    Reference: Sriramanan et al. 2021, public code (NuAT_cifar10.py).
    Deviation: see `GuidedCrossEntropy`; with several processes the norm is taken over each process's rows.
    """
    check_range("weight", weight, 0)
    return _guided(threat, Linear(0.0, weight, until), "nuclear", noise)


@register("elle", family="single step", paper="Abad Rocamora et al., ICLR 2024", cost="5F + 5B")
def elle(threat: Threat, *, coefficient: float | None = None, step_size: float = 1.0) -> Method:
    """ELLE: FGSM from the clean image, and a penalty on the loss's deviation from linearity in the ball.

    Minimises FGSM-AT + coefficient mean (l(x_c) - (1 - a) l(x_a) - a l(x_b))^2, see `LocallyLinear`.

    It needs no double backward, unlike GradAlign. The penalty does not always prevent collapse: in a public
    comparison its robustness under AutoAttack is far behind, so train it with the sentinel.

    Args:
        threat: the set of perturbations.
        coefficient: of the penalty; None follows the public code's values by eps (1000 at 8/255), and is 10
            beyond its largest eps, 26/255, found by trial on digits. They are of CIFAR-10: on Fashion-MNIST
            at eps 0.1 training diverges with theirs, 10000 (docs/audit.md).
        step_size: in units of eps.

    Cost: 5 forwards, 5 backwards.

    Reference: Abad Rocamora et al. 2024; public code (core/utils/train.py, scripts).
    Deviation: the public code leaves [0, 1] and calls its optimiser twice a minibatch; neither is copied. The
    variant ELLE-A, which switches the penalty on when it jumps, is left out.
    """
    solver = PGD(1, step_size * threat.eps, zero)
    return Method(threat, solver, loss=LocallyLinear(adversarial, coefficient), attack_mode="train")


@register("aaer", family="single step", paper="Lin et al., NeurIPS 2023", cost="2F + 2B")
def aaer(
    threat: Threat,
    *,
    noise: float = 2.0,
    step_size: float = 1.0,
    loss_weight: float = 1.5,
    variation_weight: float = 0.15,
) -> Method:
    """AAER: N-FGSM with a penalty on abnormal examples, whose loss falls under attack: a sign of collapse.

    Minimises CE(x') + the terms of the abnormal examples, see `Abnormal`. noise=1 gives its other form, based
    on Fast-AT (`step_size=1.25, loss_weight=2.5, variation_weight=1.5`), whose steps stay in the ball.

    The published weights differ by radius and data set: the defaults are those of CIFAR-10 at 8/255 (8.5 and
    1.5 at 16/255, where neither it, with one seed, nor N-FGSM collapsed: docs/papers.md).

    Args:
        threat: the set of perturbations.
        noise: half-width of the start in units of eps; above 1 nothing is projected on the ball.
        step_size: in units of eps.
        loss_weight: lambda_1 lambda_2. It changes the reported loss and no gradient: its term is constant, as
            in the public code, which detaches both losses. `--set loss.constant=false` lets it act.
        variation_weight: lambda_1 lambda_3, the one that acts.

    Cost: 2 forwards, 2 backwards.

    Reference: Lin et al. 2023, section 3; weights of the public code's README.
    Deviation: the public code's step grows for five epochs; here it has its length at once.
    """
    loss = Abnormal(adversarial, loss_weight, variation_weight)
    inner = PGD(1, step_size * threat.eps, Uniform(noise) if noise != 1 else uniform)
    solver = Wider(inner, noise + step_size) if noise > 1 else inner
    return Method(threat, solver, loss=loss, attack_mode="train")
