"""The files that processes other than the first add to a checkpoint.

All processes have the same weights and the same state of the optimiser. They differ in BatchNorm's statistics
within an epoch, in perturbations that are stored by place in the batch, in the sums of the epoch and in the
random generators. Every process but the first writes what differs into a file beside the checkpoint. The
checkpoint names these files with their seals and is written last, so an incomplete set has no checkpoint.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

from torch import Tensor

from bivallate import collective
from bivallate.checksummed import checksum, read_checksummed, write_checksummed
from bivallate.errors import UserError

__all__ = ["NAME", "overlaid", "write"]

NAME = re.compile(r"(?P<checkpoint>epoch-\d{5,}-step-\d{7,})\.rank-[1-9]\d*\.safetensors")
FORMAT = "bivallate-rank-1"

Tensors = dict[str, Tensor]
Values = dict[str, Any]


def write(folder: Path, name: str, tensors: Tensors, values: Values) -> dict[str, str]:
    """Write what differs on this process from the first one. All processes call it together.

    Returns:
        File name -> seal of the files of all processes.

    Raises:
        UserError: a process could not write; raised on all processes.
    """
    if not collective.is_distributed():
        return {}
    own, shared = _marks(tensors, values), collective.broadcast_object(_marks(tensors, values))
    differing = {key for key, mark in own.items() if shared.get(key) != mark}
    header = {"format": FORMAT, "values": {k: v for k, v in values.items() if f"value {k}" in differing}}
    share = {name: tensor for name, tensor in tensors.items() if f"tensor {name}" in differing}
    written, failed = dict[str, str](), None
    if differing:
        file = folder / f"{name}.rank-{collective.rank()}.safetensors"
        try:
            written[file.name] = write_checksummed(file, share, header)
        except UserError as error:
            failed = error
    collective.raise_on_all_ranks(failed)
    return {file: mark for each in collective.gather_objects(written) for file, mark in each.items()}


def _marks(tensors: Tensors, values: Values) -> dict[str, Any]:
    """A checksum of every tensor and value, by which processes find out where they differ."""
    marks: dict[str, Any] = {
        f"tensor {name}": checksum({"": tensor}, None) for name, tensor in tensors.items()
    }
    texts = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    return marks | {f"value {name}": zlib.crc32(text.encode()) for name, text in texts.items()}


def overlaid(
    folder: Path, seals: dict[str, str], world: int | None, tensors: Tensors, values: Values
) -> None:
    """Replace, in `tensors` and `values`, what the first process wrote by this process's own share.

    This is done only if there are as many processes as when the checkpoint was written. The first process
    verifies the files of all.

    Raises:
        UserError: a file is missing, damaged, or of another checkpoint.
    """
    for file, mark in seals.items():
        own = f".rank-{collective.rank()}." in file and collective.world_size() == world
        if not own and collective.rank():
            continue
        header, more, found = read_checksummed(folder / Path(file).name)
        if header is None or found != mark:
            raise UserError(f"{file} is not the share that this checkpoint was written with")
        if own:
            tensors.update(more)
            values.update(header["values"])
