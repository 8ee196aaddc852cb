"""Files that are no weights, or other weights than their name says, are recognised by their first bytes."""

import io
import os
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import bivallate as bv
from bivallate.errors import UserError

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
    monkeypatch.setattr("bivallate.models.robustbench.SMALL", 0)
    state = bv.models.create("linear", num_classes=10, shape=(1, 28, 28)).network.state_dict()
    packed(tmp_path / "net.pt", state)
    read = bv.models.load_robustbench(tmp_path / "net.pt", "linear", shape=(1, 28, 28))
    assert all(torch.equal(value, state[key]) for key, value in read.network.state_dict().items())
