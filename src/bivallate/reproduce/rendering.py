"""A table with our results beside the paper's: as plain data, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bivallate.data.registry import KNOWN
from bivallate.quoting import tex
from bivallate.reproduce.cell import Cell, Measure, slug
from bivallate.reproduce.definition import is_of_cell, lacking
from bivallate.reproduce.judging import judge_claim
from bivallate.reproduce.paper_table import PaperTable, Scale
from bivallate.reproduce.records import Record, has_worst_class, of_cell, worst_class_of
from bivallate.reproduce.scaling import at_scale, describe, sources_at_scale

__all__ = ["contrary", "difference_text", "latex", "markdown", "remark", "side_by_side"]

NOT_RUN = "not run"


def side_by_side(table: PaperTable, scale: Scale, records: Sequence[Record]) -> dict[str, Any]:
    """The table as plain data. Our accuracies are fractions; the paper's are texts as printed."""
    cells = at_scale(table, scale)
    records, earlier = _current(cells, sources_at_scale(table, scale), records)
    groups = list(dict.fromkeys(cell.group for cell in cells))
    verdicts = [
        judge_claim(table, claim, group, records).to_json()
        for claim in table.claims
        for group in groups
        if claim.group in ("", group)
        and {claim.better, claim.worse}
        <= {c.row for c in cells if c.group == group and _shows(c, claim.column)}
    ]
    return {
        "table": table.name,
        "title": table.title,
        "source": table.source,
        "hardware": table.hardware,
        "scale": scale,
        "scale_note": describe(table, scale),
        "notes": [*table.notes, *_data_notes(records), *earlier],
        "groups": [_group(table, group, [c for c in cells if c.group == group], records) for group in groups],
        "claims": verdicts,
        "machines": sorted({_machine(r) for r in records}),
        "commits": sorted({r.entry["commit"].get("id", "")[:12] for r in records} - {""}),
        "records": len(records),
        "cells": len(cells),
    }


def _current(
    cells: Sequence[Cell], sources: Mapping[str, Cell], records: Sequence[Record]
) -> tuple[list[Record], list[str]]:
    """The records that match the present definitions of the cells, and notes on those left out or partial."""
    known = {cell.name: cell for cell in cells}
    kept, left = [], []
    partial: dict[str, list[str]] = {}
    for record in records:
        cell = known.get(slug(f"{record.row} {record.group}"))
        now = cell is not None and is_of_cell(record.entry, cell, record.seed, sources)
        (kept if now else left).append(record)
        absent = lacking(record.entry, cell) if cell is not None and now else []
        if absent:
            partial.setdefault(", ".join(f'"{name}"' for name in absent), []).append(record.path.stem)
    names = ", ".join(record.path.stem for record in left)
    notes = [f"Left out, because their cell has been defined otherwise since: {names}."] if left else []
    for columns, stems in partial.items():
        notes.append(f"Will be made anew for columns that they lack ({columns}): {', '.join(stems)}.")
    return kept, notes


def _shows(cell: Cell, column: str) -> bool:
    return any(measure.column == column for measure in cell.measures)


def _group(table: PaperTable, group: str, cells: list[Any], records: Sequence[Record]) -> dict[str, Any]:
    columns = list(dict.fromkeys(column for cell in cells for m in cell.measures for column in _columns(m)))
    rows = []
    for cell in cells:
        paper = table.reported.get(cell.row, {}).get(group, {})
        found = of_cell(records, cell.row, group)
        ours, chosen = _ours(found, columns), [record.chosen for record in found]
        line = {"row": cell.row, "method": cell.method, "paper": paper, "ours": ours, "weights": chosen}
        rows.append(line | {"passes": found[0].passes if found else None})
    alone = {column for row in rows for column in row["paper"]} - set(columns)
    return {"group": group, "columns": columns, "paper_alone": sorted(alone), "rows": rows}


def _columns(measure: Measure) -> list[str]:
    """The column of a measure, and that of the worst class beside it (see `Record.columns`)."""
    beside = measure.what == "robust" and has_worst_class(measure.attack)
    return [measure.column, *([worst_class_of(measure.column)] if beside else [])]


def _data_notes(records: Sequence[Record]) -> list[str]:
    """Notes on how much of each published data set the records used."""
    sizes: dict[str, set[tuple[int, int, int]]] = {}
    for record in records:
        entry = record.entry
        scores = [score for score in entry["scores"].values() if {"n", "classes"} <= score.keys()]
        if "config" in entry and "data" in entry and scores:
            tested = max(score["n"] for score in scores)
            size = entry["data"]["train"], tested, scores[0]["classes"]
            sizes.setdefault(entry["config"]["data"]["name"], set()).add(size)
    return [_data_note(name, size) for name, found in sorted(sizes.items()) for size in sorted(found)]


def _data_note(name: str, size: tuple[int, int, int]) -> str:
    train, tested, classes = size
    known = KNOWN.get(name)
    whole = f" of the published {known.train:,}, {known.test:,} and {known.classes}" if known else ""
    return f"Data: {name}, {train:,} training images, {tested:,} test images, {classes} classes{whole}."


def _ours(found: list[Record], columns: list[str]) -> dict[str, Any]:
    """Column -> mean over the seeds, mean of their intervals, and standard deviation.

    Times of several machines have no mean: those of the first seed's machine count, and none of a training
    that was moved from one to another.
    """
    summary: dict[str, Any] = {}
    for column in columns:
        having = [r for r in found if column in r.columns]
        if not having:
            continue
        if having[0].columns[column]["what"] == "seconds":
            having = [r for r in having if _machine(r) == _machine(having[0]) and not r.moved]
            if not having:
                summary[column] = None
                continue
        entries = [r.columns[column] for r in having]
        values = [entry["value"] for entry in entries]
        bounds = [entry["interval_95"] for entry in entries]
        known = all(b is not None for b in bounds)
        summary[column] = {
            "value": float(np.mean(values)),
            "interval_95": np.mean(bounds, 0).tolist() if known else None,
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "seeds": len(values),
            "unit": entries[0]["unit"],
        }
    return summary


def _machine(record: Record) -> str:
    m = record.entry["machine"]
    where = m["gpu"] or f"{m['processor']}, {m['threads']} thread{'s' if m['threads'] > 1 else ''}"
    where = f"begun on a GPU, ended on {where}" if record.moved else where
    company = f", {m['together']} trainings at once" if m.get("together", 1) > 1 else ""
    return f"{where}{company}, torch {m['torch']}"


def figure(entry: dict[str, Any] | None) -> str:
    """One of our results as text: value, 95 % interval, standard deviation over the seeds."""
    if entry is None:
        return "-"
    if entry["unit"] != "fraction":
        return f"{entry['value']:.4g}"
    text = f"{100 * entry['value']:.2f}"
    if entry["interval_95"] is not None:
        low, high = entry["interval_95"]
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    if entry["std"] is not None:
        text += f" ({entry['seeds']} seeds, std {100 * entry['std']:.2f})"
    return text


def markdown(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [f"## {report['table']}: {report['title']}", ""]
    timed = f", timed on {report['hardware']}" if report["hardware"] else ""
    lines += [f"{report['source']}{timed}. Scale `{report['scale']}`: {report['scale_note']}.", ""]
    count = f"{report['records']} records for {report['cells']} cells"
    lines.append(f"{count}. Accuracies in %, with 95 % intervals of the test points.")
    for group in report["groups"]:
        header, body = _grid(group)
        lines += ["", f"**{group['group']}**", "", _row(header), _row(["---"] * len(header))]
        lines += [_row(row) for row in body]
    if report["claims"]:
        lines += [
            "",
            "| claim | where | paper | ours | verdict | how |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [_row(_claim(c)) for c in report["claims"]]
    lines += ["", *(f"- {note}" for note in report["notes"])]
    if report["machines"]:
        commits = ", ".join(report["commits"]) or "unknown"
        lines.append(f"- Machine: {'; '.join(report['machines'])}. Commit: {commits}.")
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _grid(group: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows; each column has the paper's figures, if there are any, beside ours."""
    header, printed = ["method"], {}
    for column in group["columns"]:
        printed[column] = any(column in row["paper"] for row in group["rows"])
        header += [f"{column}, paper", f"{column}, ours"] if printed[column] else [column]
    header += [f"{column}, paper" for column in group["paper_alone"]]
    header += ["passes", "epoch (ESS)", "held out: it, last"]
    body = []
    for row in group["rows"]:
        line = [row["row"]]
        for column in group["columns"]:
            line += [row["paper"].get(column, "-").replace("+-", " ± ")] if printed[column] else []
            line.append(figure(row["ours"][column]) if column in row["ours"] else NOT_RUN)
        line += [row["paper"].get(column, "-") for column in group["paper_alone"]]
        passes = NOT_RUN if row["passes"] is None else f"{row['passes']:.0f}"
        body.append([*line, passes, *_weights_text(row["weights"])])
    return header, body


def _claim(entry: dict[str, Any]) -> list[str]:
    paper = "-" if entry["paper"] is None else f"{entry['paper']:+.2f}"
    ours = difference_text(entry)
    how = entry["how"] + (f", p = {entry['p']:.2g}" if entry["p"] is not None else "")
    text = entry["claim"] + ("" if entry["theirs"] else " (our question)") + contrary(entry) + remark(entry)
    return [text, entry["group"], paper, ours, entry["status"], how or "-"]


def contrary(entry: dict[str, Any]) -> str:
    """A remark if the paper's own figures contradict its claim here; otherwise empty."""
    return " (not so in the paper's figures)" if entry["theirs"] and entry["paper_agrees"] is False else ""


def remark(entry: dict[str, Any]) -> str:
    """A remark if a method is at chance, and if its example weights were nearly equal; otherwise empty."""
    guessing, alike = (" and ".join(entry[key]) for key in ("at_chance", "unweighted"))
    said = [f"{guessing} at chance"] if guessing else []
    said += [f"weights of {alike} nearly equal"] if alike else []
    return f" ({'; '.join(said)})" if said else ""


def _weights_text(chosen: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Two texts on the reported weights of every seed.

    The first gives the epoch and its effective sample size, the second the held-out robust accuracy in that
    epoch and in the last one.
    """
    epochs, held_out = [], []
    for entry in chosen:
        even = entry["effective"]
        epochs.append(
            f"{entry['epoch']}/{entry['epochs']}" + (f" ({100 * even:.0f} %)" if even is not None else "")
        )
        pair = (entry["held_out"], entry["held_out_last"])
        held_out.append("-" if None in pair else ", ".join(f"{100 * value:.1f}" for value in pair))
    return "; ".join(epochs) or NOT_RUN, "; ".join(held_out) or NOT_RUN


def difference_text(claim: dict[str, Any]) -> str:
    """Our difference and its interval as text: percentage points for accuracies, else the column's unit."""
    if claim["difference"] is None:
        return "-"
    factor, form = (100, "+.2f") if claim["unit"] == "fraction" else (1, "+.4g")
    text = format(factor * claim["difference"], form)
    if claim["interval_95"] is None:
        return text
    low, high = (format(factor * bound, form) for bound in claim["interval_95"])
    return f"{text} [{low}, {high}]"


def latex(report: dict[str, Any]) -> str:
    """The table as LaTeX tabulars (booktabs)."""
    parts = [f"% {report['table']}, scale {report['scale']}: {report['scale_note']}"]
    for group in report["groups"]:
        header, body = _grid(group)
        parts += _tabular(f"{report['table']}: {report['title']} ({group['group']})", header, body)
    if report["claims"]:
        header = ["claim", "where", "paper", "ours", "verdict", "how"]
        parts += _tabular(f"{report['table']}: claims", header, [_claim(c) for c in report["claims"]])
    return "\n".join(parts) + "\n"


def _tabular(caption: str, header: list[str], body: list[list[str]]) -> list[str]:
    lines = [_tex(header), r"\midrule", *(_tex(row) for row in body)]
    return [
        r"\begin{table}",
        rf"\caption{{{tex(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def _tex(cells: list[str]) -> str:
    return " & ".join(tex(cell) for cell in cells) + r" \\"
