"""Searching side by side changes neither verdicts nor counts, and an interrupt ends it at once."""

import time

import pytest
import torch
from torch import nn

import bivallate as bv
from bivallate.evaluate import evaluating
from bivallate.evaluate.crew import Crew


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("attack", ["apgd-ce-10", "apgd-t-10", "fab-t-10", "square-60"])
def test_shares_give_the_same_verdicts(attack, threads, monkeypatch):
    monkeypatch.setattr(evaluating, "WORTH", 0)
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
    assert torch.equal(one.stage, three.stage)
    assert torch.equal(one.predicted, three.predicted)
    assert torch.allclose(one.margin, three.margin, atol=1e-9)


def test_pieces_come_back_in_order_whatever_their_number():
    crew = Crew(nn.Linear(2, 2), 2)
    pieces = [lambda scout, i=i: (time.sleep(0.01 * (i == 0)), i)[1] for i in range(5)]
    assert crew.run(pieces) == [0, 1, 2, 3, 4]


def test_members_share_parameters():
    scout = nn.Linear(2, 2)
    crew = Crew(scout, 2)
    assert crew.run([lambda s: s.weight.data_ptr()] * 2) == [scout.weight.data_ptr()] * 2


def test_when_one_piece_fails_the_others_stop():
    crew, seen = Crew(nn.Linear(2, 2), 2), []

    def fails(scout: nn.Module) -> None:
        raise ValueError("broken")

    def endless(scout: nn.Module) -> None:
        for _ in range(3000):
            scout(torch.zeros(1, 2))
            seen.append(1)
            time.sleep(0.002)

    with pytest.raises(ValueError, match="broken"):
        crew.run([endless, fails])
    assert len(seen) < 3000
    assert crew.run([lambda s: 1]) == [1]
