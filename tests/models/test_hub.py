"""The simulated hub: what is uploaded, what is downloaded, and what the model card says."""

import json

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from bivallate import models
from bivallate.errors import UserError

SHAPE = (1, 8, 8)
CONFIG = 'seed = 0\nepochs = 20\n\n[method]\nname = "fast-bat"\n'


@pytest.fixture
def model():
    return models.create("tiny-cnn", num_classes=3, shape=SHAPE, mean=0.5, std=0.25, seed=0)


@pytest.fixture
def run(tmp_path, model):
    folder = tmp_path / "run"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG)
    report = {
        "attack": "pgd-50-10",
        "threat": {"norm": "linf", "eps": 0.1},
        "n": 400,
        "clean_accuracy": 0.9525,
        "robust_accuracy": 0.61,
        "interval_95": [0.561, 0.657],
    }
    nameless = {**report, "attack": "pgd-20", "identity": None}
    report["identity"] = {"weights": "best", "split": "test"}
    (folder / "evaluation" / "best-linf-pgd-50-10-0.json").write_text(json.dumps(report))
    (folder / "evaluation" / "best-linf-pgd-20-0.json").write_text(json.dumps(nameless))
    (folder / "evaluation" / "torn.json").write_text('{"attack": ')
    (folder / "evaluation" / "other.json").write_text('{"audit": true}')
    models.save(model, folder, classes=["a", "b", "c"], entries={"data_fingerprint": "f00"})
    return folder


class Hub:
    """Keeps what was uploaded."""

    def __init__(self):
        self.files, self.calls = {}, {}

    def api(self, token=None):
        self.calls["token"] = token
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls["create"] = (repo_id, private, exist_ok)
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        from pathlib import Path

        self.calls["message"] = commit_message
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


def test_the_card_reports_what_was_measured(model, run, tmp_path):
    folder = models.save_pretrained(model, tmp_path / "out", run=run, name="owner/robust")
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: bivallate\n")
    assert "# robust\n" in card
    figures = "95.25 % | 61.00 % | 56.10 % to 65.70 % |"
    assert f"| pgd-50-10 | norm = linf, eps = 0.1 | best | 400 test | {figures}" in card
    assert f"| pgd-20 | norm = linf, eps = 0.1 |  | 400  | {figures}" in card  # says nothing of its weights
    assert card.count("| pgd-") == 2
    assert CONFIG.strip() in card
    assert 'from_pretrained("owner/robust")' in card
    described = json.loads((folder / "model.json").read_text())
    assert described["config"]["method"]["name"] == "fast-bat"
    assert described["data_fingerprint"] == "f00"
    assert described["classes"] == ["a", "b", "c"]


def test_the_manifest_holds_infinities_as_text_and_no_place_of_the_data(model, run, tmp_path):
    (run / "config.toml").write_text(
        '[method]\nlimit = inf\n[data]\nname = "digits"\ndata_dir = "/home/me"\n'
    )
    folder = models.save_pretrained(model, tmp_path / "out", run=run)
    config = json.loads((folder / "model.json").read_text())["config"]
    assert config == {"method": {"limit": "inf"}, "data": {"name": "digits", "data_dir": ""}}


def test_the_card_claims_nothing_without_a_run(model):
    card = models.model_card(model)
    assert "robustness\n" not in card.partition("---\n\n")[2]
    assert "## Training" not in card


def test_a_folder_is_loaded_without_the_hub(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("the hub was asked")
    )
    models.save_pretrained(model, tmp_path / "out")
    x = torch.rand(2, *SHAPE)
    assert torch.equal(models.from_pretrained(tmp_path / "out")(x), model.eval()(x))


def test_push_and_fetch_are_a_round_trip(model, run, tmp_path, monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub.api)
    address = models.push_to_hub(model, "owner/robust", run=run, private=True, token="t")
    assert address == "https://huggingface.co/owner/robust"
    assert hub.calls == {"token": "t", "create": ("owner/robust", True, True), "message": "Upload the model"}
    assert sorted(hub.files) == ["README.md", "model.json", "model.safetensors"]

    def snapshot(name, *, revision, token, allow_patterns):
        assert (name, revision) == ("owner/robust", "v1")
        assert allow_patterns == ["*.safetensors", "*.json"]  # never a pickle, never code
        fetched = tmp_path / "cache"
        fetched.mkdir()
        for file, content in hub.files.items():
            (fetched / file).write_bytes(content)
        return str(fetched)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    again = models.from_pretrained("owner/robust", revision="v1")
    x = torch.rand(2, *SHAPE)
    assert torch.equal(again(x), model.eval()(x))


def test_offline_is_said_plainly(monkeypatch):
    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("Cannot reach the hub and nothing is cached.\nDetails")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"cannot fetch owner/robust .*nothing is cached\.$"):
        models.from_pretrained("owner/robust")


def test_a_wrong_name_is_refused(model):
    with pytest.raises(UserError, match="neither a folder nor a name"):
        models.from_pretrained("a/b/c/d")


def test_a_refused_push_says_how_to_log_in(model, monkeypatch):
    class Closed(Hub):
        def create_repo(self, repo_id, *, private, exist_ok):
            raise OSError("401 Client Error")

    monkeypatch.setattr(huggingface_hub, "HfApi", Closed().api)
    with pytest.raises(UserError, match=r"401 Client Error.*log in"):
        models.push_to_hub(model, "owner/robust")
