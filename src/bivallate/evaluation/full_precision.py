"""Arithmetic that does not depend on what its surroundings have switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

__all__ = ["full_float32", "unmixed", "without_autocast"]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """No mixed precision but what the model switches on itself."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextmanager
def unmixed(model: nn.Module) -> Iterator[None]:
    """A network that was trained in mixed precision computes in its parameters' own."""
    if getattr(model, "autocast_dtype", None) is None:
        yield
        return
    found = model.autocast_dtype
    model.autocast_dtype = None  # pyright: ignore
    try:
        yield
    finally:
        model.autocast_dtype = found


@contextmanager
def full_float32(*, tf32: bool = False) -> Iterator[None]:
    """Run convolutions and matrix products without TensorFloat-32 or bfloat16.

    cuDNN uses them by default. Or with TensorFloat-32, where the device has it.
    """
    cudnn = torch.backends.cudnn
    try:
        found = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's newer names, after which the older ones refuse to answer
        with _newer_names("tf32" if tf32 else "ieee"):
            yield
        return
    try:
        cudnn.allow_tf32 = tf32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        yield
    finally:
        cudnn.allow_tf32 = found[0]
        torch.set_float32_matmul_precision(found[1])


@contextmanager
def _newer_names(wanted: str) -> Iterator[None]:
    """The same in torch's newer names (from 2.9), one for each library and kind of operation."""
    backends = torch.backends
    kinds = (
        (backends.cudnn, ("conv", "rnn")),
        (backends.cuda, ("matmul",)),
        (backends.mkldnn, ("conv", "matmul")),
    )
    places = [(getattr(library, kind), library) for library, names in kinds for kind in names]
    found = [place.fp32_precision for place, _ in places]
    try:
        for place, library in places:
            place.fp32_precision = "ieee" if library is backends.mkldnn else wanted
        yield
    finally:
        for (place, _), precision in zip(places, found, strict=True):
            place.fp32_precision = precision
