"""Methods and parts that installed projects declare under the entry-point group `bivallate.methods`."""

from __future__ import annotations

import functools
import warnings
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bivallate.errors import UserError

GROUP = "bivallate.methods"


@functools.cache
def loaded() -> dict[str, Any]:
    """Load the declared methods, by name, which registers their parts; one that fails gives a warning."""
    found: dict[str, Any] = {}
    for point in entry_points(group=GROUP):
        try:
            found[point.name] = point.load()
        except Exception as error:  # another project's module may fail in any way; the others must load
            warnings.warn(f"the method {point.name!r} could not be loaded: {error}", stacklevel=2)
            found[point.name] = _broken(point, error)
    return found


def _broken(point: EntryPoint, error: Exception) -> Any:
    """The stand-in for an entry point that could not be loaded: a call raises UserError with the reason."""

    def method(threat: Any, **parameters: Any) -> Any:
        """Could not be loaded."""
        raise UserError(f"the method {point.name!r} ({point.value}) cannot be loaded: {error}")

    return method
