"""Download data sets from the hub as Parquet: broken downloads are resumed, and the result is checked."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from bivallate.data.cache import cache_folder
from bivallate.data.shards import split_of
from bivallate.errors import UserError
from bivallate.files import write_json
from bivallate.hub_access import discard_damaged, hub_errors
from bivallate.schema import read_json

__all__ = ["download"]

SPLIT_NAMES = frozenset({"train", "validation", "test"})
PATIENCE = 2.0
UNREACHABLE = (
    "cannot download hub:{repo} ({why}). If this machine is offline, put the Parquet files into a folder "
    "named by --data-dir or BIVALLATE_DATA; else run again, it resumes"
)
CONVERTED = "refs/convert/parquet"  # the hub keeps a Parquet copy of sets published in other forms


class Downloaded(TypedDict):
    """The record of a download: its folder, and the size in bytes of each file below it."""

    folder: str
    sizes: dict[str, int]


def download(repo: str, under: str = "", splits: frozenset[str] = SPLIT_NAMES) -> Path:
    """The folder of a data set "owner/name" (or of its files under a folder), downloaded at most once.

    Raises:
        UserError: the data set does not exist, is not open to this user or has no Parquet files, or the hub
            cannot be reached.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or ".." in under.split("/"):
        raise UserError(f"hub addresses are hub:OWNER/NAME or hub:OWNER/NAME/FOLDER, got hub:{repo}/{under}")
    marker = cache_folder() / "hub" / f"{repo.replace('/', '--')}-{under or 'all'}.json"
    if (folder := _complete(marker)) is not None:
        return folder
    from huggingface_hub.utils import validate_repo_id

    with hub_errors(repo, "data set", UNREACHABLE.format(repo=repo, why="{why}")):
        validate_repo_id(repo)
        _check_reachable()
        folder, sizes = _fetch(repo, under, splits)
    write_json(marker, {"folder": str(folder), "sizes": sizes}, indent=None)
    return folder


def _check_reachable() -> None:
    """Raise OSError within `PATIENCE` seconds if the hub does not answer; its client would retry for long.

    With a proxy there is no check.
    """
    from huggingface_hub import constants

    endpoint = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    if not endpoint.hostname or (getproxies() and not proxy_bypass(endpoint.hostname)):
        return
    place = endpoint.hostname, endpoint.port or (80 if endpoint.scheme == "http" else 443)
    failed: list[Exception] = [TimeoutError(f"{place[0]} does not answer")]

    def knock() -> None:
        try:
            socket.create_connection(place, PATIENCE).close()
            failed.clear()
        except OSError as error:
            failed[:] = [error]

    caller = threading.Thread(target=knock, daemon=True)  # looking up a name has no time limit of its own
    caller.start()
    caller.join(PATIENCE)
    if failed:
        raise failed[0]


def _complete(marker: Path) -> Path | None:
    """The folder of an earlier, complete download, which needs no network; else None."""
    try:
        known = read_json(marker, "record of a download", Downloaded)
        folder = Path(known["folder"])
        whole = all((folder / name).stat().st_size == size for name, size in known["sizes"].items())
    except (OSError, ValueError, UserError):
        return None
    return folder if whole else None


def _fetch(repo: str, under: str, splits: frozenset[str]) -> tuple[Path, dict[str, int]]:
    """Download with the hub's client (progress, resume) and compare each file's SHA-256 with the hub's."""
    import huggingface_hub as hf

    api = hf.HfApi()
    for revision in (None, CONVERTED):
        try:
            listed = list(api.list_repo_tree(repo, repo_type="dataset", recursive=True, revision=revision))
        except hf.errors.RevisionNotFoundError:
            listed = []
        files: list[Any] = [f for f in listed if f.path.endswith(".parquet") and f.path.startswith(under)]
        known = [f for f in files if split_of(Path(f.path))]
        # files of other names are left out if there are splits: some repositories hold corrupted copies too
        files = [f for f in known if split_of(Path(f.path)) in splits] or files
        if files:
            break
    else:
        raise UserError(f"hub:{repo} has no Parquet files{f' under {under}' if under else ''}")
    names = [file.path for file in files]
    root = hf.snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=names)
    folder = Path(root)
    digests = {f.path: getattr(getattr(f, "lfs", None), "sha256", None) for f in files}
    discard_damaged([(folder / name, wanted) for name, wanted in digests.items() if wanted], repo)
    return folder / under, {str(Path(f.path).relative_to(under or ".")): f.size for f in files}
