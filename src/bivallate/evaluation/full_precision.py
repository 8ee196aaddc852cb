"""Contexts for full float32 arithmetic, whatever precision the caller has switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

__all__ = ["full_float32", "unmixed", "without_autocast"]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch off the caller's autocast; a model may still switch on its own."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextmanager
def unmixed(model: nn.Module) -> Iterator[None]:
    """Switch off a network's mixed precision, so that it computes in the type of its parameters."""
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
    """Run convolutions and matrix products in full float32, without TensorFloat-32 or bfloat16.

    cuDNN uses TensorFloat-32 by default. With `tf32` it is switched on instead, where the device has it.
    """
    cudnn = torch.backends.cudnn
    try:
        found = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has used torch's newer names, after which reading the older ones fails
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
