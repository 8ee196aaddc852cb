"""Checkpoints of PyTorch by others: read without executing, within what the file can hold."""

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
SMALL = 1 << 24  # bytes; what unpacks to no more may be packed as densely as it likes
DENSEST = 2  # times smaller than the tensors; PyTorch stores them as they are, and weights hardly shrink


def read_checkpoint(file: Path) -> Any:
    """What a file of torch.save, or a safetensors file, holds.

    Raises:
        UserError: missing, no regular file, damaged, with more than plain tensors, or claiming more than it
            can hold.
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
        with open_regular(file) as held, warnings.catch_warnings():  # once: no other file can come between
            _check_density(file, held)
            warnings.simplefilter("ignore")  # of old pickle protocols, which are read or refused all the same
            return torch.load(held, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} holds more than tensors and is not loaded, for that could run code: save its state dict "
            "as .safetensors in an environment that trusts it"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is not a PyTorch checkpoint, or is truncated ({error})") from error


def _check_density(file: Path, held: BinaryIO) -> None:
    """Raise UserError where a zip claims more than it can hold of weights; before memory is taken for it."""
    archived = kind_of(held.read(HEAD)) == ARCHIVE
    if archived:
        with zipfile.ZipFile(held) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
            _check_directory(file, held, archive.start_dir)
        check_claim(file, claimed, os.fstat(held.fileno()).st_size)
    held.seek(0)


def check_claim(file: Path, claimed: int, stored: int | None = None) -> None:
    """Raise UserError where a file would take more memory than weights of its size can."""
    stored = file.stat().st_size if stored is None else stored
    if claimed > max(SMALL, DENSEST * stored):
        raise UserError(
            f"{file} would unpack from {stored} to {claimed} bytes, more than {DENSEST} times: weights are "
            "not so empty; write it again with torch.save, which does not pack"
        )


def _check_directory(file: Path, held: BinaryIO, start: int) -> None:
    """Raise UserError unless every reader finds the zip's table of contents where Python's does.

    At `start`, as the last bytes of the file say, which are no comment.
    """
    size = held.seek(0, os.SEEK_END)
    held.seek(max(0, size - 98))  # the last record, and what very large files have before it
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
