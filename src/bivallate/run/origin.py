"""Which code made a result: the commit of the package's sources, and the versions of Python and torch."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["commit", "origin"]

_ID = re.compile("[0-9a-f]{7,64}")


@cache
def commit() -> dict[str, Any]:
    """Commit of the package's sources (`id`), and whether they have uncommitted changes (`modified`).

    Outside a git repository that contains the sources it is the commit in BIVALLATE_COMMIT, or empty.
    """
    root = Path(__file__).parents[1]
    head = _git(root, "rev-parse", "HEAD") if _git(root, "ls-files", "__init__.py") else ""
    if head:
        return {"id": head, "modified": bool(_git(root, "status", "--porcelain", "--", str(root)))}
    told = os.environ.get("BIVALLATE_COMMIT", "")
    return {"id": told} if _ID.fullmatch(told) else {}


def origin() -> dict[str, Any]:
    """Commit and versions for a run's manifest."""
    return {"commit": commit(), "python": platform.python_version(), "torch": torch.__version__}


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
