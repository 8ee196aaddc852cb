"""The configuration of a run whose method has parts that are not installed here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bivallate.errors import UserError
from bivallate.method import Method
from bivallate.methods.entries import create
from bivallate.parts import decode, encode
from bivallate.run.config import Config
from bivallate.schema import MEGABYTE, check_fits, parse, read_text

__all__ = ["ReadConfig", "read_config"]


@dataclass(frozen=True)
class ReadConfig:
    """A run's configuration, for those who look at the run and do not train it.

    Attributes:
        config: with the run's method, or with one that stands for it.
        entry: the configuration as plain data, with the method as the run wrote it.
        missing: why the method stands for the run's own; empty if it is the run's own.
    """

    config: Config
    entry: dict[str, Any]
    missing: str = ""

    def check_own_method(self) -> None:
        """Raise UserError if the method is not the run's own."""
        if self.missing:
            raise UserError(self.missing)


def read_config(file: Path) -> ReadConfig:
    """Read a run's configuration, even where parts of its method are not installed.

    Those who evaluate, compare or report need the method's name and threats alone. Plain training with these
    then stands for it.

    Raises UserError if the file cannot be read, or anything but the method's parts is wrong.
    """
    try:
        config = Config.read(file)
        return ReadConfig(config, encode(config))
    except UserError as error:
        text = read_text(file, "configuration", 4 * MEGABYTE)
        entry = Config.read_older(parse(text, file, "configuration", dict[str, Any], "TOML"))
        method = entry.get("method")
        if not isinstance(method, dict) or "threat" not in method:
            raise
        stand_in = encode(_stands_for(method))
        decoded = decode({**entry, "method": stand_in, "kind": "Config"})
        config = check_fits(Config, decoded, "configuration")
        return ReadConfig(config, {**encode(config), "method": method}, str(error))


def _stands_for(entry: dict[str, Any]) -> Method:
    """Plain training with the name and the threats of a method that is not known here."""
    plain = create("plain", decode(entry["threat"])).but(name=str(entry.get("name") or ""))
    try:
        solver = decode(entry.get("solver"))
    except UserError:
        return plain
    return plain.but(solver=solver)
