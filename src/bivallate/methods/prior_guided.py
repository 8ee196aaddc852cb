"""Single-step methods that use earlier steps: FGSM-PGI, LIET, SORA."""

from __future__ import annotations

from bivallate.coupling.implicit import Leaf
from bivallate.errors import check_range
from bivallate.lower.aligned_step import AlignedStep
from bivallate.lower.guided_objectives import SmoothedCrossEntropy
from bivallate.lower.single_steps import LabelInformation, PriorGuided
from bivallate.lower.threat import Threat
from bivallate.method import Method
from bivallate.methods.entries import register
from bivallate.schedule import Ramp
from bivallate.upper.loss import Adversarial
from bivallate.upper.smoothness_losses import Consistent, NoisyLabels


@register("fgsm-pgi", family="single step", paper="Jia et al., ECCV 2022", cost="2F + 3B")
def fgsm_pgi(
    threat: Threat,
    *,
    weight: float = 10.0,
    smoothing: float = 0.4,
    decay: float = 0.3,
    step_size: float = 1.0,
    reset: int | None = 40,
) -> Method:
    """FGSM-PGI (MEP): FGSM from a start by each image's earlier gradients, with a consistency penalty.

    Minimises CE(x + delta) with smoothed labels + weight mean ||f(x + delta) - f(x + eta)||^2 / K, eta the
    stored start (see `PriorGuided`) and delta one step from it.

    It stores two images for each training image. Strong smoothing and the penalty flatten the logits, so
    evaluate it with AutoAttack, not with PGD. On CIFAR-10 at 16/255 it overfitted catastrophically in epoch
    12 of 20, with one seed (docs/papers.md).

    Args:
        threat: the set of perturbations.
        weight: lambda.
        smoothing: of the labels, in attack and loss.
        decay: mu of the momentum.
        step_size: in units of eps.
        reset: epochs between resets; None for never.

    Cost: 2 forwards, 3 backwards; attack and penalty share a pass. Memory of two padded images a row.

    Reference: Jia et al. 2022, public code (FGSM_MEP.py). The paper's text was not available.
    Deviation: smoothing puts 0.4 / K on every class, the label included; that code puts 0.4 / (K - 1) on the
    others. See `PriorGuided`.
    """
    loss = Consistent(Adversarial(smoothing), weight, "logits")
    solver = PriorGuided(step_size, decay, reset)
    return Method(threat, solver, objective=SmoothedCrossEntropy(smoothing), loss=loss, attack_mode="train")


@register("liet", family="single step", paper="LIET, public code 2025", cost="2F + 3B")
def liet(
    threat: Threat,
    *,
    weight: float = 100.0,
    smoothing: float = 0.6,
    every: int = 10,
    least: float = 0.1,
    most: float = 0.5,
    step_size: float = 1.0,
) -> Method:
    """LIET: FGSM from class-informative perturbations mixed with noise, with a consistency penalty.

    Minimises CE(x + delta) with randomly smoothed labels + weight JS(p(x + eta), p(x + delta)); the weight
    grows over the epochs to its value, and eta is the start (see `LabelInformation`).

    The public code averages the network's weights (0.9995 a step: `--set average=0.9995`). Smoothing this
    strong weakens PGD: evaluate with AutoAttack. On CIFAR-10 at 16/255 it did not collapse, with one seed
    (docs/papers.md).

    Args:
        threat: the set of perturbations.
        weight: lambda in the last epoch; 200 for CIFAR-100, 20 for both at 16/255.
        smoothing: of the labels in attack and loss, 0.8 for CIFAR-100, 0.4 at 16/255.
        every: minibatches between two updates of the classes' perturbations; 20 for CIFAR-100.
        least: smallest share of noise.
        most: largest share of noise; 0 and 1 at 16/255.
        step_size: in units of eps.

    Cost: 2 forwards, 3 backwards; attack and penalty share a pass. Every `every` minibatches one pass for
    each class more, which the record counts.

    Reference: public code (fzjcdt/LIET); the paper was not available.
    Deviation: see `LabelInformation`.
    """
    check_range("weight", weight, 0)
    loss = Consistent(NoisyLabels(smoothing), Ramp(weight), "jensen-shannon")
    solver = LabelInformation(step_size, every, least, most)
    objective = SmoothedCrossEntropy(smoothing, random=True)
    return Method(threat, solver, objective=objective, loss=loss, attack_mode="train")


@register("sora", family="single step", paper="SORA, ICML 2026", cost="2F + 2B")
def sora(threat: Threat, *, step_size: float = 2.0, bend: float = 0.02, memory: float = 0.05) -> Method:
    """SORA: one step from noise, whose length follows how linear the loss has been along earlier steps.

    Minimises CE(x + eta + a u sgn g), see `AlignedStep`: where the gradients at the start and at the end of
    the step disagree, steps become shorter, before training collapses.

    Training points lie up to (1 + step_size) eps away. Where the loss is curved the step, and so the attack,
    becomes weak, which the record shows (`step`, `agreement`).

    Args:
        threat: the set of perturbations.
        step_size: longest step, in units of eps.
        bend: the step has its full length while 1 - c <= bend, c the agreement of the two gradients.
        memory: weight of the newest minibatch in the running mean.

    Cost: 2 forwards, 2 backwards.

    Reference: public code (SecondOrderAT/SORA, attacks/sora.py). Only the abstract of the paper was
    available.
    """
    solver = AlignedStep(step_size, bend, memory)
    return Method(threat, solver, coupling=Leaf(), attack_mode="train")
