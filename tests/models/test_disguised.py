"""Files that are not weights, or not what their name says, are recognised by their first bytes."""

import io
import os
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

import bivallate as bv
from bivallate.data.row_groups import open_file
from bivallate.errors import UserError
from bivallate.untrusted_files import pinned_path

HTML = b"<!DOCTYPE html><title>Sign in</title>" + bytes(100)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
SAFE = save({"weight": torch.zeros(3)})


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin", ".ckpt", ".weights"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HTML, "it is an HTML page"),
        (LFS, "it is a Git LFS pointer.*git lfs pull"),
        (SAFE, "is a safetensors file"),
        (b"\xff\xd8\xff\xe0", "it is a JPEG image"),
    ],
)
def test_disguised_weights(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    for load in (bv.models.load, lambda path: bv.models.load_robustbench(path, "tiny-cnn")):
        if content is SAFE and suffix == ".safetensors":
            continue
        with pytest.raises(UserError, match=message):
            load(path)


@pytest.fixture
def ten_seconds() -> Iterator[None]:
    """What waits for a pipe's other end is interrupted."""

    def end(*_: object) -> None:
        raise TimeoutError("it blocks")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def packed(path: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """A state dict, by default of zeros, packed 1,000 times smaller."""
    plain = io.BytesIO()
    torch.save(state or {"linear.weight": torch.zeros(2, 4 << 20)}, plain)
    with zipfile.ZipFile(plain) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for entry in stored.infolist():
            file.writestr(entry.filename, stored.read(entry))


def overlapping(path: Path) -> None:
    """Entries that are not packed, and all claim the same bytes."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data/0", bytes(1 << 20))
        file.filelist *= 64


def two_directories(path: Path) -> None:
    """Zeros that are packed by the table of contents that PyTorch reads, and a line by Python's."""
    inner, outer = io.BytesIO(), io.BytesIO()
    packed(path)
    inner.write(path.read_bytes())
    with zipfile.ZipFile(outer, "w") as file:
        file.writestr("x", "x")
    path.write_bytes(inner.getvalue()[:-22] + outer.getvalue()[:-22] + _end(inner, outer))


def _end(inner: io.BytesIO, outer: io.BytesIO) -> bytes:
    last, own = outer.getvalue()[-22:], inner.getvalue()[-22:]
    return last[:16] + own[16:20] + last[20:]  # as long as the one, but where the other begins


def commented(path: Path) -> None:
    """A zip within another's comment."""
    packed(path)
    content = path.read_bytes()
    path.write_bytes(content[:-2] + (4).to_bytes(2, "little") + b"tail")


def repeated(path: Path) -> None:
    """A tensor of one stored number that is read 10^10 times."""
    torch.save({"linear.weight": torch.zeros(1).expand(100_000, 100_000)}, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (two_directories, "readers would not agree on what it holds"),
        (commented, "readers would not agree on what it holds"),
        (repeated, r"would unpack from \d{3,4} to 40000000000 bytes, more than 2 times"),
    ],
)
def test_checkpoints_that_readers_disagree_on_or_that_repeat_what_they_hold(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(path := tmp_path / "net.pt")
    with pytest.raises(UserError, match=message):
        bv.models.load_robustbench(path, "linear", shape=(1, 2, 2))


SWAPPED = {
    "weights": ("checksummed", "a/model.safetensors", lambda at: bv.models.load(at / "a")),
    "Parquet": ("data.row_groups", "a.parquet", lambda at: open_file(at / "a.parquet").metadata.num_rows),
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/fd")
@pytest.mark.parametrize("kind", SWAPPED)
def test_a_file_that_is_swapped_between_check_and_use_is_not_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, read = SWAPPED[kind]
    bv.models.save(bv.models.create("linear", num_classes=2, shape=(1, 2, 2)), tmp_path / "a")
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "a.parquet")

    @contextmanager
    def swapped(path: Path) -> Iterator[Path]:
        with pinned_path(path) as place:
            path.unlink()
            path.write_bytes(b"another file")
            yield place

    wanted = str(read(tmp_path))
    monkeypatch.setattr(f"bivallate.{module}.pinned_path", swapped)
    assert str(read(tmp_path)) == wanted
    assert (tmp_path / name).read_bytes() == b"another file"


@pytest.mark.usefixtures("ten_seconds")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is a named pipe: only regular files are read"),
        (endless, "is a device: only regular files are read"),
        (packed, r"would unpack from \d{5,6} to 335\d{5} bytes, more than 2 times"),
        (overlapping, r"would unpack from 10\d{5} to 67108864 bytes, more than 2 times"),
    ],
)
def test_checkpoints_that_block_or_claim_too_much(
    tmp_path: Path,
    make: Callable[[Path], None],
    message: str,
    suffix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / f"net{suffix}"
    make(path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was given to torch.load"))
    if suffix == ".safetensors" and path.is_file():
        message = "is a pickle, which could run code and is never loaded"
    with pytest.raises(UserError, match=message) as raised:
        bv.models.load_robustbench(path, "tiny-cnn")
    assert "\n" not in str(raised.value)


def test_ordinary_weights_may_be_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bivallate.models.checkpoint_file.SMALL", 0)
    state = bv.models.create("linear", num_classes=10, shape=(1, 28, 28)).network.state_dict()
    packed(tmp_path / "net.pt", state)
    read = bv.models.load_robustbench(tmp_path / "net.pt", "linear", shape=(1, 28, 28))
    assert all(torch.equal(value, state[key]) for key, value in read.network.state_dict().items())
