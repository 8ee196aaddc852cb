"""Read other people's PyTorch checkpoints without executing code or unpacking more than they can hold."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from bivallate.errors import UserError
from bivallate.models.io import read_weights
from bivallate.untrusted_files import ARCHIVE, HEAD, check_regular, kind_of, not_weights, open_regular

__all__ = ["check_claim", "read_checkpoint"]

SAFE = (2, 10)  # the first PyTorch without a known way around weights_only=True
SMALL = 1 << 24  # bytes; a file that unpacks to at most this many may be compressed to any degree
DENSEST = 2  # highest ratio of unpacked to stored size: PyTorch does not compress, and weights hardly shrink


def read_checkpoint(file: Path) -> Any:
    """Read a file written by torch.save, or a safetensors file.

    Raises:
        UserError: the file is missing, no regular file, damaged, holds more than plain tensors and
            containers, or would unpack to far more than its size.
    """
    check_regular(file)
    if file.suffix == ".safetensors":
        return read_weights(file)
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < SAFE:
        raise UserError(
            f"{file} is not read with PyTorch {torch.__version__}: before {SAFE[0]}.{SAFE[1]} its reader of "
            "weights could be made to run code (CVE-2025-32434, CVE-2026-24747); update PyTorch, or convert "
            "the file to .safetensors in an environment that trusts it"
        )
    if (instead := not_weights(file)) is not None:
        raise UserError(instead)
    try:
        # Opened once, so that the file that is checked is the file that is read.
        with open_regular(file) as held, warnings.catch_warnings():
            _check_density(file, held)
            warnings.simplefilter("ignore")  # torch warns of old pickle protocols and then reads or refuses
            return torch.load(held, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} holds more than tensors and is not loaded, because that could run code: save its "
            "state dict as .safetensors in an environment that trusts it"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is not a PyTorch checkpoint, or is truncated ({error})") from error


def _check_density(file: Path, held: BinaryIO) -> None:
    """Raise UserError if a zip archive would unpack to too much, before memory is allocated for it."""
    archived = kind_of(held.read(HEAD)) == ARCHIVE
    if archived:
        with zipfile.ZipFile(held) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
            _check_directory(file, held, archive.start_dir)
        check_claim(file, claimed, os.fstat(held.fileno()).st_size)
    held.seek(0)


def check_claim(file: Path, claimed: int, stored: int | None = None) -> None:
    """Raise UserError if `claimed` bytes of memory are too many for a file of `stored` bytes of weights."""
    stored = file.stat().st_size if stored is None else stored
    if claimed > max(SMALL, DENSEST * stored):
        raise UserError(
            f"{file} would unpack from {stored} to {claimed} bytes, more than {DENSEST} times: weights are "
            "not so empty; write it again with torch.save, which does not pack"
        )


def _check_directory(file: Path, held: BinaryIO, start: int) -> None:
    """Raise UserError unless all zip readers find the archive's table of contents at `start`.

    Python's zipfile, which checks the sizes, and PyTorch's reader search for the table in different ways. A
    crafted file could show a harmless table to the one and another to the other. Both find the same table if
    the file ends in the record that names its place, without a comment behind it.
    """
    size = held.seek(0, os.SEEK_END)
    held.seek(max(0, size - 98))  # zip64 record (56), zip64 locator (20), end record (22)
    tail = held.read().rjust(98, b"\0")
    large, last = tail[:56], tail[76:]
    places = [int.from_bytes(last[16:20], "little")]
    if tail[56:60] == b"PK\6\7":
        places = [place for place in places if place != 0xFFFFFFFF]
        places.append(int.from_bytes(large[48:56], "little") if large[:4] == b"PK\6\6" else -1)
    if last[:4] != b"PK\5\6" or last[20:] != b"\0\0" or {*places} != {start}:
        raise UserError(
            f"{file} is a zip archive whose readers would not agree on what it holds: write it again with "
            "torch.save"
        )
