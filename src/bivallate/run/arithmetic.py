"""The number format, the memory layout and the threads of a run's computations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from bivallate.errors import UserError
from bivallate.evaluation.full_precision import full_float32

__all__ = [
    "Precision",
    "amp_read",
    "autocast_of",
    "computing",
    "has_bfloat16",
    "has_tf32",
    "lay_out",
    "limit_threads",
    "within",
]

Precision = Literal["float32", "tf32", "bf16"]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware.

    A processor needs AVX-512 BF16 or AMX. Without them autocast is sixteen to twenty times slower than
    float32 (measured on AVX2).
    """
    if device.type == "cuda":
        return True
    if device.type != "cpu":
        return False
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def autocast_of(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The data type for autocast, or None for no autocast.

    Raises UserError if the device lacks the precision, or would be slower with it.
    """
    if precision == "tf32" and not has_tf32(device):
        raise UserError(
            f"precision=tf32 needs a CUDA device of compute capability 8.0 or more, this is {device.type}: "
            "use --precision float32"
        )
    if precision != "bf16":
        return None
    if not has_bfloat16(device):
        lacking = " without AVX-512 BF16 and AMX" if device.type == "cpu" else ""
        raise UserError(
            "precision=bf16 (mixed precision) is for CUDA and for processors with AVX-512 BF16 or AMX; on "
            f"{device.type}{lacking} it is slower than float32: use --precision float32"
        )
    return torch.bfloat16


def has_tf32(device: torch.device) -> bool:
    """Whether the device multiplies TensorFloat-32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def within(precision: Precision, device: torch.device) -> Precision:
    """The precision, or float32 if the device lacks it."""
    there = {"float32": True, "tf32": has_tf32(device), "bf16": has_bfloat16(device)}
    return precision if there[precision] else "float32"


def amp_read(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration, with an older version's `amp` translated into `precision`."""
    if "amp" not in fields:
        return fields
    meant = {"true": "bf16", "false": "float32"}.get(str(fields["amp"]).lower())
    if meant is None:
        raise UserError(f"amp, now precision, was true or false, got {fields['amp']!r}")
    return {"precision": meant, **{name: value for name, value in fields.items() if name != "amp"}}


@contextmanager
def computing(precision: Precision, deterministic: bool, device: torch.device) -> Iterator[None]:
    """Compute matrix products and convolutions in this precision, without regard to torch's own settings.

    With `deterministic`, allow only operations that give the same bits every time. This matters on CUDA
    alone: on a processor all operations do so for a given number of threads. Torch's settings are restored at
    the end.

    Raises:
        UserError: an operation has no deterministic form on the device.
    """
    with (
        full_float32(tf32=precision == "tf32"),
        _repeatable() if _asks(deterministic, device) else nullcontext(),
    ):
        try:
            yield
        except RuntimeError as error:
            told = _no_such_form(error) if deterministic else None
            if told is None:
                raise
            raise told from error


def _asks(deterministic: bool, device: torch.device) -> bool:
    return deterministic and device.type == "cuda"


@contextmanager
def _repeatable() -> Iterator[None]:
    """Allow deterministic operations only. cuBLAS reads its environment variable at its first use."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn: Any = torch.backends.cudnn
    filled: Any = torch.utils.deterministic
    found = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    kept = cudnn.benchmark, filled.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True)
        cudnn.benchmark = filled.fill_uninitialized_memory = False
        yield
    finally:
        torch.use_deterministic_algorithms(found[0], warn_only=found[1])
        cudnn.benchmark, filled.fill_uninitialized_memory = kept


def _no_such_form(error: RuntimeError) -> UserError | None:
    """The user's error for torch's refusal of an operation; None for any other error."""
    text = str(error).splitlines()[0] if str(error) else ""
    if "CUBLAS_WORKSPACE_CONFIG" in str(error):
        return UserError(
            "deterministic=true came too late: this process has used cuBLAS before. Set the environment "
            "variable CUBLAS_WORKSPACE_CONFIG=:4096:8 before Python starts"
        )
    if "does not have a deterministic implementation" in text:
        name = text.partition(" does not have")[0]
        return UserError(
            f"deterministic=true: {name} of this network or method has no deterministic form on CUDA: take "
            "another layer, train with deterministic=false, or on the processor"
        )
    return None


def lay_out(model: nn.Module, channels_last: bool | str) -> None:
    """Put a network's convolutions into channels-last memory, in place, if `channels_last` is True.

    False and an unresolved "auto" keep the usual layout.
    """
    if channels_last is True:
        untyped: Any = model
        untyped.to(memory_format=torch.channels_last)


def limit_threads(threads: int) -> None:
    """Set torch's number of threads; 0 keeps torch's. A resume to the same bits needs the same number."""
    most = 4 * (os.cpu_count() or 1)
    if not 0 <= threads <= most:
        raise UserError(f"threads must lie between 0 (torch's choice) and {most} here, got {threads}")
    if threads:
        torch.set_num_threads(threads)
