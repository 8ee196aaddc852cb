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
    """Runs searches in parallel, each on its own copy of the model.

    Small networks gain little when one operation is spread over cores, and lose much if one of the cores is
    busy. Points are independent, so one core for each search is faster. The copies share their parameters.
    With one copy or one search, the calling thread works, with its number of threads for each operation.

    Args:
        searcher: the model.
        copies: largest number of searches that run at once; if it is 1, the model itself is used.
    """

    def __init__(self, searcher: nn.Module, copies: int) -> None:
        self._stop = threading.Event()
        self._copies = [searcher] if copies == 1 else [self._copy_of(searcher) for _ in range(copies)]

    @property
    def first_copy(self) -> nn.Module:
        """One of the copies, for a search that runs alone."""
        return self._copies[0]

    def _copy_of(self, searcher: nn.Module) -> nn.Module:
        # deepcopy does not copy objects that its memo already holds. The memo holds the tensors, so that
        # copies share their memory; modules are copied, so that each copy has its own hooks and modes.
        shared = {id(t): t for t in (*searcher.parameters(), *searcher.buffers())}
        made = copy.deepcopy(searcher, shared)
        made.register_forward_pre_hook(self._check_stopped)
        return made

    def _check_stopped(self, *_: object) -> None:
        if self._stop.is_set():
            raise SearchStopped

    def run(self, searches: Sequence[Callable[[nn.Module], Result]]) -> list[Result]:
        """Run all searches and return their results in order."""
        if len(self._copies) == 1 or len(searches) == 1:
            return [search(self._copies[0]) for search in searches]
        threads, free = torch.get_num_threads(), SimpleQueue[nn.Module]()
        for searcher in self._copies:
            free.put(searcher)

        def on_a_free_copy(search: Callable[[nn.Module], Result]) -> Result:
            searcher = free.get()
            try:
                return search(searcher)
            finally:
                free.put(searcher)

        pool = ThreadPoolExecutor(len(self._copies), "bivallate", torch.set_num_threads, (1,))
        try:
            found = [pool.submit(on_a_free_copy, search) for search in searches]
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
