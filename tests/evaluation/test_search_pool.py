"""A search in several threads changes neither verdicts nor counts, and an interrupt ends it at once."""

import time

import pytest
import torch
from torch import nn

import bivallate as bv
from bivallate.evaluation import new_runner, runner
from bivallate.evaluation.named_attacks import Attack, auto_pgd, square, targeted_auto_pgd
from bivallate.evaluation.search_pool import SearchPool
from bivallate.lower.square import Square


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("attack", ["apgd-ce-10", "apgd-t-10", "fab-t-10", "square-60"])
def test_shares_give_the_same_verdicts(attack, threads, monkeypatch):
    monkeypatch.setattr(new_runner, "WORTH", 0)
    monkeypatch.setattr(runner, "LEAST", 1)
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)
    model = nn.Sequential(*layers).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x, threat = torch.rand(50, 1, 8, 8, dtype=torch.float64), bv.Linf(0.03)
    y = model(x).argmax(1)
    scores = []
    for count in (1, 3):
        threads(count)
        scores.append(bv.evaluate(model, (x, y), threat, attack))
        assert torch.get_num_threads() == count
    one, three = scores
    assert 0 < one.robust_accuracy < 1
    assert torch.equal(one.broken_at, three.broken_at)
    assert torch.equal(one.predicted, three.predicted)
    assert torch.allclose(one.margin, three.margin, atol=1e-9)


def test_small_work_stays_in_one_thread(threads, monkeypatch):
    monkeypatch.setattr(new_runner, "WORTH", 0)
    threads(2)
    pieces, run = [], SearchPool.run
    monkeypatch.setattr(
        SearchPool, "run", lambda searchers, given: (pieces.append(len(given)), run(searchers, given))[1]
    )
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.rand(20, 1, 8, 8)
    data = x, model(x).argmax(1)
    for least in (64 * 3 * 10, 64 * 3 * 20 + 1):
        monkeypatch.setattr(runner, "LEAST", least)
        bv.evaluate(model, data, bv.Linf(1e-6), "pgd-3")
    assert pieces == [2, 1]


def test_pieces_come_back_in_order_whatever_their_number():
    searchers = SearchPool(nn.Linear(2, 2), 2)
    pieces = [lambda searcher, i=i: (time.sleep(0.01 * (i == 0)), i)[1] for i in range(5)]
    assert searchers.run(pieces) == [0, 1, 2, 3, 4]


def test_members_share_parameters():
    searcher = nn.Linear(2, 2)
    searchers = SearchPool(searcher, 2)
    assert searchers.run([lambda s: s.weight.data_ptr()] * 2) == [searcher.weight.data_ptr()] * 2


def test_when_one_piece_fails_the_others_stop():
    searchers, seen = SearchPool(nn.Linear(2, 2), 2), []

    def fails(searcher: nn.Module) -> None:
        raise ValueError("broken")

    def endless(searcher: nn.Module) -> None:
        for _ in range(3000):
            searcher(torch.zeros(1, 2))
            seen.append(1)
            time.sleep(0.002)

    with pytest.raises(ValueError, match="broken"):
        searchers.run([endless, fails])
    assert len(seen) < 3000
    assert searchers.run([lambda s: 1]) == [1]


class Standardised(nn.Module):
    """Reads the weights of a first layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x):
        weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
        return self.head(nn.functional.conv2d(x, weight).relu().flatten(1))


def test_a_model_that_reads_its_layers_weights_is_evaluated(monkeypatch, threads):
    threads(2)
    model, x, y = Standardised(), torch.rand(20, 1, 8, 8), torch.zeros(20, dtype=torch.int64)
    slow = bv.evaluate(model, (x, y), bv.Linf(0.02), "pgd-3")
    monkeypatch.setattr(new_runner, "WORTH", 0)
    assert torch.equal(bv.evaluate(model, (x, y), bv.Linf(0.02), "pgd-3").robust, slow.robust)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Flatten(0)),
        nn.Conv2d(1, 3, 8),
        nn.Sequential(nn.Conv2d(1, 3, 8), nn.Unflatten(1, (3, 1))),
    ],
)
def test_a_model_of_the_wrong_shape_is_told_so(model, monkeypatch):
    monkeypatch.setattr(new_runner, "WORTH", 0)
    with pytest.raises(bv.UserError, match="logits"):
        bv.evaluate(model, (torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)), bv.Linf(0.1), "pgd-3")


def test_functions_and_hooked_modules_are_searched_by_one_thread(monkeypatch, threads):
    threads(2)
    monkeypatch.setattr(new_runner, "WORTH", 0)
    asked = []
    monkeypatch.setattr(new_runner, "_searchers", lambda one, n: (asked.append(n), SearchPool(one, n))[1])
    x, y = torch.rand(20, 1, 8, 8), torch.zeros(20, dtype=torch.int64)
    plain, hooked = (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2))
    hooked[1].register_forward_hook(lambda module, inputs, output: None)
    for model in (plain, hooked, lambda x: plain(x)):
        bv.evaluate(model, (x, y), bv.Linf(0.1), "pgd-3")
    assert asked == [2, 1, 1]


def test_a_resumed_search_keeps_the_shares_of_the_first(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(new_runner, "WORTH", 0)
    monkeypatch.setattr(runner, "LEAST", 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.rand(60, 1, 8, 8)
    y = model(x).argmax(1)

    def stops(moment):
        if moment.stage == "apgd-ce":
            raise KeyboardInterrupt

    parts = auto_pgd(), targeted_auto_pgd(), square(Square(300))
    attack = Attack("short", parts)
    threads(3)
    whole = bv.evaluate(model, (x, y), bv.Linf(0.03), attack, batch_size=40)
    with pytest.raises(KeyboardInterrupt):
        bv.evaluate(
            model,
            (x, y),
            bv.Linf(0.03),
            attack,
            batch_size=40,
            progress=stops,
            resume=tmp_path / "kept",
        )
    threads(1)
    again = bv.evaluate(model, (x, y), bv.Linf(0.03), attack, batch_size=40, resume=tmp_path / "kept")
    assert torch.equal(again.broken_at, whole.broken_at)
    assert torch.allclose(again.margin, whole.margin, atol=1e-5)
