"""The commands that a message suggests for a run: to resume or to evaluate it."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shlex
from pathlib import Path
from typing import Any

from bivallate import collective, plugins
from bivallate.errors import UserError
from bivallate.method import Method
from bivallate.methods.entries import registry
from bivallate.quoting import command, torchrun
from bivallate.run.config import Config
from bivallate.run.folder import RunFolder
from bivallate.run.load_model import built_in

__all__ = ["data_options", "evaluate_command", "resume_command"]

PLACES = {"data.name": "--data", "data.data_dir": "--data-dir"}
ELSEWHERE = PLACES | {"device": "--device", "threads": "--threads"}


def resume_command(folder: Path, config: Config, architecture: str) -> str:
    """The command that resumes an interrupted run on the same number of processes.

    It is a call in Python if the run has parts that only the user's code can build.

    Args:
        folder: the run's folder.
        config: the configuration as it runs; device, threads and data folder may differ from the file's.
        architecture: architecture of its network.
    """
    own = architecture if ":" in architecture else config.model.name
    method = _typed(config.method)
    by_hand = {"model": not built_in(own) and ":" not in own, "dataset": not config.data.name}
    by_hand["method"] = method is None
    if any(by_hand.values()):
        handed = "".join(f", {name}=..." for name, needed in by_hand.items() if needed)
        return f"bivallate.resume({str(folder)!r}{handed}) in Python"
    line = command("resume", folder, *_network(own), *([f"--method={method}"] if method else []))
    more = shlex.join(_elsewhere(folder, config, ELSEWHERE))
    return _launched(f"{line} {more}" if more else line)


def evaluate_command(folder: Path, architecture: str, moved: list[str], attack: str = "pgd-20") -> str:
    """The command that evaluates a run; `moved` are the options from `data_options`."""
    return command("evaluate", folder, *_network(architecture), *moved, "--attack", attack)


def data_options(**moved: str | None) -> list[str]:
    """The options for data that have moved, to be repeated in the next commands."""
    return [f"{PLACES[f'data.{name}']}={place}" for name, place in moved.items() if place is not None]


def _network(architecture: str) -> list[str]:
    """The option that names the factory of the user's own network."""
    return ["--model", architecture] if ":" in architecture and not built_in(architecture) else []


def _typed(method: Method) -> str | None:
    """The value of --method for a method with the user's own parts.

    Empty if it has no such parts; None if no name on the command line gives the method.
    """
    installed = {make.__module__.partition(".")[0] for make in plugins.loaded().values()}
    modules = {part.__module__ for part in _parts(method)}
    if all(module.partition(".")[0] in {"bivallate", *installed} for module in modules):
        return ""
    named = {name: entry.make for name, entry in registry().items() if ":" in name}
    fitting = [name for name in named if name.partition(":")[0] in modules] or list(named)
    return fitting[0] if len(fitting) == 1 else None


def _parts(value: Any) -> set[type]:
    """The types of a part and of all parts within it."""
    found: set[type] = set()
    if dataclasses.is_dataclass(value) and not inspect.isclass(value):
        found.add(type(value))
        for field in dataclasses.fields(value):
            found |= _parts(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            found |= _parts(item)
    elif hasattr(value, "state_dict"):
        found.add(type(value))
    return found


def _elsewhere(folder: Path, config: Config, options: dict[str, str]) -> list[str]:
    """The options for settings of device and places that differ from the folder's configuration."""
    try:
        own = Config.read(RunFolder(folder).config)
    except UserError:  # damaged in the meantime; `resume` writes it again
        return []
    found = [(option, _at(own, path), _at(config, path)) for path, option in options.items()]
    return [f"{option}={there}" for option, here, there in found if here != there]


def _at(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _launched(line: str) -> str:
    """The command line, under torchrun if there are several processes."""
    if not collective.is_distributed():
        return line
    each = os.environ.get("LOCAL_WORLD_SIZE", str(collective.world_size()))
    return torchrun(each, line)
