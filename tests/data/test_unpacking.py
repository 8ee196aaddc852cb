"""Archives of images are read like the folders that they hold; malicious archives are refused."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from tests.data.builders import grow, picture

from bivallate import data
from bivallate.errors import UserError

NAMES = [f"{c}/{k}.png" for c in ("cat", "dog") for k in range(5)]
WITHIN = {"validation": 0, "test_fraction": 0.5}


def zipped(path: Path, files: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


FILES = {name: picture(name) for name in NAMES}
TABLE = {f"all/{k}.png": picture(NAMES[k]) for k in range(10)} | {
    "labels.csv": "\n".join(["file,label", *(f"{k}.png,{NAMES[k][:3]}" for k in range(10))]).encode()
}
ARCHIVES = {
    "zip": lambda p: zipped(p / "set.zip", FILES),
    "zip, deflated, in a folder": lambda p: zipped(
        p / "set.zip", {f"top/{n}": c for n, c in FILES.items()}, compression=zipfile.ZIP_DEFLATED
    ),
    "zip of Windows": lambda p: zipped(p / "set.zip", {n.replace("/", "\\"): c for n, c in FILES.items()}),
    "zip of a Mac": lambda p: zipped(p / "a set.zip", {**FILES, "__MACOSX/cat/._1.png": b"x", ".DS": b"x"}),
    "zip with a table": lambda p: zipped(p / "set.zip", TABLE),
    "tar": lambda p: tarred(p / "set.tar", FILES),
    "tar.gz": lambda p: tarred(p / "set.tar.gz", FILES, "w:gz"),
    "tgz with a table": lambda p: tarred(p / "set.tgz", TABLE, "w:gz"),
    "tar.bz2": lambda p: tarred(p / "set.tar.bz2", FILES, "w:bz2"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("stream", [None, True])
def test_an_archive_is_read_as_the_folder_that_it_holds(
    kind: str, stream: bool | None, tmp_path: Path
) -> None:
    wanted = data.load(grow(tmp_path / "set", NAMES), **WITHIN)
    found = data.load(ARCHIVES[kind](tmp_path), stream=stream, workers=0, **WITHIN)
    assert found.classes == ["cat", "dog"]
    if "table" not in kind and stream is None:
        assert found.fingerprint == wanted.fingerprint
    for name in ("train", "test"):
        (x, y), (wanted_x, wanted_y) = getattr(found, name).tensors(), getattr(wanted, name).tensors()
        assert x.equal(wanted_x)
        assert y.equal(wanted_y)
    again = data.load(ARCHIVES[kind](tmp_path), stream=stream, workers=0, **WITHIN)
    assert again.fingerprint == found.fingerprint


def entry(path: Path, **facts) -> Path:
    """A zip archive whose last entry has these facts."""
    info = zipfile.ZipInfo("cat/x.png")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
        archive.writestr(info, picture("x"))
        for name, value in facts.items():
            setattr(info, name, value)
    return path


def cut(path: Path, lost: int = 300) -> Path:
    path.write_bytes(path.read_bytes()[:-lost])
    return path


def damaged(path: Path) -> Path:
    """A tar archive whose second header is no header."""
    content = bytearray(path.read_bytes())
    content[content.index(b"cat/1.png") + 148] ^= 1
    path.write_bytes(content)
    return path


def flipped(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 255
    path.write_bytes(content)
    return path


def claiming(path: Path) -> Path:
    """A tar archive whose header of long names claims 40 GB."""
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 40 << 30
    path.write_bytes(long.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    return path


def twice(path: Path) -> Path:
    """A zip archive of two entries of one name."""
    zipped(path, {"cat/1.png": picture("a"), "cat/2.png": picture("b")})
    return written(path, path.read_bytes().replace(b"cat/2.png", b"cat/1.png"))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


HOSTILE = {
    "a name above": (lambda p: zipped(p / "x.zip", {**FILES, "../evil": b"x"}), "'../evil' leads out"),
    "an absolute name": (lambda p: zipped(p / "x.zip", {**FILES, "/t/evil": b"x"}), "'/t/evil' leads out"),
    "a drive": (lambda p: zipped(p / "x.zip", {**FILES, "C:\\evil": b"x"}), "leads out"),
    "a name above, of Windows": (lambda p: zipped(p / "x.zip", {**FILES, "..\\evil": b"x"}), "leads out"),
    "a name above, in a tar": (lambda p: tarred(p / "x.tar", {**FILES, "a/../../e": b"x"}), "leads out"),
    "a long name": (lambda p: zipped(p / "x.zip", {"n" * 300: b"x"}), "leads out of the folder, or is none"),
    "an encrypted entry": (lambda p: entry(p / "x.zip", flag_bits=1), "'cat/x.png' is encrypted"),
    "a rare method": (lambda p: entry(p / "x.zip", compress_type=9), "packed by a rare method"),
    "zeros in a zip": (
        lambda p: zipped(p / "x.zip", {"cat/1.png": bytes(3 << 20)}, compression=zipfile.ZIP_DEFLATED),
        "would unpack from .* to 3,145,728 bytes: images are not so empty",
    ),
    "zeros in a tar.gz": (
        lambda p: tarred(p / "x.tar.gz", {"cat/1.png": bytes(3 << 20)}, "w:gz"),
        "unpacks to more than 1,048,576",
    ),
    "one name twice": (lambda p: twice(p / "x.zip"), "'cat/1.png' twice"),
    "a file as a folder": (lambda p: zipped(p / "x.zip", {"a": b"x", "a/b": b"x"}), "as a file and a folder"),
    "a zip cut off": (lambda p: cut(zipped(p / "x.zip", FILES)), "not a readable archive"),
    "a tar.gz cut off": (lambda p: cut(tarred(p / "x.tar.gz", FILES, "w:gz")), "not a readable archive"),
    "a tar cut in a file": (
        lambda p: cut(tarred(p / "x.tar", {"a/1.png": os.urandom(20_000)}), 12_000),
        "early|unexpected end|is missing",
    ),
    "a tar cut after a file": (
        lambda p: written(p / "x.tar", tarred(p / "x.tar", FILES).read_bytes()[:2048]), "is missing"
    ),
    "a tar with a damaged header": (lambda p: damaged(tarred(p / "x.tar", FILES)), "its end is missing"),
    "a byte flipped": (lambda p: flipped(zipped(p / "x.zip", FILES)), "not a readable archive: Bad CRC-32"),
    "a header that claims": (lambda p: claiming(p / "x.tar"), "a header claims 42949672"),
    "text": (lambda p: zipped(p / "x.zip", {"a/b.txt": b"x"}), "unpacked into the cache: .*holds no data"),
    "an array": (lambda p: zipped(p / "x.npz", FILES), "has no array called"),
    "gzip of no tar": (lambda p: written(p / "x.csv.gz", gzip.compress(b"a,b")), "not a readable archive"),
    "an xz archive": (lambda p: tarred(p / "x.tar.xz", FILES, "w:xz"), "unpack it and name the folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_an_archive_is_not_trusted(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bivallate.data.unpacking.FREE", 1 << 20)
    make, words = HOSTILE[case]
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in")
    with pytest.raises(UserError, match=words) as told:
        data.load(path, **WITHIN)
    assert path.name in str(told.value)
    assert "\n" not in str(told.value)
    assert [p.name for p in (tmp_path / "in").iterdir()] == [path.name]
    cache = tmp_path / "cache" / "data"
    kept = [p.name for p in cache.iterdir()] if cache.is_dir() else []
    assert kept == [] or case == "text"
    assert not any("evil" in name for _, _, names in os.walk(tmp_path) for name in names)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_in_an_archive_are_left_out_and_said(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"set.{kind}"
    if kind == "zip":
        link = zipfile.ZipInfo("cat/secret.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped(path, FILES)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(link, "/etc/passwd")
    else:
        tarred(path, FILES)
        with tarfile.open(path, "a") as archive:
            entry = tarfile.TarInfo("cat/secret.png")
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    loaded = data.load(path, **WITHIN)
    assert len(loaded.train) + len(loaded.test) == 10
    assert "left out, links and devices in the archive: 1 (cat/secret.png)" in loaded.notes


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    full = type("Usage", (), {"free": 10})
    monkeypatch.setattr("bivallate.data.unpacking.shutil.disk_usage", lambda place: full)
    with pytest.raises(UserError, match=r"set.zip: it needs .* bytes in the cache, where 10 are free"):
        data.load(zipped(tmp_path / "set.zip", FILES), **WITHIN)
