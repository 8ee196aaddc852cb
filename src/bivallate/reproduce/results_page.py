"""The page docs/results.md: all tables, rebuilt from the records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bivallate.files import write_json, write_text
from bivallate.reproduce.paper_table import QUESTIONS, PaperTable, Scale
from bivallate.reproduce.papers.catalogue import tables
from bivallate.reproduce.records import read_records
from bivallate.reproduce.rendering import contrary, difference_text, latex, markdown, remark, side_by_side

__all__ = ["page", "write_page", "write_table"]

Reports = dict[tuple[str, Scale], dict[str, Any]]
SHOWN: tuple[Scale, ...] = ("full", "cpu")  # results of scale smoke have no meaning and are not shown

INTRODUCTION = """# Results

Every figure under "ours" was computed by this package and is kept, point by point, in `results/`; this page
is rebuilt from those records by `bivallate reproduce --tables`. Figures under "paper" are as printed there.

A claim is *confirmed* if its inequality holds at the 5 % level on the test points, by the exact test and by
the interval. Both are paired, because both methods are evaluated on the same points; with several seeds they
are for the average of these seeds. The claim is *not confirmed* if the opposite inequality holds, *undecided*
if neither does, and *not run* if a record is missing. Tails are compared by the intervals of both methods,
which is cautious; a bootstrap of their difference would favour the more unequal method. The intervals are for
the choice of the test points, not for training: with one seed they say nothing about other seeds. Every claim
is tested separately: of twenty claims that do not hold, one is expected to be decided wrongly. "Not so in the
paper's figures" marks a claim in a paper's text that its own table contradicts in this setting. "Weights
nearly equal" marks a claim on a method whose example weights were nearly equal (effective sample size of at
least 95 %) in all epochs up to the reported one, so that the verdict says nothing about its weights; weights
of classes are not marked, since one class of ten may weigh half as much again at a size of 98 %. "At
chance" marks a claim on a method whose network is not shown to be better than a guess on clean images: it has
not learnt under this recipe, so the claim is undecided, whoever is above.

"Passes" are forward and backward passes of the whole training, per example. Seconds per epoch are wall time
(the median epoch), also if the machine had other work. "Epoch" is that of the reported weights, with the
effective sample size of its example weights (100 %: equal weights). "Held out" is the robust accuracy on
held-out training images in that epoch and in the last one.
"""


def page(out: Path) -> str:
    """The page as Markdown."""
    reports: Reports = {}
    for table in tables().values():
        for scale in SHOWN:
            report = _report(table, scale, out)
            if report is not None:
                reports[table.name, scale] = report
    parts = [INTRODUCTION, _questions(reports)]
    parts += [markdown(report) for report in reports.values()]
    parts.append(_missing(out))
    return "\n".join(parts)


def write_page(out: Path, target: Path) -> Path:
    """Write the page. It depends on the records alone, so that a test can compare it."""
    write_text(target, page(out))
    return target


def write_table(table: PaperTable, scale: Scale, out: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Write a table as JSON, Markdown and LaTeX into its folder; return the data, and the texts by format."""
    report = side_by_side(table, scale, read_records(out, table.name, scale))
    text = {"markdown": markdown(report), "latex": latex(report)}
    place = out / table.name
    write_json(place / f"{scale}.json", report)
    write_text(place / f"{scale}.md", text["markdown"])
    write_text(place / f"{scale}.tex", text["latex"])
    return report, text


def _report(table: PaperTable, scale: Scale, out: Path) -> dict[str, Any] | None:
    records = read_records(out, table.name, scale)
    return side_by_side(table, scale, records) if records else None


def _questions(reports: Reports) -> str:
    """The section on the main questions: the claims that answer each, and how many were confirmed."""
    lines = ["## The questions that matter", ""]
    for key, question in QUESTIONS.items():
        lines.append(f"**{question}**")
        lines.append("")
        found = [
            (report, claim)
            for report in reports.values()
            for claim in report["claims"]
            if claim["question"] == key and claim["status"] != "not run"
        ]
        lines += [_tally([claim for _, claim in found]), ""] if found else []
        lines += [_answer(report, claim) for report, claim in found] or ["- not run"]
        lines.append("")
    return "\n".join(lines)


def _tally(claims: list[dict[str, Any]]) -> str:
    """Numbers of claims by verdict; those on methods at chance or with nearly equal weights do not count."""
    counted = [c for c in claims if not c["unweighted"] and not c["at_chance"]]
    counts = {s: sum(c["status"] == s for c in counted) for s in ("confirmed", "not confirmed", "undecided")}
    text = "Claims: " + ", ".join(f"{n} {status}" for status, n in counts.items())
    rest = len(claims) - len(counted)
    return text + (f"; {rest} at chance or of nearly equal weights do not count." if rest else ".")


def _answer(report: dict[str, Any], claim: dict[str, Any]) -> str:
    where = f"{report['table']} `{report['scale']}`, {claim['group']}"
    figures = difference_text(claim)
    paper = "" if claim["paper"] is None else f"; paper {claim['paper']:+.2f}"
    text = claim["claim"] + contrary(claim) + remark(claim)
    return f"- {where}: {text}: **{claim['status']}** ({figures}{paper})"


def _missing(out: Path) -> str:
    lines = ["## Not run", "", "These tables have their commands, and no records yet:", ""]
    for table in tables().values():
        for scale in SHOWN:
            if not read_records(out, table.name, scale):
                command = f"`bivallate reproduce {table.name} --scale {scale}`"
                lines.append(f"- {table.name} at scale `{scale}` ({table.title}): not run; {command}")
    return "\n".join(lines) + "\n"
