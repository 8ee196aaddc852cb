"""Runs on streamed data: resumed at another place; decoding processes that die during a stop."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.builders import pictures, png, write_parquet

import bivallate as bv
from bivallate.data.cache import content_key
from bivallate.data.workers import WorkersLost
from bivallate.errors import UserError
from bivallate.run import trainer
from bivallate.run.config import Validation
from bivallate.run.signals import Interrupted, Request

CHOSEN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "threads": 1,
    "validation": Validation(steps=1, rows=4),
    "optimizer": bv.SGD(0.05),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIVALLATE_CACHE", str(tmp_path / "cache"))


def parquet_set(folder: Path) -> Path:
    images = [png(i) for i in pictures(40)]
    write_parquet(folder / "train.parquet", images, [k % 2 for k in range(40)], names=["a", "b"])
    return folder


def photographs(folder: Path) -> Path:
    for k, image in enumerate(pictures(40)):
        path = folder / "ab"[k % 2] / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    return folder


def streamed(folder: Path) -> bv.data.Dataset:
    return bv.data.load(folder, stream=True, workers=0)


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


def interrupted(monkeypatch: pytest.MonkeyPatch, dataset: bv.data.Dataset, out: Path) -> None:
    """A run that ends in its second epoch."""
    calls = 0

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise Killed
        return bv.step.train_step(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", dying)
        with pytest.raises(Killed):
            train(dataset, out)


def train(dataset: bv.data.Dataset, out: Path) -> Any:
    return bv.train("tiny-cnn", dataset, bv.methods.fast_at(bv.Linf(0.1)), out=out, **CHOSEN)


@pytest.mark.parametrize("make", [parquet_set, photographs])
def test_a_run_is_resumed_where_its_data_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]
) -> None:
    folder = make(tmp_path / "shared" / "set")
    train(streamed(folder), tmp_path / "whole")
    interrupted(monkeypatch, streamed(folder), tmp_path / "moved")
    shutil.copytree(folder, tmp_path / "scratch" / "staged", copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    bv.resume(tmp_path / "moved", dataset=streamed(tmp_path / "scratch" / "staged"))
    whole, moved = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "moved"))
    assert whole == moved


@pytest.mark.parametrize("make", [parquet_set, photographs])
def test_a_run_of_before_is_resumed_where_its_data_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]
) -> None:
    folder = make(tmp_path / "set")
    now = bv.data.Split.fingerprint
    earlier = {split: fingerprint_of_before(folder, split) for split in [streamed(folder).train]}
    [print_of_before] = earlier.values()
    monkeypatch.setattr(
        bv.data.Split, "fingerprint", property(lambda split: fingerprint_of_before(folder, split))
    )
    interrupted(monkeypatch, streamed(folder), tmp_path / "run")
    monkeypatch.setattr(bv.data.Split, "fingerprint", now)
    dataset = streamed(folder)
    assert dataset.train.fingerprint != print_of_before
    assert dataset.train.as_former().fingerprint == print_of_before
    staged = shutil.copytree(folder, tmp_path / "staged")
    with pytest.raises(UserError, match="not what this run was trained on"):
        bv.resume(tmp_path / "run", dataset=streamed(staged))  # its record holds the old place
    assert bv.resume(tmp_path / "run", dataset=dataset).history[-1]["epoch"] == 2
    staged = streamed(staged)  # from now on it may move
    assert bv.resume(tmp_path / "run", dataset=staged).history[-1]["epoch"] == 2


def hashed(*parts: bytes | str) -> str:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        state.update(len(content).to_bytes(8, "little") + content)
    return state.hexdigest()


def fingerprint_of_before(folder: Path, split: bv.data.Split) -> str:
    """Version 0.1's, written down again: paths, sizes, times, heads and tails."""
    reading = (
        "Reading(size=None, channels=None, on_bad='refuse', grey=False, image_column=None, label_column=None)"
    )
    parts: list[bytes | str] = ["1", reading]
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content, state = path.read_bytes(), path.stat()
        parts += [str(path.resolve()), str(state.st_size), str(state.st_mtime_ns)]
        parts += [content[:65536], content[-65536:]]
    return hashed(hashed(*parts), split.index.numpy().tobytes(), split.labels.numpy().tobytes())


def touch(folder: Path) -> Path:
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    return folder


def change_a_byte(folder: Path) -> Path:
    path = folder / "b" / "01.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return folder


def append_a_byte(folder: Path) -> Path:
    with (folder / "b" / "01.png").open("ab") as file:
        file.write(b"x")
    return folder


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (touch, True),
        (lambda folder: folder.rename(folder.with_name("elsewhere")), True),
        (change_a_byte, False),
        (append_a_byte, False),
        (lambda f: (f / "b" / "01.png").rename(f / "b" / "01x.png").parents[1], False),
        (lambda f: (f / "b" / "01.png").unlink() or f, False),
    ],
)
@pytest.mark.parametrize("peeked", [1024, 7])
def test_what_a_fingerprint_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], Path], same: bool, peeked: int
) -> None:
    monkeypatch.setattr("bivallate.data.cache.MOST_PEEKED", peeked)

    def key(folder: Path) -> str:
        return content_key(sorted(folder.rglob("*.png")), "a reading")

    folder = photographs(tmp_path / "set")
    before = key(folder)
    assert (key(change(folder)) == before) == (same or (change is change_a_byte and peeked == 7))
    assert content_key(sorted(tmp_path.rglob("*.png")), "another reading") != before


@pytest.mark.parametrize("asked", [True, False])
def test_a_broken_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    """After a request to stop it is an interruption, as whoever asks may signal the workers too."""
    made: list[Request] = []
    epoch = bv.data.Batches.epoch

    def breaking(batches: bv.data.Batches, *place: int) -> Iterator[Any]:
        for step, batch in enumerate(epoch(batches, *place)):
            if step == 2:
                made[0].asked = asked
                raise WorkersLost("a worker was killed")
            yield batch

    original = trainer.Trainer._epoch
    monkeypatch.setattr(bv.data.Batches, "epoch", breaking)
    monkeypatch.setattr(
        trainer.Trainer, "_epoch", lambda self, request: made.append(request) or original(self, request)
    )
    with pytest.raises(Interrupted if asked else WorkersLost) as raised:
        train(streamed(parquet_set(tmp_path / "set")), tmp_path / "run")
    assert ("minibatch 2; all is saved" in str(raised.value)) == asked


def test_the_extra_data_of_a_stream_have_a_former_fingerprint_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "extra.npz", x=pictures(9, seed=1).transpose(0, 3, 1, 2), y=np.arange(9) % 2)
    folder = parquet_set(tmp_path / "set")
    mixed = bv.data.load(folder, stream=True, workers=0, extra=tmp_path / "extra.npz", extra_ratio=0.1)
    plain = streamed(folder)
    former = mixed.train.as_former()
    assert former.source not in (mixed.train.source, plain.train.as_former().source)
    assert mixed.matches(mixed.fingerprint)
    assert mixed.matches(
        mixed.but(
            train=former,
            validation=mixed.validation and mixed.validation.as_former(),
            test=mixed.test.as_former(),
        ).fingerprint
    )
    assert not mixed.matches(plain.fingerprint)
