"""What tells one run from another."""

from __future__ import annotations

import hashlib
import json

from bivallate.parts import encode, portable
from bivallate.run.config import Config


def identity_of(config: Config, data: str, architecture: str) -> str:
    """Sixteen digits of what a run is a function of.

    Not of the machine, and not random, so that the same run makes the same files.

    Args:
        data: fingerprint of the data set.
    """
    entry = portable(encode(config.set("device", "auto").set("threads", 0)))
    parts = (json.dumps(entry, sort_keys=True), data, architecture)
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
