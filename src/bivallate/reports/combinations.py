"""The page `docs/combinations.md`: which parts of a method can be combined.

    python -m bivallate.reports.combinations      # writes the page

Every pair of parts is tried in a `Method`: all parts of the catalogue's methods, and some that no method uses
by default. The page lists the pairs that `Method` refuses, with the reasons that it gives.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bivallate.coupling.barrier import Implicit, Mask
from bivallate.errors import UserError
from bivallate.files import write_text
from bivallate.lower.objective import DLR, LogitMargin, Margin
from bivallate.lower.threat import L1, L2, Linf
from bivallate.method import Method
from bivallate.methods.entries import registry

ROWS = {  # role -> its heading on the page, in the order of the four-row picture, from below
    "threat": "Threats",
    "solver": "Solvers of the lower level",
    "objective": "Objectives of the attacker",
    "coupling": "Couplings",
    "weighting": "Weightings",
    "loss": "Losses of the upper level",
}
RADII = Linf(8 / 255), L2(0.5), L1(12.0)
WRAPPED = ("rule", "loss", "base", "inner")  # fields in which a part holds another part of its role
SHOWN = 6  # most methods to name for a part


@dataclass
class PartKind:
    """A kind of part.

    Attributes:
        role, name: the part's role and its name on the page.
        values: the parts of this kind, with the different values that methods give them.
        methods: names of the methods that use it.
        homes: for each value a method in which to try it: one that uses it, or AT.
    """

    role: str
    name: str
    values: list[Any] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    homes: list[Method] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """First paragraph of the part's docstring and a formula below it; for `After` those of its rule."""
        part = getattr(self.values[0], "rule", self.values[0])
        first, *others = (inspect.getdoc(type(part)) or "").split("\n\n")
        formula = [text for text in others[:1] if (" = " in text or " <- " in text) and ":\n" not in text]
        return " ".join(" ".join([first, *formula]).split())

    def add(self, value: Any, home: Method, method: str = "") -> None:
        if method and method not in self.methods:
            self.methods.append(method)
        if value not in self.values:
            self.values.append(value)
            self.homes.append(home)


def label(value: Any) -> str:
    """The name of a part on the page; a part that wraps another has both names.

    Example:
        >>> from bivallate import After, MAIL
        >>> label(After(MAIL(), 0.5))
        'After(MAIL)'
    """
    inner = [getattr(value, name, None) for name in WRAPPED]
    held = [label(part) for part in inner if dataclasses.is_dataclass(part)]
    return f"{type(value).__name__}({held[0]})" if held else type(value).__name__


def kinds() -> dict[str, list[PartKind]]:
    """Role -> all kinds of parts: those of the catalogue under the three threats, then some others."""
    found: dict[tuple[str, str], PartKind] = {}

    def note(role: str, value: Any, home: Method, method: str = "") -> None:
        name = label(value)
        found.setdefault((role, name), PartKind(role, name)).add(value, home, method)

    own = [entry for entry in registry().values() if entry.make.__module__.startswith("bivallate.")]
    for entry, threat in itertools.product(sorted(own, key=lambda e: e.name), RADII):
        try:
            method = entry.illustration(threat)
        except UserError:
            continue
        for role in ROWS:
            note(role, getattr(method, role), method, entry.name)
    plain = registry()["at"].make(RADII[0])
    for value in (Implicit(), Mask()):
        note("coupling", value, plain)
    for value in (DLR(), LogitMargin(), Margin()):
        note("objective", value, plain)
    return {role: [kind for kind in found.values() if kind.role == role] for role in ROWS}


def apart(one: PartKind, other: PartKind) -> str | None:
    """The reason why two kinds of parts cannot be combined with any of their values; None if they can."""
    said = []
    for k, j in itertools.product(range(len(one.values)), range(len(other.values))):
        pair = {one.role: one.values[k], other.role: other.values[j]}
        for home in (one.homes[k], other.homes[j]):
            try:
                Method(**{role: getattr(home, role) for role in ROWS} | pair)
            except UserError as error:
                said.append(str(error))
            else:
                return None
    return said[0]


def page() -> str:
    """The page as Markdown."""
    found = kinds()
    refused = [
        (one, other, why)
        for left, right in itertools.combinations(found.values(), 2)
        for one, other in itertools.product(left, right)
        if (why := apart(one, other)) is not None
    ]
    never = {frozenset((id(one), id(other))) for one, other, _ in refused}
    whole = list(itertools.product(*found.values()))
    fit = sum(all({id(a), id(b)} not in never for a, b in itertools.combinations(c, 2)) for c in whole)
    lines = [INTRODUCTION.format(fit=f"{fit:,}", whole=f"{len(whole):,}"), "## What does not go together", ""]
    lines += ["| part | with | because |", "| --- | --- | --- |"]
    lines += [f"| `{one.name}` | `{other.name}` | {_cell(why)} |" for one, other, why in refused]
    for role, title in ROWS.items():
        lines += ["", f"## {title}", "", "| part | what it is | in the catalogue |", "| --- | --- | --- |"]
        lines += [f"| `{kind.name}` | {_cell(kind.summary)} | {_named(kind)} |" for kind in found[role]]
    return "\n".join([*lines, ""])


def _named(kind: PartKind) -> str:
    """Links to the methods that use a part, at most `SHOWN`."""
    links = [f"[{name}](methods/{name}.md)" for name in kind.methods[:SHOWN]]
    rest = len(kind.methods) - SHOWN
    return ", ".join(links) + (f" and {rest} more" if rest > 0 else "") or "-"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "\\<")


INTRODUCTION = """# Which parts go together

A method is one part from each row of [the picture](index.md#how-it-works), and any part of a row may be
replaced by another part of that row. Each part states what it requires of the others, and composing a
`bv.Method` that cannot work raises an error. `python -m bivallate.reports.combinations` makes this page: it
tries all pairs of the catalogue's parts, and of some parts that no method uses by default. Pairs that are not
listed as refused can be combined: {fit} of {whole} combinations of one part from each row.

```python
import bivallate as bv

method = bv.methods.trades(bv.Linf(8 / 255)).but(weighting=bv.KLDRO(temperature=1.0))
```

On the command line: `bivallate train trades --set weighting=KLDRO`. That parts can be combined means that the
step is defined, not that it is worth its passes; [All records](records.md) has what was measured. The values
of a part may require more: GAIRAT's weights count the steps of the attack, and both must have the same number
of steps. A few requirements concern the data and are checked when training begins: for example, ATTA's memory
does not work with every augmentation. The attacks of `bivallate evaluate` are not listed.
"""


def write(path: Path) -> None:
    """Write the page. It depends on the parts alone, so that a test can compare it."""
    write_text(path, page())


if __name__ == "__main__":
    write(Path("docs/combinations.md"))
