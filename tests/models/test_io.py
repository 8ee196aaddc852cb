"""Saving and loading: whole files, exact weights, and clear errors for everything else."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bivallate import models
from bivallate.errors import UserError

SHAPE = (1, 8, 8)


def tiny(seed=0, name="tiny-cnn", **more):
    return models.create(name, num_classes=3, shape=SHAPE, seed=seed, **more)


@pytest.fixture
def folder(tmp_path):
    models.save(tiny(), tmp_path, classes=["a", "b", "c"], entries={"config": {"eps": 0.1}})
    return tmp_path


def test_manifest_says_what_the_weights_are(folder):
    models.save(
        tiny(mean=[0.25], std=[0.5]), folder, classes=["a", "b", "c"], entries={"data_fingerprint": "f"}
    )
    described = json.loads((folder / "model.json").read_text())
    assert described["format"] == "bivallate-model"
    assert described["version"] == 1
    assert described["spec"]["name"] == described["architecture"] == "tiny-cnn"
    assert described["classes"] == ["a", "b", "c"]
    assert described["normalisation"] == {"mean": [0.25], "std": [0.5]}
    assert described["data_fingerprint"] == "f"


def test_manifest_keeps_its_own_entries():
    with pytest.raises(UserError, match="shape"):
        models.manifest(tiny(), entries={"shape": 3})


def test_several_weights_share_a_manifest(folder):
    best = tiny(seed=4)
    models.save(best, folder, weights="best")
    assert torch.equal(models.load(folder, "best").stem.weight, best.stem.weight)
    assert torch.equal(models.load(folder, "last").stem.weight, tiny().stem.weight)
    assert not torch.equal(models.load(folder).stem.weight, best.stem.weight)


def test_a_file_of_its_own_with_its_manifest_beside_it(tmp_path):
    path = models.save(tiny(seed=2), tmp_path / "deep" / "one.safetensors")
    assert sorted(p.name for p in path.parent.iterdir()) == ["one.json", "one.safetensors"]
    assert torch.equal(models.load(path).stem.weight, tiny(seed=2).stem.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_is_kept(tmp_path, dtype):
    model = tiny().to(dtype)
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert again.stem.weight.dtype == dtype
    assert torch.equal(again.stem.weight, model.stem.weight)


def test_channels_last_weights_are_saved_with_their_values(tmp_path):
    model = tiny().to(memory_format=torch.channels_last)
    models.save(model, tmp_path)
    assert torch.equal(models.load(tmp_path).stem.weight, tiny().stem.weight)


def test_loading_leaves_the_generator_as_found(folder):
    before = torch.get_rng_state()
    models.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(folder, monkeypatch):
    def full(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bivallate.checksummed.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        models.save(tiny(seed=9), folder)
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert torch.equal(models.load(folder).stem.weight, tiny().stem.weight)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        models.save(tiny(), tmp_path / "file" / "run")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def truncate(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def picture(folder):
    (folder / "model.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))


def disguised(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))


def zipped(folder):
    torch.save({"weight": torch.zeros(2)}, folder / "model.safetensors")


def other_architecture(folder):
    models.save(tiny(name="fc1"), folder / "other")
    shutil.copy(folder / "other" / "model.safetensors", folder / "model.safetensors")


def other_classes(folder):
    models.save(models.create("tiny-cnn", num_classes=7, shape=SHAPE), folder / "other")
    shutil.copy(folder / "other" / "model.safetensors", folder / "model.safetensors")


def no_weights(folder):
    (folder / "model.safetensors").rename(folder / "best.safetensors")


def edit(**changes):
    def change(folder):
        path = folder / "model.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def no_manifest(folder):
    (folder / "model.json").unlink()


def torn_manifest(folder):
    path = folder / "model.json"
    path.write_text(path.read_text()[:40])


def lacking(folder):
    path = folder / "model.json"
    content = json.loads(path.read_text())
    del content["shape"]
    path.write_text(json.dumps(content))


USERS = {"architecture": "os:system", "spec": {"name": "os:system", "num_classes": 3, "shape": [1, 8, 8]}}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "truncated or damaged"),
        (empty, "not a safetensors file"),
        (picture, "not a safetensors file"),
        (disguised, "pickle.*never loaded"),
        (zipped, "pickle.*never loaded"),
        (other_architecture, r"another architecture than tiny-cnn: it lacks .*network\.stem\.weight"),
        (other_classes, r"network\.body\.6\.weight is \(7, 100\), not \(3, 100\)"),
        (no_weights, "no weights 'model'.*it has the weights best"),
        (no_manifest, "manifest .* is missing"),
        (torn_manifest, "damaged"),
        (lacking, "lacks shape"),
        (edit(format="else"), "not a manifest"),
        (edit(version=2), "format version 2.*update"),
        (edit(**USERS), "never imported"),
        (edit(spec=None), "never imported"),
        (edit(spec={"name": "nobodys", "num_classes": 3, "shape": [1, 8, 8]}), "'nobodys', which is not reg"),
        (edit(spec={"name": "tiny-cnn"}), "does not describe a model"),
    ],
)
def test_what_cannot_be_trusted_is_refused(folder, damage, words, monkeypatch):
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("the manifest's code was run"))
    damage(folder)
    with pytest.raises(UserError, match=words):
        models.load(folder)


def test_a_pickle_by_name_is_refused_unread(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="load_robustbench"):
        models.load(path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no model at .*nowhere"):
        models.load(tmp_path / "nowhere")


def test_long_lists_of_keys_are_cut(folder):
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"it lacks [^;]+; [^;]+; [^;]+ and 5 more\. it adds x"):
        models.load(folder)


def test_a_users_module_is_rebuilt_only_when_passed_again(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model = models.wrap(module, num_classes=3, shape=SHAPE, mean=0.5, std=0.25, name="mine:net")
    models.save(model, tmp_path)
    with pytest.raises(UserError, match="'mine:net'"):
        models.load(tmp_path)
    blank = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    again = models.load(tmp_path, model=blank)
    x = torch.rand(2, *SHAPE)
    assert torch.equal(again(x), model(x))
    with pytest.raises(UserError, match="another architecture"):
        models.load(tmp_path, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 3)))


def test_nothing_but_tensors_is_written(tmp_path):
    class Remembering(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    model = models.wrap(nn.Sequential(nn.Flatten(), Remembering(64, 3)), num_classes=3, shape=SHAPE)
    with pytest.raises(UserError, match="outside of tensors"):
        models.save(model, tmp_path)


def test_tied_weights_are_saved(tmp_path):
    layer = nn.Linear(64, 64)
    model = models.wrap(
        nn.Sequential(nn.Flatten(), layer, layer, nn.Linear(64, 3)), num_classes=3, shape=SHAPE
    )
    file = models.save(model, tmp_path)
    assert torch.equal(load_file(file)["network.1.weight"], load_file(file)["network.2.weight"])
