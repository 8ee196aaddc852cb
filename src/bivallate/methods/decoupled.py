"""Methods that weigh the parts of the KL divergence separately."""

from __future__ import annotations

from bivallate.lower.class_means import ClassMeans
from bivallate.lower.objective import kl_to_clean
from bivallate.lower.pgd import PGD
from bivallate.lower.start import gaussian
from bivallate.lower.threat import Threat
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.upper.improved_kl import ImprovedKL


@register("ikl", family="standard", paper="Cui et al., NeurIPS 2024", cost="(K+3)F + (K+2)B")
def ikl(
    threat: Threat,
    *,
    alpha: float = 4.0,
    beta: float = 20.0,
    power: float = 1.0,
    temperature: float = 4.0,
    steps: int = 10,
    step_size: float = 0.25,
) -> Method:
    """IKL: TRADES with separate weights for the two parts of its divergence, and class-mean predictions.

    Minimises mean CE(x) + alpha H(p(x), p(x')) + beta / 4 sum_jk w_j w_k (n_jk - a_jk)^2 (see `ImprovedKL`);
    the attack is on the divergence.

    The defaults are for CIFAR-10 with a wide network. A beta this large keeps the logits small and slows the
    first epochs on small networks.

    Args:
        threat: the set of perturbations.
        alpha: weight of the cross-entropy of the two predictions.
        beta: weight of the squared distance of the logits' differences.
        power: gamma, exponent of the classes' mean predictions; 0.2 with temperature 1 in the code's other
            setting.
        temperature: T, of these predictions.
        steps: K, attack steps.
        step_size: in units of eps.

    Cost: K + 3 forwards, K + 2 backwards (the outer backward runs through two forwards).

    Reference: Cui et al. 2024; constants of the public code (train_dkl_cifar10.py, 2024). The paper's text
    was not available: the equations are those of the code.
    Deviation: see `ClassMeans`. That code attacks with 2 to 5 steps and trains with AWP (0.005), which
    `.but(loss=AWP(...))` adds.
    """
    solver = ClassMeans(PGD(steps, step_size * threat.eps, gaussian), temperature)
    return Method(threat, solver, objective=kl_to_clean, loss=ImprovedKL(alpha, beta, power))
