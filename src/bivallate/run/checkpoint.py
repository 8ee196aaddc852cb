"""Checkpoints: safetensors files, written whole or not at all, verified when read; two are kept.

A file holds every tensor that an exact resume needs (model, optimiser, average, the method's state, states of
the generators). Its header holds everything else as JSON, with the file's seal: a checksum over tensors and
header. On several processes this file is the first one's and names the files of the others (`rank_files`).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bivallate import collective
from bivallate.checksummed import read_checksummed, write_checksummed
from bivallate.errors import UserError
from bivallate.files import remove
from bivallate.quoting import command
from bivallate.run import rank_files

FORMAT, FIRST = "bivallate-checkpoint-2", "bivallate-checkpoint-1"  # FIRST's checksum left out epoch and step
KEEP = 2
LARGE = 64 * 1024 * 1024  # bytes; a larger tensor, such as ATTA's bank, goes into a file of its own
NAME, BANK = re.compile(r"epoch-(\d{5,})-step-(\d{7,})\.safetensors"), ".bank.safetensors"


@dataclass
class Checkpoint:
    """The state of a run between two minibatches.

    Attributes:
        epoch, step: place of the next minibatch, counted from 0.
        tensors: tensors by dotted name.
        values: everything else, in types that JSON can hold.
        world: number of processes that wrote it; None in checkpoints that do not say.
    """

    epoch: int
    step: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    world: int | None = None


def place(folder: Path, epoch: int, step: int) -> Path:
    """Path of the checkpoint at this epoch and step."""
    return folder / f"epoch-{epoch:05d}-step-{step:07d}.safetensors"


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and remove all but the newest two.

    All processes call it together; an error on one of them is raised on all.
    """
    path = place(folder, checkpoint.epoch, checkpoint.step)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in checkpoint.tensors.items()}
    ranks = rank_files.write(folder, path.stem, tensors, checkpoint.values)
    failed = None
    if collective.rank() == 0:
        try:
            _write(path, checkpoint, tensors, ranks)
        except UserError as error:
            failed = error
    collective.raise_on_all_ranks(failed)
    return path


def _write(path: Path, checkpoint: Checkpoint, tensors: dict[str, Tensor], ranks: dict[str, str]) -> None:
    """Write the first process's file, after all others; remove checkpoints older than the newest two."""
    folder = path.parent
    large = {k: v for k, v in tensors.items() if v.numel() * v.element_size() > LARGE}
    small = {k: v for k, v in tensors.items() if k not in large}
    banks = {}
    if large:
        bank = folder / f"{path.stem}{BANK}"
        banks[bank.name] = write_checksummed(bank, large, {"format": FORMAT})
    header = {
        "format": FORMAT,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "banks": banks,
        "values": checkpoint.values,
        "world": collective.world_size(),
        "ranks": ranks,
    }
    write_checksummed(path, small, header)
    for old in list_all(folder)[KEEP:]:
        remove(old)
    clear_orphans(folder)


def clear_orphans(folder: Path) -> None:
    """Remove banks and files of other processes whose checkpoint does not exist or was never finished."""
    whole = {path.stem for path in list_all(folder)}
    for bank in folder.glob(f"epoch-*{BANK}"):
        if bank.name.removesuffix(BANK) not in whole:
            remove(bank)
    for share in folder.glob("epoch-*.rank-*.safetensors"):
        match = rank_files.NAME.fullmatch(share.name)
        if match and match["checkpoint"] not in whole:
            remove(share)


def list_all(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    found = {path: NAME.fullmatch(path.name) for path in folder.glob("epoch-*.safetensors")}
    places = {path: (int(match[1]), int(match[2])) for path, match in found.items() if match}
    return sorted(places, key=places.__getitem__, reverse=True)


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises UserError if the file is missing, truncated, damaged or not a checkpoint.
    """
    try:
        return _load(path)
    except UserError as error:
        raise UserError(f"the checkpoint cannot be used: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"the checkpoint {path} is damaged: {type(error).__name__} {error}") from error


def _load(path: Path) -> Checkpoint:
    header, tensors, mark = read_checksummed(path)
    if header is None or header.get("format") not in (FORMAT, FIRST):
        raise UserError(f"{path} is not a bivallate checkpoint")
    first = header["format"] == FIRST
    if mark is None and not first:
        raise UserError(f"{path} is damaged: its checksum is gone")
    banks = dict.fromkeys(header["files"]) if first else header["banks"]
    for name, expected in banks.items():
        _, more, found = read_checksummed(path.with_name(Path(name).name))
        if found != expected:
            raise UserError(f"{name} is not the bank that {path.name} was written with")
        tensors.update(more)
    world = header.get("world")
    rank_files.overlaid(path.parent, header.get("ranks", {}), world, tensors, header["values"])
    checkpoint = Checkpoint(header["epoch"], header["step"], tensors, header["values"], world)
    if first and _first_checksum(checkpoint) != header["crc32"]:
        raise UserError(f"{path} is damaged: its contents do not match its checksum")
    match = NAME.fullmatch(path.name)
    if match is None or (int(match[1]), int(match[2])) != (checkpoint.epoch, checkpoint.step):
        raise UserError(
            f"{path} holds epoch {checkpoint.epoch}, step {checkpoint.step}, but its name says otherwise"
        )
    return checkpoint


def _first_checksum(checkpoint: Checkpoint) -> int:
    """Checksum of the first format: CRC-32 over values, then names and bytes in the order of the names."""
    crc = zlib.crc32(json.dumps(checkpoint.values, sort_keys=True).encode())
    for name in sorted(checkpoint.tensors):
        data = checkpoint.tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        crc = zlib.crc32(data, zlib.crc32(name.encode(), crc))
    return crc


def newest(
    folder: Path, *, fall_back: bool = True, tell: Callable[[str], None] = lambda text: None
) -> Checkpoint:
    """Read the newest undamaged checkpoint.

    Args:
        folder: folder of the checkpoints.
        fall_back: use the older one if the newest cannot be read.
        tell: is told that the older one was used, and why.

    Raises:
        UserError: there is no checkpoint, all are damaged, or the newest is damaged and `fall_back` is off.
    """
    files = list_all(folder)
    if not files:
        raise UserError(f"no checkpoint in {folder}: the run ended before its first one; start it again")
    problems = []
    for path in files:
        try:
            found = load(path)
        except UserError as error:
            problems.append(str(error))
            continue
        where = f"epoch {found.epoch + 1}, minibatch {found.step}"
        if problems and not fall_back:
            raise UserError(f"{problems[0]}. An older good one is there, at {where}: resume with --fall-back")
        if problems:
            tell(f"{problems[0]}; going on from the older whole one, at {where}")
        return found
    anew = command("train", "--config", folder.parent / "config.toml", "--out", folder.parent, "--overwrite")
    raise UserError(f"{'; '.join(problems)}. None is left: begin anew with `{anew}`")


def section(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `name.`, under names without this prefix."""
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
