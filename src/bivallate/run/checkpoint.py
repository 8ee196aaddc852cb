"""Checkpoints: one safetensors file each, whole or not there, verified when read; the previous one is kept.

A file holds every tensor that an exact resume needs (model, optimiser, averages, the method's memory,
generator states) and, in its header, everything else as JSON, with a checksum over the tensors.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bivallate.errors import UserError
from bivallate.files import write_whole

FORMAT = "bivallate-checkpoint-1"
KEEP = 2
LARGE = 64 * 1024 * 1024  # bytes; tensors above (an ATTA bank) are files of their own


@dataclass
class Checkpoint:
    """The state of a run between two minibatches.

    Attributes:
        epoch, step: the next minibatch.
        tensors: by dotted name. values: anything JSON can hold.
    """

    epoch: int
    step: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def checksum(checkpoint: Checkpoint) -> int:
    """CRC-32 over values, names and bytes, in the order of the names."""
    crc = zlib.crc32(json.dumps(checkpoint.values, sort_keys=True).encode())
    for name in sorted(checkpoint.tensors):
        data = checkpoint.tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        crc = zlib.crc32(data, zlib.crc32(name.encode(), crc))
    return crc


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint and removes all but the newest two."""
    name = f"epoch-{checkpoint.epoch:05d}-step-{checkpoint.step:07d}"
    path = folder / f"{name}.safetensors"
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in checkpoint.tensors.items()}
    large = {k: v for k, v in tensors.items() if v.numel() * v.element_size() > LARGE}
    small = {k: v for k, v in tensors.items() if k not in large}
    files = []
    if large:
        bank = folder / f"{name}.bank.safetensors"
        write_whole(bank, lambda place: save_file(large, place))
        files.append(bank.name)
    header = {
        "format": FORMAT,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "crc32": checksum(Checkpoint(checkpoint.epoch, checkpoint.step, tensors, checkpoint.values)),
        "files": files,
        "values": checkpoint.values,
    }
    write_whole(path, lambda place: save_file(small, place, {"bivallate": json.dumps(header)}))
    for old in list_all(folder)[KEEP:]:
        old.unlink(missing_ok=True)
        old.with_name(old.stem + ".bank.safetensors").unlink(missing_ok=True)
    return path


def list_all(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    files = (p for p in folder.glob("epoch-*.safetensors") if not p.name.endswith(".bank.safetensors"))
    return sorted(files, reverse=True)


def load(path: Path) -> Checkpoint:
    """A checkpoint, verified. Raises UserError if the file is missing, truncated, damaged or not a
    checkpoint."""
    try:
        header, tensors = _open(path)
        if header is None or header.get("format") != FORMAT:
            raise UserError(f"{path} is not a bivallate checkpoint")
        for name in header["files"]:
            tensors.update(_open(path.with_name(Path(name).name))[1])
        found = Checkpoint(header["epoch"], header["step"], tensors, header["values"])
        whole = checksum(found) == header["crc32"]
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the checkpoint {path} is truncated, or not a safetensors file: {error}") from error
    if not whole:
        raise UserError(f"the checkpoint {path} is damaged: its contents do not match its checksum")
    return found


def _open(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  not a dict
    return (json.loads(metadata["bivallate"]) if "bivallate" in metadata else None), tensors


def newest(folder: Path, *, fall_back: bool = False) -> Checkpoint:
    """The newest checkpoint.

    Args:
        folder: of the checkpoints.
        fall_back: take the older good one if the newest cannot be read.

    Raises:
        UserError: no checkpoint, or the newest is bad; the message offers the older good one, if there is
            one.
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
        if problems and not fall_back:
            raise UserError(
                f"{problems[0]}. An older good one is there, at epoch {found.epoch + 1}, "
                f"minibatch {found.step}: resume from it with --fall-back"
            )
        return found
    raise UserError("; ".join(problems))


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's per-parameter state as tensors by dotted name; rates and decays are the
    configuration's."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": v for i, entry in state.items() for k, v in entry.items() if isinstance(v, Tensor)}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `pack_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
