"""What public checkpoints put around a network's tensors: entries, prefixes of names, a normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bivallate.errors import UserError, listed
from bivallate.models.checkpoint_file import check_claim

__all__ = ["PREFIXES", "chosen_statistics", "take_statistics", "unwrapped", "without_prefixes"]

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "last", "best")
LESS_COMMON = ("ema", "weights", "params")  # taken where one of them is there alone
COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel
PREFIXES = (
    *("module.", "model.", "_orig_mod.", "network.", "net.", "backbone.", "encoder.", "basic_net."),
    *("attacker.", "1."),
)
SAME = 1e-3  # a quarter of a grey level
Statistic = Sequence[float] | float | None
STATISTICS = (
    ("0.mean", "0.std"),  # Sequential(normalisation, network)
    ("normalizer.new_mean", "normalizer.new_std"),
    ("normalize.new_mean", "normalize.new_std"),
    ("normalize_layer.mean", "normalize_layer.std"),
    ("mu", "sigma"),
    ("mean", "std"),
    ("normalize.mean", "normalize.std"),
    ("normalise.mean", "normalise.std"),
    ("normalizer.mean", "normalizer.std"),
    ("normalization.mean", "normalization.std"),
    ("norm.mean", "norm.std"),
)


def unwrapped(content: Any, file: Path, entry: str | None) -> dict[str, Tensor]:
    """The state dict in a checkpoint: the checkpoint itself, or one of its entries.

    Raises UserError if it holds none, or several of which none is the usual one.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{file} holds a {type(content).__name__}, not a state dict")
    if entry is not None:
        if entry not in content:
            raise UserError(f"{file} has no entry {entry!r}: it has {listed(content)}")
        return unwrapped(content[entry], file, None)
    if content and all(isinstance(value, Tensor) for value in content.values()):
        check_claim(file, sum(value.numel() * value.itemsize for value in content.values()))
        odd = next((key for key in content if not isinstance(key, str)), None)
        if odd is not None:
            raise UserError(
                f"{file} names its tensors by {type(odd).__name__}s, such as {odd!r}, not by layers"
            )
        return dict(content)
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return unwrapped(content[key], file, None)
    others = [str(key) for key, value in content.items() if _holds_tensors(value)]
    known = [key for key in LESS_COMMON if key in others]
    if len(known) == 1:
        return unwrapped(content[known[0]], file, None)
    if not others:
        raise UserError(f"{file} holds no state dict: its entries are {listed(content)}")
    raise UserError(
        f"{file} holds no state dict under the keys tried ({listed(WRAPPERS)}, or one of "
        f"{listed(LESS_COMMON)}): tensors are in its {listed(others)}. In Python name one as entry=; "
        "or save it as a file of its own"
    )


def _holds_tensors(value: Any) -> bool:
    """Whether a mapping holds tensors, itself or one level below: deeper ones may be in circles."""
    inner = list(value.values()) if isinstance(value, Mapping) else []
    inner += [v for below in inner if isinstance(below, Mapping) for v in below.values()]
    return any(isinstance(v, Tensor) for v in inner)


def without_prefixes(found: Mapping[str, Tensor], file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict without prefixes in its keys, and the prefixes that were taken off.

    The number of averaged epochs is left out. Where several keys become the same, as those of robustness's
    models, the one with the fewest dots is kept.

    Raises:
        UserError: their tensors differ, so that the file holds several networks.
    """
    kept: dict[str, str] = {}
    for key in found:
        bare = _bare(key)
        if bare == COUNTER:
            continue
        other = kept.setdefault(bare, key)
        if other != key and not _equal(found[other], found[key]):
            one, two = (repr(name.removesuffix(bare)) for name in (other, key))
            raise UserError(
                f"{file} holds two different networks, or two parts of one, whose names begin with {one} and "
                f"with {two} ({other} and {key} differ): keep the tensors of one of them alone in the file"
            )
        if key.count(".") < other.count("."):
            kept[bare] = key
    state = {bare: found[key] for bare, key in kept.items()}
    return state, sorted({key.removesuffix(bare) for bare, key in kept.items()} - {""})


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same; those of a training that diverged too, whose NaN are not equal."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _bare(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def take_statistics(state: dict[str, Tensor]) -> tuple[list[float], list[float]] | None:
    """Remove all buffers of normalisation from the state dict; return the mean and std found first."""
    held = [
        (state.pop(mean).flatten().tolist(), state.pop(std).flatten().tolist())
        for mean, std in STATISTICS
        if mean in state and std in state
    ]
    return held[0] if held else None


def chosen_statistics(
    file: Path,
    held: tuple[list[float], list[float]] | None,
    given: tuple[Statistic, Statistic],
    fallback: tuple[Sequence[float], Sequence[float]] | None,
    tell: Callable[[str], None],
) -> tuple[Statistic, Statistic]:
    """The mean and std of the first layer: those that the file holds, because its network learned with them.

    Raises:
        UserError: others were given.
    """
    if held is None:
        return given if given != (None, None) else fallback or given
    own = f"mean={_rounded(held[0])} and std={_rounded(held[1])}"
    if not all(map(_alike, given, held)):
        asked = listed(
            f"{n}={_rounded(v)}" for n, v in zip(("mean", "std"), given, strict=True) if v is not None
        )
        raise UserError(
            f"{file} holds a normalisation of its own, {own}, but {asked} was given: leave that out, or, if "
            "the network was trained without its own, take it out of the file"
        )
    if fallback is not None and not all(map(_alike, fallback, held)):
        tell(
            f"{file.name} holds a normalisation of its own, {own}, which is taken; that of the data, "
            f"mean={_rounded(fallback[0])} and std={_rounded(fallback[1])}, is not"
        )
    return held


def _alike(given: Statistic, held: list[float]) -> bool:
    """Whether they are equal up to digits left out and the rounding to half precision; None is like all."""
    if given is None:
        return True
    values = [float(given)] * len(held) if isinstance(given, int | float) else list(given)
    near = (math.isclose(a, b, rel_tol=SAME, abs_tol=SAME) for a, b in zip(values, held, strict=False))
    return len(values) == len(held) and all(near)


def _rounded(values: Statistic) -> list[float]:
    return [round(float(v), 4) for v in ([values] if isinstance(values, int | float) else values or [])]
