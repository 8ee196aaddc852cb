"""A model on disk: weights as safetensors, and a manifest that says how to rebuild the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.checksummed import read_checksummed, write_checksummed
from bivallate.errors import UserError, check_path, listed
from bivallate.files import write_text
from bivallate.models.architectures import blank, create, names
from bivallate.models.classifier import Classifier
from bivallate.models.description import (
    checksummed_weights,
    class_names,
    manifest,
    manifest_text,
    read_manifest,
    rebuild_checksum,
)
from bivallate.models.foreign import wrap
from bivallate.untrusted_files import check_regular, kind_hint, not_weights

__all__ = ["load", "read_weights", "run_of", "save"]

PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".tar"}
SHOWN = 3  # keys named in an error


def save(
    model: Classifier,
    path: str | os.PathLike[str],
    *,
    weights: str = "model",
    classes: list[str] | None = None,
    entries: Mapping[str, Any] | None = None,
) -> Path:
    """Write `<weights>.safetensors` and `model.json`, each whole or not at all.

    Args:
        model: the classifier to save.
        path: a folder; or a file that ends in .safetensors, whose manifest then has the same name with .json.
        weights: name within the folder: model, best, ema.
        classes: names of the classes, in the order of the logits; default those of the model.
        entries: further entries of the manifest that JSON can hold, such as config, code version and
            fingerprint of the data.

    Returns:
        The path of the weights.

    Raises:
        UserError: the path names a pickle, the model keeps state outside tensors, or an entry has the name of
            one of the manifest's own.
    """
    file, described = _places(Path(path), weights, writing=True)
    tensors = {}
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(f"{model.architecture} keeps {key!r} outside of tensors: it cannot be saved")
        tensors[without_compile(key)] = value.detach().to("cpu", copy=True).contiguous()
    sealed = sorted({*checksummed_weights(described), file.stem})
    about = manifest(model, classes=classes or model.classes, entries={**(entries or {}), "sealed": sealed})
    text = manifest_text(about)
    write_checksummed(file, tensors, {"run": about.get("run"), "facts": rebuild_checksum(about)})
    write_text(described, text)
    return file


def load(
    path: str | os.PathLike[str],
    weights: str = "model",
    *,
    model: nn.Module | str | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Load a saved classifier, in eval mode; nothing in the files is executed.

    Args:
        path: a folder (also a run folder) or a .safetensors file.
        weights: name within the folder: model (or last), best, ema (or average).
        model: for weights of the user's own module: the module, or its `package.module:factory`. The factory
            is imported because the caller names it, never because a file does.
        device: where to put the model.

    Raises:
        UserError: a file is missing, truncated, damaged, a pickle, or no model of this format; the weights
            are of another architecture or of another run than the manifest; or the architecture is not
            registered.
    """
    file, described = _places(check_path("the model's folder or file", path), weights)
    (tensors, header, seal), about = _read(file), read_manifest(described)
    if about.get("run", header.get("run")) != header.get("run") and header:
        raise UserError(f"{file} is of another run than {described}: the files of two runs were mixed")
    classifier = _rebuilt(about, described, model)
    classifier.classes = class_names(about)
    fill(classifier, tensors, str(file))
    if file.stem in about.get("sealed", []) and seal is None:
        raise UserError(
            f"{file} is damaged: the checksum that it was written with is gone. Restore it, or use other "
            "weights of the run; `bivallate resume` writes again what the run's checkpoint holds"
        )
    if header.get("facts", rebuild_checksum(about)) != rebuild_checksum(about):
        raise UserError(
            f"{described} is not what {file.name} was saved with: it was changed or damaged; `bivallate "
            "resume` writes that of a run again"
        )
    return classifier.to(device).eval()


def fill(model: Classifier, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy the weights into the model, bit for bit; the model takes on their precision.

    Raises:
        UserError: the weights have other keys or shapes than the model's.
    """
    own = model.state_dict()
    tensors = renamed(tensors, own)
    missing = [key for key in own if key not in tensors]
    foreign = [key for key in tensors if key not in own]
    shapes = [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    wrong = [
        f"{kind} {'; '.join(keys[:SHOWN])}" + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
        for kind, keys in (("it lacks", missing), ("it adds", foreign), ("it differs:", shapes))
        if keys
    ]
    if wrong:
        raise UserError(f"{source} holds another architecture than {model.architecture}: {'. '.join(wrong)}")
    precision = {value.dtype for value in tensors.values() if value.is_floating_point()}
    if len(precision) == 1:
        model.to(precision.pop())
    model.load_state_dict(dict(tensors), strict=True)


def renamed(tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The tensors under the model's own keys, if the keys differ in the prefixes of wrappers alone.

    The wrappers are those of torch.compile (`_orig_mod`) and of data-parallel training (`module`).
    """
    bare = {_bare(key): key for key in own}
    named = {bare.get(_bare(key), key): value for key, value in tensors.items()}
    return named if len(named) == len(tensors) else tensors


def without_compile(key: str) -> str:
    """A key without torch.compile's `_orig_mod`."""
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def _bare(key: str) -> str:
    """A key without the names of wrappers, for comparisons."""
    return ".".join(part for part in without_compile(key).split(".") if part != "module")


def _rebuilt(described: dict[str, Any], place: Path, model: nn.Module | str | None) -> Classifier:
    statistics = described["normalisation"] or {"mean": None, "std": None}
    facts = {"num_classes": described["num_classes"], "shape": described["shape"], **statistics}
    if isinstance(model, str):
        return create(model, **facts, seed=0)
    if model is not None:
        return wrap(model, **facts, name=described["architecture"])
    spec = described["spec"]
    if (
        not isinstance(spec, dict)
        or not isinstance(spec.get("name"), str)
        or (":" in spec["name"] and not spec["name"].startswith("timm:"))
    ):
        raise UserError(
            f"{place} was saved from code of the user's, {described['architecture']!r}, which is never "
            "imported from a file: pass the module, or its package.module:factory, as model="
        )
    if ":" not in spec["name"] and spec["name"] not in names():
        raise UserError(
            f"{place} names the architecture {spec['name']!r}, which is not registered: "
            "import the module that registers it first, or pass model="
        )
    try:
        return blank(spec)
    except UserError as error:
        raise UserError(f"{place} does not describe a model that can be built: {error}") from error
    except Exception as error:  # an architecture may raise anything at the values of a damaged file
        raise UserError(
            f"{place} does not describe a model ({type(error).__name__}: {error}): it is damaged"
        ) from error


def _places(path: Path, weights: str, writing: bool = False) -> tuple[Path, Path]:
    """Paths of the weights and of the manifest. Raises UserError where they cannot be such files."""
    name = {"last": "model", "average": "ema"}.get(weights, weights)
    if path.suffix in PICKLES:
        raise UserError(_pickled(path))
    if path.suffix == ".safetensors":
        own = path.with_suffix(".json")
        return path, own if writing or own.exists() else path.with_name("model.json")
    file = path / f"{name}.safetensors"
    if not writing and not path.is_dir():
        raise UserError(
            f"no model at {path}: expected a folder with model.safetensors and model.json{kind_hint(path)}"
        )
    if not writing and not file.exists():
        there = (
            sorted("last" if p.stem == "model" else p.stem for p in path.glob("*.safetensors"))
            if path.is_dir()
            else []
        )
        raise UserError(
            f"{path} has no weights {weights!r} ({file.name}): it has the weights {listed(there)}"
        )
    return file, path / "model.json"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        UserError: the file is missing, truncated, damaged, not safetensors, or a pickle, which is never
            loaded.
    """
    return _read(path)[0]


def run_of(path: Path) -> str | None:
    """Identifier of the run in the header of a weights file; None if the header has none."""
    return _read(path)[1].get("run")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str | None]:
    """Tensors, header entries and checksum of a file; foreign files have no entries and no checksum."""
    check_regular(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror or error}") from error
    whole = len(head) == 9 and head[8:] == b"{"  # safetensors: eight bytes of length, then a JSON object
    if path.suffix in PICKLES or (not whole and head.startswith((b"PK\x03\x04", b"\x80"))):
        raise UserError(_pickled(path))
    if not whole:
        raise UserError(f"{path} is not a safetensors file{kind_hint(path) or ': it is foreign or damaged'}")
    try:
        header, tensors, mark = read_checksummed(path)
        return tensors, header or {}, mark
    except UserError as error:
        raise UserError(
            f"{error}. Restore it, or use other weights of the run; `bivallate resume` writes again what the "
            "run's checkpoint holds"
        ) from error


def _pickled(path: Path) -> str:
    return not_weights(path) or (
        f"{path} is a pickle, which could run code and is never loaded: use a .safetensors file, or "
        "load_robustbench for the plain state dict of a public checkpoint"
    )
