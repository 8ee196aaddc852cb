"""Run the demo as other processors would, for the ranges in the table of README and docs/demo.md.

    python -m benchmarks.demo [--out runs/demo-spread] [--keep]

Processors add numbers in an order that depends on the width of their vector instructions, and a training
amplifies the different rounding errors. One thread and one seed therefore give the same numbers again on the
same processor, but not on another. Here one machine is limited to the instructions of others, `KINDS`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bivallate.files import write_text
from bivallate.reproduce.machine import commit

PAGES = Path("README.md"), Path("docs/demo.md")
BEGIN, END = "<!-- demo: begin -->", "<!-- demo: end -->"
KINDS = {  # name -> environment that limits the libraries' instructions; the first kind has no limit
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
HEAD = """| method | SA | RA-PGD-20 [95 %] | RA-Tail-30 | epoch | last epoch: SA | RA-PGD-20 | cost an epoch |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def demo(kind: str, out: Path, *, keep: bool) -> list[dict[str, Any]]:
    """The rows that the demo prints with these instructions; an earlier one's if they may be kept."""
    folder = out / kind
    if not (keep and (folder / "table.json").exists()):
        command = [sys.executable, "-m", "bivallate", "demo", "--out", str(folder)]
        subprocess.run(command, check=True, env={**os.environ, **KINDS[kind]})
    return json.loads((folder / "table.json").read_text(encoding="utf-8"))


def row(same: list[dict[str, Any]]) -> str:
    """One method's row: the numbers of the first kind, with the range over the kinds if they differ."""
    first = same[0]
    low, high = first["interval_95"]
    cells = [
        first["method"],
        spread(same, "clean"),
        f"{spread(same, 'robust')} [{100 * low:.0f}, {100 * high:.0f}]",
        spread(same, "tail_30"),
        f"{first['best_epoch']}/{first['epochs']}",
        spread(same, "last_clean"),
        spread(same, "last_robust"),
        f"{first['forward']:.0f}F + {first['backward']:.0f}B",
    ]
    return f"| {' | '.join(cells)} |"


def spread(same: list[dict[str, Any]], key: str) -> str:
    """Format a number in percent, with its range over the kinds if they differ.

    Example:
        >>> spread([{"clean": 0.5}, {"clean": 0.52}, {"clean": 0.49}], "clean")
        '50.0% (49.0 to 52.0)'
    """
    values = [100 * entry[key] for entry in same]
    low, high = min(values), max(values)
    return f"{values[0]:.1f}%" + (f" ({low:.1f} to {high:.1f})" if high - low >= 0.05 else "")


def main() -> None:
    """Run the demo with each kind of instructions and write the table into README and docs/demo.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo-spread"))
    parser.add_argument("--keep", action="store_true", help="take the demos that --out holds already")
    options = parser.parse_args()
    found = [demo(kind, options.out, keep=options.keep) for kind in KINDS]
    table = "\n".join([HEAD, *(row(list(same)) for same in zip(*found, strict=True))])
    for page in PAGES:
        head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, tail = rest.partition(END)
        write_text(page, f"{head}{BEGIN}\n{table}\n{END}{tail}")
    print(f"{table}\n\ncommit {commit().get('id', 'unknown')[:7]}")


if __name__ == "__main__":
    main()
