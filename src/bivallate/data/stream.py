"""Stream images: they stay encoded on disk, and worker processes decode them as minibatches need them.

Only whole blocks (row groups of Parquet files) can be read. The order is therefore random over blocks and,
within windows of many blocks, over rows: not a full shuffle. It depends on (seed, epoch) alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bivallate.data.decode import Blocks, Encoded, common_canvas, sample_notes
from bivallate.data.image import BadImage, pixels, quiet
from bivallate.data.reading import Canvas, Reading
from bivallate.data.workers import WorkersLost, start, submit
from bivallate.errors import UserError
from bivallate.noise import permutation

__all__ = ["Stream"]

WINDOW_BYTES = 1 << 29  # decoded bytes of a window, whose images are shuffled together; two are in memory


class Stream:
    """A store (M, C, H, W) of uint8 images that are decoded when they are read.

    Indexing decodes only the given rows, but reads their whole blocks; minibatches are read by `ahead`.

    Args:
        encoded: the images as they are on disk, and their labels.
        reading: how to decode them.
        workers: processes that decode ahead; default one for each CPU, at most 8; 0 decodes in this process.
            They are spawned, so a script must keep its work under `if __name__ == "__main__":`.

    Attributes:
        notes: for the user, from a sample of the images.

    Raises:
        UserError: images that are nearly black or all equal; or on_bad="skip", which would have to read all
            rows first. Reading raises it for a row that cannot be used.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, encoded: Encoded, reading: Reading, workers: int | None = None) -> None:
        if reading.on_bad == "skip":
            raise UserError(
                "bad rows of a streamed set cannot be skipped: use on_bad='convert', or stream=False"
            )
        with quiet():
            canvas = common_canvas(encoded, reading)
        self.notes = tuple(sample_notes(encoded, canvas, reading))
        self.shape = (len(encoded.labels), *canvas.shape)
        self.sizes = encoded.blocks.sizes
        self.decoder = Decoder(encoded.blocks, encoded.title, canvas, reading)
        self.starts = np.cumsum([0, *self.sizes])
        self.workers = min(8, os.cpu_count() or 1) if workers is None else workers

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        chosen = np.atleast_1d(np.arange(self.shape[0])[rows])
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        owner = self._block(chosen)
        for block in np.unique(owner):
            here = np.flatnonzero(owner == block)
            images[here] = self.decoder(int(block), chosen[here], int(self.starts[block]))
        return images

    def order(self, index: Tensor, seed: int, epoch: int) -> Tensor:
        """The order in which an epoch visits `index`, as (n,) positions in it.

        One window of blocks comes after the other, each shuffled by rows.
        """
        count = len(self.sizes)
        place = np.empty(count, np.int64)
        place[permutation(seed, "shuffle blocks", epoch, count).numpy()] = np.arange(count)
        blocks = torch.from_numpy(self._block(index.numpy()))
        window = torch.from_numpy(place // self._window_blocks())[blocks]
        rank = torch.empty(len(index), dtype=torch.int64)
        rank[permutation(seed, "shuffle", epoch, len(index))] = torch.arange(len(index))
        return (window * len(index) + rank).argsort()

    def ahead(self, minibatches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the images of each minibatch (rows of the store); workers decode the next ones meanwhile."""
        if self.workers == 0:
            yield from (self[rows] for rows in minibatches)
            return
        minibatches = list(minibatches)
        wanted = self._wanted(minibatches)
        with start(self.workers, _set_decoder, self.decoder) as pool:
            try:
                yield from self._serve(pool, minibatches, wanted)
            except BrokenProcessPool:
                raise WorkersLost(
                    "a worker that decodes images was killed or did not start: keep the script's work under "
                    "`if __name__ == '__main__':`, or free memory"
                ) from None
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _wanted(self, minibatches: list[np.ndarray]) -> dict[int, tuple[int, int, np.ndarray]]:
        """Block -> (first minibatch that uses it, last one, its rows), in the order of first use."""
        rows = np.concatenate(minibatches) if minibatches else np.empty(0, np.int64)
        step = np.repeat(np.arange(len(minibatches)), [len(m) for m in minibatches])
        owner = self._block(rows)
        by_block = np.argsort(owner, kind="stable")
        found: dict[int, tuple[int, int, np.ndarray]] = {}
        for members in np.split(by_block, np.flatnonzero(np.diff(owner[by_block])) + 1):
            if len(members):
                first, last = int(step[members[0]]), int(step[members[-1]])
                found[int(owner[members[0]])] = first, last, np.sort(rows[members])
        return dict(sorted(found.items(), key=lambda entry: entry[1][0]))

    def _serve(
        self,
        pool: ProcessPoolExecutor,
        minibatches: list[np.ndarray],
        wanted: dict[int, tuple[int, int, np.ndarray]],
    ) -> Iterator[np.ndarray]:
        queue = list(wanted)
        pending: dict[int, Future[np.ndarray]] = {}
        limit = 2 * self._window_blocks() + self.workers
        for step, rows in enumerate(minibatches):
            owner = self._block(rows)
            while queue and (len(pending) < limit or wanted[queue[0]][0] <= step):
                block = queue.pop(0)
                pending[block] = submit(pool, _decode, block, wanted[block][2], int(self.starts[block]))
            images = np.empty((len(rows), *self.shape[1:]), np.uint8)
            for block in np.unique(owner):
                here = np.flatnonzero(owner == block)
                decoded = pending[int(block)].result()
                images[here] = decoded[np.searchsorted(wanted[int(block)][2], rows[here])]
            yield images
            for block in [b for b in pending if wanted[b][1] <= step]:
                del pending[block]

    def _block(self, rows: np.ndarray) -> np.ndarray:
        """The block of each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def _window_blocks(self) -> int:
        """Number of blocks that are shuffled together; at least two."""
        image = int(np.prod(self.shape[1:]))
        per_block = max(1, self.shape[0] // len(self.sizes)) * image
        return max(2, WINDOW_BYTES // per_block)


@dataclass(frozen=True)
class Decoder:
    """Decodes rows of one block; it is sent to each worker once."""

    blocks: Blocks
    title: str
    canvas: Canvas
    reading: Reading

    def __call__(self, block: int, rows: np.ndarray, start: int) -> np.ndarray:
        """(len(rows), C, H, W): the given rows, all of the block that begins at row `start`."""
        images = np.empty((len(rows), *self.canvas.shape), np.uint8)
        with quiet():
            items = self.blocks.read(block)
            for k, row in enumerate(rows.tolist()):
                try:
                    images[k] = pixels(items[row - start], self.canvas, self.reading).array
                except BadImage as bad:
                    where = f"{self.title}: {self.blocks.where(row)}"
                    raise UserError(f"{where} {bad}; mend it, or load without streaming") from bad
        return images


_decoder: Decoder | None = None  # of a worker process, set once when it starts


def _set_decoder(decoder: Decoder) -> None:
    global _decoder
    _decoder = decoder


def _decode(block: int, rows: np.ndarray, start: int) -> np.ndarray:
    assert _decoder is not None
    return _decoder(block, rows, start)
