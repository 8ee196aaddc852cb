"""`diagnose`: pictures of what a run's model and its training did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bivallate.errors import UserError, check_seed
from bivallate.evaluation.full_precision import full_float32
from bivallate.lower.stop import Form
from bivallate.reports.collect import Runs, folders
from bivallate.reports.diagnostics.by_name import DIAGNOSES, choose, subject
from bivallate.reports.diagnostics.diagnostic import Diagnostic
from bivallate.run.folder import check_weights
from bivallate.run.session import pick_device
from bivallate.terminal import say

Told = Callable[[str, Path | UserError], object]


def diagnose(
    *runs: Runs,
    what: str | Sequence[str] = (),
    out: str | Path | None = None,
    weights: str = "best",
    n: int = 500,
    attack: str = "pgd-20",
    fosc_form: Form = "ball",
    seed: int = 0,
    data: str | None = None,
    data_dir: str | None = None,
    model: str | None = None,
    device: torch.device | str = "auto",
    progress: bool | Told = False,
) -> dict[str, Diagnostic]:
    """Draw what a run's model and its training did, and write each picture with its data beside it.

    Pictures of one model show the first run, comparisons all of them. Without `what`, those that these runs
    have no data for are left out.

    Args:
        runs: folders, or what `train` returned; also in one list.
        what: names of pictures, as `bivallate diagnose --help` lists them; else all.
        out: folder for NAME.svg, .png, .pdf and .json or .npz; else FIRST RUN/diagnosis, for other weights
            than the best ones FIRST RUN/diagnosis/WEIGHTS.
        weights: best, last, ema or epoch-N. n: test points at most. attack: for the accuracies by class, the
            confusions and the images. fosc_form: "ball" or "box". seed: of points and random starts.
        data: where the runs' data lie now, if they were moved. data_dir: where named sets are looked for.
        model: `package.module:factory` for a network of your own.
        progress: called with each name and the path of its figure, or the reason why it is left out; True
            says so beside the results.

    Returns:
        Name -> result, with `.data()`, `.figure()` and `.save(path)`.

    Raises:
        UserError: no runs, an unknown name, runs on different data, a picture that was asked for and cannot
            be made.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise UserError(f"n, the test points that are looked at, must be at least 2, got {n!r}")
    check_weights(weights)
    check_seed(seed)
    asked = (what,) if isinstance(what, str) else tuple(what)
    paths, where = folders(runs), device if isinstance(device, torch.device) else pick_device(device)
    settings = {"weights": weights, "seed": seed, "moved": data, "data_dir": data_dir, "model": model}
    looked_at = subject(paths, **settings, n=n, attack=attack, form=fosc_form, device=where)
    own = paths[0] / "diagnosis" / ("" if weights == "best" else weights)
    place = own if out is None else Path(out)
    found: dict[str, Diagnostic] = {}
    for name in choose(asked, len(paths)):
        try:
            with full_float32():
                drawn = DIAGNOSES[name](looked_at)
        except UserError as error:
            if asked:
                raise
            _tell(progress, name, error)
            continue
        _tell(progress, name, drawn.save(place / name))
        found[name] = drawn
    return found


def _tell(progress: bool | Told, name: str, what: Path | UserError) -> None:
    if callable(progress):
        progress(name, what)
    elif progress:
        say(f"{name}: {'left out, ' if isinstance(what, UserError) else ''}{what}", beside=True)
