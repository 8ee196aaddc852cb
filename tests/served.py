"""A local server that answers the hub's real client as the hub does."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import _snapshot_download, constants, file_download, hf_api

COMMIT = "c0ffee" + "0" * 34
ADDRESS = re.compile(
    r"(?:/api/models|/api/datasets|/datasets)?/([\w.-]+/[\w.-]+)(?:/(revision|tree|resolve)/[^/]+)?/?(.*)"
)


class Hub(BaseHTTPRequestHandler):
    """Repositories are the folders OWNER/NAME below `root`.

    Attributes:
        fault: of files above 500 bytes: "altered" (a byte of them), "cut off" (half-way), "" (none).
    """

    protocol_version = "HTTP/1.1"
    root: Path
    fault = ""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        found = ADDRESS.fullmatch(path)
        repo, kind, name = found.groups() if found else ("", "", "")
        folder = self.root / repo
        if not repo or not folder.is_dir():
            self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif kind != "resolve":
            files = [self._listed(file, folder) for file in sorted(folder.iterdir())]
            about = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": f["path"]} for f in files]}
            self._reply(200, json.dumps(files if kind == "tree" else about).encode(), {})
        elif not (folder / name).is_file():
            self._reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self._file((folder / name).read_bytes())

    def _listed(self, file: Path, folder: Path) -> dict[str, object]:
        content = file.read_bytes()
        big = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
        name = file.relative_to(folder).as_posix()
        return {"type": "file", "path": name, "size": len(content), "oid": "0" * 40, "lfs": big}

    def _file(self, content: bytes) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        told = {
            "ETag": tag,
            "X-Linked-Etag": tag,
            "X-Linked-Size": str(len(content)),
            "X-Repo-Commit": COMMIT,
        }
        fault = self.fault if len(content) > 500 and self.command == "GET" else ""
        if fault == "altered":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._reply(200, content, told, cut=fault == "cut off")

    def _reply(self, status: int, content: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


@contextmanager
def served(root: Path, cache: Path, patch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub of the repositories below a folder; the client knows no other and keeps files in `cache`."""
    handler = type("Served", (Hub,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    known = {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
    }
    for module in (constants, file_download, hf_api, _snapshot_download):  # older clients keep copies
        for name, value in known.items():
            patch.setattr(module, name, value, raising=False)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "NO_PROXY"):
        patch.setenv(name, "127.0.0.1")
    try:
        yield handler
    finally:
        server.shutdown()
        server.server_close()
