"""Pre-flight: find faults of a model or its data that an attack would not notice."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.evaluation.batch_size import example_bytes
from bivallate.evaluation.inference import for_inference
from bivallate.evaluation.neighbourhood import Probe
from bivallate.evaluation.points import as_points, class_names
from bivallate.evaluation.preparation import check_preparation
from bivallate.evaluation.symptoms import (
    Finding,
    few_classes,
    hidden_gradients,
    images,
    logits_or_fault,
    modes,
    outputs,
    repeatable,
    restore_buffers,
    stateless,
)
from bivallate.lower.input_guard import writes_to_input
from bivallate.lower.threat import ThreatModel

__all__ = ["Finding", "Preflight", "preflight"]

ROWS = 32
LARGE = 64e6  # bytes of one point's activations and gradients beyond which fewer points are checked


@dataclass(frozen=True)
class Preflight:
    """The result of `preflight`.

    Attributes:
        findings: errors first.
        points, classes: numbers of checked points and of classes.
        seconds: wall time.
        clean, near: probes of the gradients at the points and in the threat's ball around them; None if an
            error prevented them.
    """

    findings: tuple[Finding, ...]
    points: int
    classes: int
    seconds: float
    clean: Probe | None = None
    near: Probe | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no error and no warning."""
        return all(f.severity == "note" for f in self.findings)

    def named(self, name: str) -> Finding | None:
        """The finding with that name, or None."""
        return next((f for f in self.findings if f.name == name), None)

    def __str__(self) -> str:
        """One line if there is no error or warning, else one line for each finding."""
        notes = "".join(f"; {f}" for f in self.findings) if self.ok else ""
        if self.ok:
            return f"pre-flight: all is well ({self.points} points, {self.classes} classes{notes})"
        return "\n".join(["pre-flight:", *(f"  {finding}" for finding in self.findings)])


@torch.inference_mode(False)  # the caller may be in inference mode, and probes need gradients
def preflight(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: Any,
    threat: ThreatModel | None = None,
    own: bool = False,
) -> Preflight:
    """Check a model and its data before any attack. The model is left as it was.

    Args:
        data: a split, or a pair (x, y) of tensors.
        threat: the ball within which gradients are probed; Linf 0.03 if not given.
        own: whether the data belong to the set that the model was trained on: then chance accuracy is not
            blamed on the labels.

    Cost: about 25 forwards and 4 backwards on 32 points, 8 where the model is large.

    Raises:
        UserError: data is neither a split nor a pair, or is empty.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
        >>> report = preflight(model, (torch.rand(50, 1, 2, 2) * 255, torch.randint(0, 10, (50,))))
        >>> report.findings[0].name
        'range'
    """
    began = time.perf_counter()
    source = as_points(data, model)
    if len(source) == 0:
        raise UserError("there are no points to look at: the data is empty")
    rows = torch.linspace(0, len(source) - 1, min(ROWS, len(source)), dtype=torch.float64).long()
    x, y = source.tensors(rows)
    findings = [*images(x), *modes(model)]
    classes, clean, near = 0, None, None
    with torch.random.fork_rng(devices=[]), for_inference(model, None) as (module, where, dtype):
        if x.is_floating_point() and bool(x.isfinite().all()):
            before = {k: v.clone() for k, v in module.named_buffers()}
            fresh = _copied(module)
            x, y = _affordable(module, x.to(where, dtype), y.to(where))
            logits, more = logits_or_fault(module, x, y)
            findings += more
            if logits is not None:
                classes, y = logits.shape[1], y.long()
                findings += [
                    *few_classes(class_names(module, classes), y),
                    *outputs(logits),
                    *repeatable(module, x, logits),
                ]
                if all(f.name != "range" for f in findings):
                    findings += check_preparation(module, x, y, logits, own)
                clean, near, more = hidden_gradients(module, x, y, threat)
                findings += more
                if not {"random", "ignores-eval"} & {f.name for f in findings}:
                    findings += stateless(module, fresh, x, threat)
            findings += [*_in_place(module), *restore_buffers(module, before)]
    order = ("error", "warning", "note")
    findings.sort(key=lambda finding: order.index(finding.severity))
    return Preflight(tuple(findings), len(x), classes, time.perf_counter() - began, clean, near)


def _in_place(model: nn.Module) -> Iterator[Finding]:
    """Report a model whose forward passes have overwritten the images."""
    if writes_to_input(model):
        fix = (
            "It is given a copy in every pass here; elsewhere let it compute x - mean instead of x.sub_(mean)"
        )
        got = "after a pass the images are not what they were"
        yield Finding("note", "in-place", "the model changes its input in place", got, fix)


def _copied(module: nn.Module) -> nn.Module | None:
    try:
        return copy.deepcopy(module)
    except Exception:  # copying runs the user's code; a model that cannot be copied is not compared
        return None


def _affordable(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Few enough points for all checks to take seconds."""
    try:
        large = example_bytes(model, x[:1]) > LARGE
    except Exception:  # the forward pass that follows reports the error
        return x, y
    keep = torch.linspace(0, len(x) - 1, min(8, len(x))).long() if large else torch.arange(len(x))
    return x[keep], y[keep]
