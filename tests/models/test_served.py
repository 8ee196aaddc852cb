"""The hub's real client and timm's loader with a local hub server."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from tests.data.builders import pictures, png, write_parquet
from tests.models.test_timm import MISSING
from tests.served import Hub, served

from bivallate import data, models
from bivallate.cli import run
from bivallate.errors import UserError
from bivallate.models.from_timm import timm_pretrained

NOBODY = "http://127.0.0.1:9"  # listens there
TIMM = "test_resnet.r160_in1k"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BIVALLATE_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    with served(tmp_path / "hub", tmp_path / "cache", monkeypatch) as handler:
        model = models.create("tiny-cnn", num_classes=10, shape=(1, 8, 8), mean=0.5, std=0.25, seed=0)
        models.save_pretrained(model, tmp_path / "hub" / "me" / "net")
        (tmp_path / "hub" / "me" / "empty").mkdir()
        (tmp_path / "hub" / "me" / "empty" / "model.json").write_text(
            (tmp_path / "hub" / "me" / "net" / "model.json").read_text()
        )
        yield handler


def arrived(folder: Path) -> list[Path]:
    """The files that a client would find in its cache."""
    return [path for path in folder.glob("cache/*/snapshots/*/*") if path.exists()]


def test_what_was_saved_arrives_and_training_begins_with_it(
    hub: type[Hub], tmp_path: Path, monkeypatch, capsys
) -> None:
    x = torch.rand(2, 1, 8, 8)
    expected = models.load(tmp_path / "hub" / "me" / "net")(x)
    assert torch.equal(models.from_pretrained("me/net")(x), expected)
    assert {path.name for path in arrived(tmp_path)} == {"model.json", "model.safetensors"}
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)  # what has arrived needs no hub
    assert torch.equal(models.from_pretrained("me/net")(x), expected)
    asked = ["train", "plain", "--data", "digits", "--init", "hub:me/net", "--epochs", "1"]
    assert run([*asked, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert "hub:me/net" in (tmp_path / "run" / "config.toml").read_text()


FAULTS = {
    "altered": (
        "me/net",
        r"model.safetensors of hub:me/net was damaged on the way and is removed: run again",
    ),
    "cut off": ("me/net", r"cannot fetch me/net from the hub; run again once it is in reach: \w+"),
    "no weights": ("me/empty", r"hub:me/empty holds no model to load: .*model.safetensors"),
    "no repository": ("me/absent", "there is no model me/absent on the hub"),
    "nothing listens": ("me/net", "cannot fetch me/net from the hub; run again once it is in reach"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_arrive_is_said_and_nothing_is_half_there(
    fault: str, hub: type[Hub], tmp_path: Path, monkeypatch, capsys
) -> None:
    name, words = FAULTS[fault]
    hub.fault = fault
    if fault == "nothing listens":
        monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    with pytest.raises(UserError, match=words):
        models.from_pretrained(name)
    assert "model.safetensors" not in {path.name for path in arrived(tmp_path)}
    out = tmp_path / "run"
    assert run(["train", "at", "--data", "digits", "--init", f"hub:{name}", "--out", str(out)]) == 2
    assert not out.exists()
    hub.fault = ""
    if fault in ("altered", "cut off"):  # and once the hub is well, all is
        assert models.from_pretrained(name).num_classes == 10


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "timm is there")
def test_timm_fetches_its_weights_and_damaged_ones_are_refused(
    hub: type[Hub], tmp_path: Path, capsys
) -> None:
    import timm

    folder = tmp_path / "hub" / "timm" / TIMM
    folder.mkdir(parents=True)
    theirs = timm.create_model(TIMM.partition(".")[0]).eval()
    save_file(theirs.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    asked = ["train", "at", "--data", "digits", "--init", f"timm:{TIMM}", "--out", str(tmp_path / "run")]
    hub.fault = "altered"
    assert run([*asked, "--set", "data.size=32", "--set", "data.channels=3"]) == 2
    assert f"model.safetensors of hub:timm/{TIMM} was damaged" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    hub.fault = ""
    ours = timm_pretrained(TIMM, shape=(3, 32, 32)).network.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.state_dict().items())
    with pytest.raises(UserError, match=r"there is no model timm/test_vit.*on the hub"):
        timm_pretrained("test_vit.r160_in1k", shape=(3, 32, 32))


@pytest.mark.parametrize("fault", ["altered", "cut off"])
def test_data_that_do_not_arrive_are_said_and_fetched_again(
    fault: str, hub: type[Hub], tmp_path: Path
) -> None:
    images = pictures(40, (16, 16, 3))
    for part, rows in (("train", range(32)), ("test", range(32, 40))):
        write_parquet(
            hub.root / "me" / "animals" / f"{part}.parquet",
            [png(images[k]) for k in rows],
            [k % 3 for k in rows],
        )
    hub.fault = fault
    words = (
        "was damaged on the way and is removed: run again" if fault == "altered" else "run again, it resumes"
    )
    with pytest.raises(UserError, match=words):
        data.load("hub:me/animals", validation=6)
    hub.fault = ""
    assert len(data.load("hub:me/animals", validation=6).test) == 8
