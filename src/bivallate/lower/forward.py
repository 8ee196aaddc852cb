"""The network as solvers, couplings and losses call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.lower.compiled import network_for
from bivallate.lower.folded_norm import FoldedNorm, FoldedPass, fold, foldable
from bivallate.lower.functional import Functional
from bivallate.lower.input_guard import call_unharmed
from bivallate.types import Passes

OWN = ("torch.nn.", "bivallate.")  # layers of other packages may use their weights differently


@dataclass(frozen=True)
class CastWeight:
    """A weight of a layer, and its cast copy that replaces it during a pass.

    Attributes:
        place: the layer's parameters.
        name: of the weight among them.
        weight: the weight.
        cast: its copy in another type.
        version: version counter of the weight when it was cast.
    """

    place: dict[str, Any]
    name: str
    weight: Tensor
    cast: Tensor
    version: int

    @staticmethod
    def of(place: dict[str, Any], name: str, dtype: torch.dtype) -> CastWeight:
        """Cast a weight to the type."""
        weight = place[name]
        return CastWeight(place, name, weight, weight.detach().to(dtype), weight._version)

    def lent(self) -> Tensor:
        """The cast copy; of a weight that requires a gradient, with a graph that leads to the weight."""
        return _Learning.apply(self.weight, self.cast) if self.weight.requires_grad else self.cast  # pyright: ignore

    def stale(self, dtype: torch.dtype) -> bool:
        """Whether the weight has changed since it was cast, or is needed in another type."""
        now = self.place[self.name]
        return now is not self.weight or now._version != self.version or self.cast.dtype != dtype


class _Learning(torch.autograd.Function):
    """Forward: the cast copy. Backward: its gradient becomes the weight's, cast back."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, cast: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return cast.view_as(cast)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return grad_outputs[0].to(ctx.dtype), None


def castable(model: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """The float32 weights and biases of convolutions and linear layers.

    Autocast would cast these at every use. There are none for a compiled network, which would be compiled
    anew.
    """
    layers = list(model.modules())
    if any(hasattr(layer, "_orig_mod") for layer in layers):
        return []
    known = [m for m in layers if isinstance(m, nn.Conv2d | nn.Linear) and type(m).__module__.startswith(OWN)]
    places = [(m._parameters, name) for m in known for name in ("weight", "bias")]
    return [(at, name) for at, name in places if getattr(at.get(name), "dtype", None) is torch.float32]


@contextmanager
def cast_weights(weights: list[CastWeight]) -> Iterator[None]:
    """Within, the layers use the cast copies of their weights."""
    for own in weights:
        own.place[own.name] = own.lent()
    try:
        yield
    finally:
        for own in weights:
            own.place[own.name] = own.weight


class Forward:
    """A network that counts its passes.

    A forward pass is counted when it is made, a backward pass whenever a gradient arrives at the logits of a
    forward pass. Parts add only what does not arrive there: the second-order half of a double backward, and
    tangents.

    A model with `autocast_dtype` runs in mixed precision, except in passes whose input gradient is used with
    its magnitude: rounding destroys small magnitudes, where the loss is flat.

    In passes of attacks, which need an input gradient alone, BatchNorm in eval mode is folded into the
    convolution before it.

    Attributes:
        model: the network, or any callable from (B, C, H, W) to (B, K); after `at` a `Functional`
            of it. `module` is the network itself.
        passes: the counts, shared by all passes of one step.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], passes: Passes | None = None) -> None:
        self.model = model
        self.passes = passes if passes is not None else Passes()
        self._cast: list[CastWeight] = []
        self._folded: list[FoldedNorm] = []

    def __call__(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """The network's logits, in float32 or better.

        exact: without mixed precision. Couplings always ask for it: their gradients go through the pass.
        """
        self.passes.forward += len(x)
        dtype = None if exact else getattr(self.model, "autocast_dtype", None)
        network = network_for(self.model, x)
        own = network is self.model  # not compiled
        pairs = self._folded_once(dtype) if own else []
        casts = self._cast_once(dtype) if own and dtype is not None else []
        mixed = torch.autocast(x.device.type, dtype) if dtype is not None else nullcontext()
        made: Any = FoldedPass(self.module, pairs) if pairs else network
        with mixed, cast_weights(casts):
            logits = call_unharmed(made, x)
        if logits.requires_grad:
            rows, passes = len(x), self.passes

            def arrived(_: Tensor) -> None:
                passes.backward += rows

            logits.register_hook(arrived)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _cast_once(self, dtype: torch.dtype) -> list[CastWeight]:
        """The network's weights in the type, cast once for all passes, where autocast casts them in each.
        A weight whose values have changed since is cast anew."""
        if not isinstance(self.model, nn.Module) or torch.is_inference_mode_enabled():
            return []
        if not self._cast or any(cast.stale(dtype) for cast in self._cast):
            self._cast = [CastWeight.of(own, name, dtype) for own, name in castable(self.model)]
        return self._cast

    def _folded_once(self, dtype: torch.dtype | None) -> list[FoldedNorm]:
        """The folded pairs of a network that names them (`Classifier`).
        They are none but in passes of attacks, which have an input gradient and no other."""
        named: Any = getattr(type(self.model), "norm_pairs", None)  # a compiled network has its own class
        if named is None or not torch.is_grad_enabled():
            return []
        pairs: list[tuple[Any, Any]] = [pair for pair in named(self.model) if foldable(*pair)]
        now = [(pair.conv, pair.norm) for pair in self._folded]
        if pairs != now or any(pair.stale(dtype) for pair in self._folded):
            self._folded = fold(pairs, dtype)
        return self._folded

    def forget_weights(self) -> None:
        """Make cast and folded weights anew at the next pass."""
        self._cast, self._folded = [], []

    @property
    def network(self) -> Callable[[Tensor], Tensor]:
        """The network itself, also after `at`."""
        return self.model.module if isinstance(self.model, Functional) else self.model

    @property
    def costliest(self) -> bool:
        """Whether passes are counted on a stand-in (`run/budget.py`), with which nothing ends early."""
        return getattr(self.network, "costliest", False)

    @property
    def module(self) -> nn.Module:
        """The network as a module, for parts that need its parameters or its mode.

        Raises:
            TypeError: it is another callable.
        """
        module = self.network
        if not isinstance(module, nn.Module):
            raise TypeError(f"this part needs an nn.Module with parameters, got {type(module).__name__}")
        return module

    @property
    def rounding(self) -> float | None:
        """Relative error of the logits of a model that computes in another number format and states it.

        It is None for others. At other parameters it is the same.
        """
        return getattr(self.model, "rounding", None)

    def at(self, tensors: dict[str, Tensor]) -> Forward:
        """The network with some parameters and buffers replaced; passes are counted together."""
        before = self.model.tensors if isinstance(self.model, Functional) else {}
        return Forward(Functional(self.module, {**before, **tensors}), self.passes)
