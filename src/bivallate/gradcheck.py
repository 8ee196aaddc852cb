"""Compare a method's hypergradient on the user's own model with finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.errors import UserError, check_range, python_arguments
from bivallate.frozen_step import FrozenStep, difference, dot, like
from bivallate.learnable import check_learning, check_module, check_values, copied
from bivallate.lower.forward import Forward
from bivallate.lower.modes import evaluating
from bivallate.lower.second_order import explain_missing_derivatives
from bivallate.method import Method, check_method, facts_for
from bivallate.step import accumulate_gradient
from bivallate.types import Batch, Clock, Facts

STEPS = (1e-4, 1e-5, 1e-6)  # step sizes of the differences, relative to the norm of each parameter tensor
MOST_DIRECTIONS = 1000  # far more than a verdict needs; each costs six attacks
AGREES = 1e-4  # relative error below which autograd and differences are taken to agree


@python_arguments
def upper_gradient(
    model: nn.Module,
    method: Method,
    data: tuple[Tensor, Tensor],
    seed: int = 0,
    *,
    clock: Clock | None = None,
    meta: tuple[Tensor, Tensor] | None = None,
    training: bool = True,
    lr: float = 0.1,
) -> dict[str, Tensor]:
    """Return the parameter gradient of one step by name, without applying it.

    The step is the first of a fresh run: solver and weighting start with fresh state, rows are numbered 0, 1,
    ..., and replays that accumulate are all made. Weight decay belongs to the optimiser and is not included.
    Model, method and random generators are left as they were.

    Args:
        model: the step is made on a copy, in float32 where the model is in half precision.
        method: from the catalogue, or composed.
        data: x (B, C, H, W) in [0, 1] and y (B,).
        seed: of the attack's noise and of dropout.
        clock: the moment, for schedules; by default the first minibatch of a run of one epoch.
        meta: a minibatch of the second data stream, for weightings that learn from one.
        training: the upper level in train mode, as in training; False puts both levels in eval mode.
        lr: learning rate of the virtual step of learned weights (BiLAW); other methods do not use it.

    Returns:
        A tensor like the parameter for each name of `model.named_parameters()`.

    Raises:
        UserError: a model that cannot learn, images or labels that do not fit, no meta for weights that learn
            from it, or an lr of 0.

    Example:
        >>> from bivallate import Linf, methods, models
        >>> model = models.create("tiny-cnn", num_classes=3, shape=(1, 8, 8), seed=0)
        >>> x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
        >>> gradient = upper_gradient(model, methods.at(Linf(0.1)), (x, y))
        >>> set(gradient) == {name for name, _ in model.named_parameters()}
        True
    """
    if not (lr > 0 and math.isfinite(lr)):
        raise UserError(f"lr must be positive, for without a step ahead weights learn nothing, got {lr!r}")
    method = check_method(method)
    twin = _twin(model).train(training)
    twin.zero_grad(set_to_none=True)
    batch, facts = _first_batch(twin, data, meta)
    bound = (method if training else method.but(attack_mode="eval")).bind(facts)
    moment = clock or Clock(seed=seed)
    devices = [facts.device] if facts.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for replay in range(method.replays if method.accumulate else 1):
            now = Clock(moment.epoch, moment.epochs, moment.step, moment.steps, replay, seed)
            accumulate_gradient(twin, bound, batch, now, lr)
    zero = torch.zeros_like
    return {n: zero(p) if p.grad is None else p.grad.detach() for n, p in twin.named_parameters()}


def _twin(model: nn.Module) -> nn.Module:
    """A copy in float32 or better. Raises UserError for no module, or one whose tensors have no values."""
    check_module(model)
    check_values(model)
    twin = copied(model)
    low = any(t.dtype in (torch.float16, torch.bfloat16) for t in (*twin.parameters(), *twin.buffers()))
    return twin.float() if low else twin


def _first_batch(model: nn.Module, data: Any, meta: Any = None) -> tuple[Batch, Facts]:
    """The rows as a minibatch on the model's device. Raises UserError if rows or model cannot be used."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    x, y = _tensors(data, "data", like)
    second = None if meta is None else _tensors(meta, "meta", like)
    if second is not None and second[0].shape[1:] != x.shape[1:]:
        raise UserError(f"meta images are {tuple(second[0].shape[1:])}, the others {tuple(x.shape[1:])}")
    check_learning(copied(model), x[:2], type(model).__name__, training=model.training)
    outputs = _outputs(model, x)
    for labels in (y,) if second is None else (y, second[1]):
        if int(labels.min()) < 0 or int(labels.max()) >= outputs:
            raise UserError(
                f"labels must lie in 0..{outputs - 1}, got {int(labels.min())}..{int(labels.max())}"
            )
    pair = None if second is None else Batch(*second, torch.arange(len(second[1]), device=y.device))
    rows = len(x) + (0 if second is None else len(second[1]))
    batch = Batch(x, y, torch.arange(len(y), device=y.device), None, pair)
    return batch, facts_for(model, x, outputs, rows)


def _tensors(data: Any, what: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """(x, y) of a pair of tensors or arrays: x (B, C, H, W) as `like` is, y (B,) int64."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        got = f"{len(data)} things" if isinstance(data, tuple | list) else type(data).__name__
        raise UserError(f"{what} must be a pair (x, y), got {got}")
    try:
        x, y = (torch.as_tensor(part).detach() for part in data)
    except Exception as error:  # of whatever was given as images or labels
        raise UserError(f"{what} must be a pair (x, y) of tensors or arrays: {error}") from error
    if x.ndim != 4 or y.ndim != 1:
        raise UserError(
            f"{what} must be images (B, C, H, W) and labels (B,), got the shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    if len(x) != len(y) or x.numel() == 0:
        raise UserError(f"x and y must hold as many rows, at least one, got {len(x)} and {len(y)}")
    if y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool:
        raise UserError(f"labels must be integers, got {y.dtype}")
    if not x.is_floating_point() or not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise UserError(f"images must be floating point in [0, 1], got {x.dtype} up to {float(x.max()):g}")
    return x.to(like), y.to(like.device).long()


def _outputs(model: nn.Module, x: Tensor) -> int:
    """The number of classes, read off the logits of one row."""
    with torch.no_grad(), evaluating(model):
        return Forward(model)(x[:1]).shape[1]


@dataclass(frozen=True)
class GradientReport:
    """The result of `check_gradient`.

    Differences are relative to the root mean square of the gradient's directional derivatives.

    Attributes:
        method: its name.
        surrogate_error: difference between the step's gradient and finite differences of the expression whose
            gradient it claims to be: the loss at fixed weights and perturbation, plus <d objective / d delta,
            b> with the fixed vectors b that the coupling forms. Median over directions and step sizes.
        true_gap: difference between the same gradient and finite differences of the loss with the attack
            solved anew at every parameter. Not an error: it is what the method leaves out by design.
        implicit: norm of the implicit part over the norm of the rest; 0 without coupling.
        active: fraction of coordinates of delta* on a bound of the threat model.
        kinks: directions, of `directions`, in which differences of different step sizes disagree.
        verdict: the result in a sentence.
    """

    method: str
    surrogate_error: float
    true_gap: float
    implicit: float
    active: float
    kinks: int
    directions: int
    verdict: str

    @property
    def ok(self) -> bool:
        """Whether the stated gradient agrees with finite differences."""
        return self.surrogate_error <= AGREES

    def __str__(self) -> str:
        return "\n".join(
            [
                f"method                                     {self.method}",
                f"stated gradient against differences        {self.surrogate_error:.2e}",
                f"gap to the true derivative                 {self.true_gap:.2e}",
                f"implicit part / explicit part              {self.implicit:.2e}",
                f"coordinates on a bound                     {self.active:.1%}",
                f"directions with kinks                      {self.kinks} of {self.directions}",
                self.verdict,
            ]
        )


@python_arguments
@explain_missing_derivatives
def check_gradient(
    model: nn.Module,
    method: Method,
    data: tuple[Tensor, Tensor],
    seed: int = 0,
    *,
    directions: int = 6,
    clock: Clock | None = None,
) -> GradientReport:
    """Compare a method's hypergradient with finite differences, on a float64 copy of the model in eval mode.

    In eval mode the examples are independent, so that each has its own lower-level problem. Weights that
    learn from a second data stream keep their initial values, or are 1 where each minibatch learns them anew.

    Args:
        model: left as it was.
        method: from the catalogue, or composed.
        data: a few rows, x (B, C, H, W) in [0, 1] and y (B,).
        seed: of the attack's noise and of the directions.
        directions: random directions in parameter space, at most 1,000.
        clock: the moment, for schedules; by default the first minibatch of a run of one epoch.

    Cost: about 6 * directions attacks and as many gradients; a few rows are enough.

    Raises:
        UserError: as `upper_gradient`; or a layer without second derivatives where the method needs them.

    Example:
        >>> from bivallate import Linf, methods, models
        >>> model = models.create("linear", num_classes=3, shape=(1, 4, 4), seed=0)
        >>> x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
        >>> check_gradient(model, methods.fast_bat(Linf(0.1), step_size=0.1), (x, y)).ok
        True
    """
    check_range("directions", directions, 1, MOST_DIRECTIONS)
    method = check_method(method)
    twin = _twin(model).eval()
    device = next((p.device for p in twin.parameters()), torch.device("cpu"))
    device = torch.device("cpu") if device.type == "mps" else device
    twin = twin.to(device).double()
    if hasattr(twin, "autocast_dtype"):
        twin.autocast_dtype = None  # pyright: ignore[reportArgumentType]
    batch, facts = _first_batch(twin, data)
    moment = clock or Clock(seed=seed)
    step = FrozenStep(twin, method.but(attack_mode="eval"), batch, facts, moment)
    with torch.random.fork_rng(devices=[device] if str(device).startswith("cuda") else []):
        torch.manual_seed(seed)
        return _report(step, method.name, seed, directions)


def _report(step: FrozenStep, name: str, seed: int, directions: int) -> GradientReport:
    parameters = [p for p in step.model.parameters() if p.requires_grad]
    found = step.gradient(parameters)
    explicit = torch.autograd.grad(step.explicit(), parameters, materialize_grads=True)
    surrogate: list[list[float]] = []
    truth: list[list[float]] = []
    expected: list[float] = []
    generator = torch.Generator().manual_seed(seed)
    for _ in range(directions):
        way = [like(p, generator) for p in parameters]
        expected.append(dot(found, way))
        surrogate.append([difference(step.surrogate, parameters, way, h) for h in STEPS])
        truth.append([difference(step.truth, parameters, way, h) for h in STEPS])
    g = torch.tensor(expected, dtype=torch.float64)
    s, t = torch.tensor(surrogate, dtype=torch.float64), torch.tensor(truth, dtype=torch.float64)
    size = g.square().mean().sqrt().clamp(min=1e-300)
    error = float(((s - g[:, None]).abs() / size).median())
    spread = (s - s.median(1, keepdim=True).values).abs().amax(1) / size
    kinks = int((spread > AGREES).sum())
    gap = float((t.median(1).values - g).square().mean().sqrt() / size)
    extra = [a - b for a, b in zip(found, explicit, strict=True)]
    implicit = (dot(extra, extra) / max(dot(explicit, explicit), 1e-300)) ** 0.5
    verdict = _verdict(error, gap, kinks, directions)
    return GradientReport(name, error, gap, implicit, step.active, kinks, directions, verdict)


def _verdict(error: float, gap: float, kinks: int, directions: int) -> str:
    bent = f" The model is not smooth here: kinks in {kinks} of {directions} directions." if kinks else ""
    if not error <= AGREES:
        cause = "the kinks, or a layer" if kinks else "a layer"
        return (
            f"The stated gradient does NOT agree with finite differences ({error:.1e}).{bent} Likely cause: "
            f"{cause} whose second derivative is missing or wrong (fused kernels, in-place operations)."
        )
    what = "and it is the true derivative" if gap <= AGREES else f"and differs from the true one by {gap:.1e}"
    return f"The stated gradient agrees with finite differences ({error:.1e}), {what}.{bent}"
