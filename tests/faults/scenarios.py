"""Actions on a run's folder during which crashes are made, and the required state afterwards."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bivallate as bv
from bivallate.evaluation import Score, attack_and_score
from bivallate.evaluation.named_attacks import attack_named
from bivallate.run import checkpoint, sentinel_loop
from bivallate.run.config import Config, Validation
from bivallate.run.reopen import FREE, ORIGIN, differing
from bivallate.run.sentinel import Sentinel
from bivallate.run.validation import inspect_rows

THREAT = bv.Linf(0.15)
FILES = ("model.safetensors", "best.safetensors", "ema.safetensors", "epoch-1.safetensors")
HIDDEN = (".lock", ".bivallate-")


def digits() -> bv.data.Dataset:
    """Sixteen training and twenty held-out images."""
    data = bv.data.load("digits")
    assert data.validation is not None
    train, test = data.train.subset(slice(0, 16)), data.test.subset(slice(0, 24))
    return data.but(train=train, validation=data.validation.subset(slice(0, 20)), test=test)


DATA = digits()


def train(folder: Path, method: bv.Method, **more: Any) -> bv.Run:
    """Two epochs of two minibatches, a checkpoint after each."""
    fixed: dict[str, Any] = {"epochs": 2, "batch_size": 8, "threads": 1, "average": 0.9, "keep": (1,)}
    fixed |= {"optimizer": bv.SGD(0.05), "validation": Validation(1, 20), "checkpoint_minutes": 1e-6}
    return bv.train("linear", DATA, method, out=folder, **{**fixed, **more})


def resume(folder: Path) -> object:
    """Goes on; what is mended and said is no fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bv.resume(folder, dataset=DATA)


@dataclass(frozen=True)
class Scenario:
    """Something that can be crashed.

    Attributes:
        act: on the folder. again: what a person does after a crash. prepare: makes the folder before.
        matches: raises AssertionError unless a folder is as the uncrashed one.
    """

    name: str
    act: Callable[[Path], object]
    again: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None
    matches: Callable[[Path, Path], None] = field(default=lambda one, other: same_run(one, other))


def same_run(one: Path, other: Path) -> None:
    """The same weights to the bit, the same record but for times, a configuration, no rubbish."""
    for name in FILES:
        assert (one / name).exists() == (other / name).exists(), name
        assert not (one / name).exists() or (one / name).read_bytes() == (other / name).read_bytes(), name
    assert record(one) == record(other), "record"
    other_keys = set(differing(*(Config.read(path / "config.toml") for path in (one, other))))
    assert not other_keys - set(FREE), other_keys
    assert manifest(one) == manifest(other), "model.json"
    left = [p.name for p in one.rglob("*") if p.name.startswith(HIDDEN)]
    assert not left, left
    banks = {p.name.split(".")[0] for p in (one / "checkpoints").glob("*.bank.*")}
    assert banks <= {p.stem for p in checkpoint.list_all(one / "checkpoints")}, "an orphaned bank"


def manifest(folder: Path) -> dict[str, Any]:
    """model.json without the code that made it."""
    entry = json.loads((folder / "model.json").read_text())
    return {key: value for key, value in entry.items() if key not in ORIGIN}


def record(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def go_on(begin: Callable[[Path], object]) -> Callable[[Path], object]:
    """`resume`, or the first command again where it says that there is no run yet."""

    def again(folder: Path) -> object:
        try:
            return resume(folder)
        except bv.UserError as error:
            if "no run in" not in str(error):
                raise
            return begin(folder)

    return again


def fresh(name: str, method: bv.Method, **more: Any) -> Scenario:
    """A training in a new folder."""

    def act(folder: Path) -> object:
        return train(folder, method, **more)

    return Scenario(name, act, go_on(act))


AT = bv.methods.at(THREAT, steps=1)


def made(name: str, **parts: Any) -> bv.Method:
    """A method of the catalogue."""
    return bv.methods.entries.create(name, THREAT, **parts)  # pyright: ignore[reportAttributeAccessIssue]


def over(folder: Path) -> object:
    """Takes the place of another run."""
    return train(folder, AT, overwrite=True)


def half(folder: Path) -> None:
    """A run that stands in its second epoch."""
    train(folder, AT)
    newest = checkpoint.list_all(folder / "checkpoints")
    newest[0].unlink()
    (folder / "ema.safetensors").unlink()


def damaged(folder: Path) -> None:
    """A finished run that has lost what its checkpoint holds."""
    train(folder, AT)
    (folder / "model.safetensors").write_bytes(b"torn")
    for name in ("model.json", "config.toml", "metrics.jsonl", "ema.safetensors"):
        (folder / name).unlink()


def evaluated(folder: Path) -> Score:
    """An evaluation whose progress and result are kept."""
    model = bv.load(folder, "last")
    part = folder / "evaluation" / ".score.partial"
    score = attack_and_score(
        model, DATA.test, THREAT, attack_named("pgd-2"), batch_size=8, seed=1, resume=part
    )
    score.save(folder / "evaluation" / "score.json")
    part.unlink(missing_ok=True)
    return score


def same_verdicts(one: Path, other: Path) -> None:
    """Every point's verdict, margin and the passes."""
    left, right = (Score.load(path / "evaluation" / "score.json") for path in (one, other))
    for name in ("broken_at", "predicted", "margin", "index"):
        assert bool((getattr(left, name) == getattr(right, name)).all()), name
    assert not (one / "evaluation" / ".score.partial").exists()


@contextmanager
def unsteady() -> Iterator[None]:
    """The sentinel sees robustness lost at every third check."""

    def told(model: Any, x: Any, y: Any, threat: Any, noise: Any, steps: int) -> Any:
        seen = inspect_rows(model, x, y, threat, noise, steps)
        return dataclasses.replace(seen, fgsm=1.0, pgd=0.0 if noise.epoch % 3 == 2 else 1.0)

    sentinel_loop.inspect_rows = told  # pyright: ignore[reportPrivateImportUsage]
    try:
        yield
    finally:
        sentinel_loop.inspect_rows = inspect_rows  # pyright: ignore[reportPrivateImportUsage]


def rollback() -> Scenario:
    """A run that goes back to earlier weights."""
    eager = Sentinel(share=0.9, rows=8, fewest=1, gap=0.01, rollback=True, limit=2)

    def act(folder: Path) -> object:
        with unsteady():
            return train(folder, AT, sentinel=eager, batch_size=4)

    def again(folder: Path) -> object:
        with unsteady():
            return go_on(act)(folder)

    return Scenario("at (rollbacks)", act, again)


SCENARIOS = (
    fresh("at", AT),
    fresh("done-adam", bv.methods.done_adam(THREAT, steps=1)),
    fresh("atta (bank)", made("atta")),
    fresh("free-at (replays)", made("free-at", replays=2)),
    fresh("bilaw (second stream)", made("bilaw", steps=1), batch_size=4),
    rollback(),
    Scenario("overwrite another run", over, over, lambda folder: train(folder, AT, seed=1)),
    Scenario("overwrite a link", over, over, lambda folder: linked(folder)),
    Scenario("resume", resume, resume, half),
    Scenario("mend a finished run", resume, resume, damaged),
    Scenario("evaluate", evaluated, evaluated, lambda folder: train(folder, AT), same_verdicts),
)


def linked(folder: Path) -> None:
    """Another run whose checkpoints lie elsewhere, by a link."""
    train(folder, AT, seed=1)
    elsewhere = folder.with_name(f"{folder.name}-elsewhere")
    shutil.rmtree(elsewhere, ignore_errors=True)
    shutil.move(folder / "checkpoints", elsewhere)
    (folder / "checkpoints").symlink_to(elsewhere)


__all__ = ["AT", "DATA", "SCENARIOS", "THREAT", "Scenario", "resume", "same_run", "train"]
