"""`bivallate zoo`."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bivallate.commands.options import Flag
from bivallate.errors import UserError, listed
from bivallate.terminal import literal_console, say, say_json
from bivallate.zoo import ZooEntry, entries, entry


def zoo(name: str | None = None, /, *, save: Path | None = None, json: Flag = False) -> None:
    """List the trained networks that come with the package, or show one.

    Each was evaluated with the whole of AutoAttack; intervals are Wilson's. bv.load("zoo:NAME") in Python.

    Parameters
    ----------
    name
        of a network.
    save
        folder to write its weights, manifest and card to.
    json
        for programs.
    """
    if name is None:
        if save is not None:
            raise UserError(
                f"--save writes one network: name it, bivallate zoo NAME --save {save} "
                f"(there are {listed(entries())})"
            )
        say_json(entries(), 1) if json else _list(entries())
        return
    name = name.removeprefix("zoo:")
    found = entry(name)
    if save is not None:
        from bivallate.models import save_pretrained
        from bivallate.run.load_model import from_zoo

        save_pretrained(from_zoo(name), save, name=name)
    if json:
        say_json({"name": name, **found}, 1)
        return
    _card(name, found)
    if save is not None:
        say(f"written to {save}", to_stderr=True)


def _list(known: dict[str, ZooEntry]) -> None:
    """Print the table of all networks."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for head in ("zoo:", "trained on", "AutoAttack %", "clean %", "licence"):
        shown.add_column(head, no_wrap=head != "trained on")
    for name, about in known.items():
        m = about["measured"]
        low, high = m["interval_95"]
        robust = f"{100 * m['robust_accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]\nof {m['n']:,} images"
        how = f"{about['data']}\n{about['norm']} {about['eps']}, {about['method']}"
        shown.add_row(name, how, robust, f"{100 * m['clean_accuracy']:.1f}", about["licence"])
    literal_console().print(shown)
    say("more about one: bivallate zoo NAME")


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
