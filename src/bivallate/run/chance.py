"""Find out whether a network is no better than chance, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bivallate.data import Split
from bivallate.evaluation.preparation import RETRAIN
from bivallate.evaluation.statistics import at_chance
from bivallate.lower.input_guard import call_unharmed
from bivallate.lower.modes import evaluating
from bivallate.run.progress import attacks
from bivallate.run.validation import BATCH, measured_rows

if TYPE_CHECKING:
    from bivallate.run.session import Session

ONE_HOT = 0.1  # effective sample size, as a fraction, below which a few images have nearly all the weight
THROWN = 1.1  # an epoch's mean loss above so many times that of guessing means a learning rate too high


def chance_verdict(session: Session, line: dict[str, Any]) -> str:
    """A message if the network is no better than chance on clean images; otherwise an empty text.

    The images are the held-out rows that were measured after the epoch. If they are too few, they are the
    watched training rows, and if these are too few as well, the text is empty. The network's predictions are
    tested only if the accuracy is not clearly above the share of the commonest class. They cost one forward
    pass per row, which no total counts.
    """
    split, kind, right = session.dataset.validation, "held-out", 0.0
    watched, seed, rows = session.config.validation.rows, session.config.seed, list[int]()
    if split is not None and "clean" in line:
        rows = measured_rows(split, watched, seed).tolist()
    if split is None or len(rows) < fewest_images(_commonest(split, rows)):
        split, kind, margins = session.batches.split, "training", line.get("watched_clean", {})
        rows, right = [int(row) for row in margins], sum(margin > 0 for margin in margins.values())
        if len(rows) < fewest_images(_commonest(split, rows)):
            return ""
    else:
        right = line["clean"] * len(rows)
    labels, commonest = split.labels[rows], _commonest(split, rows)
    if right > len(rows) * commonest + 2 * math.sqrt(len(rows) * commonest * (1 - commonest)):
        return ""
    if not at_chance(labels.numpy(), _answers(session, split, rows)):
        return ""
    share = f"{right / len(rows):.1%} of {len(rows)} {kind} images are right"
    return f"{share}, and {commonest:.1%} are of one class"


def fewest_images(commonest: float) -> int:
    """The fewest images on which chance can be distinguished from a half-trained network.

    The network's accuracy is taken to be halfway between that of guessing and 1. On so many images the two
    accuracies differ by two standard errors of each, added.

    Args:
        commonest: share of the commonest class, which is the accuracy of guessing. Values above 1/2 count as
            1/2: then the predictions of the other classes decide, and `at_chance` tests them.

    Example:
        >>> fewest_images(0.1), fewest_images(0.5), fewest_images(0.9)
        (13, 56, 56)
    """
    commonest = min(commonest, 0.5)
    half, spread = (1 + commonest) / 2, math.sqrt(commonest * (1 - commonest))
    return math.ceil((2 * (spread + math.sqrt(half * (1 - half))) / (half - commonest)) ** 2)


def _commonest(split: Split, rows: Sequence[int]) -> float:
    """Share of the commonest class; 1/2 if there are no rows."""
    return int(split.labels[list(rows)].bincount().max()) / len(rows) if rows else 0.5


@torch.no_grad()
def _answers(session: Session, split: Split, rows: list[int]) -> np.ndarray:
    """The predicted class of each row (n,), in eval mode; the model's mode is restored."""
    with evaluating(session.model):
        images = (split.tensors(torch.tensor(rows[k : k + BATCH]))[0] for k in range(0, len(rows), BATCH))
        pieces = [call_unharmed(session.model, x.to(session.device)).argmax(1) for x in images]
    return torch.cat(pieces).cpu().numpy()


def likely_cause(session: Session, line: dict[str, Any]) -> str:
    """A message with the likeliest reason why training is at chance, and what to do about it."""
    guessing = math.log(len(session.dataset.classes))
    worst = max(entry["loss"] for entry in [*session.history, line])
    eps = float(session.method.spec.threat.eps)
    attacked = eps > 0 and attacks(line)
    heavy = min(entry.get("effective", 1.0) for entry in [*session.history, line])
    if heavy < ONE_HOT:
        likely = f"a few images had nearly all of the weight ({heavy:.0%} counted in an epoch)"
        return f"Likely cause: {likely}. Temper the weights (weighting.floor=3 of DONE's), or lower --lr"
    if worst > THROWN * guessing:
        likely = f"the rate is too high: the loss has been {worst:.3g}, where guessing gives {guessing:.3g}"
        return f"Likely cause: {likely}. Lower --lr, say to a fifth"
    if attacked and "eps" not in line:
        likely = f"attacked with the full eps {eps:.3g} from the first step, a network may learn nothing"
        return f"Likely cause: {likely}. Let it grow (--set warm_up=0.5), lower --lr, or lower --eps"
    likely = f"the loss never fell below that of guessing, {guessing:.3g}: the rate is too high or too low"
    more = ", eps is beyond these images and this network" if attacked else ""
    return f"Likely cause: {likely}{more}, or the labels have nothing to do with the images. Try another --lr"


def chance_warning(history: Sequence[Mapping[str, Any]]) -> str:
    """The message at the end of a training whose last epoch is at chance; empty for any other."""
    if not history or not history[-1].get("at_chance"):
        return ""
    best = max(history, key=lambda line: line.get("robust", 0.0))  # the epoch of the best weights
    if best.get("clean", 0.0) > 2 * history[-1].get("clean", 1.0):
        kept = f"epoch {best['epoch']} had {best['clean']:.1%}, {best['robust']:.1%} under attack"
        return f"this training has ended at chance: {kept}. The weights of that epoch are kept as best"
    again = "--set sentinel.rollback=true --set sentinel.answers=chance does the first two by itself"
    return f"this training has learned nothing: its answers are chance. {RETRAIN}; {again}"
