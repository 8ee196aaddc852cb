"""`bivallate zoo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bivallate.commands.lists import one_a_line
from bivallate.commands.options import Flag
from bivallate.errors import unknown
from bivallate.terminal import say, say_json

if TYPE_CHECKING:
    from bivallate.zoo import ZooEntry


def zoo(name: str | None = None, /, *, save: Path | None = None, json: Flag = False) -> None:
    """List the trained networks that come with the package, or show one.

    Each was attacked by the whole AutoAttack; its interval is Wilson's. In Python, bv.load("zoo:NAME").

    Parameters
    ----------
    name
        of a network.
    save
        folder to write its weights, manifest and card to.
    json
        for programs.
    """
    from bivallate.zoo import entries

    known = entries()
    if name is None:
        told = {name: _told(entry) for name, entry in known.items()}
        say_json(known, 1) if json else one_a_line(told, "zoo", "NAME")
        return
    name = name.removeprefix("zoo:")
    if name not in known:
        raise unknown("network of the zoo", name, known)
    if save is not None:
        from bivallate.models import save_pretrained
        from bivallate.run.load_model import from_zoo

        save_pretrained(from_zoo(name), save, name=name)
    if json:
        say_json({"name": name, **known[name]}, 1)
        return
    _card(name, known[name])
    if save is not None:
        say(f"written to {save}", beside=True)


def _told(entry: ZooEntry) -> str:
    """What a list says of a network."""
    m = entry["measured"]
    low, high = m["interval_95"]
    left = f"AutoAttack {m['robust_accuracy']:.1%} ({100 * low:.1f}-{100 * high:.1f})"
    clean = f"clean {m['clean_accuracy']:.1%} of {m['n']:,} points"
    about = f"{entry['data']}, {entry['method']}, {entry['network']}, {entry['licence']}"
    return f"{entry['norm']} {entry['eps']}: {left}, {clean}; {about}"


def _card(name: str, entry: ZooEntry) -> None:
    m = entry["measured"]
    low, high = m["interval_95"]
    say(f"zoo:{name}: {entry['network']} ({entry['parameters']:,} parameters), {entry['data']}")
    say(f"trained with {entry['method']} for {entry['norm']} eps {entry['eps']}: {entry['made']}")
    say(f"at commit {entry['commit']}; licence {entry['licence']}; fingerprint {entry['fingerprint']}")
    say(
        f"clean {m['clean_accuracy']:.1%}, {m['attack']} {m['robust_accuracy']:.1%} (95 % interval {low:.1%} "
        f"to {high:.1%}) on {m['n']:,} test images, seed {m['seed']}"
    )
    if "note" in entry:
        say(entry["note"])
    say(f'use: bv.load("zoo:{name}"), bivallate train METHOD --init zoo:{name}')
