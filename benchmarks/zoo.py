"""Add the network of a run to the zoo, with its measured accuracies.

    python -m benchmarks.zoo NAME RUN "COMMAND" COMMIT [--weights best] [--record FILE] [--note TEXT]

RUN must hold an evaluation by AutoAttack on its test data (`bivallate evaluate RUN --attack autoattack`);
otherwise --record names the JSON record of one, from benchmarks/finetuning.py or from a table's cell in
results/. The 64 images that tests/models/test_zoo.py evaluates again are written to tests/models/zoo.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bivallate as bv
from bivallate import models
from bivallate.data.registry import training_defaults
from bivallate.evaluation.points import model_fingerprint
from bivallate.files import write_json, write_text
from bivallate.from_text import parse_number
from bivallate.reports.collect import collect
from bivallate.run.from_config import own_data
from bivallate.zoo import entries

ZOO, SLICES = Path("src/bivallate/zoo"), Path("tests/models/zoo")
PAGE = Path("docs/zoo.md")
BEGIN, END = "<!-- zoo: begin -->", "<!-- zoo: end -->"
SLICE = 64
LICENCE = "Apache-2.0"


def measured(run: Path, weights: str, record: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """The accuracies of the network without an attack and under AutoAttack."""
    if record:
        kept = record.get("scores", {}).get("autoattack", record)
        assert record["weights"] == weights, f"the record is of the {record['weights']} weights"
        assert kept.get("model_fingerprint", fingerprint) == fingerprint, "the record is of other weights"
        own = {key: kept[key] for key in ("n", "clean_accuracy", "robust_accuracy", "interval_95")}
        return {"attack": "autoattack", "seed": 0, **own}
    evaluations = collect([run])[0].evaluations
    found = [e.score for e in evaluations if (e.weights, e.split, e.data) == (weights, "test", "")]
    score = max((s for s in found if s.attack == "autoattack"), key=lambda s: s.n)
    shares = {"clean_accuracy": score.clean_accuracy, "robust_accuracy": score.robust_accuracy}
    interval = list(score.interval_95)
    return {"attack": score.attack, "seed": score.seed, "n": score.n, **shares, "interval_95": interval}


def entry(asked: argparse.Namespace) -> dict[str, Any]:
    """Write a network's weights, manifest and test images; returns its entry in the list."""
    run = Path(asked.run)
    config, model = collect([run])[0].config, bv.load(run, asked.weights)
    record = json.loads(asked.record.read_text()) if asked.record is not None else {}
    if isinstance(record.get("data"), str):  # of a part of its training images
        config = config.set("data.name", record["data"])
    data, threat = own_data(config.data, config.seed), config.method.threat
    rows, eps, width = torch.arange(SLICE), training_defaults(config.data.name).eps, config.model.width
    again = bv.evaluate(model, data.test.tensors(rows), threat, asked.slice_attack)
    models.save(model, ZOO / f"{asked.name}.safetensors", classes=model.classes)
    SLICES.mkdir(parents=True, exist_ok=True)
    images, labels = data.test.raw(rows).numpy(), data.test.labels[rows].numpy()
    np.savez_compressed(SLICES / f"{asked.name}.npz", x=images, y=labels)
    right = {"clean": again.clean_accuracy, "robust": again.robust_accuracy}
    return {
        "data": config.data.name,
        "norm": type(threat).__name__,
        "eps": eps if math.isclose(parse_number(eps), threat.eps) else f"{threat.eps:.6g}",
        "method": config.method.name,
        "network": " of width ".join(map(str, [config.model.name, *([width] if width != 1 else [])])),
        "parameters": sum(p.numel() for p in model.parameters()),
        "measured": measured(run, asked.weights, record, model_fingerprint(model)),
        "slice": {
            "n": SLICE,
            "attack": asked.slice_attack,
            **{k: round(v * SLICE) for k, v in right.items()},
        },
        "fingerprint": model_fingerprint(model),
        "made": asked.made,
        "commit": asked.commit,
        "licence": LICENCE,
        **({"note": asked.note} if asked.note else {}),
    }


def table() -> str:
    """The list as a Markdown table."""
    lines = [
        "| name | data, threat | method | network | clean | AutoAttack | 95 % interval | images |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in entries().items():
        m = entry["measured"]
        low, high = m["interval_95"]
        threat = f"{entry['norm']} {entry['eps']}"
        lines.append(
            f"| `{name}` | {entry['data']}, {threat} | `{entry['method']}` | {entry['network']}, "
            f"{entry['parameters']:,} parameters | {m['clean_accuracy']:.1%} | {m['robust_accuracy']:.1%} "
            f"| {low:.1%} to {high:.1%} | {m['n']:,} |"
        )
    return "\n".join(lines)


def write_page() -> None:
    """Write the list into docs/zoo.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    write_text(PAGE, f"{before}{BEGIN}\n{table()}\n{after}")


def main() -> None:
    """Add the network to the list and write its page."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("name", "run", "made", "commit"):
        parser.add_argument(name)
    parser.add_argument("--weights", default="best")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--note")
    parser.add_argument("--slice-attack", default="pgd-10", help="fewer steps for what is slow")
    asked = parser.parse_args()
    place = ZOO / "zoo.json"
    known = json.loads(place.read_text()) if place.exists() else {}
    write_json(place, {**known, asked.name: entry(asked)}, indent=1)
    write_page()


if __name__ == "__main__":
    main()
