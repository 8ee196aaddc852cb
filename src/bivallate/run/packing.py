"""Turn a run's state into a checkpoint and back, with random generators and the place in the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bivallate import collective
from bivallate.errors import UserError
from bivallate.parts import encode, portable
from bivallate.run.checkpoint import Checkpoint, section
from bivallate.run.epoch_sums import EpochSums
from bivallate.run.optim import rate_before
from bivallate.run.sentinel import SentinelState
from bivallate.run.session import Session

__all__ = ["PLACES", "generators", "own_generators", "pack", "restore_generators", "unpack"]

PLACES = {"data_dir": "data_dir", "data_name": "name", "data_extra": "extra"}
# checkpoint's key -> field of `Data` that a portable configuration leaves out


def pack(session: Session) -> Checkpoint:
    """Make a checkpoint with everything that an exact resume needs."""
    tensors, values = session.learned()
    tensors |= {f"generator.{k}": v for k, v in generators().items()}
    tensors |= {f"sentinel.{k}": v for k, v in session.sentinel_tensors.items()}
    values |= {
        "tally": session.tally.to_dict(),
        "history": session.history,
        "best": session.best,
        "best_epoch": session.best_epoch,
        "forward": session.forward,
        "backward": session.backward,
        "seconds": session.seconds,
        "sentinel": session.sentinel.to_dict(),
        "data": session.dataset.fingerprint,
        "architecture": session.model.architecture,
        "rate": session.rate,
        "eps": float(session.method.threat.eps),
        "run": session.run,
        "config": portable(encode(session.config)),
        "init_weights": session.config.init.weights or "",
        **{key: getattr(session.config.data, name) for key, name in PLACES.items()},
    }
    return Checkpoint(session.epoch, session.step, tensors, values)


def unpack(session: Session, checkpoint: Checkpoint) -> None:
    """Restore a session from a checkpoint. Raises UserError if its model, method or data are others."""
    values = checkpoint.values
    if not session.dataset.matches(values["data"]):
        raise UserError(
            "the data is not what this run was trained on (its fingerprint differs): "
            "restore the files, or pass the same data again, also if they were loaded with another seed than "
            "that of training: bv.resume(run, dataset=...)"
        )
    session.sentinel = SentinelState.from_dict(values["sentinel"])
    session.sentinel_tensors = section(checkpoint.tensors, "sentinel")
    try:
        session.restore_learned(checkpoint.tensors, values)
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(
            f"the checkpoint is of another model or method than {session.model.architecture}: {error}"
        ) from error
    session.epoch, session.step = checkpoint.epoch, checkpoint.step
    session.tally = EpochSums.from_dict(values["tally"])
    session.history, session.best, session.best_epoch = (
        values["history"],
        values["best"],
        values["best_epoch"],
    )
    session.forward, session.backward = values["forward"], values["backward"]
    session.seconds = values["seconds"]
    session.run = values.get("run", session.run)
    before = rate_before(session.config, session.clock(), session.sentinel.rate)
    session.rate = values.get("rate", before)
    eps = values.get("eps", session.method.threat.eps)
    if eps != session.method.threat.eps:  # a growing radius: that of the last minibatch
        session.method.threat = dataclasses.replace(session.method.spec.threat, eps=eps)
    restore_generators(section(checkpoint.tensors, "generator"))


def generators() -> dict[str, Tensor]:
    """The states of torch's random generators, by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


@contextmanager
def own_generators(session: Session) -> Iterator[None]:
    """Torch's generators for a training, from which layers such as dropout draw; afterwards as they were.

    A training that begins seeds them by its seed and its process. One that is resumed finds them as its
    checkpoint has left them.
    """
    before = generators()
    if session.epoch == session.step == 0:
        torch.manual_seed((session.config.seed * 1_000_003 + collective.rank()) % 2**63)
    try:
        yield
    finally:
        restore_generators(before)


def restore_generators(states: dict[str, Tensor]) -> None:
    """Set torch's random generators to states from `generators`."""
    torch.set_rng_state(states["cpu"])
    cuda = [states[f"cuda{i}"] for i in range(len(states) - 1)]
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
