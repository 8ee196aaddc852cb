"""Models to and from the Hugging Face hub, with a card that says how robust they were measured to be."""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn

from bivallate.errors import UserError
from bivallate.files import write_whole
from bivallate.models.classifier import Classifier
from bivallate.models.io import load, save
from bivallate.parts import portable

__all__ = ["from_pretrained", "model_card", "push_to_hub", "save_pretrained"]

Place = str | os.PathLike[str]


def save_pretrained(
    model: Classifier, folder: Place, *, run: Place | None = None, name: str | None = None
) -> Path:
    """A folder with the weights, the manifest and a model card; returns the folder.

    Args:
        run: the run folder whose configuration and evaluations the card reports.
        name: `owner/name` on the hub, for the card's example.
    """
    place = Path(folder)
    entries = _run_entries(Path(run)) if run is not None else {}
    save(model, place, entries=entries, classes=_classes(run))
    text = model_card(model, run=run, name=name or place.name)
    write_whole(place / "README.md", lambda target: target.write_text(text, encoding="utf-8"))
    return place


def from_pretrained(
    source: Place,
    *,
    weights: str = "model",
    revision: str | None = None,
    token: str | None = None,
    model: nn.Module | str | None = None,
) -> Classifier:
    """The classifier in a folder or, where there is none of that name, of the hub's `owner/name`; in eval
    mode.

    Only safetensors and JSON are downloaded. `model` is as in `load`.

    Raises:
        UserError: no such repository, no access, offline, or files that are no model.
    """
    if Path(source).exists():
        return load(source, weights, model=model)
    try:
        folder = huggingface_hub.snapshot_download(
            str(source), revision=revision, token=token, allow_patterns=["*.safetensors", "*.json"]
        )
    except HFValidationError as error:
        raise UserError(f"{source} is neither a folder nor a name owner/name on the hub") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"cannot fetch {source} from the hub: {_first_line(error)}") from error
    return load(folder, weights, model=model)


def push_to_hub(
    model: Classifier,
    name: str,
    *,
    run: Place | None = None,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload the model",
) -> str:
    """Uploads weights, manifest and card to `owner/name`, which is created if need be; returns its address.

    Raises:
        UserError: no access, a name that the hub refuses, or offline.
    """
    api = huggingface_hub.HfApi(token=token)
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(model, folder, run=run, name=name)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except HFValidationError as error:
        raise UserError(f"{name!r} is not a name owner/name on the hub: {_first_line(error)}") from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"cannot push to {name}: {_first_line(error)} (log in with `hf auth login`, or pass token=)"
        ) from error
    return str(address)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _manifest(run: Path) -> dict[str, Any]:
    return _json(run / "model.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _config(run: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _run_entries(run: Path) -> dict[str, Any]:
    """What the run's own manifest says beyond the architecture, and its configuration."""
    kept = ("config", "code_version", "data_fingerprint")
    entries = {key: value for key, value in _manifest(run).items() if key in kept}
    config = _config(run)
    return {**entries, "config": portable(config)} if config else entries


def _classes(run: Place | None) -> list[str] | None:
    return _manifest(Path(run)).get("classes") if run is not None else None


def model_card(model: Classifier, *, run: Place | None = None, name: str = "owner/name") -> str:
    """The README of a model: what it is, what was measured, how it was trained, how to load it."""
    count = sum(p.numel() for p in model.parameters())
    channels, height, width = model.shape
    parts = [
        "---\nlibrary_name: bivallate\npipeline_tag: image-classification\n"
        "tags:\n- image-classification\n- adversarial-robustness\n- adversarial-training\n---",
        f"# {name.rpartition('/')[2]}",
        f"`{model.architecture}` ({count:,} parameters) for {channels} x {height} x {width} images in [0, 1] "
        f"and {model.num_classes} classes. Normalisation is a layer of the model.",
    ]
    parts += _measured(Path(run)) + _trained(Path(run)) if run is not None else []
    parts.append(
        "## Use\n\n```python\nimport bivallate as bv\n\n"
        f'model = bv.models.from_pretrained("{name}")\n'
        f"logits = model(images)  # (batch, {channels}, {height}, {width}) in [0, 1]\n```"
    )
    return "\n\n".join(parts) + "\n"


def _measured(run: Path) -> list[str]:
    reports = [_json(path) for path in sorted((run / "evaluation").glob("*.json"))]
    rows = [
        f"| {r['attack']} | {_threat(r.get('threat'))} | {r.get('n', '')} "
        f"| {_share(r.get('clean_accuracy'))} | {_share(r.get('robust_accuracy'))} "
        f"| {_interval(r.get('interval_95'))} |"
        for r in reports
        if "attack" in r and "robust_accuracy" in r
    ]
    if not rows:
        return []
    head = "| attack | threat | points | clean | robust | 95 % interval |\n|" + " --- |" * 6
    return ["## Measured robustness", "\n".join([head, *rows])]


def _trained(run: Path) -> list[str]:
    file = run / "config.toml"
    if not _config(run):
        return []
    return [f"## Training\n\n```toml\n{file.read_text(encoding='utf-8').strip()}\n```"]


def _share(value: Any) -> str:
    return f"{100 * value:.2f} %" if isinstance(value, int | float) else ""


def _interval(value: Any) -> str:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value):
        return f"{_share(value[0])} to {_share(value[1])}"
    return ""


def _threat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {part}" for key, part in value.items())
    return "" if value is None else str(value)
