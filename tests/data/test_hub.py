"""Downloads from a simulated hub: filtered, checked, cached; a clear error if it cannot be reached."""

import hashlib
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub as hf
import pytest

from bivallate import data
from bivallate.errors import UserError


class Hub:
    """A hub whose repositories are one folder; it counts what is asked of it."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache, self.asked = folder, cache, 0
        self.error: Exception | None = None
        self.tamper = False

    def tree(self, *_: Any, revision: str | None = None, **__: Any) -> list[SimpleNamespace]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        if revision is not None:
            return []
        return [self.entry(path) for path in sorted(self.folder.rglob("*")) if path.is_file()]

    def entry(self, path: Path) -> SimpleNamespace:
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        name = str(path.relative_to(self.folder))
        return SimpleNamespace(path=name, size=path.stat().st_size, lfs=SimpleNamespace(sha256=sha))

    def snapshot(self, *_: Any, allow_patterns: list[str], **__: Any) -> str:
        for name in allow_patterns:
            target = self.cache / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folder / name, target)
            if self.tamper:
                target.write_bytes(target.read_bytes()[::-1])
        return str(self.cache)


@pytest.fixture
def hub(parquet_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(parquet_set, tmp_path / "snapshot")
    monkeypatch.setattr(hf.HfApi, "list_repo_tree", fake.tree)
    monkeypatch.setattr(hf, "snapshot_download", fake.snapshot)
    monkeypatch.setattr("bivallate.data.hub._check_reachable", lambda: None)
    return fake


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, and the hub's client must not be asked."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf.HfApi, "list_repo_tree", lambda *_, **__: pytest.fail("asked"))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["hub:me/animals", "cifar100"])
@pytest.mark.parametrize("fault", ["silence", "no such name", "told to be offline"])
def test_offline_is_said_within_three_seconds(monkeypatch: pytest.MonkeyPatch, name: str, fault: str) -> None:
    over = threading.Event()

    def connect(place: tuple[str, int], timeout: float) -> None:
        if fault == "silence":  # a name server that never answers knows no timeout
            over.wait(30)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr("bivallate.data.hub.PATIENCE", 0.2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", fault == "told to be offline")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"cannot download hub:.*If this machine is offline"):
        data.load(name)
    over.set()
    assert time.monotonic() - began < 3


def test_downloaded_once(hub: Hub, parquet_set: Path) -> None:
    shutil.copy(parquet_set / "test.parquet", parquet_set / "corrupted-00000-of-00001.parquet")
    (parquet_set / "README.md").write_text("card")
    loaded = data.load("hub:me/animals")
    assert loaded.name == "animals"
    assert loaded.fingerprint == data.load(parquet_set).fingerprint
    assert sorted(p.name for p in hub.cache.iterdir()) == [
        "test.parquet",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    asked = hub.asked
    hub.error = ConnectionError("offline")
    assert data.load("hub:me/animals").fingerprint == loaded.fingerprint
    assert hub.asked == asked


def test_an_incomplete_download_is_taken_up_again(hub: Hub) -> None:
    data.load("hub:me/animals")
    (hub.cache / "test.parquet").unlink()
    asked = hub.asked
    data.load("hub:me/animals")
    assert hub.asked == asked + 1


def test_a_folder_of_a_repository(hub: Hub, parquet_set: Path) -> None:
    hub.folder = parquet_set.parent
    assert len(data.load("hub:me/all/animals").test) == 6


def test_damage_is_noticed_and_removed(hub: Hub) -> None:
    hub.tamper = True
    with pytest.raises(UserError, match="damaged on the way and is removed: run again"):
        data.load("hub:me/animals")
    assert not list(hub.cache.iterdir())  # all were
    hub.tamper = False
    assert len(data.load("hub:me/animals").test) == 6


def response(status: int) -> Any:
    return SimpleNamespace(status_code=status, headers={}, request=None, text="", url="https://example.org")


class ConnectError(Exception):
    """What the hub's client lets through of its transport, whichever version of it is installed."""

    __module__ = "httpx"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            lambda: ConnectionError("no route"),
            "cannot download hub:me/animals.*offline.*--data-dir or BIVALLATE_DATA",
        ),
        (lambda: ConnectError("no route"), "cannot download hub:me/animals.*offline"),
        (lambda: hf.errors.OfflineModeIsEnabled("offline mode"), "cannot download hub:me/animals"),
        (lambda: hf.errors.LocalEntryNotFoundError("none"), "cannot download hub:me/animals"),
        (
            lambda: hf.errors.RepositoryNotFoundError("404", response=response(404)),
            "no data set me/animals on the hub",
        ),
        (lambda: hf.errors.GatedRepoError("403", response=response(403)), "accept its terms"),
        (lambda: hf.errors.HfHubHTTPError("500", response=response(500)), "cannot download hub:me/animals"),
    ],
)
def test_out_of_reach(hub: Hub, error: Callable[[], Exception], message: str) -> None:
    hub.error = error()
    with pytest.raises(UserError, match=message):
        data.load("hub:me/animals")


def test_known_sets_come_from_their_repository(hub: Hub) -> None:
    hub.error = ConnectionError("no route")
    with pytest.raises(UserError, match="cannot download hub:uoft-cs/cifar100"):
        data.load("cifar100")


def test_no_parquet(hub: Hub, tmp_path: Path) -> None:
    hub.folder = tmp_path / "empty"
    hub.folder.mkdir()
    with pytest.raises(UserError, match="has no Parquet files"):
        data.load("hub:me/animals")


@pytest.mark.parametrize("name", ["hub:", "hub:a", "hub:a b/c", "hub:/x"])
def test_addresses(name: str) -> None:
    with pytest.raises(UserError, match="OWNER/NAME"):
        data.load(name)
