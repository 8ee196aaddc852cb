"""Models to and from the Hugging Face hub, with a model card that reports their measured robustness."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import nn

from bivallate.errors import UserError
from bivallate.files import json_files, write_whole
from bivallate.hub_access import check_fetched, hub_errors
from bivallate.models.classifier import Classifier
from bivallate.models.description import read_manifest
from bivallate.models.io import load, save
from bivallate.parts import portable
from bivallate.quoting import markdown, visible
from bivallate.schema import MEGABYTE, Share, parse, read_json, read_text
from bivallate.toml import to_toml

__all__ = ["from_pretrained", "model_card", "push_to_hub", "save_pretrained"]

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
Place = str | os.PathLike[str]


class HubEvaluation(TypedDict):
    """The entries of an evaluation's file that a model card reports."""

    attack: str
    robust_accuracy: Share
    threat: NotRequired[dict[str, Any]]
    n: NotRequired[int]
    clean_accuracy: NotRequired[Share]
    interval_95: NotRequired[list[Share]]
    identity: NotRequired[dict[str, Any] | None]


def save_pretrained(
    model: Classifier, folder: Place, *, run: Place | None = None, name: str | None = None
) -> Path:
    """Write the weights, the manifest and a model card into a folder; return the folder.

    Args:
        model: the classifier to save.
        folder: created if need be.
        run: the run folder whose configuration and evaluations the card reports.
        name: `owner/name` on the hub, for the example in the card.

    Raises:
        UserError: the model cannot be saved (as `save`), or the run's manifest or configuration is damaged.
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
    """Load the classifier in a folder, or in the hub's repository `owner/name`, in eval mode.

    The hub is asked only if there is no folder of that name. Only safetensors and JSON files are downloaded.

    Args:
        source: the folder, or `owner/name` on the hub.
        weights: as in `load`: model (or last), best, ema (or average).
        revision: branch, tag or commit of the repository.
        token: access token of the hub, for private repositories.
        model: as in `load`: the user's own module or its `package.module:factory`.

    Raises:
        UserError: there is no such repository, no access or no connection, or the files hold no model.
    """
    if Path(source).exists():
        return load(source, weights, model=model)
    if not HUB_NAME.fullmatch(str(source)):
        raise UserError(f"{source} is neither a folder nor a name owner/name on the hub")
    unreachable = f"cannot fetch {source} from the hub; run again once it is in reach: {{why}}"
    with hub_errors(str(source), "model", unreachable):
        folder = Path(
            huggingface_hub.snapshot_download(
                str(source), revision=revision, token=token, allow_patterns=["*.safetensors", "*.json"]
            )
        )
    check_fetched(folder, str(source))
    try:
        return load(folder, weights, model=model)
    except UserError as error:
        raise UserError(f"hub:{source} holds no model to load: {error}") from error


def push_to_hub(
    model: Classifier,
    name: str,
    *,
    run: Place | None = None,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload the model",
) -> str:
    """Upload weights, manifest and model card to the hub's repository `owner/name`; return its address.

    Args:
        model: the classifier to upload.
        name: `owner/name`; the repository is created if need be.
        run: the run folder whose configuration and evaluations the card reports.
        private: create the repository as a private one.
        token: access token of the hub; default the one that `hf auth login` has stored.
        message: message of the commit on the hub.

    Raises:
        UserError: there is no access or no connection, or the hub refuses the name.
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
    place = run / "model.json"
    return read_manifest(place) if place.exists() else {}


def _evaluation(path: Path) -> dict[str, Any]:
    """The entries of an evaluation's file for the card; empty if the file is damaged or no evaluation."""
    try:
        return read_json(path, "evaluation", HubEvaluation, 1024 * MEGABYTE)
    except UserError:
        return {}


def _config(run: Path) -> dict[str, Any]:
    place = run / "config.toml"
    if not place.exists():
        return {}
    text = read_text(place, "configuration", 4 * MEGABYTE)
    return portable(parse(text, place, "configuration", dict[str, Any], "TOML"))


def _run_entries(run: Path) -> dict[str, Any]:
    """Configuration, code version and data fingerprint of the run, for the manifest."""
    kept = ("config", "code_version", "data_fingerprint")
    entries = {key: value for key, value in _manifest(run).items() if key in kept}
    config = _config(run)
    return {**entries, "config": config} if config else entries


def _classes(run: Place | None) -> list[str] | None:
    return _manifest(Path(run)).get("classes") if run is not None else None


def model_card(model: Classifier, *, run: Place | None = None, name: str = "owner/name") -> str:
    """Write the README of a model as Markdown text.

    It says what the model is, how robust it was measured to be, how it was trained and how to load it.

    Args:
        model: the classifier.
        run: the run folder with the evaluations and the configuration; without it the card has neither.
        name: `owner/name` on the hub, for the example.

    Raises:
        UserError: the run's configuration is damaged.
    """
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
    reports = [_evaluation(path) for path in json_files(run / "evaluation")]
    rows = [
        f"| {markdown(r['attack'])} | {markdown(_threat(r.get('threat')))} | {_of(r, 'weights')} "
        f"| {r.get('n', '')} {_of(r, 'split')} | {_share(r.get('clean_accuracy'))} "
        f"| {_share(r.get('robust_accuracy'))} | {_interval(r.get('interval_95'))} |"
        for r in filter(None, reports)
    ]
    if not rows:
        return []
    head = (
        "| attack | threat | weights of the run | points | clean | robust | 95 % interval |\n|" + " --- |" * 7
    )
    return ["## Measured robustness", "\n".join([head, *rows])]


def _trained(run: Path) -> list[str]:
    config = _config(run)
    if not config:
        return []
    text = visible(to_toml(config)).strip()
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"## Training\n\n{fence}toml\n{text}\n{fence}"]


def _of(report: dict[str, Any], key: str) -> str:
    """What an evaluation says it was made of; empty where it does not."""
    return markdown(str((report.get("identity") or {}).get(key, "")))


def _share(value: float | None) -> str:
    return f"{100 * value:.2f} %" if value is not None else ""


def _interval(value: list[float] | None) -> str:
    return f"{_share(value[0])} to {_share(value[1])}" if value and len(value) == 2 else ""


def _threat(value: dict[str, Any] | None) -> str:
    return ", ".join(f"{key} = {part}" for key, part in (value or {}).items())
