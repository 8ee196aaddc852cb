"""Run searches in parallel on a CPU, one thread and one core each."""

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
    """Raised in a search that must stop because another one has failed."""


class SearchPool:
    """Runs pieces of a search in parallel, each on its own copy of the model.

    Small networks gain little when one operation is spread over cores, and lose much if one of the cores is
    busy. Points are independent, so one core for each piece is faster. The copies share their parameters.
    With one member or one piece, the calling thread works, with its number of threads for each operation.

    Attributes:
        members: largest number of pieces that run at once.
    """

    def __init__(self, searcher: nn.Module, members: int) -> None:
        self.members = members
        self._stop = threading.Event()
        self._members = [searcher] if members == 1 else [self._copy_of(searcher) for _ in range(members)]

    @property
    def first_member(self) -> nn.Module:
        """One of the copies, for a search that runs alone."""
        return self._members[0]

    def _copy_of(self, searcher: nn.Module) -> nn.Module:
        # deepcopy does not copy objects that its memo already holds. The memo holds the tensors, so that
        # members share their memory; modules are copied, so that each member has its own hooks and modes.
        shared = {id(t): t for t in (*searcher.parameters(), *searcher.buffers())}
        member = copy.deepcopy(searcher, shared)
        member.register_forward_pre_hook(self._check_stopped)
        return member

    def _check_stopped(self, *_: object) -> None:
        if self._stop.is_set():
            raise SearchStopped

    def run(self, pieces: Sequence[Callable[[nn.Module], Result]]) -> list[Result]:
        """Run all pieces and return their results in order."""
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
            self._stop.set()  # after an error or interrupt, end the other searches at their next forward pass
            raise
        finally:
            pool.shutdown()
            self._stop.clear()
            torch.set_num_threads(threads)
