"""Pre-flight: what is wrong with a model or its data that no attack would notice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.evaluate.evaluating import _placed
from bivallate.evaluate.points import check_labels, points
from bivallate.evaluate.probe import Probe, probe
from bivallate.evaluate.verdict import logits_of
from bivallate.lower.threat import Linf, ThreatModel
from bivallate.noise import Noise
from bivallate.types import Passes

__all__ = ["Finding", "Preflight", "preflight"]

ROWS = 32
SLOW = 0.02  # seconds a point above which fewer points are looked at
DIFFERENT = 1e-3  # relative to the largest logit; rounding stays below 1e-5
SHARE = 0.1  # of the points that may show a symptom by chance


@dataclass(frozen=True)
class Finding:
    """One thing that a reader of the result must know.

    Attributes:
        severity: "error" (no attack's result would mean anything), "warning" (it may flatter the model) or
            "note".
        name: a short word for programs. what: is wrong; got: the evidence; fix: what to do.
    """

    severity: str
    name: str
    what: str
    got: str
    fix: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.what}: {self.got}. {self.fix}"


@dataclass(frozen=True)
class Preflight:
    """The findings, errors first.

    Attributes:
        points, classes: that were looked at. seconds: wall time.
        clean, near: of the model's gradients at the points and in the threat's ball about them; None where an
            error stood in the way.
    """

    findings: tuple[Finding, ...]
    points: int
    classes: int
    seconds: float
    clean: Probe | None = None
    near: Probe | None = None

    @property
    def ok(self) -> bool:
        """No error and no warning; notes do not count."""
        return all(f.severity == "note" for f in self.findings)

    def named(self, name: str) -> Finding | None:
        """The finding of that name, if there is one."""
        return next((f for f in self.findings if f.name == name), None)

    def __str__(self) -> str:
        """One line when all is well, else a line a finding."""
        notes = "".join(f"; {f}" for f in self.findings) if self.ok else ""
        if self.ok:
            return f"pre-flight: all is well ({self.points} points, {self.classes} classes{notes})"
        return "\n".join(["pre-flight:", *(f"  {finding}" for finding in self.findings)])


def preflight(
    model: nn.Module | Callable[[Tensor], Tensor], data: Any, threat: ThreatModel | None = None
) -> Preflight:
    """Looks a model and its data over before any attack. The model is left as found.

    Args:
        data: a split, or a pair (x, y) of tensors.
        threat: the radius within which gradients are looked at; 0.03 (Linf) if not given.

    Cost: about 20 forwards and 4 backwards on 32 points, 8 where the model is slow.

    Raises:
        UserError: data is neither a split nor a pair, or is empty.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
        >>> report = preflight(model, (torch.rand(50, 1, 2, 2) * 255, torch.randint(0, 10, (50,))))
        >>> report.findings[0].name
        'range'
    """
    began = time.perf_counter()
    source = points(data)
    if len(source) == 0:
        raise UserError("there are no points to look at: the data is empty")
    rows = torch.linspace(0, len(source) - 1, min(ROWS, len(source))).long()
    x, y = source.tensors(rows)
    findings = [*_images(x), *_modes(model)]
    classes, clean, near = 0, None, None
    with torch.random.fork_rng(devices=[]), _placed(model, None) as (module, where, dtype):
        if x.is_floating_point() and bool(x.isfinite().all()):
            x, y = _affordable(module, x.to(where, dtype), y.to(where))
            before = {k: v.clone() for k, v in module.named_buffers()}
            logits, more = _logits(module, x, y)
            findings += more
            if logits is not None:
                classes = logits.shape[1]
                findings += [*_classes(classes, y), *_outputs(logits), *_repeatable(module, x, logits)]
                findings += [] if any(f.name == "range" for f in findings) else _scale(module, x, y, logits)
                clean, near, more = _gradients(module, x, y.long(), threat)
                findings += more
            findings += _unmoved(module, before)
    order = ("error", "warning", "note")
    findings.sort(key=lambda finding: order.index(finding.severity))
    return Preflight(tuple(findings), len(x), classes, time.perf_counter() - began, clean, near)


def _affordable(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Fewer points where a forward is slow, so that all takes seconds."""
    began = time.perf_counter()
    try:
        with torch.no_grad():
            model(x[:2])
    except Exception:  # whatever it is, the forward that follows reports it
        return x, y
    slow = time.perf_counter() - began > SLOW * 2
    keep = torch.linspace(0, len(x) - 1, min(8, len(x))).long() if slow else torch.arange(len(x))
    return x[keep], y[keep]


def _images(x: Tensor) -> Iterator[Finding]:
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
        fix = "Look at the images: `bivallate data show`"
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


def _modes(model: Any) -> Iterator[Finding]:
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


def _logits(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor | None, list[Finding]]:
    try:
        logits = logits_of(model, x, Passes())
    except UserError as error:
        fix = "Return one finite logit a class"
        return None, [Finding("error", "logits", "the model does not return logits", str(error), fix)]
    try:
        check_labels(y, logits.shape[1])
    except UserError as error:
        fix = "Number the classes from 0, in the order of the model's outputs"
        return None, [Finding("error", "labels", "labels do not fit the model", str(error), fix)]
    return logits, []


def _classes(classes: int, y: Tensor) -> Iterator[Finding]:
    if classes < 4:
        got, fix = f"{classes} classes", "Targeted attacks then use the plain difference of two logits"
        yield Finding("note", "classes", "too few classes for the targeted DLR loss, which needs 4", got, fix)
    elif classes < 10:
        got, fix = f"{classes} classes", f"AutoAttack then has {classes - 1} targets a point"
        yield Finding("note", "classes", "fewer classes than AutoAttack's 9 targets", got, fix)
    if len(y) >= 8 and bool((y == y[0]).all()):
        fix = "Shuffle, or take a random subset with --n"
        got = f"every label is {int(y[0])}"
        yield Finding("warning", "one-class", "the points are of one class", got, fix)


def _outputs(logits: Tensor) -> Iterator[Finding]:
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


def _repeatable(model: nn.Module, x: Tensor, logits: Tensor) -> Iterator[Finding]:
    """Same points, same answers: twice, in another order, and alone."""
    scale = logits.abs().amax().clamp(min=1e-30)
    with torch.no_grad():
        again = float((model(x) - logits).abs().amax() / scale)
        turned = float((model(x.flip(0)).flip(0) - logits).abs().amax() / scale)
        alone = torch.cat([model(x[i : i + 1]) for i in range(min(4, len(x)))])
    single = float((alone - logits[: len(alone)]).abs().amax() / scale)
    if again > DIFFERENT:
        yield Finding(
            "error",
            "random",
            "outputs depend on randomness",
            f"two passes over the same points differ by {again:.1%} of the largest logit",
            "Turn noise and dropout off at inference; if randomness is the defence, attack its expectation "
            "(autoattack-rand)",
        )
    elif max(turned, single) > DIFFERENT:
        yield Finding(
            "error",
            "batch",
            "outputs depend on the other points of the batch",
            f"in another batch they differ by {max(turned, single):.1%} of the largest logit",
            "Use running statistics in eval mode (BatchNorm with track_running_stats, no training=True)",
        )


def _unmoved(model: nn.Module, before: dict[str, Tensor]) -> Iterator[Finding]:
    """Buffers that evaluation has moved, put back to where they were."""
    moved = [k for k, v in model.named_buffers() if k in before and not torch.equal(v, before[k])]
    for name, buffer in model.named_buffers():
        if name in moved:
            buffer.copy_(before[name])
    if moved:
        fix = "An evaluated model must not learn from the points: no training=True, no counters of queries"
        got = f"passes in eval mode moved {', '.join(moved[:3])}"
        yield Finding("error", "stateful", "the model changes while it is evaluated", got, fix)


def _scale(model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Iterator[Finding]:
    """Would the model rather have seen its images prepared in another way?"""
    right = float((logits.argmax(1) == y).float().mean())
    axes = [0, *range(2, x.ndim)]
    centred = (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True).clamp(min=1e-6)
    prepared = {"bytes (255 x)": 255 * x, "[-1, 1] (2 x - 1)": 2 * x - 1, "standardised channels": centred}
    with torch.no_grad():
        better = {k: float((model(v).argmax(1) == y).float().mean()) for k, v in prepared.items()}
    name, best = max(better.items(), key=lambda item: item[1])
    if best >= right + 0.25 and right < 0.7:
        yield Finding(
            "warning",
            "normalisation",
            "the model expects images prepared outside of it",
            f"clean accuracy is {right:.0%} on pixels and {best:.0%} on {name}",
            "Put the preparation into the model's first layer (mean= and std= of models.create, or wrap it)",
        )
    elif right <= 1.5 / logits.shape[1] and len(x) >= 16:
        fix = "Check the labels' order, the images' preparation and the weights"
        got = f"clean accuracy is {right:.0%} on {len(x)} points"
        yield Finding("warning", "chance", "the model guesses", got, fix)


def _gradients(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel | None
) -> tuple[Probe, Probe, list[Finding]]:
    clean = probe(model, x, y)
    ball = threat if threat is not None and threat.eps > 0 else Linf(0.03)
    noise = Noise(0, torch.arange(len(x), device=x.device))
    near = probe(model, x + ball.project(ball.random(noise, x), x), y, seed=1)
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
