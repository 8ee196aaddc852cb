"""timm's architectures, by name, with options that cannot make timm read, fetch or run anything."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from bivallate.errors import UserError, unknown
from bivallate.hub_access import check_fetched, hub_errors
from bivallate.models.classifier import Classifier
from bivallate.models.foreign import wrap

__all__ = ["OPTIONS", "timm_model", "timm_pretrained"]

# Options that say what a network is made of. Options that name a file, a folder, a hub, a configuration or a
# class are left out: a manifest may come from anybody, and this package reads weights itself.
OPTIONS = {
    *(
        "img_size",
        "patch_size",
        "window_size",
        "strict_img_size",
        "dynamic_img_size",
        "dynamic_img_pad",
        "output_stride",
    ),
    *(
        "embed_dim",
        "embed_dims",
        "depth",
        "depths",
        "dims",
        "channels",
        "num_heads",
        "mlp_ratio",
        "mlp_ratios",
        "block_size",
    ),
    *("class_token", "no_embed_class", "reg_tokens", "pos_embed", "global_pool", "fc_norm"),
    *("act_layer", "norm_layer", "pre_norm", "qkv_bias", "qk_norm", "init_values", "ls_init_value"),
    *("stem_size", "stem_type", "stem_width"),
    *(
        "drop_rate",
        "drop_path_rate",
        "attn_drop_rate",
        "proj_drop_rate",
        "pos_drop_rate",
        "patch_drop_rate",
        "head_dropout",
    ),
}
OLDEST = (1, 0, 26)  # the first version of timm that reads weights without executing what they hold
NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")  # neither hub:owner/name nor a folder
WORD = re.compile(r"[A-Za-z0-9_-]{0,40}")

Statistics = Sequence[float] | float | None


def timm_model(
    name: str,
    *,
    num_classes: int,
    shape: Sequence[int],
    mean: Statistics = None,
    std: Statistics = None,
    **options: Any,
) -> Classifier:
    """Build timm's architecture without pretrained weights and with in-place activations turned off.

    Args:
        name: as timm lists it, without the `timm:` in front.
        num_classes: number of classes K.
        shape: (C, H, W) of the images.
        mean, std: channel statistics in [0, 1] pixel units, or None for no normalisation.
        options: options of the architecture that are in `OPTIONS`: numbers, words, booleans or lists of them.

    Raises:
        UserError: timm is not installed or too old, has no such architecture, the option is not allowed, or
            timm fails.
    """
    module = _made(name, options, pretrained=False, num_classes=num_classes, in_chans=int(shape[0]))
    return _described(module, name, options, num_classes=num_classes, shape=shape, mean=mean, std=std)


def timm_pretrained(name: str, *, shape: Sequence[int], **options: Any) -> Classifier:
    """Build timm's architecture with the pretrained weights that timm has for it.

    timm's own loader reads the weights and fits them to the number of channels. The classifier has the
    classes and the normalisation that the weights were trained with.

    Raises:
        UserError: as `timm_model`; or timm has no weights for the architecture, or cannot fetch them.
    """
    module = _made(name, options, pretrained=True, in_chans=int(shape[0]))
    about = getattr(module, "pretrained_cfg", None) or {}
    _check_weights(about)
    mean, std = about.get("mean"), about.get("std")
    if mean and std and len(mean) != int(shape[0]):  # timm has summed the first kernel over the colours
        mean, std = sum(mean) / len(mean), sum(std) / len(std)
    classes = int(getattr(module, "num_classes", 0))
    return _described(module, name, options, num_classes=classes, shape=shape, mean=mean, std=std)


def _made(name: str, options: dict[str, Any], **how: Any) -> Any:
    """The module that timm makes, after its name and options have been checked."""
    timm = _timm(name)
    for key, value in options.items():
        _check_option(name, key, value)
    if not NAME.fullmatch(name) or not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{re.sub(r'[^a-z0-9_]', '', name[:6])}*")[:5])
        raise UserError(f"timm has no model {name!r}" + (f": it has {close}" if close else ""))
    unreachable = f"timm cannot fetch the weights of timm:{name}; run again once they are in reach: {{why}}"
    reaching = hub_errors(f"timm/{name}", "model", unreachable) if how.get("pretrained") else nullcontext()
    try:
        with reaching:
            return timm.create_model(name, **how, **options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"timm:{name} failed with {type(error).__name__}: {error}") from error


def _check_weights(about: dict[str, Any]) -> None:
    """Compare the weights that timm has fetched from the hub with their checksum, as timm does not."""
    repo = str(about.get("hf_hub_id") or "")
    names = (about.get("hf_hub_filename"), "model.safetensors", "pytorch_model.bin")
    for name in filter(None, names if "/" in repo else ()):
        found = try_to_load_from_cache(repo.partition("@")[0], name)
        if isinstance(found, str):
            check_fetched(Path(found).parent, repo)


def _described(
    module: Any,
    name: str,
    options: dict[str, Any],
    *,
    num_classes: int,
    shape: Sequence[int],
    mean: Statistics,
    std: Statistics,
) -> Classifier:
    """The module as a classifier whose `spec` says how to build it again."""
    for layer in module.modules():
        if getattr(layer, "inplace", False):  # would overwrite activations that a double backward reads
            layer.inplace = False
    model = _wrapped(module, name, options, num_classes=num_classes, shape=shape, mean=mean, std=std)
    model.spec = {
        "name": f"timm:{name}",
        "num_classes": num_classes,
        "shape": [int(side) for side in shape],
        "mean": mean if mean is None or isinstance(mean, int | float) else [float(m) for m in mean],
        "std": std if std is None or isinstance(std, int | float) else [float(s) for s in std],
        **options,
    }
    return model


def _timm(name: str) -> Any:
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"the model timm:{name} needs timm ({error}): install it with pip install 'bivallate[timm]'"
        ) from error
    if tuple(int(n) for n in re.findall(r"\d+", timm.__version__)[:3]) < OLDEST:
        raise UserError(
            f"timm {timm.__version__} reads weights in a way that can run code: update it, "
            f"pip install 'timm>={'.'.join(map(str, OLDEST))}'"
        )
    return timm


def _check_option(name: str, key: str, value: Any) -> None:
    if key not in OPTIONS:
        raise unknown(f"option of timm:{name}", key, OPTIONS)
    items = value if isinstance(value, list | tuple) else [value]
    plain = all(item is None or isinstance(item, int | float | str) for item in items)
    if not plain or not all(WORD.fullmatch(item) for item in items if isinstance(item, str)):
        raise UserError(
            f"option {key} of timm:{name} must be a number, a word, true or false, or a list of them, got "
            f"{value!r}"
        )


def _wrapped(module: Any, name: str, options: dict[str, Any], **facts: Any) -> Classifier:
    try:
        return wrap(module, name=f"timm:{name}", **facts)
    except UserError as error:
        if "img_size" in options:
            raise
        side = facts["shape"][1]
        raise UserError(
            f"{error}; where timm's network has a size of its own, give it the images': --set "
            f"model.options.img_size={side} (img_size={side} in Python), often with a smaller patch_size"
        ) from error
