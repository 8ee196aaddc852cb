"""Find the checkpoint from which a run folder continues, and repair the folder's damaged files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from bivallate import collective
from bivallate.checksummed import has_checksum
from bivallate.errors import UserError, listed
from bivallate.models.description import checksummed_weights, manifest_text
from bivallate.models.io import read_weights, run_of
from bivallate.parts import decode, encode, from_portable, portable
from bivallate.quoting import command, torchrun
from bivallate.run.checkpoint import Checkpoint, list_all, load, newest, place
from bivallate.run.config import Config
from bivallate.run.folder import RunFolder, lines_of
from bivallate.run.packing import PLACES
from bivallate.run.session import Session
from bivallate.schema import MEGABYTE, parse, read_json, read_text
from bivallate.untrusted_files import check_regular

FREE = (
    "device",
    "threads",
    "graphs",
    "data.data_dir",
    "data.name",
    "data.workers",
    "data.resident",
    "init.weights",
    "checkpoint_minutes",
    "keep",
    "recipe",
)
# Settings that may differ from the checkpoint's. Data and initial weights under other names are compared by
# their fingerprints.
PRECISION = ("precision",)  # may differ if the checkpoint was written on a device that has only float32
LENGTH = ("epochs", "extended")  # may differ if one of the two plans extends the other

# Entries of a manifest that may differ: they say which code made the weights and where the data were. The
# data are compared with the checkpoint's fingerprint when it is loaded.
ORIGIN = ("code_version", "made_by", "data", "data_fingerprint", "split_fingerprints", "sealed")

Tell = Callable[[str], None]


def reopened(
    folder: RunFolder, own: tuple[Config, Checkpoint | None] | None
) -> tuple[Config, Checkpoint | None]:
    """Give all processes what the first one has found with `reopen`, each with its own share of the state.

    Args:
        own: the result of `reopen` on the first process; None on the others.

    Raises:
        UserError: the run stopped within an epoch on another number of processes.
    """
    config, at = collective.broadcast_object(own and (own[0], own[1] and (own[1].epoch, own[1].step)))
    found = own[1] if own is not None else at and load(place(folder.checkpoints, *at))
    if found is not None:
        _check_processes(found)
    return config, found


def _check_processes(found: Checkpoint) -> None:
    now, were = collective.world_size(), found.world
    if found.step == 0 or now == (were or 1):
        return
    before = f"on {were} process{'es' * (were > 1)}" if were else "in a version that did not say on how many"
    raise UserError(
        f"this run stopped within epoch {found.epoch + 1} {before}, where each has a state of its own, and "
        f"cannot go on there on {now}: resume it on as many ("
        f"{torchrun(were or 'N', 'bivallate resume ...')}); from the end of an epoch it goes on on "
        "any number"
    )


def reopen(folder: RunFolder, tell: Tell, *, fall_back: bool = True) -> tuple[Config, Checkpoint | None]:
    """Find the configuration of a run and its newest undamaged checkpoint.

    The checkpoint is None if the run ended before its first one, so that it begins again. A config.toml that
    is missing or incomplete is written again.

    Raises UserError if there is nothing to continue from, or config.toml is of another run than the
    checkpoint.
    """
    folder.check_own()
    if not list_all(folder.checkpoints):
        config = Config.read(folder.config)
        if not folder.free:
            raise UserError(
                f"{folder.path} holds results, but no checkpoint to go on from: begin anew with "
                f"`{command('train', '--config', folder.config, '--out', folder.path, '--overwrite')}`"
            )
        tell(f"{folder.path} was left before its first checkpoint: it begins anew")
        return config, None
    found = newest(folder.checkpoints, fall_back=fall_back, tell=tell)
    if "config" not in found.values:  # written before checkpoints kept it
        return Config.read(folder.config), found
    return _configuration(folder, found.values, tell), found


def _configuration(folder: RunFolder, values: dict[str, Any], tell: Tell) -> Config:
    original: Config = decode(from_portable(values["config"]))
    places = {name: values[key] for key, name in PLACES.items() if key in values}
    begun = dataclasses.replace(original.init, weights=values.get("init_weights", original.init.weights))
    data = dataclasses.replace(original.data, **places)
    original = dataclasses.replace(original, data=data, init=begun)
    wrong = _torn(folder, values["config"], original)
    if wrong:
        original.write(folder.config)
        tell(f"{folder.config} {wrong}: written again from the checkpoint")
        return original
    config = Config.read(folder.config)
    shorter = original.goes_beyond(config)
    allowed = (*FREE, *LENGTH) if shorter or config.goes_beyond(original) else FREE
    allowed = (*allowed, *PRECISION) if original.precision == "float32" else allowed
    other = [key for key in differing(original, config) if key not in allowed]
    if other:
        longer = "; for more epochs use `bivallate resume --epochs`" if "epochs" in other else ""
        raise UserError(
            f"{folder.config} is not the configuration that the checkpoints in {folder.path} were made with: "
            f"{', '.join(other[:5])} differ{'s' if len(other) == 1 else ''}. To go on with theirs, delete "
            f"config.toml and resume; for another run, train in another folder{longer}"
        )
    if shorter:
        config = dataclasses.replace(config, epochs=original.epochs, extended=original.extended)
        config.write(folder.config)
        tell(f"{folder.config} named an earlier end of this run: written again from the checkpoint")
    return config


def _torn(folder: RunFolder, kept: dict[str, Any], original: Config) -> str:
    """What is wrong with an incomplete config.toml, in words; empty if it is complete."""
    if not folder.config.exists():
        return "was missing"
    check_regular(folder.config)
    try:
        text = read_text(folder.config, "configuration", 4 * MEGABYTE)
        there = _flat(parse(text, folder.config, "configuration", dict[str, Any], "TOML"))
    except UserError:
        return "was damaged"
    whole = _flat(kept)
    if there.keys() - whole.keys():
        return ""  # the user has added something: not incomplete, but compared as it is
    if not text.endswith("\n") or not any(key.startswith("method.") for key in there):
        return "was torn"
    missing = whole.keys() - there.keys()
    if not missing or missing.isdisjoint(differing(original, Config.read(folder.config))):
        return ""  # complete, or of a version that did not have these settings
    return "was torn"


def differing(one: Config, other: Config) -> list[str]:
    """Dotted names of the settings in which two configurations differ."""
    left, right = _flat(encode(one)), _flat(encode(other))
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def _flat(entry: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in entry.items():
        more = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        found |= more
    return found


def repair(folder: RunFolder, session: Session, tell: Tell) -> None:
    """Write again the files that the folder has lost and the session's checkpoint holds.

    They are metrics.jsonl and, if the checkpoint is of the end of an epoch, the weights and the manifest.
    `tell` is also told which files cannot be restored.
    """
    _record(folder, session, tell)
    present = _present(session) if session.step == 0 and session.epoch else {}
    if present and not _described(folder, session):
        session.save_model(folder.path, "model")
        tell("model.json was missing or damaged: written again from the checkpoint")
    for name, model in present.items():
        if not _whole(folder, name, session):
            session.save_model(folder.path, name, model)
            tell(f"{name}.safetensors was missing or damaged: written again from the checkpoint")
    earlier = _earlier(session)
    lost = [name for name in earlier if name not in present and not _whole(folder, name, session)]
    if lost:
        tell(
            f"missing or damaged, and in no checkpoint: {listed(f'{name}.safetensors' for name in lost)}; "
            "use other weights of this run (--weights last), or train again"
        )


def _record(folder: RunFolder, session: Session, tell: Tell) -> None:
    wanted = lines_of(session.history)
    try:
        check_regular(folder.metrics)
        there = folder.metrics.read_text(encoding="utf-8") if folder.metrics.exists() else ""
    except (OSError, ValueError, UserError):
        there = "\0"
    if there == wanted:
        return
    folder.write_metrics(session.history)
    if not there.startswith(wanted):  # otherwise the file only had more epochs than the checkpoint
        tell("metrics.jsonl was missing or damaged: written again from the checkpoint")


def _present(session: Session) -> dict[str, Any]:
    """The weights that a session at the end of an epoch holds, by name."""
    found: dict[str, Any] = {"model": session.model}
    if session.average is not None:
        found["ema"] = session.average.model
    last = session.history[-1]
    if "level_reloaded" in last or any(alarm.get("rolled_back") for alarm in last.get("alarms", [])):
        return found  # earlier weights were restored after those of the epoch's end had been measured
    if session.best_epoch == session.epoch - 1:
        found["best"] = session.model
    if session.epoch in session.config.keep:
        found[f"epoch-{session.epoch}"] = session.model
    return found


def _earlier(session: Session) -> list[str]:
    """Names of the weights that earlier epochs should have left in the folder."""
    kept = [f"epoch-{epoch}" for epoch in sorted(session.config.keep) if epoch <= session.epoch]
    return kept + (["best"] if session.best_epoch >= 0 else [])


def _whole(folder: RunFolder, name: str, session: Session) -> bool:
    path = folder.path / f"{name}.safetensors"
    try:
        read_weights(path)
        if name in checksummed_weights(folder.path / "model.json") and not has_checksum(path):
            return False
        return run_of(path) in (None, session.run)
    except UserError:
        return False


def _described(folder: RunFolder, session: Session) -> bool:
    """Whether model.json is the manifest that this run writes, but for entries that may differ."""
    path = folder.path / "model.json"
    try:
        there = read_json(path, "manifest", dict[str, Any])
    except UserError:
        return False
    wanted = json.loads(manifest_text(session.manifest()))
    free = {key for key in (*ORIGIN, "run") if key in ORIGIN or key not in there}  # older runs lack `run`
    lengths = LENGTH if session.config.extended else ()  # the manifest may be from before it was extended
    open_to = {*(f"config.{key}" for key in (*FREE, *PRECISION, *lengths)), "spec.mean", "spec.std"}
    there = there | {"config": _as_now(there.get("config"))}
    return _meant(there, free, open_to) == _meant(wanted, free, open_to)


def _meant(about: dict[str, Any], free: set[str], open_to: set[str]) -> dict[str, Any]:
    """The entries of a manifest, flat, without those that may differ.

    The statistics in `spec` are left out too: `normalisation` has them, and `spec` may give one number for
    all channels.
    """
    flat = _flat({k: v for k, v in about.items() if k not in free})
    return {key: value for key, value in flat.items() if key not in open_to}


def _as_now(written: Any) -> Any:
    """A manifest's configuration in today's words; as it stands where it cannot be read, and then differs."""
    try:
        config = decode(from_portable({**Config.read_older(written), "kind": "Config"}))
        return json.loads(json.dumps(portable(encode(config))))
    except (UserError, TypeError, ValueError, AttributeError):
        return written
