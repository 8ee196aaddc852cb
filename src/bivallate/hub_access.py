"""Turn errors of the hub's client into UserErrors, and check the files that it has downloaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bivallate.errors import UserError, listed

__all__ = ["check_fetched", "discard_damaged", "hub_errors"]

HTTP = {"httpx", "httpcore", "httpx2", "httpcore2", "requests", "urllib3"}  # of the client's versions
SHA256 = re.compile(r"[0-9a-f]{64}")


@contextmanager
def hub_errors(repo: str, kind: str, out_of_reach: str) -> Iterator[None]:
    """Turn what the hub's client raises into UserErrors.

    Args:
        repo: owner/name. kind: "data set" or "model". out_of_reach: message for a hub that cannot be reached,
            with {why} in it.
    """
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise UserError(f"hub:{repo} is no name that the hub could have: {error}") from None
    except GatedRepoError:
        raise UserError(
            f"hub:{repo} asks you to accept its terms: do so on its page, then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"there is no {kind} {repo} on the hub (or it is private: `hf auth login`)") from None
    except Exception as error:  # connection errors of every kind are OSErrors, or of the client's library
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in HTTP:
            raise UserError(out_of_reach.format(why=_said(error))) from None
        raise


def _said(error: Exception) -> str:
    """The error's name and its first line."""
    first = (str(error).strip() or "no more is known").splitlines()[0]
    return f"{type(error).__name__}: {first}"


def check_fetched(folder: Path, repo: str) -> None:
    """Compare the files of a snapshot with their SHA-256, which is their name in the client's cache.

    Small files, which the cache names otherwise, are not compared. Raises UserError for damaged files and
    removes them, so that they are downloaded again.
    """
    kept = [(file, file.resolve().name) for file in sorted(folder.rglob("*")) if file.is_file()]
    discard_damaged([(file, name) for file, name in kept if SHA256.fullmatch(name)], repo)


def discard_damaged(expected: Iterable[tuple[Path, str]], repo: str) -> None:
    """Remove the files whose SHA-256 is not the expected one.

    Raises UserError that names them, if there are any.
    """
    damaged = [file for file, wanted in expected if digest(file) != wanted]
    for file in damaged:
        file.resolve().unlink()
    if damaged:
        names = listed([file.name for file in damaged])
        raise UserError(f"{names} of hub:{repo} was damaged on the way and is removed: run again")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
