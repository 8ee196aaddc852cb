"""Tell whether a process of this machine is alive, and not a later one with the same number."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process runs on this machine; a zombie does not."""
    if os.name == "nt":
        return True  # on Windows os.kill would end the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return _status(pid)[0] not in ("Z", "X")


def started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty where that is unknown.

    It tells a process apart from a later one that was given the same number.
    """
    return _status(pid)[1]


def _status(pid: int) -> tuple[str, str]:
    """State and start of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


@cache
def namespace_id() -> str:
    """Twelve hexadecimal digits that are equal for processes which can see each other.

    These are the processes of one container since the last start of the machine.
    """
    try:
        place = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        place = platform.node()
    return hashlib.blake2b(place.encode(), digest_size=6).hexdigest()
