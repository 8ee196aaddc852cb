"""Evaluations shared by processes find what one process does, also after a kill and a restart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import in_processes
from torch import Tensor, nn

import bivallate as bv
from bivallate import collective
from bivallate.audits.audit_model import audit
from bivallate.evaluation import attack_and_score, attack_named, new_runner, shared_points
from bivallate.evaluation.distance_file import DistanceFile
from bivallate.evaluation.named_attacks import Attack
from bivallate.evaluation.runner import Runner
from bivallate.evaluation.score import Score
from bivallate.evaluation.search import AimedDifference, Restarts, ScaledPGD, Search, Targets
from bivallate.evaluation.sweeps import minimal_distances

THREAT = bv.Linf(0.12)
STAGES = (
    Search("pgd", ScaledPGD(4), turns=Restarts(2)),
    Search("aimed", ScaledPGD(4), AimedDifference(), Targets(3)),
)


SEEN = {"two-0": ("whole", "again"), "two-1": ("whole",), "three-0": ("three",), "three-2": ("three",)}


class Killed(BaseException):
    """As far as the files can tell."""


def model() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    made = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return made


def points() -> tuple[Tensor, Tensor]:
    """61 points, of which the model is wrong on every seventh."""
    x = torch.rand(61, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = model()(x).argmax(1)
    y[::7] = (y[::7] + 1) % 4
    return x, y


@contextmanager
def killed(kind: type, method: str, after: int) -> Iterator[None]:
    """After so many times that its progress was written."""
    own, count = getattr(kind, method), 0

    def write(self: Any, *arguments: Any) -> None:
        nonlocal count
        own(self, *arguments)
        count += 1
        if count == after:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(kind, method, write)
        yield
        raise AssertionError("it has ended before")


def score(file: Path | None = None, **options: Any) -> Score:
    return attack_and_score(
        model(), points(), THREAT, Attack("two", STAGES), batch_size=8, resume=file, shared=True, **options
    )


def found(file: Path | None = None) -> Tensor:
    return minimal_distances(model(), points(), "linf", steps=5, batch_size=4, resume=file, shared=True)


def told(result: Score) -> dict[str, Any]:
    columns = {name: getattr(result, name) for name in ("y", "predicted", "broken_at", "margin", "index")}
    return columns | {"distances": found()}


def _two(rank: int, folder: Path) -> None:
    seen = list[float]()
    result = score(folder / "whole", progress=lambda moment: seen.append(moment.fraction))
    for file, after in (("again", 5), ("three", 3 + rank)):  # one of the two further than the other
        with killed(Runner, "_save", after):
            score(folder / file)
        collective.barrier()
    collective.barrier()
    with killed(DistanceFile, "add", 2):
        found(folder / "distances")
    collective.barrier()
    few = score(first=1)
    audited = audit(model(), points(), THREAT, budget_passes=6e4, shared=True)
    ends = {
        "whole": told(result),
        "again": told(score(folder / "again")),
        "passes": result.passes,
        "few": few.robust,
        "audit": audited.accuracy,
        "fractions": seen,
    }
    torch.save(ends, folder / f"two-{rank}.pt")


def _three(rank: int, folder: Path) -> None:
    ends = {"three": told(score(folder / "three")), "distances": found(folder / "distances")}
    with killed(Runner, "_save", 3):
        score(folder / "one")
    torch.save(ends, folder / f"three-{rank}.pt")


def test_a_share_is_searched_like_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy made for speed rounds otherwise: whether it is made goes by the points of all processes."""

    class CopiedForSpeed(Exception):
        pass

    def copied(*_: object) -> nn.Module:
        raise CopiedForSpeed

    x, y = torch.rand(40, 1, 2, 2), torch.zeros(40, dtype=torch.long)
    (stage,) = attack_named("pgd-20", THREAT).stages
    monkeypatch.setattr(new_runner, "search_model", copied)
    monkeypatch.setattr(new_runner, "WORTH", 30 * stage.cost() * stage.count(10))
    monkeypatch.setattr(collective, "world_size", lambda: 2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
    with pytest.raises(CopiedForSpeed):
        attack_and_score(network, (x, y), THREAT, "pgd-20", shared=True)


@pytest.mark.slow
def test_one_two_and_three_processes_agree(tmp_path: Path) -> None:
    alone, distances = score(), found()
    assert 5 < int(alone.robust.sum()) < 45, "a test that could not fail"
    in_processes(2, _two, tmp_path)
    assert {p.name for p in tmp_path.glob("three.*")} == {"three.0-of-2", "three.1-of-2"}
    in_processes(3, _three, tmp_path)
    assert not list(tmp_path.glob("three.*-of-2")), "what the two have left was cut anew"
    ends = {name: torch.load(tmp_path / f"{name}.pt") for name in SEEN}
    wanted = told(alone)
    for name, part in ((name, part) for name, some in SEEN.items() for part in some):
        got = ends[name][part]
        for key in ("y", "predicted", "broken_at", "index"):
            assert torch.equal(got[key], wanted[key]), (name, part, key)
        assert torch.allclose(got["margin"], wanted["margin"], atol=1e-5)
        assert torch.allclose(got["distances"], distances, atol=1e-5)
    assert torch.allclose(ends["three-0"]["distances"], distances, atol=1e-5)
    first, second = ends["two-0"], ends["two-1"]
    assert first["passes"]["forward"] == pytest.approx(alone.passes["forward"], rel=0.1)
    assert first["fractions"][-1] == 1
    assert not second["fractions"]
    assert torch.equal(first["few"], score(first=1).robust)
    assert first["audit"] == second["audit"]
    whole = audit(model(), points(), THREAT, budget_passes=6e4)
    assert first["audit"] == pytest.approx(whole.accuracy)
    assert len(list(tmp_path.glob("one.*-of-3"))) == 3
    again = score(tmp_path / "one")
    assert torch.equal(again.broken_at, alone.broken_at)
    shared_points.clear(tmp_path / "one")
    assert not list(tmp_path.glob("one*"))
