"""What a record says of its machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bivallate.reproduce.machine import machine

CORE = "processor : {n}\ncpu family\t: {f}\nmodel\t\t: {m}\nmodel name\t: AMD EPYC\nstepping : 1\n\n"


def test_processors_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for family, model in ((26, 2), (25, 1)):
        text = "".join(CORE.format(n=n, f=family, m=model) for n in range(2))
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        told.append(machine("cpu", 1)["processor"])
    assert told == ["AMD EPYC (family 26, model 2)", "AMD EPYC (family 25, model 1)"]
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "model name : Some\n")
    assert machine("cpu", 1)["processor"] == "Some"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "Features : fp asimd\n")
    assert machine("cpu", 1)["processor"]


def test_the_instructions_are_those_that_torch_computes_with(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"CPU capability usage: {machine('cpu', 1)['instructions']}" in torch.__config__.show()
