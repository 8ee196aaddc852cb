"""Methods whose attack is one step, and what keeps them from collapsing."""

from __future__ import annotations

from bivallate.lower.objective import kl_to_clean
from bivallate.lower.pgd import PGD, Wider
from bivallate.lower.start import BackwardSmoothing, Uniform, zero
from bivallate.lower.threat import L2, Linf
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.upper.loss import Trades, adversarial
from bivallate.upper.regulariser import grad_align


@register("fgsm-at", family="single step", paper="Goodfellow et al., ICLR 2015", cost="2F + 2B")
def fgsm_at(threat: Linf | L2, *, step_size: float = 1.0) -> Method:
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
def n_fgsm(threat: Linf | L2, *, k: float = 2.0, step_size: float = 1.0) -> Method:
    """N-FGSM: one sign step from noise in k times the ball; the sum is not projected onto the ball.

    Objective: min mean_i CE(x_i + eta_i + eps sign grad CE(x_i + eta_i)), eta_i uniform in [-k eps, k eps],
    both sums clipped to [0, 1].

    Strong for its price, and hardly collapses; costs clean accuracy at large eps. Its training points lie up
    to (k + 1) eps away by design.

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
def fast_at_ga(threat: Linf | L2, *, coefficient: float | None = None, step_size: float = 1.25) -> Method:
    """Fast-AT with GradAlign: FGSM from the clean image, and a penalty on gradients that turn in the ball.

    Objective: FGSM-AT + coefficient (1 - mean_i cos(grad CE(x_i), grad CE(x_i + eta_i))), eta_i uniform.

    Prevents collapse where the coefficient is large enough, at the price of a double backward.

    Args:
        threat: the set of perturbations.
        coefficient: of the penalty; None follows the published law of eps (0.2 at 8/255, 2 at 16/255 and
            beyond), 0 is FGSM-AT.
        step_size: in units of eps; from the clean image everything above 1 is clamped to the ball.

    Cost: 3 forwards, 5 backwards (a double backward counts as two); the attack's gradient serves the penalty.

    Reference: Andriushchenko and Flammarion 2020, eq. 4-5.
    Deviation: the gradient at the clean image is held constant, as in both public codes, though the formula
    is symmetric (`but(loss__detach=False)`).
    """
    solver = PGD(1, step_size * threat.eps, zero)
    return Method(threat, solver, loss=grad_align(adversarial, coefficient), attack_mode="train")


@register("backward-smoothing", family="single step", paper="Chen et al., AAAI 2022", cost="(K+3)F + (K+3)B")
def backward_smoothing(
    threat: Linf | L2, *, gamma: float = 1.0, beta: float = 10.0, steps: int = 1, step_size: float = 1.0
) -> Method:
    """Backward Smoothing: TRADES whose start moves the logits towards randomly perturbed ones.

    Objective: TRADES. The start is one step from the clean image on -KL(softmax(q + psi) || softmax f), with
    q the clean logits and psi uniform in [-gamma, gamma].

    Args:
        threat: the set of perturbations.
        gamma: size of psi, in logits; at 0 the start's gradient is rounding noise.
        beta: weight of the robust term; the public command uses 10, its argument's default is 6.
        steps: K ascent steps after the start.
        step_size: of the start and of every step, in units of eps.

    Cost: K + 3 forwards, K + 3 backwards (the outer backward runs through two forwards); the pass of the
    start gives the clean logits too.

    Reference: Chen et al. 2022, section 4.
    """
    start = BackwardSmoothing(gamma, step_size)
    solver = PGD(steps, step_size * threat.eps, start)
    return Method(threat, solver, objective=kl_to_clean, loss=Trades(beta))
