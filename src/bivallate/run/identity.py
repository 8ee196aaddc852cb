"""The identifier of a run."""

from __future__ import annotations

import hashlib
import json

from bivallate.parts import encode, portable
from bivallate.run.config import Config


def identity_of(config: Config, data: str, architecture: str) -> str:
    """Sixteen hexadecimal digits: a hash of everything that determines a run.

    Neither the machine nor chance enters, so that the same run writes the same files.

    Args:
        config: the run's configuration.
        data: fingerprint of the data set.
        architecture: name of the network's architecture.
    """
    entry = portable(encode(config.set("device", "auto").set("threads", 0)))
    pieces = (json.dumps(entry, sort_keys=True), data, architecture)
    return hashlib.blake2b("\n".join(pieces).encode(), digest_size=8).hexdigest()
