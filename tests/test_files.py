"""Files are written whole or not at all, durable, with the umask's mode, and never through a link."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bivallate import data, models
from bivallate.checksummed import read_checksummed, write_checksummed
from bivallate.data.sheet import contact_sheet
from bivallate.errors import UserError
from bivallate.files import remove, sweep, temporary, write_json, write_text, write_whole
from bivallate.run import checkpoint
from bivallate.run.checkpoint import Checkpoint


def model(folder: Path) -> Path:
    made = models.create("linear", num_classes=3, shape=(1, 4, 4), mean=(0.5,), std=(0.5,), seed=0)
    return models.save(made, folder)


def state(folder: Path) -> Path:
    return checkpoint.save(folder, Checkpoint(1, 2, {"w": torch.ones(3)}, {}))


def sheet(folder: Path) -> Path:
    return contact_sheet(data.load("digits"), folder / "sheet.png", columns=1)


def text(folder: Path) -> Path:
    write_text(folder / "a.txt", "a")
    return folder / "a.txt"


def json(folder: Path) -> Path:
    write_json(folder / "a.json", {})
    return folder / "a.json"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "weights": model, "checkpoint": state, "sheet": sheet, "text": text, "json": json,
}  # fmt: skip


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("kind", WRITERS)
def test_files_are_as_readable_as_the_umask_says(kind, umask, tmp_path):
    before = os.umask(umask)
    try:
        path = WRITERS[kind](tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("kind", WRITERS)
def test_no_link_leads_a_write_elsewhere(kind, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place = tmp_path / "place"
    place.mkdir()
    path = WRITERS[kind](place)
    path.unlink()
    for name in (
        path.name,
        f".{path.name}.{os.getpid()}.tmp",
        f".{path.stem}.{os.getpid()}.part{path.suffix}",
    ):
        (place / name).symlink_to(victim)
    assert not WRITERS[kind](place).is_symlink()
    assert victim.read_text() == "precious"


def test_temporary_names_cannot_be_guessed_and_only_their_owner_enters(tmp_path):
    seen: list[Path] = []

    def write(place: Path) -> None:
        seen.append(place)
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
        place.write_text("a")

    write_whole(tmp_path / "a", write)
    write_whole(tmp_path / "a", write)
    assert seen[0].parent != seen[1].parent
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_file_and_folder_are_synced_in_the_right_order(tmp_path, monkeypatch):
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def moved(self: Path, target: Path) -> Path:
        done.append("move")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", moved)
    write_text(tmp_path / "a", "a")
    assert done == ["file", "move", "folder"]
    done.clear()
    write_text(tmp_path / "new" / "newer" / "a", "a")
    assert done == ["folder", "folder", "file", "move", "folder"]


def test_what_dead_processes_left_is_swept_and_what_living_ones_write_is_not(tmp_path):
    child = os.fork()
    if child == 0:
        temporary(tmp_path).mkdir()
        os._exit(0)
    os.waitpid(child, 0)
    own, old = temporary(tmp_path), tmp_path / ".best.safetensors.123.tmp"
    own.mkdir()
    old.write_text("")
    os.utime(old, (1, 1))
    (tmp_path / ".mine.tmp").write_text("a user's")
    assert len(list(tmp_path.iterdir())) == 4
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([own.name, ".mine.tmp"])


def test_removing_a_link_leaves_what_it_points_to(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "file").write_text("a")
    (tmp_path / "link").symlink_to(real)
    remove(tmp_path / "link")
    assert (real / "file").exists()
    assert not (tmp_path / "link").exists()
    remove(real)
    remove(tmp_path / "nothing")
    assert not real.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_a_pipe_or_a_device_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(UserError, match="only regular files are read"):
            read_checksummed(tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match="only regular files are read"):
            models.io.read_weights(tmp_path / f"{name}.safetensors")


def test_bits_of_a_sealed_file_count(tmp_path):
    """Each flip is refused, or changes nothing that is read."""
    path = tmp_path / "a.safetensors"
    wanted = torch.arange(3.0)
    write_checksummed(path, {"w": wanted}, {"epoch": 3, "name": "x"})
    whole, refused = path.read_bytes(), 0
    for k in range(0, 8 * len(whole), 3):
        data = bytearray(whole)
        data[k // 8] ^= 1 << k % 8
        path.write_bytes(bytes(data))
        try:
            header, tensors, mark = read_checksummed(path)
        except UserError:
            refused += 1
            continue
        assert torch.equal(tensors["w"], wanted)
        assert mark is None or header == {"epoch": 3, "name": "x"}
    assert refused > 0.9 * 8 * len(whole) / 3
