"""Write a configuration as TOML, which the standard library can only read."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["to_toml"]


def to_toml(entry: dict[str, Any], prefix: str = "") -> str:
    """Nested dictionaries of numbers, strings, booleans and lists of these as TOML."""
    plain = {k: v for k, v in entry.items() if not isinstance(v, dict)}
    lines = [f"{k} = {_value(v)}" for k, v in plain.items()]
    text = "\n".join(lines) + "\n" if lines else ""
    for key, table in entry.items():
        if isinstance(table, dict):
            name = f"{prefix}{key}"
            text += f"\n[{name}]\n" + to_toml(table, f"{name}.")
    return text


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)  # the shortest text that reads back to the same bits; inf and nan are TOML too
    if isinstance(value, list):
        if any(isinstance(item, dict) for item in value):
            return (
                "["
                + ", ".join(_inline(item) if isinstance(item, dict) else _value(item) for item in value)
                + "]"
            )
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's escapes are JSON's


def _inline(table: dict[str, Any]) -> str:
    return (
        "{"
        + ", ".join(f"{k} = {_inline(v) if isinstance(v, dict) else _value(v)}" for k, v in table.items())
        + "}"
    )
