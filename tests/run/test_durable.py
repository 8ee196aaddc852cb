"""A run's folder after a fault is continued, repaired or refused, never mixed, always with a message."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.run.runs import Killed, copy, digits, kill_at, metrics, same, settings, train

import bivallate as bv
from bivallate.cli import run as cli
from bivallate.run import checkpoint, from_config, session
from bivallate.run.config import Config, Data, Model
from bivallate.run.execution import execute
from bivallate.run.folder import FOLDERS, RunFolder
from bivallate.run.progress import Progress

OLD = Path(__file__).parent / "old"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(path)
    return path


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its second epoch of three."""
    path = tmp_path_factory.mktemp("half") / "run"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            train(path)
    return path


def resume(path: Path) -> bv.Run:
    return bv.resume(path, dataset=digits())


@pytest.mark.parametrize(("name", "rows"), [("at", 24), ("atta", 24), ("bilaw", 32)])
def test_folders_of_older_versions_end_at_the_same_bits(name, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "WATCHED", 6)  # as when they were made
    run = copy(OLD / name, tmp_path / name)
    wanted = load_file(run / "finished" / "model.safetensors")
    method = Config.read(run / "config.toml").method
    fresh = bv.train("linear", digits(rows), method, **settings(average=0.0))
    alike = all(torch.equal(v, wanted[k]) for k, v in fresh.model.state_dict().items())
    bv.resume(run, dataset=digits(rows))
    for key, value in load_file(run / "model.safetensors").items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-6)
        assert torch.equal(value, wanted[key]) or not alike  # another processor rounds otherwise
    if alike:
        now, then = metrics(run), metrics(run / "finished")
        known = [{key: line[key] for key in old} for line, old in zip(now, then, strict=True)]
        assert known == then  # lines may say more today


def test_a_configuration_of_a_version_with_fewer_settings_is_not_torn(half, whole, tmp_path):
    run = copy(half, tmp_path / "run")
    resume(run)  # the checkpoints are this version's
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(re.sub(r"(?m)^(sync_batchnorm|deterministic) = .*\n", "", text))
    resume(run)  # a warning is an error
    assert "sync_batchnorm" not in (run / "config.toml").read_text()
    same(whole, run)


@pytest.mark.parametrize(
    ("path", "wanted", "usual", "words"),
    [
        ("precision", "tf32", "float32", "tf32 is not available on this cpu: the run continues"),
        ("graphs", True, False, "graphs need CUDA: on this cpu the run continues step by step"),
    ],
)
def test_a_run_goes_on_where_a_setting_of_its_device_is_not_to_be_had(
    half, whole, tmp_path, path, wanted, usual, words
):
    """And keeps its own in its configuration, for a device that has it."""
    run = copy(half, tmp_path / "run")
    config = Config.read(run / "config.toml").set(path, wanted)
    config.write(run / "config.toml")
    for _ in range(2):
        with pytest.warns(UserWarning, match=words):
            resume(run)
        assert Config.read(run / "config.toml") == config
    config.set(path, usual).write(run / "config.toml")
    same(whole, run)


# the record ----------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(10))
def test_the_record_is_the_uninterrupted_ones_wherever_it_was_cut(steps, whole, tmp_path, monkeypatch):
    """Also where an epoch's last minibatch was done and the epoch not: then the rate is in no optimiser."""
    with monkeypatch.context() as patch:
        if steps < 9:
            kill_at(patch, steps)
        else:  # die where the epoch is summed up
            patch.setattr("bivallate.run.trainer.held_out", lambda *a, **k: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(tmp_path / "run")
    resume(tmp_path / "run")
    same(whole, tmp_path / "run")


def test_a_radius_that_grows_is_in_the_record_of_a_resumed_run_too(tmp_path, monkeypatch):
    train(tmp_path / "whole", warm_up=0.9)
    with monkeypatch.context() as patch:
        patch.setattr("bivallate.run.trainer.held_out", lambda *a, **k: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(tmp_path / "run", warm_up=0.9)
    resume(tmp_path / "run")
    assert 0 < metrics(tmp_path / "run")[0]["eps"] < 0.15
    same(tmp_path / "whole", tmp_path / "run")


# damage ----------------------------------------------------------------------


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x80  # no ASCII any more, so no text stays valid
    path.write_bytes(bytes(data))


def gone(path: Path) -> None:
    path.unlink()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = [torn, zeroed, emptied, flipped, gone, a_pipe]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["checkpoints", "config.toml", "metrics.jsonl"])
def test_an_interrupted_run_goes_on_whatever_became_of_one_of_its_files(name, damage, half, whole, tmp_path):
    run = copy(half, tmp_path / "run")
    damage(checkpoint.list_all(run / "checkpoints")[0] if name == "checkpoints" else run / name)
    if (name, damage) == ("config.toml", a_pipe):
        with pytest.raises(bv.UserError, match="only regular files are read"):
            resume(run)
        return
    if (name, damage) == ("checkpoints", gone):
        resume(run)  # the older one is the newest now
    else:
        with pytest.warns(UserWarning, match="older whole one|written again"):
            resume(run)
    same(whole, run)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_same_command_goes_on_from_a_part_of_the_configuration(share, half, whole, tmp_path):
    """A configuration that ends at a line's end can be read, and is another run's by what it lacks."""
    run = copy(half, tmp_path / "run")
    lines = (run / "config.toml").read_text().splitlines(keepends=True)
    (run / "config.toml").write_text("".join(lines[: round(share * len(lines))]))
    with pytest.warns(UserWarning, match="was (torn|damaged): written again from the checkpoint"):
        train(run, resume_if_there=True)
    assert (run / "config.toml").read_text() == "".join(lines)
    same(whole, run)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "metrics.jsonl", "model.json", "config.toml"]
)
def test_a_finished_run_is_mended_from_its_checkpoint(name, damage, whole, tmp_path):
    run = copy(whole, tmp_path / "run")
    damage(run / name)
    if (name, damage) == ("config.toml", a_pipe):
        return
    with pytest.warns(UserWarning, match="written again from the checkpoint"):
        resume(run)
    for file in ("config.toml", "model.json", "model.safetensors", "ema.safetensors", "metrics.jsonl"):
        assert (run / file).read_bytes() == (whole / file).read_bytes()


def test_a_manifest_in_the_words_of_an_earlier_version_is_whole(tmp_path):
    run = tmp_path / "run"
    train(run, bv.methods.wat(bv.Linf(0.1), steps=1), epochs=1)
    manifest = run / "model.json"
    about = json.loads(manifest.read_text())
    about["config"]["method"]["loss"]["part"] = about["config"]["method"]["loss"].pop("weighs")
    about["made_by"] = {"commit": "of the one who trained it"}
    manifest.write_text(json.dumps(about))
    resume(run)  # warnings are errors
    assert json.loads(manifest.read_text()) == about


@pytest.mark.parametrize("damage", [torn, gone, flipped])
def test_best_weights_that_no_checkpoint_holds_are_said_to_be_lost(damage, tmp_path):
    run, epoch = tmp_path / "run", 3
    train(run)
    best = json.loads((run / "model.json").read_text())["best_epoch"]
    damage(run / "best.safetensors")
    with pytest.warns(UserWarning, match="written again" if best == epoch else "in no checkpoint"):
        resume(run)
    if damage is flipped and best != epoch:
        with pytest.raises(bv.UserError, match="damaged"):
            bv.load(run)


def test_all_lost_weights_of_epochs_are_said_in_one_message(tmp_path):
    run = tmp_path / "run"
    train(run, epochs=3, keep=(1, 2, 3))
    for epoch in (1, 2):
        (run / f"epoch-{epoch}.safetensors").unlink()
    with pytest.warns(UserWarning, match="no checkpoint: epoch-1.safetensors, epoch-2.safetensors;") as told:
        resume(run)
    assert len(told) == 1


def test_a_flipped_bit_in_the_weights_is_not_evaluated(whole, tmp_path):
    run = copy(whole, tmp_path / "run")
    data = bytearray((run / "best.safetensors").read_bytes())
    data[-2] ^= 1
    (run / "best.safetensors").write_bytes(bytes(data))
    with pytest.raises(bv.UserError, match="do not match its checksum"):
        bv.load(run)


@pytest.mark.parametrize("field", ["epoch", "step"])
def test_a_checkpoint_whose_place_was_changed_is_no_checkpoint(field, half, tmp_path):
    run = copy(half, tmp_path / "run")
    path = checkpoint.list_all(run / "checkpoints")[0]
    data = path.read_bytes()
    found = getattr(checkpoint.load(path), field)
    changed = data.replace(f'\\"{field}\\": {found}'.encode(), f'\\"{field}\\": {found + 1}'.encode(), 1)
    assert changed != data
    path.write_bytes(changed)
    with pytest.raises(bv.UserError, match="checksum"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["best", "model", "ema"])
def test_weights_that_lost_their_checksum_are_not_taken_for_old_ones(name, whole, tmp_path):
    run = copy(whole, tmp_path / "run")
    file = run / f"{name}.safetensors"
    save_file({key: value + 1 for key, value in load_file(file).items()}, file)
    with pytest.raises(bv.UserError, match="the checksum that it was written with is gone"):
        bv.load(run, name)
    about = json.loads((run / "model.json").read_text())
    assert about["sealed"] == ["best", "ema", "model"]
    if name != "best":
        with pytest.warns(UserWarning, match=f"{name}.safetensors was missing or damaged: written again"):
            resume(run)
        assert file.read_bytes() == (whole / file.name).read_bytes()
    else:  # a folder of an earlier version has no such list
        (run / "model.json").write_text(json.dumps({k: v for k, v in about.items() if k != "sealed"}))
        assert bv.load(run, name)


def test_weights_of_two_runs_are_not_mixed(whole, tmp_path):
    run = copy(whole, tmp_path / "run")
    train(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / "best.safetensors", run)
    with pytest.raises(bv.UserError, match="another run"):
        bv.load(run)


# other configurations ----------------------------------------------------------------------


def edited(run: Path) -> None:
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("lr = 0.05", "lr = 0.06"))


def of_another(run: Path) -> None:
    config = Config.read(run / "config.toml").set("seed", 3)
    config.write(run / "config.toml")


@pytest.mark.parametrize(("change", "key"), [(edited, r"optimizer\.lr"), (of_another, "seed")])
def test_checkpoints_are_not_gone_on_from_under_another_configuration(change, key, half, whole, tmp_path):
    run = copy(half, tmp_path / "run")
    change(run)
    with pytest.raises(bv.UserError, match=key):
        resume(run)
    (run / "config.toml").unlink()  # the remedy that it names
    with pytest.warns(UserWarning, match="written again"):
        resume(run)
    same(whole, run)


def test_where_and_how_often_may_be_changed(half, whole, tmp_path):
    run = copy(half, tmp_path / "run")
    config = Config.read(run / "config.toml").set("checkpoint_minutes", 7.0)
    config.write(run / "config.toml")
    resume(run)
    assert metrics(run) == metrics(whole)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_link_in_place_of_the_checkpoints(overwrite, half, whole, tmp_path):
    run = copy(half, tmp_path / "run")
    shutil.move(run / "checkpoints", tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    if not overwrite:
        with pytest.raises(bv.UserError, match="is a link"):
            resume(run)
        return
    there = sorted((tmp_path / "elsewhere").iterdir())
    train(run, overwrite=True)
    same(whole, run)
    assert not (run / "checkpoints").is_symlink()
    assert sorted((tmp_path / "elsewhere").iterdir()) == there


@pytest.mark.parametrize("name", FOLDERS)
def test_a_link_in_place_of_a_runs_folder_is_written_through_by_nothing(name, half, tmp_path):
    run = copy(half, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(tmp_path / "elsewhere")
    for command in ("evaluate", "audit", "diagnose", "report"):
        assert cli([command, str(run)]) == 2
    for read in (resume, RunFolder.open):
        with pytest.raises(bv.UserError, match=f"{name} is a link, and a run keeps what is its own"):
            read(run)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_cannot_be_cleared_is_named(half, tmp_path, monkeypatch):
    run = copy(half, tmp_path / "run")

    rmtree = shutil.rmtree

    def refuse(path: Path, **more: Any) -> None:
        if path.name.startswith("."):
            return rmtree(path, **more)
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(bv.UserError, match=r"cannot remove .*checkpoints.*Permission denied"):
        train(run, overwrite=True)


# dead ends ----------------------------------------------------------------------


def beginning(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "config.toml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def bare(run: Path) -> None:
    beginning(run)
    (run / "config.toml").unlink()
    (run / "checkpoints").mkdir()


def cleared_halfway(run: Path) -> None:
    for name in ("config.toml", "model.json", "metrics.jsonl"):
        (run / name).unlink()


@pytest.mark.parametrize("how", [beginning, bare])
def test_train_uses_a_folder_that_holds_nothing_but_a_beginning(how, whole, tmp_path):
    run = copy(whole, tmp_path / "run")
    how(run)
    train(run)
    same(whole, run)


def test_resume_begins_a_run_anew_that_has_no_checkpoint_yet(whole, tmp_path):
    run = copy(whole, tmp_path / "run")
    beginning(run)
    with pytest.warns(UserWarning, match="begins anew"):
        resume(run)
    same(whole, run)


def test_a_folder_that_was_cleared_halfway_can_be_overwritten_or_gone_on_with(whole, tmp_path):
    run = copy(whole, tmp_path / "run")
    cleared_halfway(run)
    train(run, overwrite=True)
    same(whole, run)
    cleared_halfway(run)
    with pytest.warns(UserWarning, match="written again"):
        resume(run)
    same(whole, run)


@pytest.mark.parametrize("name", ["thesis.txt", "best.safetensors", "config.toml"])
def test_a_folder_with_something_in_it_is_not_taken(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(bv.UserError, match="exists already"):
        train(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_results_without_a_checkpoint_are_not_cleared_by_resume(whole, tmp_path):
    run = copy(whole, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(bv.UserError, match=r"no checkpoint to go on from.*--overwrite"):
        resume(run)
    assert (run / "best.safetensors").exists()


def test_temporary_files_and_banks_of_dead_processes_go(half, tmp_path, monkeypatch):
    run = copy(half, tmp_path / "run")
    child = os.fork()
    if child == 0:
        from bivallate.files import temporary

        for place in (run, run / "checkpoints"):
            temporary(place).mkdir()
        os._exit(0)
    os.waitpid(child, 0)
    (run / "checkpoints" / "epoch-00009-step-0000001.bank.safetensors").write_bytes(b"")
    resume(run)
    assert [p.name for p in run.rglob("*") if p.name.startswith(".") or "bank" in p.name] == []


def test_a_folder_that_goes_during_the_run_ends_it_with_a_word(tmp_path):
    class Delete(Progress):
        def step(self, session, record, lr) -> None:
            if (session.epoch, session.step) == (1, 1):
                shutil.rmtree(tmp_path / "run")

    with pytest.raises(bv.UserError, match="was removed or emptied"):
        train(tmp_path / "run", progress=Delete())
    assert not (tmp_path / "run").exists()


def marked(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as editors do


@pytest.mark.parametrize("damage", [torn, gone, marked, None])
def test_data_that_a_path_names_are_found_whatever_became_of_the_configuration(damage, tmp_path, monkeypatch):
    x, y = torch.rand(40, 1, 4, 4).numpy(), torch.arange(40).numpy() % 2
    for name in ("own", "more"):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    chosen = from_config.resolved_data(Data(name=str(tmp_path / "own.npz"), extra=str(tmp_path / "more.npz")))
    config = Config(method=bv.methods.plain(bv.Linf(0.1)), model=Model("linear"), data=chosen, epochs=1)
    config = config.set("batch_size", 16)
    data, run = from_config.load_data(chosen, 0), tmp_path / "run"
    execute(config, data, from_config.create_model(config.model, data, 0), run)
    before = (run / "config.toml").read_bytes()
    if damage is not None:
        damage(run / "config.toml")
    monkeypatch.chdir(Path("/"))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if damage in (marked, None) else "ignore")
        bv.resume(run)
    assert (run / "config.toml").read_bytes().removeprefix(b"\xef\xbb\xbf") == before
