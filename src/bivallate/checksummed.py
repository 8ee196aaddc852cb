"""Safetensors files with a checksum over their tensors and header."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bivallate.errors import UserError
from bivallate.files import write_whole
from bivallate.schema import parse
from bivallate.untrusted_files import pinned_path

# One metadata key only: the library writes several in no fixed order, and equal files must have equal bytes.
KEY, SEAL = "bivallate", "seal"


def checksum(tensors: Mapping[str, Tensor], header: Any) -> str:
    """CRC-32 over the header and every tensor's name, type, shape and bytes, in the order of the names."""
    crc = zlib.crc32(json.dumps(header, sort_keys=True, allow_nan=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        crc = zlib.crc32(f"{name} {value.dtype} {list(value.shape)}".encode(), crc)
        crc = zlib.crc32(value.flatten().view(torch.uint8).numpy().data, crc)
    return f"crc32:{crc:08x}"


def write_checksummed(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    """Write tensors and a header that JSON can hold, completely or not at all. Returns the checksum."""
    mark = checksum(
        tensors, json.loads(json.dumps(header))
    )  # of the header as it will be read: tuples are lists
    text = json.dumps({**header, SEAL: mark})
    write_whole(path, lambda place: save_file(tensors, place, {KEY: text}))
    return mark


def has_checksum(path: Path) -> bool:
    """Whether a file carries a checksum, which is not verified; False for a file that cannot be read."""
    try:
        with pinned_path(path) as place, safe_open(place, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
        return text is not None and SEAL in parse(text, path, "header", dict[str, Any], finite=False)
    except (OSError, SafetensorError, ValueError, RuntimeError, UserError):
        return False


def read_checksummed(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor], str | None]:
    """Read header, tensors and checksum; header and checksum are None in a file that has none.

    Raises UserError if the file is missing, truncated, no safetensors file, or does not match its checksum.
    """
    try:
        with pinned_path(path) as place, safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  not a dict
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is truncated or damaged, or not a safetensors file: {error}") from error
    text = metadata.get(KEY)
    header = None if text is None else parse(text, path, "header", dict[str, Any], finite=False)
    mark = None if header is None else header.pop(SEAL, None)
    if mark is not None and mark != checksum(tensors, header):
        raise UserError(f"{path} is damaged: its contents do not match its checksum")
    return header, tensors, mark
