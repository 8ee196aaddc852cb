"""`diagnose`: pictures of a run's model and of its training."""

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
from bivallate.run.from_config import pick_device
from bivallate.terminal import say

PictureCallback = Callable[[str, Path | UserError], object]


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
    progress: bool | PictureCallback = False,
) -> dict[str, Diagnostic]:
    """Draw pictures of a run's model and training, and write each one together with its data.

    The pictures fosc, fosc-traces, landscape, confusion, attacked, weights, weights-by-margin, omega,
    examples and likelihoods are of one model and show the first run. All others show all runs. If `what` is
    empty, pictures for which the runs have no data are left out.

    Args:
        runs: folders, or what `train` returned; also in one list.
        what: names of pictures, as listed by `bivallate diagnose --help`; default all.
        out: folder for NAME.svg, .png, .pdf and .json or .npz; default FIRST RUN/diagnosis, and for weights
            other than the best FIRST RUN/diagnosis/WEIGHTS.
        weights: best, last, ema or epoch-N.
        n: largest number of test points, at least 2.
        attack: attack for the accuracies by class, the confusions and the images.
        fosc_form: form of FOSC: "ball", or "box" for the ball within [0, 1].
        seed: seed of the points and of random starts.
        data: where the runs' own data are now, if they have moved. (In `evaluate` it is another data set.)
        data_dir: folder of named data sets, if it has moved.
        model: `package.module:factory` for a network of your own.
        device: where to compute.
        progress: True to print the path of each figure to standard error, or a function that is called with
            each name and the path of its figure or the reason why it is left out.

    Returns:
        Name -> result, with `.data()`, `.figure()` and `.save(path)`.

    Raises:
        UserError: there are no runs, a name is unknown, the runs were trained on different data, or a picture
            in `what` cannot be made.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise UserError(f"n, the test points that are looked at, must be at least 2, got {n!r}")
    check_weights(weights)
    check_seed(seed)
    asked = (what,) if isinstance(what, str) else tuple(what)
    paths = folders(runs)
    where = device if isinstance(device, torch.device) else pick_device(device)
    settings = {"weights": weights, "seed": seed, "moved_to": data, "data_dir": data_dir, "model": model}
    shown = subject(paths, **settings, n=n, attack=attack, form=fosc_form, device=where)
    default_folder = paths[0] / "diagnosis" / ("" if weights == "best" else weights)
    folder = default_folder if out is None else Path(out)
    found: dict[str, Diagnostic] = {}
    for name in choose(asked, len(paths)):
        try:
            with full_float32():
                picture = DIAGNOSES[name](shown)
        except UserError as error:
            if asked:
                raise
            _tell(progress, name, error)
            continue
        _tell(progress, name, picture.save(folder / name))
        found[name] = picture
    return found


def _tell(progress: bool | PictureCallback, name: str, what: Path | UserError) -> None:
    if callable(progress):
        progress(name, what)
    elif progress:
        say(f"{name}: {'left out, ' if isinstance(what, UserError) else ''}{what}", to_stderr=True)
