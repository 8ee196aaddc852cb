"""Audit models that hide their weakness ("villains") and honest ones: `python -m benchmarks.villains`.

Each is audited with five seeds. Writes the tables between the markers of docs/audit.md, and exits with status
1 if a villain is believed or an honest model accused. Takes some minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from tests.audits.villains import HONEST, VILLAINS, Case, digits

from bivallate.audits import Audit, audit
from bivallate.files import write_text
from bivallate.reproduce.machine import commit, machine

DOCS = Path(__file__).parents[1] / "docs" / "audit.md"
BEGIN, END = "<!-- villains: begin -->", "<!-- villains: end -->"
POINTS, BUDGET = 200, 200_000


def examine(case: Case, seed: int) -> Audit:
    """Audit one model at the quick level."""
    model = case.make(seed)
    return audit(
        model, digits()[1], case.threat, n=POINTS, budget_passes=BUDGET, claimed=case.claimed, seed=seed
    )


def row(case: Case, audits: list[Audit]) -> str:
    """One row of the table."""
    verdicts = Counter(a.verdict for a in audits)
    said = ", ".join(f"{verdict} {count}" for verdict, count in verdicts.most_common())
    evidence = Counter(check.name for a in audits for check in a.failed_checks)
    by = ", ".join(f"{name} {count}" for name, count in evidence.most_common())
    right = sum(a.is_suspicious != case.honest for a in audits)

    def mean(values: list[float]) -> str:
        return f"{100 * sum(values) / len(values):.0f}"

    threat = f"{type(case.threat).__name__} {case.threat.eps:g}"
    pgd, worst = mean([a.accuracy["pgd"] for a in audits]), mean([a.worst for a in audits])
    clean = mean([a.clean for a in audits])
    cells = (case.name, case.about, threat, clean, pgd, worst, said, by or "-", f"{right}/{len(audits)}")
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| model | what it is | threat | clean % | PGD-20 % | worst % | verdicts | evidence | right |\n"
    "| --- | --- | --- | --: | --: | --: | --- | --- | --- |"
)


def _provenance(threads: int) -> str:
    """The commit and the machine of this measurement."""
    found, here = commit(), machine("cpu", threads)
    state = " (modified)" if found.get("modified") else ""
    return f"commit {found.get('id', 'unknown')[:7]}{state}, {here['processor']} with {here['cores']} cores"


def main() -> int:
    """Run the audits, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="names of models; the page is then left alone")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began, wrong, tables = time.perf_counter(), 0, []
    for title, cases in (("Honest models", HONEST), ("Villains", VILLAINS)):
        lines = [f"### {title}", "", HEAD]
        for case in cases:
            if options.only and case.name not in options.only:
                continue
            audits = [examine(case, seed) for seed in range(options.seeds)]
            wrong += sum(a.is_suspicious == case.honest for a in audits)
            lines.append(row(case, audits))
            print(lines[-1], flush=True)
        tables.append("\n".join(lines))
    seconds = time.perf_counter() - began
    total = options.seeds * (len(HONEST) + len(VILLAINS))
    foot = (
        f"{total} audits of {POINTS} points at the quick level, seeds 0 to {options.seeds - 1}, digits, "
        f"{wrong} wrong, {seconds:.0f} s on {options.threads} thread(s), {_provenance(options.threads)}. "
        "Accuracies are means over the seeds."
    )
    print(foot)
    if not options.only:
        head, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
        _, _, tail = rest.partition(END)
        body = "\n\n".join([*tables, foot])
        write_text(DOCS, f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
