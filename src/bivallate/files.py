"""Files that are whole or not there at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bivallate.errors import UserError


def write_whole(path: Path, write: Callable[[Path], Any], *, durable: bool = True) -> None:
    """Lets `write` fill a temporary file beside `path`, then moves it into place; the old file stays until
    then. `durable`: also after a loss of power.

    Raises UserError when there is no space or no permission.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if durable:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Text in UTF-8, whole or not at all."""
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, *, indent: int | None = 1, durable: bool = True) -> None:
    """JSON, whole or not at all; NaN and infinities are refused because JSON has none."""
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"), durable=durable)
