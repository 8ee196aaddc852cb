"""`bivallate doctor`: its statements about a machine are true, and it names what is wrong."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from bivallate import cli, installation


def doctored(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, dict[str, object]]]:
    status = cli.run(["doctor", *words, "--json"])
    found = json.loads(capsys.readouterr().out)
    return status, {one["name"]: one for one in found}


def test_a_whole_installation(capsys) -> None:
    status, found = doctored(capsys)
    assert status == 0, [one for one in found.values() if not one["ok"]]
    assert found["torch"]["value"] == metadata.version("torch")
    assert found["data digits"]["value"] == "built in"
    assert "attacks in their ball" in found


def test_a_package_that_is_too_old_or_missing(monkeypatch, capsys) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "rich":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "scipy" else real(name)

    monkeypatch.setattr(installation.metadata, "version", version)
    status, found = doctored(capsys, "--no-self-test")
    assert status == 1
    assert {name for name, one in found.items() if not one["ok"]} == {"rich", "scipy"}
    assert "not installed" in str(found["rich"]["value"])
    assert "is needed" in str(found["scipy"]["value"])


def test_what_breaks_in_the_self_test_is_a_finding(monkeypatch) -> None:
    monkeypatch.setattr(installation, "train", lambda *_, **__: 1 / 0)
    found = {one.name: one for one in installation.self_test()}
    assert not found["training, saving, loading"].ok
    assert "ZeroDivisionError" in found["training, saving, loading"].value
    assert found["a gradient against finite differences"].ok
