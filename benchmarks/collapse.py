"""Measure which methods overfit catastrophically where Fast-AT does: `python -m benchmarks.collapse`.

Trains in the digits setting of `benchmarks.sentinel`, which only watches, with other methods of one or few
attack steps instead of Fast-AT. Writes the table between the markers of docs/sentinel.md. Takes a few minutes
on one core.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import fmean

import torch

from bivallate.files import write_text
from bivallate.run.sentinel import Sentinel

from .sentinel import DOCS, SETTINGS, Trained, load, train

BEGIN, END = "<!-- collapse: begin -->", "<!-- collapse: end -->"
METHODS = (
    "fgsm-at", "fast-at", "n-fgsm", "fast-at-ga", "fgsm-pgi", "liet", "nuat", "gat", "elle", "aaer", "sora",
    "fast-bat", "backward-smoothing", "atta", "free-at", "bastion", "trades", "at",
)  # fmt: skip


def row(method: str, runs: list[Trained]) -> str:
    """One row of the table: means over the seeds, and how many of them collapsed."""
    fallen = sum(Sentinel().collapsed(run.fgsm, run.pgd) for run in runs)
    spread = f"[{100 * min(r.pgd for r in runs):.1f}, {100 * max(r.pgd for r in runs):.1f}]"
    means = [f"{100 * fmean(getattr(run, key) for run in runs):.1f}" for key in ("clean", "fgsm", "pgd")]
    passes = f"{fmean(run.passes for run in runs):.1f}"
    return (
        f"| {' | '.join([method, *means[:2], f'{means[2]} {spread}', passes, f'{fallen} of {len(runs)}'])} |"
    )


def main() -> None:
    """Train, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--dry", action="store_true", help="print the table, leave docs/sentinel.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting, lines, commits = SETTINGS["digits"], [], set()
    for method in options.methods:
        chosen = replace(setting, method=method)
        runs = [train(chosen, "watches", seed, load(chosen)) for seed in options.seeds]
        commits |= {run.commit for run in runs}
        lines.append(row(method, runs))
        print(lines[-1], flush=True)
    head = (
        "| method | clean % | FGSM % | PGD-20 % [lowest, highest] | passes a row and epoch | collapsed |\n"
        "| --- | --: | --: | --: | --: | --: |"
    )
    made = (
        f"`python -m benchmarks.collapse`, commit {', '.join(sorted(commits))}, one thread; "
        f"seeds {', '.join(map(str, options.seeds))}. The last weights on test data; default parameters."
    )
    if not options.dry:
        page = DOCS / "sentinel.md"
        before, rest = page.read_text(encoding="utf-8").split(BEGIN)
        table = "\n".join((head, *lines))
        write_text(page, f"{before}{BEGIN}\n\n{table}\n\n{made}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
