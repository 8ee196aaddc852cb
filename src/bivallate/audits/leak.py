"""Check of an audit: whether test images of a run are also in its training data."""

from __future__ import annotations

import math

from bivallate.audits.result import Check
from bivallate.data import Stream
from bivallate.data.duplicates import near_duplicates
from bivallate.evaluation.points import select
from bivallate.quoting import command
from bivallate.run.evaluation_target import EvaluationTarget
from bivallate.run.folder import RunFolder
from bivallate.run.foreign_method import read_config

__all__ = ["leak"]

MANY = 0.05  # a larger share of near-duplicates makes an accuracy suspect; CIFAR-10 has 3.5 %
LARGEST = 1 << 31  # pixel values of all training images; larger sets are not searched


def leak(examined: EvaluationTarget, n: int, seed: int) -> Check:
    """Check how many points of an audit the training data hold unchanged, mirrored or slightly changed.

    Skipped for points that are not the run's own test data, and for training data that are streamed or too
    large to be searched.

    Args:
        examined: the run.
        n: number of points in the audit's random subset.
        seed: of that subset.
    """
    question = "are the images that it is judged by among those that it was trained on?"
    train, points = examined.data.train, examined.chosen_split
    if examined.split != "test" or examined.elsewhere:
        return Check("leak", question, "skipped", {}, "asked of the run's own test data")
    if isinstance(train.store, Stream) or math.prod(train.shape) * len(train) > LARGEST:
        return Check("leak", question, "skipped", {}, "the training data are too large to be looked through")
    chosen = points.subset(select(len(points), min(n, len(points)), None, seed))
    pairs = near_duplicates(train, chosen)
    extra = sum(pair.extra for pair in pairs)
    copies = sum(pair.kind != "near" for pair in pairs)
    share = len(pairs) / max(1, len(chosen))
    numbers = {"near_duplicates": len(pairs), "copies": copies, "extra": extra, "share": share}
    if not pairs:
        return Check("leak", question, "pass", numbers, f"none of {len(chosen)} has a near-duplicate there")
    of = f", {extra} of them in the extra data" if extra else ""
    found = (
        f"{len(pairs)} of {len(chosen)} ({share:.1%}) have a near-duplicate there{of}, {copies} are copies"
    )
    data = read_config(RunFolder(examined.path).config).config.data
    more = ["--set", f"data.extra={data.extra}"] if data.extra is not None else []
    look = command("datasets", data.name, *more, "--check", "--sheet", "pairs.png")
    outcome = "flag" if share > MANY else "note"
    advice = f"Look at them: `{look}`; leave them out of one of the two."
    return Check("leak", question, outcome, numbers, found, advice)
