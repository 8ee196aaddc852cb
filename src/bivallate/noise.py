"""Randomness as a pure function of (seed, purpose, epoch, turn, row).

A generator object would tie an example's noise to its place in the minibatch. Here every row of the data has
its own counter-based stream, so permuting a batch, changing its size, compacting it or splitting it over
devices changes nobody's noise, a resumed run needs no generator state, and every device draws the same
numbers.
"""

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
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
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (bits - shift)) - 1))
        if factor:
            z.mul_(_signed(factor, bits))
    return z


_ROUNDS_64 = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0))
_ROUNDS_32 = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 0))


@dataclass(frozen=True)
class Noise:
    """Draws for the rows of one minibatch.

    Equal arguments give equal numbers, wherever and in whatever order.

    Attributes:
        seed: of the run.
        index: (B,) int64, rows in the data set; the only thing that tells examples apart.
        epoch: pass over the data.
        turn: what distinguishes draws within an epoch: a replay, a restart, or a cycle of a second stream.

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

    def _bits(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        key = 0
        for part in (self.seed, zlib.crc32(purpose.encode()), self.epoch, self.turn):
            key = _mix((key + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK)
        rows = self.index.long() * _signed(0x9E3779B97F4A7C15) + _signed(key)
        rows = _avalanche(rows, _ROUNDS_64, 64)
        low, high = rows.to(torch.int32), (rows >> 32).to(torch.int32)
        cells = torch.arange(math.prod(shape), dtype=torch.int32, device=rows.device) * _signed(
            0x9E3779B9, 32
        )
        z = _avalanche(cells + low[:, None], _ROUNDS_32, 32).bitwise_xor_(high[:, None])
        return _avalanche(z, _ROUNDS_32, 32).view(-1, *shape)

    def uniform(self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) uniform on the open interval (0, 1); the same values in every floating dtype."""
        kept = self._bits(purpose, shape).bitwise_right_shift_(32 - _BITS).bitwise_and_((1 << _BITS) - 1)
        return kept.to(dtype).add_(0.5).mul_(2.0**-_BITS)

    def sign(self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) of -1 and +1, each with probability one half."""
        return (self.uniform(purpose, shape, dtype) - 0.5).sign()

    def normal(self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) standard normal, by inversion of the distribution function (|value| below 5.3)."""
        return torch.erfinv(2 * self.uniform(purpose, shape, dtype) - 1) * math.sqrt(2)

    def integers(self, purpose: str, low: int, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) int64, uniform on low, ..., high - 1."""
        span = high - low
        return low + (self.uniform(purpose, shape, torch.float64) * span).long().clamp_(max=span - 1)


def permutation(seed: int, purpose: str, epoch: int, n: int) -> Tensor:
    """(n,) a permutation of 0, ..., n - 1 that depends on (seed, purpose, epoch) alone."""
    return Noise(seed, torch.arange(n), epoch)._bits(purpose, ()).argsort(stable=True)
