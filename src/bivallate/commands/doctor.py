"""`bivallate doctor`."""

from __future__ import annotations

from dataclasses import asdict

from bivallate.commands.options import DataFolder, Flag
from bivallate.terminal import say, say_json


def doctor(*, data_dir: DataFolder | None = None, self_test: bool = True, json: Flag = False) -> int:
    """Print what a bug report should say about this machine, and test the installation in ten seconds.

    Exits with status 1 if something is wrong.

    Parameters
    ----------
    data_dir
        where named sets are looked for. [default: BIVALLATE_DATA]
    self_test
        train, save, load and attack a small network.
    json
        print the findings as JSON.
    """
    from bivallate import installation

    found = []
    parts = [installation.examine(data_dir)] + ([installation.self_test()] if self_test else [])
    for finding in (one for part in parts for one in part):
        found.append(finding)
        if not json:
            say(f"{'  ' if finding.ok else '! '}{finding.name:<38} {finding.value}")
    if json:
        say_json([asdict(one) for one in found])
    return 0 if all(one.ok for one in found) else 1
