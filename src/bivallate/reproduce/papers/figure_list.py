"""The papers' figures as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bivallate.reproduce.papers.fast_tables import EVERY

__all__ = ["FIGURES", "PaperFigure"]


@dataclass(frozen=True)
class PaperFigure:
    """A figure, or several figures, of a paper.

    Attributes:
        name: name such as E10 or E16-EPS.
        title, source: subject, and the figures of the paper that it follows.
        table, rows, group: table, rows and group of the cells to train; they determine data and network. If
            the scale has no such group, the first group with these rows is used.
        each: diagnostics to draw for every run alone.
        by_row: diagnostics to draw for the runs of each row.
        together: diagnostics to draw for all runs together.
        pairs: diagnostics to draw for consecutive pairs of runs.
        variants: parameters of the method by name; each makes a cell that takes the place of the row's cell.
        radii: multiples of the radius at which every row is trained. Pictures that attack several runs with
            one threat use the first.
        keep: fractions of the epochs after which weights are kept, in addition to the cell's own.
        attack: attack for accuracies by class, confusions and accuracies over the radius of training.
        differs: differences from the paper's figures other than data and network.
    """

    name: str
    title: str
    source: str
    table: str
    rows: tuple[str, ...]
    group: str = ""
    each: tuple[str, ...] = ()
    by_row: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    radii: tuple[float, ...] = ()
    keep: tuple[float, ...] = ()
    attack: str = "pgd-20"
    differs: str = ""


SINGLE_STEP = ("FAST-AT", "FAST-AT-GA", "FAST-BAT")
DYNAMIC = ("Standard", "Curriculum", "Dynamic")
SMALL = "small-CNN .031"
STAGES = (10 / 120, 60 / 120, 90 / 120, 100 / 120)  # fractions of the epochs, besides the end
SIZES = {"1": 1.0, "0.5": 1 / 2, "0.25": 1 / 4, "0.17": 1 / 6, "0.125": 1 / 8}  # in units of eps
FIGURES = {
    figure.name: figure
    for figure in (
        PaperFigure(
            "E10",
            "gradient alignment",
            "Fast-BAT, Fig. 2",
            "T-F1",
            SINGLE_STEP,
            "CIFAR-10 @8",
            together=("alignment", "alignment-by-epoch", "alignment-over-epochs"),
            keep=EVERY,
            differs="alignment-by-epoch is the paper's, on test images after every epoch; "
            "alignment-over-epochs what the sentinel saw on held-out images",
        ),
        PaperFigure(
            "E11",
            "FOSC, and accuracy against eps of the attack",
            "Dynamic AT, Fig. 1, 4a, 5",
            "T-Y1",
            DYNAMIC,
            "CIFAR-10",
            ("fosc", "fosc-traces"),
            together=("fosc-over-epochs", "eps"),
            keep=STAGES,
            differs="over the epochs it is of 10, 60, 90, 100 and 120 of 120 for every method, as density of "
            "the logarithm; accuracy by FOSC is of test images after 1, 5 and 20 steps, in equal groups; "
            "accuracy against eps is under PGD-20, up to twice the radius of training",
        ),
        PaperFigure(
            "E11-SIZES",
            "AT with steps of several sizes, tested on each other",
            "Dynamic AT, Fig. 2a, c, e",
            "T-Y1",
            ("Standard",),
            "CIFAR-10",
            together=("cross",),
            variants={f"PGD-20 by {name}": {"steps": 20, "step_size": size} for name, size in SIZES.items()},
            differs="steps are in units of eps; densities are of the logarithm",
        ),
        PaperFigure(
            "E11-NUMBERS",
            "AT with several numbers of steps, tested on each other",
            "Dynamic AT, Fig. 2b, d, f",
            "T-Y1",
            ("Standard",),
            "CIFAR-10",
            together=("cross",),
            variants={f"PGD-{k}": {"steps": k, "step_size": 1 / 6} for k in (10, 20, 30, 40)},
            differs="steps are in units of eps; densities are of the logarithm",
        ),
        PaperFigure(
            "E11-FGSM",
            "AT that begins with FGSM",
            "Dynamic AT, Fig. 3",
            "T-Y1",
            ("Standard",),
            "CIFAR-10",
            together=("fosc-over-epochs", "cross"),
            variants={
                "PGD-10 by 0.25": {"steps": 10, "step_size": 1 / 4},
                "PGD-10 by 0.125": {"steps": 10, "step_size": 1 / 8},
                "FGSM-PGD": {"steps": 10, "step_size": 1 / 4, "fgsm_first": 20 / 120},
            },
            keep=(10 / 120, 60 / 120, 100 / 120),
            differs="densities are of the logarithm; robustness is under each other's attacks",
        ),
        PaperFigure(
            "E12",
            "loss landscape",
            "Fast-BAT, Fig. 3",
            "T-F1",
            SINGLE_STEP,
            "CIFAR-10 @8",
            ("landscape",),
            together=("landscapes",),
            keep=EVERY,
            differs="at a random test image, not at number 1456; in units of eps, as height lines",
        ),
        PaperFigure(
            "E13",
            "weights by class, and of one method against another",
            "BiLAW, Fig. 3a, 3b, 6",
            "T-B2",
            ("MAIL", "BiLAW", "GAIRAT"),
            SMALL,
            ("weights", "confusion"),
            pairs=("weightings", "weight-scatter"),
            differs="weights are those of the method's own attack, as dots with quartiles; weightings has "
            "two rules on the first one's network, weight-scatter each rule on its own",
        ),
        PaperFigure(
            "E13-DONE",
            "accuracies and weights by class, learning curves, confusions, easy and hard examples",
            "DONE, Fig. 1 to 6",
            "T-D1",
            ("AT", "DONE-ADAM"),
            "balanced",
            ("curves", "confusion", "weights", "examples"),
            together=("classes",),
            differs="curves are of held-out training images, under PGD-10, and of one training",
        ),
        PaperFigure(
            "E13-DONE-CUT",
            "accuracies by class with five classes cut to a fifth",
            "DONE, Fig. 1",
            "T-D1",
            ("AT", "DONE-ADAM"),
            "imbalanced 0.2",
            together=("classes",),
        ),
        PaperFigure(
            "E13-DONE-SVHN",
            "confusions and weights by class on SVHN",
            "DONE, Fig. 3, 5",
            "T-D2",
            ("DONE-ADAM",),
            "balanced",
            ("confusion", "weights"),
        ),
        PaperFigure(
            "E13-DONE-STL10",
            "confusions, weights by class, easy and hard examples on STL10",
            "DONE, Fig. 3 to 6",
            "T-D3",
            ("DONE-ADAM",),
            "STL10",
            ("confusion", "weights", "examples"),
        ),
        PaperFigure(
            "E14",
            "easy and hard examples",
            "BiLAW, Fig. 3c, 3d, 7, 8",
            "T-B2",
            ("BiLAW", "GAIRAT", "MAIL"),
            SMALL,
            ("examples",),
        ),
        PaperFigure(
            "E14-MNIST",
            "easy and hard examples on MNIST",
            "BiLAW, Fig. 9",
            "T-B1",
            ("BiLAW",),
            "MNIST tiny-CNN linf",
            ("examples",),
            differs="the paper does not say on which of its networks on MNIST",
        ),
        PaperFigure(
            "E15", "likelihoods projected", "BiLAW, Fig. 4", "T-B2", ("BiLAW",), SMALL, ("likelihoods",)
        ),
        PaperFigure(
            "E16",
            "weights over epochs and against margins, clean and attacked",
            "BiLAW, Fig. 5",
            "T-B2",
            ("AT", "BiLAW"),
            SMALL,
            each=("weights-by-margin",),
            together=("weights-over-epochs", "ranks", "curves"),
            differs="clean margins are of the end of each epoch, with the weights of training",
        ),
        PaperFigure(
            "E16-OMEGA",
            "BiLAW's weight network at clean and at adversarial margins",
            "BiLAW, Fig. 5b",
            "T-B2",
            ("BiLAW",),
            SMALL,
            each=("omega",),
            differs="of the end of training alone: what is kept of earlier epochs is the classifier, not "
            "the weight network",
        ),
        PaperFigure(
            "E16-EPS",
            "accuracy against eps of training, with the best and the last weights; ranks",
            "Fast-BAT, Fig. 1; BiLAW, Fig. 1b",
            "T-F1",
            (*SINGLE_STEP, "PGD-2-AT"),
            by_row=("ranks",),
            together=("training-eps",),
            radii=(8 / 16, 4 / 16, 12 / 16, 16 / 16),
            differs="under PGD-20; BiLAW's ranks are of AT with ten steps",
        ),
        PaperFigure(
            "E16-DYNAMIC",
            "accuracy against eps of training, which is the attack's too",
            "Dynamic AT, Fig. 4b",
            "T-Y1",
            DYNAMIC,
            "CIFAR-10",
            together=("training-eps",),
            radii=(1.0, 3 / 4, 2 / 4, 1 / 4),
            attack="pgd-10",
            differs="with the best weights too, which are the last where nothing is held out",
        ),
    )
}
