"""The floor of each method's step: the passes that it needs at least, in the units of passes.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bivallate import L2, Linf
from bivallate.method import Method
from bivallate.methods.entries import create, registry

EPS = 8 / 255
BESIDE = (L2(0.5),)  # the threat of the methods for several
Floor = Callable[[dict[str, float]], float]


def catalogue(k: int) -> dict[str, tuple[Method, Floor, float]]:
    """List (method, floor in units, target for the ratio of measured time to floor).

    Early stopping is switched off, so that every example takes every step; replays are two.
    """
    threat = Linf(EPS)

    def of(name: str, target: float, floor: str, **parameters: Any) -> tuple[Method, Floor, float]:
        known = registry()[name].parameters
        small = {"steps": k, "replays": 2, "m": 2, "n": 3, "warm_up": 0}
        made = create(name, threat, **{**{p: v for p, v in small.items() if p in known}, **parameters})
        return made, sum_of(floor, k), target

    return {
        "plain": of("plain", 1.10, "1"),
        "at": of("at", 1.10, "k Ge, 1"),
        "trades": of("trades", 1.10, "Fe, k Ge, 2 1"),
        "at-awp": of("at-awp", 1.15, "k Gt, 2 1"),
        "trades-awp": of("trades-awp", 1.15, "Fe, k Ge, 4 1"),
        "fast-at": of("fast-at", 1.10, "Gt, 1"),
        "fgsm-at": of("fgsm-at", 1.15, "Gt, 1"),
        "n-fgsm": of("n-fgsm", 1.15, "Gt, 1"),
        "fast-at-ga": of("fast-at-ga", 1.15, "Gt, 1, D"),
        "backward-smoothing": of("backward-smoothing", 1.15, "k Ge, Ge, 2 1"),
        "free-at": of("free-at", 1.15, "2 1"),
        "yopo": of("yopo", 1.15, "2 1, 8 S"),
        "atta": of("atta", 1.15, "k Ge, 1"),
        "atta-trades": of("atta-trades", 1.15, "k Ge, 2 1"),
        "dynamic": of("dynamic", 1.15, "k Ge, 1", c_max=0.0),
        "curriculum": of("curriculum", 1.15, "k Ge, 1"),
        "fat": of("fat", 1.15, "k Ge, 1", tau=k),
        "fat-trades": of("fat-trades", 1.15, "Fe, k Ge, 2 1", tau=k),
        "mart": of("mart", 1.15, "k Ge, 2 1"),
        "gairat": of("gairat", 1.15, "k Ge, 1"),
        "gair-fat": of("gair-fat", 1.15, "k Ge, 1", tau=(k, k, k)),
        "wmmr": of("wmmr", 1.15, "k Gt, 1"),
        "mail-at": of("mail-at", 1.15, "k Ge, 1"),
        "mail-trades": of("mail-trades", 1.15, "Fe, k Ge, 2 1"),
        "mail-mart": of("mail-mart", 1.15, "k Ge, 2 1"),
        "bilaw": of("bilaw", 1.25, "2k Ge, 3 1, J, Fe"),
        "bilaw-trades": of("bilaw-trades", 1.25, "2k Ge, 6 1, 2 J, 3 Fe"),
        "non-parametric": of("non-parametric", 1.15, "2k Ge, 3 1, J"),
        "fast-bat": of("fast-bat", 1.15, "Gt, D, 1"),
        "done-gd": of("done-gd", 1.15, "k Gt, D"),
        "done-pgd": of("done-pgd", 1.15, "k Gt, D"),
        "done-adam": of("done-adam", 1.15, "k Gt, D"),
        "done-fast": of("done-fast", 1.15, "2 Gt, D"),
        "gat": of("gat", 1.15, "Ge, 2 1"),
        "nuat": of("nuat", 1.15, "Ge, 2 1"),
        "elle": of("elle", 1.15, "Gt, 4 1"),
        "aaer": of("aaer", 1.15, "Gt, 1"),
        "fgsm-pgi": of("fgsm-pgi", 1.15, "Gt, 2 1, -1 Ft"),
        "liet": of("liet", 1.15, "Gt, 2 1, -1 Ft"),
        "sora": of("sora", 1.15, "Gt, 1"),
        "faal": of("faal", 1.15, "k Ge, 1"),
        "cfol": of("cfol", 1.15, "k Ge, 1"),
        "wat": of("wat", 1.15, "Fe, k Ge, 2 1"),
        "dafa": of("dafa", 1.15, "Fe, k Ge, 2 1"),
        "cfa": of("cfa", 1.15, "k Gt, 1"),
        "hat": of("hat", 1.15, "2 Fe, k Ge, 3 1"),
        "ikl": of("ikl", 1.15, "Fe, k Ge, 2 1"),
        "lbgat": of("lbgat", 1.15, "Fe, k Ge, 2 1"),
        "max-at": of("max-at", 1.15, "2k Ge, 2 Fe, 1", others=BESIDE),
        "msd": of("msd", 1.15, "k Ge, 2k Fe, 1", others=BESIDE),
        "e-at": of("e-at", 1.15, "k Ge, 1", others=BESIDE),
        "bastion": of("bastion", 1.15, "k Ge, 2 1"),
    }


UNITS = {"Fe": "F eval", "Ft": "F train", "Ge": "G eval", "Gt": "G train"} | {u: u for u in "1DJS"}


def sum_of(text: str, k: int) -> Floor:
    """Time of a floor, such as "k Ge, 2 1": k input gradients in eval mode and two parameter gradients.

    "Gt, 2 1, -1 Ft" is an attack's pass, of which the loss takes a parameter gradient too, and another.
    """
    terms = []
    for term in text.split(", "):
        number, _, unit = term.rpartition(" ")
        times = {"": 1, "k": k, "2k": 2 * k}.get(number)
        terms.append((int(number) if times is None else times, UNITS[unit]))
    return lambda u: sum(n * u[unit] for n, unit in terms)
