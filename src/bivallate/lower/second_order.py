"""Passes that are differentiated twice or carry tangents, and errors for layers that cannot be."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from bivallate.errors import UserError
from bivallate.lower.batchnorm_derivatives import FastSecondDerivatives
from bivallate.lower.compiled import without_compiling

__all__ = ["explain_missing_derivatives", "layer_without_derivative", "tangents", "twice_differentiable"]

StepFunction = TypeVar("StepFunction", bound=Callable[..., Any])

SECOND = re.compile(
    r"derivative for .* is not implemented|once_differentiable|[Dd]ouble backward|backward of backward"
)
TANGENT = re.compile(r"forward.(?:mode )?(?:AD|automatic differentiation)|jvp", re.IGNORECASE)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """For forward passes that are differentiated twice.

    Attention runs by its plain mathematical kernel and nothing is compiled: the fused kernels, which are
    faster and need less memory, have no second derivative, nor has compiled code. BatchNorm gets a faster
    second derivative than torch's.
    """
    with _plain_kernels(), FastSecondDerivatives():
        yield


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Run nothing fused or compiled, which has neither second derivatives nor tangents."""
    with sdpa_kernel(SDPBackend.MATH), without_compiling():
        yield


def explain_missing_derivatives(step: StepFunction) -> StepFunction:
    """Decorator: turn the error of a layer without second derivative into a UserError.

    For functions (model, method, batch or (x, y), ...). The error names the layer and says what to do.
    """

    @wraps(step)
    def explained(model: nn.Module, method: Any, batch: Any, *args: Any, **options: Any) -> Any:
        try:
            return step(model, method, batch, *args, **options)
        except RuntimeError as error:
            if not SECOND.search(str(error)):
                raise
            x = batch[0] if isinstance(batch, tuple) else batch.x
            raise UserError(_second(error, model, method, x)) from error

    return explained  # pyright: ignore[reportReturnType]


def _second(error: RuntimeError, model: nn.Module, method: Any, x: Tensor) -> str:
    name = getattr(method, "spec", method).name
    first = str(error).splitlines()[0]
    if "aot_autograd" in first:
        what, cure = "a compiled network", "hand over the network without torch.compile"
    else:
        what = layer_without_derivative(model, x) or "one of the network's layers"
        cure = "write that layer in plain operations"
    return (
        f"{name} differentiates its gradients again, and {what} has no second derivative ({first}): {cure}, "
        "or train with a method that needs none, such as at, trades or n-fgsm"
    )


@contextmanager
def tangents(model: nn.Module, x: Tensor) -> Iterator[None]:
    """A context for one forward pass of x through a network whose parameters have tangents.

    Raises:
        UserError: a layer has no forward-mode derivative; the message names it.
    """
    try:
        with torch.no_grad(), forward_ad.dual_level(), _plain_kernels():
            yield
    except RuntimeError as error:
        if not (isinstance(error, NotImplementedError) or TANGENT.search(str(error))):
            raise
        name = layer_without_derivative(model, x, tangent=True) or "a layer, or the loss,"
        raise UserError(
            f"{name} has no forward-mode derivative, which the Jacobian-vector product of learned weights "
            f"needs; set weighting.second_order=true ({str(error).splitlines()[0]})"
        ) from error


def layer_without_derivative(model: nn.Module, x: Tensor, *, tangent: bool = False) -> str | None:
    """Find the innermost layer without second derivative, or without tangent, as "layer PATH (Type)".

    None if none is found. It is searched on a copy of the network.

    Args:
        x: (B, C, H, W) a few images, of which two are used.
    """
    try:
        twin = copy.deepcopy(model)
        calls = _calls(twin, x[:2].detach().clone())
    except Exception:  # a user's code may fail in any way, and this only improves a message
        return None
    for path, module in reversed(list(twin.named_modules())):  # children before their parents
        if module in calls and _fails(module, *calls[module], tangent=tangent):
            return f"layer {path or 'forward'} ({type(module).__name__})"
    return None


def _calls(model: nn.Module, x: Tensor) -> dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Record the arguments of every module in a forward pass of x."""
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        calls[module] = args, options

    with ExitStack() as stack, torch.enable_grad(), twice_differentiable():
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        model(x.requires_grad_())
    return calls


def _fails(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], *, tangent: bool) -> bool:
    own = [_leaf(value) for value in args]
    try:
        with _plain_kernels():
            _push(module, own, options) if tangent else _differentiate(module, own, options)
    except RuntimeError as error:
        return bool((TANGENT if tangent else SECOND).search(str(error)))
    except Exception:  # called alone, the module fails for another reason
        return False
    return False


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


def _differentiate(module: nn.Module, args: list[Any], options: dict[str, Any]) -> None:
    with torch.enable_grad():
        wanted = [a for a in args if isinstance(a, Tensor) and a.requires_grad] + list(module.parameters())
        wanted = [w for w in wanted if w.requires_grad]
        output = _first_tensor(module(*(a.clone() if isinstance(a, Tensor) else a for a in args), **options))
        grads = torch.autograd.grad(
            output.square().sum(), wanted, create_graph=True, materialize_grads=True, allow_unused=True
        )
        again = sum((g.square().sum() for g in grads), torch.zeros((), requires_grad=True).to(output))
        torch.autograd.grad(again, wanted, allow_unused=True)


def _push(module: nn.Module, args: list[Any], options: dict[str, Any]) -> None:
    with torch.no_grad(), forward_ad.dual_level(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        named = {
            n: forward_ad.make_dual(p.detach(), torch.ones_like(p)) for n, p in module.named_parameters()
        }
        dual = [
            forward_ad.make_dual(a.detach(), torch.ones_like(a))
            if isinstance(a, Tensor) and a.requires_grad
            else a
            for a in args
        ]
        functional_call(module, named, tuple(dual), options)


def _first_tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else next(part for part in output if isinstance(part, Tensor))
