"""Files that are no weights, or other weights than their name says, are recognised by their first bytes."""

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
