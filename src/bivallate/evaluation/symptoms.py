"""The checks of the pre-flight; each reports symptoms of a fault with the evidence and a cure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.evaluation.logit_difference import apart, same_values
from bivallate.evaluation.neighbourhood import Probe, probe
from bivallate.evaluation.points import check_labels
from bivallate.evaluation.verify import logits_of
from bivallate.lower.input_guard import call_unharmed
from bivallate.lower.threat import Linf, ThreatModel
from bivallate.noise import Noise
from bivallate.types import Passes

__all__ = [
    "Finding",
    "few_classes",
    "hidden_gradients",
    "images",
    "logits_or_fault",
    "modes",
    "outputs",
    "repeatable",
    "restore_buffers",
    "stateless",
]

DIFFERENT = 1e-3  # difference, relative to the largest margin, that is reported; rounding stays below 1e-5
SHARE = 0.1  # share of the points that may show a symptom by chance


@dataclass(frozen=True)
class Finding:
    """A fault, or a fact that a reader of the result must know.

    Attributes:
        severity: "error" (results of attacks would be meaningless), "warning" (results may overstate
            robustness) or "note".
        name: a short word for programs.
        what: the fault.
        got: the evidence.
        fix: what to do.
    """

    severity: str
    name: str
    what: str
    got: str
    fix: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.what}: {self.got}. {self.fix}"


def images(x: Tensor) -> Iterator[Finding]:
    """Check that images are floating point, finite, in [0, 1], and neither uniform nor almost black."""
    if not x.is_floating_point():
        fix = "Divide bytes by 255 and hand over floating point"
        yield Finding("error", "dtype", "images must be floating point in [0, 1]", f"{x.dtype}", fix)
        return
    if not bool(x.isfinite().all()):
        fix = "Mend the data: no attack can start there"
        yield Finding("error", "range", "images hold NaN or infinite values", "not finite", fix)
        return
    low, high = (float(v) for v in x.aminmax())
    if low < 0 or high > 1:
        yield Finding(
            "error", "range", "images must lie in [0, 1]", f"values from {low:.3g} to {high:.3g}", _cure(x)
        )
    elif high - low < 1e-6:
        fix = "Look at the images: `bivallate datasets NAME --sheet sheet.png`"
        yield Finding("warning", "range", "all pixels are equal", f"{low:.3g}", fix)
    elif high <= 8 / 255 and len(x) >= 8:
        fix = "If bytes were divided by 255 twice, do it once: eps is in units of [0, 1]"
        yield Finding("warning", "range", "images are almost black", f"no value above {high:.3g}", fix)


def _cure(x: Tensor) -> str:
    low, high, mean, std = float(x.min()), float(x.max()), float(x.mean()), float(x.std())
    if low >= 0 and high > 2:
        return "These look like bytes: divide by 255"
    if low >= -1.001 and high <= 1.001 and low < -0.9 and high > 0.9:
        return (
            "These look scaled to [-1, 1]: hand over (x + 1) / 2 and put 2 x - 1 into the model's first layer"
        )
    if abs(mean) < 1 and 0.3 < std < 3:
        return (
            "These look standardised outside the model: hand over pixels and give the model mean= and std=, "
            "so that eps keeps its unit"
        )
    return "Hand over pixels; normalisation belongs into the model's first layer"


def modes(model: Any) -> Iterator[Finding]:
    """Check that the model is in eval mode and .eval() reaches all of it; its modes stay as they are."""
    if not isinstance(model, nn.Module):
        return
    found = [(m, m.training) for m in model.modules()]
    try:
        if model.training:
            fix = "It is evaluated in eval mode; call model.eval() wherever else it is used"
            yield Finding("note", "train-mode", "the model is in train mode", "model.training is True", fix)
        model.eval()
        stubborn = [type(m).__name__ for m in model.modules() if m.training]
    finally:
        for module, training in found:
            module.training = training
    if stubborn:
        fix = "Let .train(mode) and .eval() reach every module; do not override them with a constant"
        got = f"still in train mode: {', '.join(stubborn[:3])}"
        yield Finding("error", "ignores-eval", "the model ignores .eval()", got, fix)


def logits_or_fault(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor | None, list[Finding]]:
    """(B, K) logits, or None and a finding: no finite logits, or labels that do not fit them."""
    try:
        logits = logits_of(model, x, Passes())
    except UserError as error:
        fix = "Return one finite logit a class"
        return None, [Finding("error", "logits", "the model does not return logits", str(error), fix)]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the first call of the user's own code
        got, fix = f"{type(error).__name__}: {error}".splitlines()[0], "Call it on these images and mend it"
        return None, [Finding("error", "logits", "the model fails on the images", got, fix)]
    try:
        check_labels(y, logits.shape[1])
    except UserError as error:
        fix = "Number the classes from 0, in the order of the model's outputs"
        return None, [Finding("error", "labels", "labels do not fit the model", str(error), fix)]
    return logits, []


def few_classes(names: Sequence[str], y: Tensor) -> Iterator[Finding]:
    """Check that there are enough classes for the attacks, and points of more than one class."""
    classes = len(names)
    if classes < 4:
        got, fix = f"{classes} classes", "Targeted attacks then use the plain difference of two logits"
        yield Finding("note", "classes", "too few classes for the targeted DLR loss, which needs 4", got, fix)
    elif classes < 10:
        got, fix = f"{classes} classes", f"AutoAttack then has {classes - 1} targets a point"
        yield Finding("note", "classes", "fewer classes than AutoAttack's 9 targets", got, fix)
    if len(y) >= 8 and bool((y == y[0]).all()):
        fix = "Shuffle, or take a random subset with --n"
        got = f"every label is {names[int(y[0])]}"
        yield Finding("warning", "one-class", "the points are of one class", got, fix)


def outputs(logits: Tensor) -> Iterator[Finding]:
    """Check that outputs are logits, not probabilities or their logarithms."""
    total = logits.sum(1)
    if bool((logits >= 0).all()) and bool(((total - 1).abs() < 1e-3).all()):
        yield Finding(
            "error",
            "probabilities",
            "the model returns probabilities, not logits",
            "rows are not negative and sum to 1",
            "Remove the softmax: cross-entropy applies its own, and twice it hides the gradient",
        )
    elif bool((logits <= 0).all()) and bool((logits.logsumexp(1).abs() < 1e-3).all()):
        fix = "Attacks are unharmed by it; logits would do"
        got = "rows are not positive, their exponentials sum to 1"
        yield Finding("note", "log-probabilities", "the model returns log-probabilities", got, fix)


def repeatable(model: nn.Module, x: Tensor, logits: Tensor) -> Iterator[Finding]:
    """Check that outputs are the same twice, in another order, alone, and when gradients are computed."""
    with torch.no_grad():
        again = apart(call_unharmed(model, x), logits)
        turned = apart(call_unharmed(model, x.flip(0)).flip(0), logits)
    try:
        with torch.no_grad():
            alone = torch.cat([call_unharmed(model, x[i : i + 1]) for i in range(min(4, len(x)))])
        single = apart(alone, logits, len(alone))
    except (ValueError, RuntimeError):  # there are no batch statistics of one point
        single = float("inf")
    if again > DIFFERENT:
        yield Finding(
            "error",
            "random",
            "outputs depend on randomness",
            f"two passes over the same points differ by {again:.1%} of the largest margin",
            "Turn noise and dropout off at inference; if randomness is the defence, attack its expectation "
            "(autoattack-rand)",
        )
        return
    with torch.enable_grad():
        asked = apart(call_unharmed(model, x.clone().requires_grad_()).detach(), logits)
    if asked > DIFFERENT:
        fix = "Answer alike whether or not a gradient is asked for: attacks see the one, verdicts the other"
        got = f"where a gradient is asked for they differ by {asked:.1%} of the largest margin"
        yield Finding("error", "gradient-mode", "outputs depend on whether a gradient is wanted", got, fix)
    if max(turned, single) > DIFFERENT:
        yield Finding(
            "error",
            "batch",
            "outputs depend on the other points of the batch",
            f"in another batch they differ by {max(turned, single):.1%} of the largest margin"
            if single < float("inf")
            else "a batch of one point raises an error",
            "Use running statistics in eval mode (BatchNorm with track_running_stats, no training=True)",
        )


def _nearby(x: Tensor, threat: ThreatModel | None) -> Tensor:
    """A random point in the threat's ball around each x; in Linf 0.03 without a threat."""
    ball = threat if threat is not None and threat.eps > 0 else Linf(0.03)
    noise = Noise(0, torch.arange(len(x), device=x.device))
    return x + ball.project(ball.random(noise, x), x)


def stateless(
    model: nn.Module, fresh: nn.Module | None, x: Tensor, threat: ThreatModel | None
) -> Iterator[Finding]:
    """Check that outputs do not depend on earlier passes, by comparison with a fresh copy.

    Args:
        fresh: a copy from before the first pass; None if the model cannot be copied.
    """
    if fresh is None:
        return
    near = _nearby(x, threat)
    with torch.no_grad():
        expected, got = call_unharmed(fresh, near), call_unharmed(model, near)
    differ = apart(got, expected)
    if differ > DIFFERENT:
        fix = "An evaluated model must not remember what it was asked: every answer a function of its image"
        text = f"near points that it has seen its logits differ by {differ:.1%} from those of a fresh copy"
        yield Finding("error", "stateful", "the model remembers questions", text, fix)


def restore_buffers(model: nn.Module, before: dict[str, Tensor]) -> Iterator[Finding]:
    """Restore buffers that passes in eval mode have moved, and report them."""
    moved = [k for k, v in model.named_buffers() if k in before and not same_values(v, before[k])]
    for name, buffer in model.named_buffers():
        if name in moved:
            buffer.copy_(before[name])
    if moved:
        fix = "An evaluated model must not learn from the points: no training=True, no counters of queries"
        got = f"passes in eval mode moved {', '.join(moved[:3])}"
        yield Finding("error", "stateful", "the model changes while it is evaluated", got, fix)


def hidden_gradients(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel | None
) -> tuple[Probe, Probe, list[Finding]]:
    """Check gradients at the points and in the threat's ball around them for signs of masking."""
    clean = probe(model, x, y)
    near = probe(model, _nearby(x, threat), y, seed=1)
    return clean, near, list(_masked(clean, near))


def _masked(clean: Probe, near: Probe) -> Iterator[Finding]:
    def share(name: str) -> float:
        return max(getattr(clean, name), getattr(near, name))

    if not clean.differentiable:
        fix = "Remove detach(), no_grad() and conversions to numpy; otherwise only Square says anything"
        got = "no graph leads from the image to the logits"
        yield Finding("error", "no-gradient", "the model cannot be differentiated", got, fix)
        return
    if share("nonfinite") > 0:
        fix = "Look for divisions by zero, roots and logarithms at zero"
        got = f"at {share('nonfinite'):.0%} of the points"
        yield Finding("error", "nonfinite", "input gradients are not finite", got, fix)
    if share("flat") > 2 * SHARE:
        yield Finding(
            "warning",
            "quantised",
            "the model quantises its input or its output",
            f"a step of 0.001 changes no logit at {share('flat'):.0%} of the points",
            "Attack through the rounding as if it were the identity (bivallate audit does), and run Square",
        )
    elif share("dead") > SHARE:
        fix = "Gradient attacks are blind here: run Square and transfer (bivallate audit does)"
        got = f"exactly zero at {share('dead'):.0%} of the points"
        yield Finding("warning", "dead", "the margin has no input gradient", got, fix)
    if share("saturated") > SHARE:
        yield Finding(
            "warning",
            "saturated",
            "the logits saturate the cross-entropy, whose input gradient vanishes",
            f"at {share('saturated'):.0%} of the points",
            "Attack with a loss that does not know their scale: apgd-dlr, apgd-t, autoattack",
        )
    if share("false") > 2 * SHARE and share("flat") <= 2 * SHARE:
        fix = "Look for detach(), custom backward functions and hard branches; trust Square and transfer more"
        got = f"finite differences contradict them at {share('false'):.0%} of the points"
        yield Finding("warning", "false-gradient", "gradients do not describe the model", got, fix)
