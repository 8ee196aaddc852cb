"""Run the standing benchmarks, or only those named: `python -m benchmarks [passes ...]`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

STANDING = ("passes", "feeding", "autoattack")


def main(names: list[str]) -> int:
    """Run the benchmarks; returns 0, or 1 if one missed its target (its `main` returned False)."""
    folder = Path(__file__).parent
    known = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    if unknown := [n for n in names if n not in known]:
        print(f"unknown benchmark {unknown[0]!r}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    missed = False
    for name in names or STANDING:
        run = getattr(importlib.import_module(f"benchmarks.{name}"), "main", None)
        if run is not None:
            print(f"== {name}", flush=True)
            sys.argv = [name]  # so that the benchmark parses no options and uses its defaults
            missed |= run() is False
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
