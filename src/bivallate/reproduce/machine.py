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


def machine(device: str, threads: int) -> dict[str, Any]:
    """Processor, cores, accelerator and versions, without names of hosts or folders."""
    where = pick_device(device)
    return {
        "device": where.type,
        "gpu": torch.cuda.get_device_name(where) if where.type == "cuda" else None,
        "processor": _processor(),
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
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
