"""In which number format and memory layout a network computes: decided once, when a run begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bivallate.errors import UserError

__all__ = ["amp_dtype", "has_bfloat16", "lay_out"]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware. A processor needs AVX-512 BF16 or AMX: one without
    computes sixteen to twenty times slower under autocast than in float32 (measured on AVX2)."""
    if device.type == "cuda":
        return True
    if device.type != "cpu":
        return False
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def amp_dtype(wanted: bool, device: torch.device) -> torch.dtype | None:
    """The format that the model computes in under `amp`, or None. Raises UserError where it would be
    slower."""
    if not wanted:
        return None
    if not has_bfloat16(device):
        lacking = " without AVX-512 BF16 and AMX" if device.type == "cpu" else ""
        raise UserError(
            f"mixed precision (amp) is for CUDA and for processors with AVX-512 BF16 or AMX; on {device.type}"
            f"{lacking} it is slower than float32: leave amp off (--set amp=false)"
        )
    return torch.bfloat16


def lay_out(model: nn.Module, channels_last: bool | str) -> None:
    """Puts a network's convolutions into channels_last memory, in place, if that is wanted; while "auto" is
    not settled they stay as usual."""
    if channels_last is True:
        untyped: Any = model
        untyped.to(memory_format=torch.channels_last)
