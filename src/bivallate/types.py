"""The nouns of the package.

Glossary:
    threat: the set C(x) of perturbations the attacker may choose from; `eps` is its radius.
    delta: a perturbation; `x_adv` = x + delta stays in [0, 1].
    objective: what the attacker maximises. loss: what the trainer minimises.
    robust, anchor: the terms of the loss; the example weights multiply robust, and not anchor.
    kappa: how many of an attack's steps began at a point that was classified correctly (`Solution`).
    margin: positive means classified correctly.
    coupling: how delta* depends on theta, and so what gradient passes through it.
    second stream: `Batch.meta`, on which learned weights are judged after a virtual step (the third level).
    replay: one of several uses of a minibatch in a row (Free-AT, YOPO), each a step of its own.
    pass: one forward or one backward through the network for one example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bivallate.late_field import Later, changed
from bivallate.renamed import renamed_fields


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) values so that they broadcast over (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Mixed:
    """The second labels of mixed images: CutMix has pasted a part of another image into each.

    Attributes:
        y: (B,) int64, label of the pasted image.
        share: (B,) in [0, 1], fraction of the area that still shows the first image.
    """

    y: Tensor
    share: Tensor

    def to(self, device: torch.device | str) -> Mixed:
        """The same labels and shares on another device."""
        return Mixed(self.y.to(device, non_blocking=True), self.share.to(device, non_blocking=True))

    def __getitem__(self, rows: Tensor | slice) -> Mixed:
        return Mixed(self.y[rows], self.share[rows])


@dataclass(frozen=True)
class Batch:
    """One minibatch.

    Attributes:
        x: (B, C, H, W) in [0, 1].
        y: (B,) int64.
        index: (B,) int64, row in the training set: the key of per-example state and of randomness.
        view: how x was cut from the stored image (a recorded crop and flip), or None.
        meta: a minibatch of the second data stream, which learned weights (`needs_meta`) need, or None.
        whole: number of rows of the minibatch over all processes; None where it is not known, then the
            processes add their rows up.
        mixed: the second label of each image, where images are mixed (`augment=cutmix:...`), or None.
        population: rows of the data set, all of `index` below it; 0 where it is not known. See `Noise`.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    view: Any = None
    meta: Batch | None = None
    whole: int | None = None
    mixed: Mixed | None = None
    population: int = 0

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        view = self.view.to(device) if self.view is not None else None
        meta = self.meta.to(device) if self.meta is not None else None
        x, y, index = (t.to(device, non_blocking=True) for t in (self.x, self.y, self.index))
        mixed = self.mixed.to(device) if self.mixed is not None else None
        return Batch(x, y, index, view, meta, self.whole, mixed, self.population)


@dataclass(frozen=True)
class Clock:
    """The moment in a run: every schedule is a function Clock -> float.

    Attributes:
        epoch: counted from 0.
        epochs: how many the run has.
        step: minibatch within the epoch, counted from 0.
        steps: minibatches per epoch.
        replay: 0, ..., replays - 1 within one minibatch.
        seed: of the run; randomness is a function of the clock and the row.
    """

    epoch: int = 0
    epochs: int = 1
    step: int = 0
    steps: int = 1
    replay: int = 0
    seed: int = 0

    @property
    def progress(self) -> float:
        """Fraction of the run's minibatches that are done, in [0, 1)."""
        return (self.epoch + self.step / self.steps) / self.epochs


@dataclass(frozen=True)
class Facts:
    """What a method must know to build its stateful parts for a run (`Method.bind`).

    Attributes:
        rows: number of rows of the training set.
        shape: (C, H, W) of an image.
        classes: number of classes.
        device: of the model.
        dtype: of the model.
        padding: pixels by which the canvas of recorded crops is wider than the image, on every side.
        steps: minibatches per epoch.
        rotates: whether the augmentation rotates or bends images, which cannot be undone.
        resizes: whether images have another size in some phase of training.
    """

    rows: int
    shape: tuple[int, int, int]
    classes: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    padding: int = 0
    steps: int = 1
    rotates: bool = False
    resizes: bool = False


@dataclass
class Passes:
    """Forward and backward passes, summed over examples.

    One backward pass counts for each forward pass that gradients flow back through, so the outer backward of
    a loss with two forwards (TRADES) counts twice. A double backward counts as two, but as one where half of
    it is the outer backward (DONE) or where it ends at the example weights (second-order meta-gradient).
    """

    forward: int = 0
    backward: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True)
class AttackStart:
    """Where an attack took its first gradient, and what the network answered there.

    Attributes:
        delta: (B, C, H, W) the point.
        logits: (B, K) there, with graph in theta where the solver has kept that pass.
        gradient_at_zero: (B, C, H, W) gradient of the objective where delta is exactly 0, or None.
        training: whether the network was in train mode.
    """

    delta: Tensor
    logits: Tensor
    gradient_at_zero: Tensor | None = None
    training: bool = False

    def at_other_parameters(self) -> AttackStart:
        """The same point without graph and gradient, which belong to the parameters of the attack."""
        return AttackStart(self.delta, self.logits.detach())


@dataclass(frozen=True)
class Solution:
    """Where a solver of the lower level ended.

    Attributes:
        delta: (B, C, H, W) feasible; without graph, until a coupling gives it its gradient in theta.
        before_last: (B, C, H, W) the point from which the last step was taken, or None of a solver that does
            not go step by step.
        kappa: (B,) number of steps that began at a point where the example was classified correctly. Steps
            after the example has stopped do not count, nor those by which APGD looks for a lower margin after
            the first misclassification. 0 from solvers without such steps.
        evaluations: (B,) gradients computed; of a solver without gradients, its queries or iterations.
        class_score: (K,) or (K, ...) statistics of each class, from solvers that gather them (`ClassRadius`,
            `ClassMeans`), or None.
        helper: (B,) labels by a plain network, or its clean logits (B, K) (`lower.second_network`), or None.
        start: where the attack began, of solvers that keep it (`Solver.keeps_start`), or None.
        logits: (B, K) at delta, of a pass that the coupling has made and that carries its gradient, or None.
    """

    delta: Tensor
    before_last: Tensor | None
    kappa: Later = Later()  # noqa: RUF009  no default: see late_field.py
    evaluations: Later = Later()  # noqa: RUF009  no default: see late_field.py
    class_score: Tensor | None = None
    helper: Tensor | None = None
    start: AttackStart | None = None
    logits: Tensor | None = None

    def but(self, **changes: Any) -> Solution:
        """A copy with other fields, which computes neither kappa nor evaluations (see `Later`)."""
        return changed(self, **changes)


@dataclass(frozen=True)
class Terms:
    """The loss of the upper level, one value an example.

    Attributes:
        robust: (B,) the term that the example weights multiply.
        anchor: (B,) the term that they do not.
        logits: (B, K) on the adversarial points.
    """

    robust: Tensor
    anchor: Tensor
    logits: Tensor


@renamed_fields(loss="robust")
@dataclass(frozen=True)
class Evidence:
    """What a weighting may read: the step's values for each example, without graph except for `attached`.

    Attributes:
        robust: (B,) the term of the loss that the weights multiply (`Terms.robust`).
        logits: (B, K) at the adversarial points.
        y: (B,) labels.
        index: (B,) rows of the data set.
        kappa: (B,) the solution's.
        clock: the moment in the run.
        clean: computes the clean logits (B, K) in eval mode; one forward pass.
        attached: (B, K) `logits` with graph, for rules that declare their weights differentiable.
        class_score: (K,) the solution's, or None.
    """

    robust: Tensor
    logits: Tensor
    y: Tensor
    index: Tensor
    kappa: Later = Later()  # noqa: RUF009  no default: see late_field.py
    clock: Clock  # pyright: ignore[reportGeneralTypeIssues]  kappa has no default
    clean: Callable[[], Tensor]  # pyright: ignore[reportGeneralTypeIssues]
    attached: Tensor | None = None
    class_score: Tensor | None = None

    @cached_property
    def clean_logits(self) -> Tensor:
        """(B, K) at the clean points, in eval mode; `LowerProblem.clean_logits` are the attack's own."""
        return self.clean()

    @property
    def margin(self) -> Tensor:
        """(B,) p_y - max_{k != y} p_k in [-1, 1] on the adversarial points; negative when misclassified."""
        return probability_margin(self.logits, self.y)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) p_y - max_{k != y} p_k in [-1, 1] of the softmax of logits (B, K)."""
    p = logits.softmax(1)
    others = p.scatter(1, y[:, None], -1.0).amax(1)
    return p.gather(1, y[:, None])[:, 0] - others


@dataclass(frozen=True)
class StepRecord:
    """The numbers of one step for the log; on several processes, of this rank's examples.

    Attributes:
        loss: mean_i(w_i robust_i + anchor_i).
        correct: number of adversarial points classified correctly.
        examples: size of the minibatch.
        weight_mean: mean weight.
        effective: effective sample size as a fraction of the batch, (sum w)^2 / (B sum w^2).
        rows: `index` of the batch.
        relative: weights of these rows divided by their mean.
        margin: p_y - max_{k != y} p_k at the adversarial points, empty where the labels are no class numbers.
        passes: forward and backward passes summed over the examples.
        logged: numbers that parts reported (active fraction, temperature, ...).
        sums: the step's `summands`, added up over all processes; empty for a replay without update.
    """

    loss: float
    correct: int
    examples: int
    weight_mean: float
    effective: float
    rows: list[int]
    relative: list[float]
    margin: list[float]
    passes: Passes
    logged: dict[str, float]
    sums: tuple[float, ...] = field(default_factory=tuple)
