"""Draws on a device are those of a processor, to the bit; constants that are kept, and fields filled late."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.device.test_counts import count
from tests.device.trial import tiny

from bivallate import noise
from bivallate.kept_constants import filled_like
from bivallate.noise import Noise
from bivallate.types import Solution

ROWS = 40


def draws(device: str, population: int) -> list[list[float]]:
    """Of a few rows, of every kind."""
    drawn = Noise(3, torch.tensor([5, 0, 39, 7]).to(device), 2, 1, population)
    made = [drawn.uniform("a", (3, 2)), drawn.symmetric("b", (5,), torch.float64, 0.1), drawn.sign("c", ())]
    return [value.cpu().flatten().tolist() for value in made]


@pytest.mark.parametrize("population", [0, ROWS])
def test_a_device_draws_what_a_processor_draws(card, population: int) -> None:
    assert card(draws, "cuda", population) == draws("cpu", 0)


def launches(population: int) -> int:
    """Of one uniform draw in a ball, after the first of the epoch."""
    drawn = Noise(3, torch.tensor([5, 0, 39, 7]).to("cuda"), 2, 1, population)
    return count(lambda: drawn.symmetric("start", (3, 8, 8), radius=0.1))


def test_a_draw_is_a_few_launches(card) -> None:
    assert card(launches, ROWS) <= 19
    assert card(launches, 0) <= 32


def made_anew(name: str, steps: int) -> tuple[int, int]:
    """Purposes for which the first step of an epoch computes words of rows, and the second one."""
    trial, found = tiny(name, "cuda", torch.float32, "tiny-cnn", steps=steps), []
    words, made = noise._words, []
    noise._tables.clear()
    noise._words = lambda key, index: made.append(key) or words(key, index)
    try:
        for _ in range(2):
            trial.step()
            found.append(len(made))
            made.clear()
    finally:
        noise._words = words
    return found[0], found[1]


@pytest.mark.parametrize(("name", "steps", "purposes"), [("fat", 10, 10), ("fat-l2", 20, 22), ("at", 10, 1)])
def test_the_words_of_rows_are_computed_once_an_epoch(card, name: str, steps: int, purposes: int) -> None:
    """FAT has the most purposes in a step of all methods: one for the jitter of each attack step."""
    assert card(made_anew, name, steps) == (purposes, 0)


def test_tables_of_words_take_limited_memory(monkeypatch) -> None:
    monkeypatch.setattr(noise, "_tables", {})
    monkeypatch.setattr(noise, "_KEPT", 100)
    device = torch.device("cpu")
    first = noise._table(0, 30, device)
    for key in range(1, 5):
        noise._table(key, 30, device)
        assert noise._table(0, 30, device) is first  # used last, kept longest
        assert sum(map(len, noise._tables.values())) <= 100
    assert len(noise._tables) == 3
    noise._table(0, 99, device)
    assert [population for _, population, _ in noise._tables] == [99]
    for key in range(100):
        noise._table(key, 1, device)
    assert len(noise._tables) == noise._TABLES


def test_a_kept_constant_that_was_written_to_is_given_to_nobody_else() -> None:
    like = torch.zeros(3, dtype=torch.float64)
    first = filled_like(like, 7)
    assert filled_like(like, 7) is first
    first += 1
    assert filled_like(like, 7).tolist() == [7, 7, 7]
    assert filled_like(like.float(), 7).dtype == torch.float32
    with torch.inference_mode():
        assert not filled_like(torch.zeros(4), 7).is_inference()
    for rows in range(5, 60):  # not for ever
        filled_like(torch.zeros(rows), 7)
    assert filled_like(like, 7) is not first


def test_a_solution_counts_when_it_is_asked() -> None:
    asked = []
    zero = torch.zeros(2)

    def later() -> torch.Tensor:
        asked.append(True)
        return zero + 1

    solution = Solution(zero, zero, later, zero).but(helper=zero)
    assert solution.helper is zero
    assert not asked
    assert solution.kappa.tolist() == solution.kappa.tolist() == [1, 1]
    assert len(asked) == 1
    assert replace(solution, helper=zero).kappa.tolist() == [1, 1]
    with pytest.raises(TypeError, match="kappa"):
        Solution(zero, zero)  # pyright: ignore[reportCallIssue]
