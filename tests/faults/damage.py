"""Files that are truncated, zeroed, flipped, mutated or missing, and the state of a run after the damage."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tests.faults.scenarios import resume, same_run

import bivallate as bv
from bivallate.files import remove
from bivallate.run.checkpoint import list_all
from bivallate.run.folder import RunFolder


def torn(path: Path, rng: random.Random) -> None:
    """Only a beginning is there."""
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def zeroed(path: Path, rng: random.Random) -> None:
    """Blocks that were never written; where the file is short, all of it."""
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data)) // 512 * 512
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(bytes(data))


def flipped(path: Path, rng: random.Random) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def mutated(path: Path, rng: random.Random) -> None:
    """Bytes that are replaced, taken out, put in or repeated."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 4)):
        place, size = rng.randrange(len(data)), rng.randint(1, 16)
        repeated = data[place : place + 64] * 2
        other = rng.choice([rng.randbytes(size), b"", b"[" * size, b"9" * size, b"-1", repeated])
        data[place : place + rng.choice([0, size])] = other
    path.write_bytes(bytes(data))


def stripped(path: Path, rng: random.Random) -> None:
    """Tensors without the header that holds their checksum; other files are torn."""
    if path.suffix == ".safetensors":
        save_file({name: value.clone() for name, value in load_file(path).items()}, path)
    else:
        torn(path, rng)


def gone(path: Path, rng: random.Random) -> None:
    """Removed."""
    path.unlink()


def pipe(path: Path, rng: random.Random) -> None:
    """A named pipe, which blocks who reads it."""
    path.unlink()
    os.mkfifo(path)


def device(path: Path, rng: random.Random) -> None:
    """A link to a file without end."""
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path: Path, rng: random.Random) -> None:
    """A folder of that name."""
    path.unlink()
    path.mkdir()


def dangling(path: Path, rng: random.Random) -> None:
    """A link to nothing."""
    path.unlink()
    path.symlink_to("nowhere")


BYTES = (torn, zeroed, flipped, mutated, stripped)
PLACES = (gone, pipe, device, folder, dangling)
Damage = Callable[[Path, random.Random], None]


def victims(run: Path) -> list[Path]:
    """The files of a run that somebody reads: of the checkpoints, the newest."""
    newest = list_all(run / "checkpoints")[0]
    names = ("config.toml", "metrics.jsonl", "model.json", "best", "model", "ema", "epoch-1")
    files = [run / name if "." in name else run / f"{name}.safetensors" for name in names]
    banks = newest.with_name(f"{newest.stem}.bank.safetensors")
    return [path for path in (newest, banks, *files) if path.exists()]


Weights = dict[str, dict[str, torch.Tensor]]


def outcome(run: Path, whole: Path, before: Weights, after: Weights) -> str:
    """What comes of reading the damaged run, and of going on with it.

    Args:
        before, after: the weights by name that may be read before and after that.
    """
    try:
        refused = [name for name in before if not _is(run, name, before)]
        try:
            RunFolder(run).read_metrics()
        except bv.UserError:
            refused.append("metrics.jsonl")
        resume(run)
        lost = [name for name in ("best", "epoch-1") if not _is(run, name, after)]
        for name in lost:  # in no checkpoint: refused above, and said to be lost
            remove(run / f"{name}.safetensors")
            shutil.copy(whole / f"{name}.safetensors", run)
        same_run(run, whole)
    except AssertionError:
        return "different"
    except bv.UserError as error:
        return "refused" if "\n" not in str(error).strip() else "traceback"
    except Exception:
        return "traceback"
    return "partly lost" if lost else "refused, then mended" if refused else "same"


def _is(run: Path, name: str, wanted: Weights) -> bool:
    """Whether weights can be read; they must be the right ones then, and give what those give."""
    try:
        found = bv.load(run, "last" if name == "model" else name)
    except bv.UserError:
        return False
    state = found.state_dict()
    assert state.keys() == wanted[name].keys()
    assert all(torch.equal(value, state[key]) for key, value in wanted[name].items())
    return True
