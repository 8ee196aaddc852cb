"""T-B1 to T-B8: the tables of BiLAW (Holtz et al. 2022)."""

from __future__ import annotations

from bivallate.reproduce.cell import Cell, Measure
from bivallate.reproduce.scaling import points_of_autoattack
from bivallate.reproduce.table import Claim, Table

__all__ = ["TABLES"]

PAPER = "BiLAW (Holtz, Weng, Mishne 2022)"
COLUMNS = (
    Measure("Clean", "clean", "pgd-20"),
    Measure("PGD", "robust", "pgd-20"),
    Measure("AA", "robust", "autoattack", n=1000),
)
TRAIN_MODE = {"method.attack_mode": "train"}
# row, method, parameters, settings; the recipe is the table's for all
ROWS = {
    "plain": ("plain", {}, {}),
    "AT": ("at", {}, {}),
    "GAIRAT": ("gairat", {}, {}),
    "WMMR": ("wmmr", {}, {}),
    "MAIL": ("mail-at", {}, {}),
    "BiLAW": ("bilaw", {}, {}),
    "TRADES": ("trades", {"beta": 6.0}, {}),
    "TRADES (1/lambda=6)": ("trades", {"beta": 6.0}, {}),
    "TRADES (1/lambda=1)": ("trades", {"beta": 1.0}, {}),
    "Non-parametric": ("non-parametric", {}, {}),
    "BiLAW-TRADES": ("bilaw-trades", {}, {}),
    "MAIL-TRADES": ("mail-trades", {}, {}),
    "DONE-ADAM": ("done-adam", {}, TRAIN_MODE),
    "FAST-BAT": ("fast-bat", {}, TRAIN_MODE),
}
MNIST_MAIL = {"slope": 5.0, "bias": 0.05}  # the paper's gamma and beta on MNIST and Fashion-MNIST


def _cell(
    row: str, group: str, data: str, model: str, eps: str, norm: str = "linf", **parameters: object
) -> Cell:
    method, known, settings = ROWS[row]
    return Cell(
        row,
        group,
        method,
        data,
        model,
        eps,
        "bilaw",
        COLUMNS,
        norm,
        {**known, **parameters},
        settings=settings,
    )


def _b1() -> Table:
    rows = ("plain", "AT", "GAIRAT", "WMMR", "MAIL", "BiLAW")
    beside = ("DONE-ADAM", "FAST-BAT", "TRADES", "MAIL-TRADES", "BiLAW-TRADES")
    linf_alone = {"DONE-ADAM"}
    cells = []
    for label, data in (("MNIST", "mnist"), ("F-MNIST", "fashion-mnist")):
        for name, model in (("tiny-CNN", "tiny-cnn"), ("FC1", "fc1")):
            for norm, eps in (("linf", "0.1"), ("l2", "0.3")):
                for row in (*rows, *beside):
                    if norm == "l2" and row in linf_alone:
                        continue
                    extra = MNIST_MAIL if row == "MAIL" else {}
                    cells.append(_cell(row, f"{label} {name} {norm}", data, model, eps, norm, **extra))
    claims = [Claim(row, "AT", "PGD") for row in ("GAIRAT", "WMMR", "MAIL", "BiLAW")]
    claims += [Claim("AT", row, "AA") for row in ("GAIRAT", "WMMR", "MAIL")]
    claims += [Claim("BiLAW", row, column) for row in ("GAIRAT", "WMMR", "MAIL") for column in ("PGD", "AA")]
    claims += [
        Claim("DONE-ADAM", "AT", "PGD", theirs=False),
        Claim("DONE-ADAM", "AT", "Tail-30", theirs=False),
    ]
    claims += [Claim("DONE-ADAM", "AT", "AA", margin=0.01, theirs=False)]
    claims += [Claim("DONE-ADAM", "AT", "AA Tail-30", theirs=False)]
    claims += [Claim("TRADES", "AT", "AA", theirs=False), Claim("FAST-BAT", "AT", "AA", theirs=False)]
    claims += [Claim("MAIL-TRADES", "TRADES", "AA", theirs=False)]
    claims += [Claim("BiLAW-TRADES", "TRADES", "AA", theirs=False)]
    tails = (
        Measure("Tail-30", "tail", "pgd-20"),
        Measure("AA Tail-30", "tail", "autoattack", n=1000),
        Measure("s/epoch", "seconds"),
    )
    return Table(
        "T-B1",
        "reweighting on MNIST and Fashion-MNIST, Linf 0.1 and L2 0.3",
        f"{PAPER}, Table 1",
        tuple(cell.but(measures=(*COLUMNS, *tails)) for cell in cells),
        tuple(claims),
        _b1_cpu,
        "tiny-CNN and Linf alone, all training images, 10 epochs with the milestones in proportion (the paper: "
        "100), PGD-20 on all test points, AutoAttack on 1,000 random ones, last rate drops as the recipe's",
        notes=(
            "DONE, Fast-BAT, TRADES, MAIL-TRADES and BiLAW-TRADES are not in the paper's table; they were "
            "trained with the table's recipe for comparison.",
            "The weights reported are the best of all epochs on 1,000 held-out training images.",
            "BiLAW learns its weights from 1,000 further training images, which it does not train on.",
        ),
    )


def _b1_cpu(cell: Cell) -> Cell | None:
    return cell.but(epochs=10) if "tiny-CNN linf" in cell.group else None


def _small(cell: Cell) -> Cell | None:
    """CIFAR on two cores: 10,000 images, tiny-CNN, ten epochs, 200 points for AutoAttack."""
    return points_of_autoattack(cell.but(model="tiny-cnn", epochs=10, rows=10_000), 200)


TABLES = (_b1(),)
