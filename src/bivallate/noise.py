"""Randomness as a pure function of (seed, purpose, epoch, turn, row).

A generator object would tie an example's noise to its place in the minibatch. Here every row of the data has
its own counter-based stream, so permuting a batch, changing its size, compacting it or splitting it over
devices changes nobody's noise, a resumed run needs no generator state, and every device draws the same
numbers.
"""

import math
import sys
import zlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_TABLED = 1 << 21  # most rows of a data set whose words are kept on a device, of 8 bytes each
_TABLES = 64  # most tables of words; a step needs one for each purpose and turn that it draws for
_KEPT = 1 << 24  # most rows of all tables, 128 MiB
_BITS = 23  # (k + 1/2) / 2^23 is exact in float32 and never 0 or 1


def _mix(value: int) -> int:
    """Splitmix64's finaliser on a Python integer."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _signed(value: int, bits: int = 64) -> int:
    return value - (1 << bits) if value >= 1 << (bits - 1) else value


def _avalanche(z: Tensor, rounds: tuple[tuple[int, int], ...], bits: int) -> Tensor:
    """Xor-shift-multiply rounds in place on an integer tensor.

    Products wrap; a mask makes the shifts logical.
    """
    for shift, factor in rounds:
        if 2 * shift == bits == 32:
            _fold(z.view(torch.int16))
        elif shift:
            z.bitwise_xor_((z >> shift).bitwise_and_((1 << (bits - shift)) - 1))
        if factor:
            z.mul_(_signed(factor, bits))
    return z


def _fold(halves: Tensor) -> None:
    """z ^= z >> 16 for numbers z of 32 bits that are seen as halves: one launch instead of three."""
    halves[..., _LOW::2].bitwise_xor_(halves[..., _HIGH::2])


_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)
_ROUNDS_64 = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0))
_ROUNDS_32 = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 0))
# Two times all rounds with k ^ in between: z ^= z >> 16 undoes itself, so that the last round of the first
# time and the first round of the second are one z ^= k ^ (k >> 16), which is computed for a row once.
_BEFORE_32, _AFTER_32 = _ROUNDS_32[:-1], ((0, _ROUNDS_32[0][1]), *_ROUNDS_32[1:])


def _words(key: int, index: Tensor) -> Tensor:
    """(B, 2) int32, what a key gives each row: at _LOW a word, at _HIGH another one, k ^ (k >> 16)."""
    mixed = torch.add(torch.tensor(_signed(key)), index.long(), alpha=_signed(0x9E3779B97F4A7C15))
    words = _avalanche(mixed, _ROUNDS_64, 64).view(torch.int32).view(-1, 2)
    _fold(words.view(torch.int16)[:, 2 * _HIGH : 2 * _HIGH + 2])
    return words


_tables: dict[tuple[int, int, torch.device], Tensor] = {}  # the one used last is the last


def _table(key: int, population: int, device: torch.device) -> Tensor:
    """The words of all rows of a data set on a device, where one launch then finds those of a minibatch."""
    words = _tables.pop((key, population, device), None)
    if words is None:
        words = _words(key, torch.arange(population, device=device))
        while _tables and (len(_tables) >= _TABLES or population + sum(map(len, _tables.values())) > _KEPT):
            del _tables[next(iter(_tables))]
    _tables[key, population, device] = words
    return words


@lru_cache(maxsize=8)
def _counters(cells: int, device: torch.device) -> Tensor:
    """(cells,) int32, what tells the cells of a row apart."""
    return torch.arange(cells, dtype=torch.int32, device=device) * _signed(0x9E3779B9, 32)


@dataclass(frozen=True)
class Noise:
    """Draws for the rows of one minibatch.

    Equal arguments give equal numbers, wherever and in whatever order.

    Attributes:
        seed: of the run.
        index: (B,) int64, rows in the data set; the only thing that tells examples apart.
        epoch: pass over the data; in an evaluation a number for the stage (a hash of its name).
        turn: a number that sets apart what a row draws several times in an epoch. In training it is the
            replay of the minibatch, 0, 1, ...; from 2^32 on it counts the uses of a second data stream
            (`weighting.lookahead`). In an evaluation it is the restart, or the target. Measurements beside
            the training have negative numbers of their own.
        population: rows of the data set, all of `index` below it, where that is known, else 0. It changes no
            number; on a device what belongs to the rows is then computed once an epoch.

    Example:
        >>> noise = Noise(seed=0, index=torch.tensor([7, 3]))
        >>> swapped = Noise(seed=0, index=torch.tensor([3, 7]))
        >>> torch.equal(noise.uniform("start", (4,)), swapped.uniform("start", (4,)).flip(0))
        True
    """

    seed: int
    index: Tensor
    epoch: int = 0
    turn: int = 0
    population: int = 0

    def _bits(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        key = 0
        for part in (self.seed, zlib.crc32(purpose.encode()), self.epoch, self.turn):
            key = _mix((key + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK)
        device = self.index.device
        if 0 < self.population <= _TABLED and device.type != "cpu":
            words = _table(key, self.population, device).index_select(0, self.index)
        else:
            words = _words(key, self.index)
        z = _counters(math.prod(shape), device) + words[:, _LOW, None]
        z = _avalanche(z, _BEFORE_32, 32).bitwise_xor_(words[:, _HIGH, None])
        return _avalanche(z, _AFTER_32, 32).view(-1, *shape)

    def _level(self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype, plus: float) -> Tensor:
        """(B, *shape) k + plus, k uniform on 0, ..., 2^23 - 1."""
        kept = self._bits(purpose, shape).bitwise_right_shift_(32 - _BITS).bitwise_and_((1 << _BITS) - 1)
        if kept.device.type == "cpu":
            return kept.to(dtype).add_(plus)
        return torch.add(torch.tensor(plus, dtype=dtype), kept)  # the same in one launch

    def uniform(self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) uniform on the open interval (0, 1); the same values in every floating dtype."""
        return self._level(purpose, shape, dtype, 0.5).mul_(2.0**-_BITS)

    def symmetric(
        self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, radius: float = 1.0
    ) -> Tensor:
        """(B, *shape) uniform on (-radius, radius): radius (2 u - 1) of the same u, to the bit."""
        return self._level(purpose, shape, dtype, 0.5 - 2.0 ** (_BITS - 1)).mul_(radius * 2.0 ** (1 - _BITS))

    def sign(self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) of -1 and +1, each with probability one half."""
        return self.symmetric(purpose, shape, dtype).sign_()

    def normal(self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) standard normal, by inversion of the distribution function (|value| below 5.3)."""
        return self.symmetric(purpose, shape, dtype).erfinv_().mul_(math.sqrt(2))

    def integers(self, purpose: str, low: int, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) int64, uniform on low, ..., high - 1."""
        span = high - low
        return low + (self.uniform(purpose, shape, torch.float64) * span).long().clamp_(max=span - 1)


def permutation(seed: int, purpose: str, epoch: int, n: int) -> Tensor:
    """(n,) a permutation of 0, ..., n - 1 that depends on (seed, purpose, epoch) alone."""
    return Noise(seed, torch.arange(n), epoch)._bits(purpose, ()).argsort(stable=True)
