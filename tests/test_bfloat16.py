"""The comparison of number formats: each format's own training is measured."""

from __future__ import annotations

from benchmarks import bfloat16

from bivallate.reproduce.papers.catalogue import tables
from bivallate.reproduce.planning import jobs_of
from bivallate.reproduce.sharing import _candidates


def test_no_training_of_one_format_is_taken_for_the_others(tmp_path) -> None:
    (job,) = jobs_of(tables()["T-F1"], "cpu", only=("FAST-AT",), groups=("CIFAR-10 @8",))
    places = {name: bfloat16._place(job, name, tmp_path) for name in bfloat16.FORMATS}
    for place in places.values():
        place.mkdir(parents=True)
        (place / "model.json").touch()
    for name, place in places.items():
        assert [folder.path for folder in _candidates(place)] == [place], name
