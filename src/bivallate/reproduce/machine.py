"""The machine and the versions with which a result was computed."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from bivallate.run.from_config import pick_device
from bivallate.run.origin import commit
from bivallate.version import __version__

__all__ = ["commit", "machine"]

KIND = {"cpu family": "family", "model": "model"}  # virtual machines call processors of any kind "AMD EPYC"


def machine(device: str, threads: int) -> dict[str, Any]:
    """Processor, cores, accelerator and versions, without names of hosts or folders.

    `instructions` are the processor's that torch computes with: others round otherwise, so that a training
    does not repeat to the bit, and processors with one and the same name may differ in them.
    """
    where = pick_device(device)
    return {
        "device": where.type,
        "gpu": torch.cuda.get_device_name(where) if where.type == "cuda" else None,
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bivallate": __version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    if not (name := told.get("model name")):
        return platform.machine()
    kind = ", ".join(f"{what} {told[key]}" for key, what in KIND.items() if key in told)
    return f"{name} ({kind})" if kind else name
