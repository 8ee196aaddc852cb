"""A run in which every name is an attack on the program that shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import bivallate as bv
from bivallate.evaluation import Identity, evaluation_name
from bivallate.run.config import Validation

THREAT = bv.Linf(0.15)
FIRED = "document.body.id='FIRED'"
STRINGS = {
    "attribute": f'x" onload="{FIRED}" onmouseover="{FIRED}',
    "apostrophe": f"x' onload='{FIRED}'",
    "element": f"</title></text><script>{FIRED}</script><img src=x onerror={FIRED}>",
    "svg": f"]]></style><svg onload={FIRED}><animate onbegin={FIRED} attributeName=x dur=1s>",
    "link": f"[x](javascript:{FIRED}) ![x](x) <javascript:{FIRED}>",
    "rich": "[/background] [/] [red]x[/red] :smiley: [link=file:///etc/passwd]x[/link]",
    "terminal": "x\x1b[2J\x1b]0;FIRED\x07\x9b31m\rnothing\x08\x08\x00",
    "direction": "gnp.\u202ee\u2066xe\u200b\u2028\ufeff",
    "table": "a | b \\| c\n\n# FIRED\n\n| d |",
    "tex": r"\input{/etc/passwd}\write18{id} $x$ 50% #1 {} ^^5c ~ & _",
    "mathtext": r"$\frac{1}{$ $ $\undefined$",
    "template": "{{ 7*7 }}{% raw %}{# << >> <%",
    "long": "word " * 4000,
    "letters": "\u4f60\u597d \u0645\u0631\u062d\u0628\u0627 \U0001f600 ä",
    "not utf-8": os.fsdecode(b"caf\xe9"),
    "empty": "",
}


def trained(place: Path, epochs: int = 1, threat: bv.Linf = THREAT) -> Path:
    """A short run on the digits with one evaluation."""
    data = bv.data.load("digits")
    method = bv.methods.at(threat, steps=1)
    short = Validation(1, 50)
    bv.train("linear", data, method, epochs=epochs, batch_size=512, out=place, validation=short)
    score = bv.evaluate(bv.load(place), data.test, threat, "fgsm")
    replace(score, identity=Identity()).save(
        place / "evaluation" / evaluation_name("best", threat, "fgsm", 0)
    )
    return place


def write_audit(run: Path, text: str, **changes: object) -> Path:
    """An audit of a run's best weights in which every free text is this one."""
    path = run / "audit" / evaluation_name("best", THREAT, "audit", 0)
    path.parent.mkdir(exist_ok=True)
    check = {"name": text, "finding": text, "advice": text, "outcome": "flag"}
    entry = {
        "schema": "bivallate-audit-1", "verdict": "suspect", "meaning": text,
        "threat": {"kind": "Linf", "eps": THREAT.eps}, "n": 100,
        "plan": {"level": text}, "claimed": 0.5, "claim": text, "worst": 0.25,
        "worst_interval_95": [0.17, 0.34], "model_fingerprint": text,
        "checks": [check, check | {"outcome": "pass", "name": "quiet"}],
    }  # fmt: skip
    path.write_text(json.dumps(entry | changes), encoding="utf-8")
    return path


def poisoned(run: Path, place: Path, text: str) -> Path:
    """A copy of a run in which every free text is this one: folder, classes, attack, parts, warnings, alarms,
    method, values of the configuration."""
    name = re.sub(r"[/\x00\n]", "_", text)[:80] or "empty"
    copy = place / name
    shutil.copytree(run, copy)
    manifest = json.loads((copy / "model.json").read_text(encoding="utf-8"))
    manifest["classes"] = [f"{text}{k}" for k in range(10)]
    manifest["data"] = manifest["method"] = manifest["code_version"] = text
    (copy / "model.json").write_text(json.dumps(manifest), encoding="utf-8")
    settings = (copy / "config.toml").read_text(encoding="utf-8")
    plain = text.encode("utf-8", "replace").decode()
    for key in ("name", "data_dir", "recipe", "imbalance"):
        written = json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")
        settings = re.sub(
            rf'(?m)^{key} = "(?!linear).*"$', lambda _, k=key, w=written: f"{k} = {w}", settings
        )
    (copy / "config.toml").write_text(settings, encoding="utf-8")
    (old,) = (copy / "evaluation").glob("*.json")
    score = json.loads(old.read_text(encoding="utf-8"))
    score["attack"], score["stage_names"], score["warnings"] = text, [text], [text]
    (copy / "evaluation" / old.name).write_text(json.dumps(score), encoding="utf-8")
    write_audit(copy, text, verdict=text)
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[-1]["alarms"] = [{"kind": text, "epoch": 1, "step": 0, "text": text}]
    (copy / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return copy
