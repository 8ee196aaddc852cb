"""The papers' figures are as printed, and every table can be run at every scale."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import bivallate as bv
from bivallate.errors import UserError
from bivallate.lower.pgd import PGD
from bivallate.lower.start import uniform
from bivallate.reproduce.cell import configure
from bivallate.reproduce.definition import without_machine
from bivallate.reproduce.measuring import read_attack
from bivallate.reproduce.paper_figures import cells_of
from bivallate.reproduce.paper_table import QUESTIONS, SCALES, Reported, reported
from bivallate.reproduce.papers.catalogue import find, tables
from bivallate.reproduce.papers.figure_list import FIGURES
from bivallate.reproduce.planning import jobs_of
from bivallate.reproduce.records import read_records
from bivallate.reproduce.rendering import side_by_side
from bivallate.reproduce.scaling import at_scale, describe, sources_at_scale

NAMES = [
    *(f"T-D{k}" for k in range(1, 5)),
    *(f"T-F{k}" for k in range(1, 12)),
    *(f"T-B{k}" for k in (1, 2, 3, 6, 7, 8)),
    *(f"T-Y{k}" for k in range(1, 4)),
    "T-S1",
    "T-C1",
]
NO_FIGURES = "T-C1"  # its methods' papers train otherwise
EVERY = pytest.mark.parametrize("name", NAMES)


def transcribed() -> dict[tuple[str, str], Counter[str]]:
    """The second transcription: (table, row) -> figures."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for line in (Path(__file__).parent / "reported.txt").read_text().splitlines():
        table, row, figures = (part.strip() for part in line.split("|"))
        found.setdefault((table, row), Counter()).update(figures.split())
    return found


def test_the_tables_are_those_of_the_papers() -> None:
    assert list(tables()) == sorted(NAMES, key=NAMES.index)
    assert list(reported()) == list(tables())


@EVERY
def test_figures_agree_with_a_second_transcription(name: str) -> None:
    second = {row: figures for (table, row), figures in transcribed().items() if table == name}
    groups = {row: cells.values() for row, cells in reported()[name].items()}
    first = {
        row: Counter(text.split()[0] for cell in cells for text in cell.values())
        for row, cells in groups.items()
    }
    assert bool(second) == (name != NO_FIGURES)
    assert first == second


@EVERY
def test_every_figure_has_its_cell_and_column(name: str) -> None:
    table = find(name)
    columns = {(c.row, c.group): {m.column for m in c.measures} for c in table.cells}
    for row, groups in table.reported.items():
        for group, figures in groups.items():
            assert set(figures) - {"min"} <= columns[row, group], (row, group)
            for text in figures.values():
                assert Reported.read(text).value >= 0


@EVERY
def test_every_claim_can_be_judged_somewhere(name: str) -> None:
    table = find(name)
    columns = {(c.row, c.group): {m.column for m in c.measures} for c in table.cells}
    assert table.claims
    for claim in table.claims:
        groups = {c.group for c in table.cells if claim.group in ("", c.group)}
        both = [
            g for g in groups for r in (claim.better, claim.worse) if claim.column in columns.get((r, g), ())
        ]
        assert len(both) >= 2, claim
        assert claim.question in ("", *QUESTIONS)


@EVERY
@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_is_a_valid_configuration(name: str, scale) -> None:
    table = find(name)
    cells = at_scale(table, scale)
    assert cells
    assert len({cell.name for cell in cells}) == len(cells)
    known = sources_at_scale(table, scale)
    for cell in (*cells, *known.values()):
        config = configure(cell, 3)
        assert config.seed == 3
        assert config.epochs == (1 if scale == "smoke" else config.epochs)
        for measure in cell.measures:
            assert read_attack(measure.attack)
            assert measure.source is None or measure.source in known


@EVERY
def test_every_table_is_judged_by_autoattack(name: str) -> None:
    for scale in SCALES:
        for cell in at_scale(find(name), scale):
            assert any(m.attack.startswith("autoattack") and m.source is None for m in cell.measures)


@EVERY
@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_no_cell_repeats_another(name: str, scale) -> None:
    cells = at_scale(find(name), scale)
    assert len({repr(cell.but(group="")) for cell in cells}) == len(cells)
    sources = sources_at_scale(find(name), scale).values()
    assert len({repr(cell.but(row="", group="")) for cell in sources}) == len(sources)


def test_full_scale_uses_the_papers_own_settings() -> None:
    cell = next(c for c in find("T-D1").cells if c.row == "DONE-ADAM" and c.group == "imbalanced 0.2")
    config = configure(cell, 0)
    assert (config.epochs, config.model.name, config.data.imbalance) == (60, "resnet18", "step:0.2")
    assert config.method.threat.eps == 8 / 255
    assert config.method.attack_mode == "train"
    free = next(c for c in find("T-F10").cells if c.method == "free-at")
    assert configure(free, 0).optimizer.lr == 0.04


@EVERY
def test_what_scale_cpu_is_said_to_do_is_what_its_cells_do(name: str) -> None:
    table = find(name)
    cells = at_scale(table, "cpu")
    told = " ".join([describe(table, "cpu"), *table.notes])
    narrow = [cell for cell in cells if cell.settings.get("model.width") == 0.25]
    of = {cell.weights for cell in narrow}
    named = {m.weights or cell.weights for cell in narrow for m in cell.measures}
    assert ("chooses the best epoch" in told) == ("best" in named)
    assert ("those of the best epoch" in told) == ("best" in of)
    assert ("those of the last epoch" in told) == ("last" in of)
    assert ("a tenth of the training images held out" in told) == bool(narrow)
    assert "All training images are used" not in told or not narrow
    shown = {(cell.row, cell.group) for cell in narrow}
    full = {(c.recipe, c.epochs): c for c in table.cells if (c.row, c.group) in shown}
    epochs = {configure(cell, 0).epochs for cell in full.values()}
    for number in epochs | {cell.epochs for cell in narrow}:
        assert re.search(rf"\b{number}\b", describe(table, "cpu")), number
    for cell in sources_at_scale(table, "cpu").values():
        config = configure(cell, 0)
        assert (config.model.width, config.epochs) in ((0.25, narrow[0].epochs), (1.0, 5))
    assert "not at scale cpu" not in told or not table.sources


def test_claims_on_rows_that_a_paper_does_not_have_are_ours() -> None:
    for name in ("T-D1", "T-D2", "T-D3", "T-D4"):
        absent = {cell.row for cell in find(name).cells if "r >= 1" in cell.row}
        assert absent
        assert not absent & reported()[name].keys()
        claims = [c for c in find(name).claims if absent & {c.better, c.worse}]
        assert all(not claim.theirs for claim in claims)
        assert claims or name == "T-D3"


def test_only_and_group_choose_cells(tmp_path) -> None:
    table = find("T-B1")
    jobs = jobs_of(table, "cpu", only=("BiLAW", "at"), groups=("F-MNIST",), seeds=(0, 1), out=tmp_path)
    assert [(j.cell.row, j.seed) for j in jobs] == [("BiLAW", 0), ("AT", 0), ("BiLAW", 1), ("AT", 1)]
    with pytest.raises(UserError, match="did you mean 'BiLAW'"):
        jobs_of(table, "cpu", only=("BiLAV",))
    with pytest.raises(UserError, match="nothing at scale"):
        jobs_of(table, "cpu", groups=("CIFAR",))
    with pytest.raises(UserError, match="unknown table"):
        find("T-Z9")


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_cells(name: str) -> None:
    for scale in SCALES:
        cells = cells_of(FIGURES[name], scale)
        rows = tuple(FIGURES[name].variants) or FIGURES[name].rows
        assert tuple(dict.fromkeys(cell.row for cell in cells)) == rows
        assert len(cells) == len(rows) * max(1, len(FIGURES[name].radii))
        assert len({cell.name for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("name", "data", "model"),
    [
        *((name, "cifar10", "small-cnn") for name in FIGURES if FIGURES[name].table in ("T-B2", "T-Y1")),
        ("E10", "cifar10", "preact-resnet18"),
        ("E13-DONE", "cifar10", "resnet18"),
        ("E13-DONE-CUT", "cifar10", "resnet18"),
        ("E13-DONE-SVHN", "svhn", "resnet18"),
        ("E13-DONE-STL10", "stl10", "resnet18"),
        ("E14-MNIST", "mnist", "tiny-cnn"),
    ],
)
def test_figures_are_on_their_papers_data_with_its_networks(name: str, data: str, model: str) -> None:
    for scale in ("cpu", "full"):
        cells = cells_of(FIGURES[name], scale)
        assert {(cell.data, cell.model) for cell in cells} == {(data, model)}
        narrow = scale == "cpu" and data != "mnist"
        assert {configure(cell, 0).model.width for cell in cells} == {0.25 if narrow else 1.0}
        if not (FIGURES[name].variants or FIGURES[name].radii):
            assert {cell.group for cell in cells} == {FIGURES[name].group}


def test_the_variants_of_a_figure_train_as_they_say() -> None:
    eps = 8 / 255
    solvers = {c.row: configure(c, 0).method.solver for c in cells_of(FIGURES["E11-SIZES"], "full")}
    sizes = [solver.step_size / eps for solver in solvers.values()]
    assert sizes == pytest.approx([1, 1 / 2, 1 / 4, 1 / 6, 1 / 8])
    assert {solver.steps for solver in solvers.values()} == {20}
    numbers = [configure(c, 0).method.solver.steps for c in cells_of(FIGURES["E11-NUMBERS"], "cpu")]
    assert numbers == [10, 20, 30, 40]
    begun = configure(cells_of(FIGURES["E11-FGSM"], "full")[2], 0)
    assert (begun.method.solver.first.steps, begun.method.solver.share) == (1, pytest.approx(1 / 6))
    assert begun.keep == (10, 60, 90, 100)


def test_training_radii_are_written_as_the_papers() -> None:
    cells = [cell for cell in cells_of(FIGURES["E16-EPS"], "full") if cell.row == "FAST-BAT"]
    assert [cell.eps for cell in cells] == ["8/255", "4/255", "12/255", "16/255"]
    sizes = [configure(cell, 0).method.coupling.step_size for cell in cells]
    assert sizes == pytest.approx([5000 / 255, 5000 / 255, 2500 / 255, 2500 / 255])


def test_fast_bats_tables_vary_what_the_paper_varied() -> None:
    def steps(table: str, group: str = "@16") -> dict[str, float]:
        made = {c.row: configure(c, 0).method.coupling for c in find(table).cells if c.group == group}
        assert {coupling.gain for coupling in made.values()} == {0.1}
        return {row: 255 * coupling.step_size for row, coupling in made.items()}

    lambdas = [1000, 1500, 2500]
    assert steps("T-F7") == pytest.approx({str(size): size for size in (500, *lambdas, 3500)})
    eighth = steps("T-F8")
    assert list(eighth.values())[:3] == pytest.approx(lambdas)
    assert eighth[".008"] == pytest.approx(0.1 / 0.008 * 255)
    printed = {name: reported()[name] for name in ("T-F7", "T-F8")}
    for ratio, size in zip(eighth, map(str, lambdas), strict=False):  # the same runs, printed twice
        assert printed["T-F8"][ratio] == printed["T-F7"][size]
    assert steps("T-F5") == pytest.approx({"Hessian-free": 2500, "Hessian-aware": 2500})


def test_cells_follow_their_papers_to_the_letter() -> None:
    """What the papers say of single rows: path into the configuration -> value."""
    eighth, grey = 8 / 255, 0.031
    asked: dict[tuple[str, str], dict[str, Any]] = {
        **{
            (table, row): {"solver": PGD(10, grey / 4, uniform), "attack_mode": "eval"}
            for table in ("T-B2", "T-B3")
            for row in ("GAIRAT", "MAIL", "AT", "BiLAW")
            if (table, row) != ("T-B3", "BiLAW")
        },
        ("T-Y3", "Madry's"): {
            "solver": PGD(7, eighth / 4, uniform), "attack_mode": "train", "epochs": 205, "optimizer.lr": 0.1,
            "optimizer.weight_decay": 2e-4, "rate.at": (0.5, 0.75),
        },
        ("T-F6", "FAST-BAT"): {"model.stem": "imagenet", "model.name": "resnet50"},
        ("T-D1", "DONE-ADAM"): {"data.validation": 0.1, "method.weighting.floor": 0.0},
        ("T-D1", "DONE-ADAM, r >= 1"): {"data.validation": 0.1, "method.weighting.floor": 1.0},
        ("T-D4", "DONE"): {"epochs": 25, "method.weighting.floor": 0.0},
        ("T-D4", "DONE, r >= 1"): {"epochs": 25, "method.weighting.floor": 1.0},
    }  # fmt: skip
    for (table, row), values in asked.items():
        cells = [c for c in find(table).cells if c.row == row and c.eps != ".0078" and c.eps != "0.0078"]
        assert cells, (table, row)
        for cell in cells:
            config = configure(cell, 0)
            for path, value in values.items():
                found: Any = config.method if path in ("solver", "attack_mode") else config
                for name in path.split("."):
                    found = getattr(found, name)
                assert found == value, (table, row, path)


def test_the_tables_of_done_have_best_and_last_weights() -> None:
    for table in ("T-D1", "T-D2", "T-D3", "T-D4"):
        for cell in find(table).cells:
            of = {m.column: m.weights or cell.weights for m in cell.measures}
            assert of["RA-AA"] == of["SA"] == "last"
            assert of["RA-AA, best"] == of["RA-PGD, best"] == "best"


def test_the_tables_of_several_papers_share_their_trainings_with_the_papers_own() -> None:
    shared = {"T-S1": ("T-F1", ("FAST-AT", "FAST-BAT", "N-FGSM")), "T-C1": ("T-D1", ("AT", "DONE-ADAM"))}
    for name, (other, rows) in shared.items():
        known = {(c.row, c.group): c for c in at_scale(find(other), "cpu")}
        for cell in (c for c in at_scale(find(name), "cpu") if c.row in rows):
            same = known[cell.row, cell.group]
            assert without_machine(configure(cell, 0)) == without_machine(configure(same, 0))
            assert cell.weights == same.weights
            assert {m.key for m in cell.measures} <= {m.key for m in same.measures}


def test_imagenet_is_trained_with_the_stem_for_large_images() -> None:
    (cell, _) = find("T-F6").cells
    with torch.device("meta"):
        model = bv.models.create("resnet50", num_classes=1000, shape=(3, 224, 224), stem="imagenet")
    assert configure(cell, 0).model.stem == model.spec["stem"] == "imagenet"
    conv = model.stem
    assert isinstance(conv, torch.nn.Conv2d)
    assert (conv.kernel_size, conv.stride) == ((7, 7), (2, 2))
    for scale in ("cpu", "smoke"):
        assert all(configure(c, 0).model.stem is None for c in at_scale(find("T-F6"), scale))


def test_stages_of_training_are_kept_and_make_no_other_training() -> None:
    (cell,) = (c for c in find("T-Y1").cells if (c.row, c.group) == ("Dynamic", "CIFAR-10"))
    config = configure(cell, 0)
    assert (config.epochs, config.keep) == (120, (10, 60, 90, 100))
    assert configure(cell.but(epochs=2), 0).keep == (1, 2)
    assert without_machine(config) == without_machine(configure(cell.but(keep=()), 0))


@pytest.mark.parametrize("name", ["T-F1", "T-B1"])
def test_the_worst_class_stands_beside_autoattack_whether_or_not_the_record_has_the_column(name: str) -> None:
    records = read_records(Path(__file__).parents[2] / "results", name, "cpu")
    groups = side_by_side(find(name), "cpu", records)["groups"]
    found = [row["ours"] for group in groups for row in group["rows"] if "AA" in row["ours"]]
    assert found
    assert all(ours["AA worst class"]["interval_95"] for ours in found)
    for record in records:
        column = record.columns["AA worst class"]
        low, high = column["interval_95"]
        known = record.entry["scores"][column["score"]]["worst_class"][1]
        assert low <= column["value"] <= high
        assert column["value"] == pytest.approx(known)
        assert record.points("AA worst class") is not None
