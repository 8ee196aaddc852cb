"""The papers' figures are drawn of the tables' own trainings, of the paper's methods or of others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bivallate.cli import run as command
from bivallate.reproduce.paper_figures import draw, find_figure
from bivallate.reproduce.papers.figure_list import FIGURES
from bivallate.run.progress import Progress


def test_a_figure_says_what_it_is_drawn_of(tmp_path: Path, capsys) -> None:
    place = ["--out", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    assert command(["reproduce", "E15", "--list", *place]) == 0
    shown = capsys.readouterr()
    assert "bilaw-small-cnn" in shown.out
    assert "T-B2's trainings on small-CNN" in shown.err
    assert not (tmp_path / "runs").exists()
    assert command(["reproduce", "E15", "--group", "small", *place]) == 2
    assert "leave out --group" in capsys.readouterr().err
    assert command(["reproduce", "E13-DONE", "--only", "done-pgd", "AT", "--list", *place]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["DONE-PGD", "AT"]
    assert command(["reproduce", "E15", "--only", "DONE-PGD", "--list", *place]) == 2
    assert "unknown row of T-B2 'DONE-PGD'" in capsys.readouterr().err
    of_adam = ["reproduce", "E13-DONE", "--only", "AT", "done-adam", "--list", *place]
    assert command(of_adam) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2, "the row of this name, not all rows of the method"
    assert command(["reproduce", "E13-DONE-CUT", "--only", "AT", "FAT", "--scale", "cpu", *place]) == 2
    assert "E13-DONE-CUT is of imbalanced 0.2, for which T-D1 has no FAT" in capsys.readouterr().err
    assert command(["reproduce", "E11-SIZES", "--only", "Dynamic", *place]) == 2
    assert "of variants of Standard alone: leave out --only" in capsys.readouterr().err
    assert command(["reproduce", "E16-OMEGA", "--only", "AT", "--scale", "smoke", *place]) == 2
    assert (
        "E16-OMEGA is of networks that weight by margins, which AT does not have" in capsys.readouterr().err
    )
    assert command(["reproduce", "T-B7", "--jobs", "-1", "--list", *place]) == 2
    assert "--jobs must be a whole number of at least 1, got -1" in capsys.readouterr().err
    assert command(["reproduce", "T-B7", "--device", "nope", *place]) == 2
    assert capsys.readouterr().err.count("device 'nope' cannot be used") == 1
    assert command(["reproduce", "T-F6", "--data-dir", str(tmp_path / "none"), *place]) == 2
    assert "--data-dir must be a folder" in capsys.readouterr().err


def test_a_figure_is_drawn_from_the_tables_own_runs(tmp_path: Path) -> None:
    rows: list[str] = []

    def shown(row: str) -> Progress:
        rows.append(row)
        return Progress()

    places = tmp_path / "out", tmp_path / "runs"
    pictures = draw(FIGURES["E15"], "smoke", *places, device="cpu", threads=1, shown=shown)
    assert rows == ["BiLAW"]
    assert [picture.suffix for picture in pictures] == [".svg"]
    assert pictures[0].stat().st_size > 1000
    assert len(list((tmp_path / "runs" / "T-B2" / "smoke").glob("bilaw-*-seed0/model.safetensors"))) == 1


def test_a_figure_of_other_rows_stands_beside_the_papers(tmp_path: Path) -> None:
    figure = replace(find_figure("E16", ["AT"]), each=(), together=("curves",))
    (picture,) = draw(figure, "smoke", tmp_path / "out", tmp_path / "runs", device="cpu")
    assert picture == tmp_path / "out" / "E16" / "smoke" / "curves-at.svg"
