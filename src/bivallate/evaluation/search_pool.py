"""Searches side by side on a processor: one thread and one core each."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import nn

__all__ = ["SearchPool"]

Result = TypeVar("Result")


class SearchStopped(Exception):
    """Raised in a search that is to stop because another has failed."""


class SearchPool:
    """Runs pieces of a search, each on a searcher of its own.

    Small networks gain little when one operation is spread over cores, and lose much where other work holds
    one of them; points are independent, so a core each is faster. The copies share their parameters. A single
    member, or piece, is for the calling thread, with as many threads an operation as before.

    Attributes:
        members: at most so many pieces run at once.
    """

    def __init__(self, searcher: nn.Module, members: int) -> None:
        self.members = members
        self._stop = threading.Event()
        self._members = [searcher] if members == 1 else [self._copy_of(searcher) for _ in range(members)]

    @property
    def first_member(self) -> nn.Module:
        """One of them, which may search alone."""
        return self._members[0]

    def _copy_of(self, searcher: nn.Module) -> nn.Module:
        # deepcopy takes what its memo already holds: modules are new, so that hooks and modes are a member's
        # own, and tensors are the same, so that members share the memory of one
        shared = {id(t): t for t in (*searcher.parameters(), *searcher.buffers())}
        member = copy.deepcopy(searcher, shared)
        member.register_forward_pre_hook(self._check_stopped)
        return member

    def _check_stopped(self, *_: object) -> None:
        if self._stop.is_set():
            raise SearchStopped

    def run(self, pieces: Sequence[Callable[[nn.Module], Result]]) -> list[Result]:
        """What each piece returned, in their order."""
        if self.members == 1 or len(pieces) == 1:
            return [piece(self._members[0]) for piece in pieces]
        threads, free = torch.get_num_threads(), SimpleQueue[nn.Module]()
        for searcher in self._members:
            free.put(searcher)

        def with_a_member(piece: Callable[[nn.Module], Result]) -> Result:
            searcher = free.get()
            try:
                return piece(searcher)
            finally:
                free.put(searcher)

        pool = ThreadPoolExecutor(self.members, "bivallate", torch.set_num_threads, (1,))
        try:
            found = [pool.submit(with_a_member, piece) for piece in pieces]
            failed = (f for f in wait(found, return_when=FIRST_EXCEPTION).done if f.exception())
            for future in failed:
                future.result()
            return [future.result() for future in found]
        except BaseException:
            self._stop.set()  # an interrupt must not wait for searches that nobody will read
            raise
        finally:
            pool.shutdown()
            self._stop.clear()
            torch.set_num_threads(threads)
