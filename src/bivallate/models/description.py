"""The manifest beside a model's weights: how to rebuild the model, and where the weights come from."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from bivallate.checksummed import has_checksum
from bivallate.errors import UserError
from bivallate.models.classifier import Classifier, Normalise
from bivallate.schema import Range, check_fits, read_json

__all__ = [
    "checksummed_weights",
    "class_names",
    "manifest",
    "manifest_text",
    "read_manifest",
    "rebuild_checksum",
]

FORMAT, VERSION = "bivallate-model", 1
Classes = Annotated[int, Range(1, 100_000)]
Side = Annotated[int, Range(1, 100_000)]
Shape = tuple[Side, Side, Side]


class Statistics(TypedDict):
    """Mean and standard deviation of each channel, in [0, 1] pixel units."""

    mean: list[float] | None
    std: list[float] | None


class Spec(TypedDict):
    """How a built-in architecture is created."""

    name: str
    num_classes: NotRequired[Classes]
    shape: NotRequired[Shape]
    mean: NotRequired[list[float] | float | None]  # one number counts for every channel
    std: NotRequired[list[float] | float | None]
    activation: NotRequired[str]


class Manifest(TypedDict):
    """The entries of `model.json` that the program reads; a run adds entries of its own.

    `sealed` names the weights that were written with a checksum. Where one of them has no checksum any more,
    the file is damaged; weights that are not listed may come from a version that wrote no checksums.
    """

    architecture: str
    spec: Spec | None
    num_classes: Classes
    shape: Shape
    normalisation: Statistics | None
    classes: NotRequired[list[str] | None]
    data: NotRequired[str]
    data_fingerprint: NotRequired[str]
    split_fingerprints: NotRequired[dict[str, str]]
    method: NotRequired[str]
    code_version: NotRequired[str]
    config: NotRequired[dict[str, Any] | str | None]  # the first version wrote the name of a file
    epoch: NotRequired[int]
    sealed: NotRequired[list[str]]


def manifest_text(about: Mapping[str, Any]) -> str:
    """The manifest as the text of its file."""
    return json.dumps(about, indent=2, allow_nan=False) + "\n"


def rebuild_checksum(about: Mapping[str, Any]) -> str:
    """Checksum of the entries from which a network is rebuilt; the weights' file carries it too."""
    facts = {key: about[key] for key in ("spec", "num_classes", "shape", "normalisation")}
    return f"crc32:{zlib.crc32(json.dumps(facts, sort_keys=True).encode()):08x}"


def manifest(
    model: Classifier, *, classes: list[str] | None = None, entries: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of `model.json`: how to rebuild the architecture, and where the weights come from.

    Args:
        model: the classifier; `spec` is None for a user's own module, which is rebuilt only when the user
            names it again.
        classes: names of the classes, in the order of the logits.
        entries: further entries that JSON can hold.

    Raises:
        UserError: an entry has the name of one of the manifest's own.
    """
    first = model.normalise
    statistics = None
    if isinstance(first, Normalise):
        statistics = {"mean": first.mean.flatten().tolist(), "std": first.std.flatten().tolist()}
    fixed = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": model.architecture,
        "spec": model.spec,
        "num_classes": model.num_classes,
        "shape": list(model.shape),
        "normalisation": statistics,
        "classes": classes,
        "code_version": _code_version(),
    }
    clash = sorted(set(fixed) & set(entries or {}) - {"code_version"})
    if clash:
        raise UserError(f"the manifest's entries {', '.join(clash)} have the names of its own: choose others")
    return {**fixed, **(entries or {})}


def _code_version() -> str:
    try:
        return version("bivallate")
    except PackageNotFoundError:
        return "unknown"


def class_names(described: dict[str, Any]) -> list[str] | None:
    """Names of the classes in the order of the logits; None unless the manifest has one for each class."""
    found = described.get("classes")
    if not isinstance(found, list) or len(found) != described["num_classes"]:
        return None
    return [str(name) for name in found]


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check the manifest at `path`.

    Raises:
        UserError: the file is missing, not JSON, not a manifest, damaged, or of another format version.
    """
    if not path.exists():
        raise UserError(f"the manifest {path} is missing: weights alone do not say their architecture")
    described = read_json(path, "manifest", dict[str, Any])
    if described.get("format") != FORMAT:
        raise UserError(f"{path} is not a manifest of a model: its format is not {FORMAT!r}")
    if described.get("version") != VERSION:
        raise UserError(
            f"{path} has format version {described.get('version')}, this program reads {VERSION}: "
            "update bivallate"
        )
    try:
        return check_fits(Manifest, described, "manifest")
    except UserError as error:
        raise UserError(f"{path}: {error}: it is damaged") from error


def checksummed_weights(path: Path) -> list[str]:
    """Names of the weights that must carry a checksum.

    They are those that the manifest lists as sealed. A manifest without such a list gives the weights beside
    it that carry a checksum now.
    """
    try:
        told = read_manifest(path).get("sealed")
    except UserError:
        told = None
    return (
        sorted(p.stem for p in path.parent.glob("*.safetensors") if has_checksum(p)) if told is None else told
    )
