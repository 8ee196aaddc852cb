"""A network that normalises its input in place gives the same results as one that does not."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

import bivallate as bv
from bivallate import data
from bivallate.errors import UserError
from bivallate.evaluation import eps_curve, minimal_distances, transfer
from bivallate.evaluation.preflight import preflight
from bivallate.lower.input_guard import call_unharmed, writes_to_input
from bivallate.reports.diagnostics import landscape, ranks
from bivallate.run.config import Validation

THREAT = bv.Linf(0.1)


class Twin(nn.Module):
    """Standardises its images, then looks at them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.head = nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self._rest((x - 0.3) / 0.5)

    def _rest(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.stem(x))).flatten(1))


class Overwriting(Twin):
    def forward(self, x: Tensor) -> Tensor:
        return self._rest(x.sub_(0.3).div_(0.5))


class BehindTheBack(Twin):
    """Writes where no version is counted."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            return super().forward(x)
        x.data.sub_(0.3).div_(0.5)
        return self._rest(x)


class Learned(Twin):
    """Writes in train mode alone."""

    def forward(self, x: Tensor) -> Tensor:
        return self._rest(x.sub_(0.3).div_(0.5)) if self.training else super().forward(x)


def made(kind: type[Twin]) -> Twin:
    torch.manual_seed(0)
    model = kind()
    images = data.load("digits").train.tensors(torch.arange(400))
    twin = Twin()
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(twin.parameters(), 0.01)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(images[0]), images[1]).backward()
        optimizer.step()
    model.load_state_dict(twin.state_dict())
    return model.eval()


@pytest.fixture(autouse=True)
def _with_a_scout(monkeypatch):
    monkeypatch.setattr(sys.modules["bivallate.evaluation.new_runner"], "WORTH", 0)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    found = data.load("digits")
    return found.but(train=found.train.subset(slice(0, 150)))


@pytest.fixture(scope="module")
def points(digits: data.Dataset) -> tuple[Tensor, Tensor]:
    return digits.test.tensors(torch.arange(30))


def verdicts(score: bv.Score) -> list[Tensor]:
    return [score.robust, score.margin, score.predicted]


def trained(method: str, **parameters):
    def run(model, points, digits):
        chosen = getattr(bv.methods, method)(THREAT, **parameters)
        settings = {"batch_size": 37, "threads": 1, "validation": Validation(2, 60), "average": 0.5}
        model = copy.deepcopy(model)
        model.stem_name = "stem"
        done = bv.train(model, digits, chosen, epochs=1, lr=0.05, **settings)
        kept = ("loss", "clean", "robust", "train_robust", "average_robust", "watched_clean")
        return [{k: done.history[0][k] for k in kept if k in done.history[0]}, *done.model.parameters()]

    return run


def curve(model, points, digits):
    return [v for s in eps_curve(model, points, "linf", [0.02, 0.2], "pgd-3").values() for v in verdicts(s)]


def picture(model, points, digits):
    return landscape.loss_landscape(model, points, THREAT, n=1, size=5).data()["loss"].tolist()


def audited(model, points, digits):
    found = bv.audit(model, points, THREAT, budget_passes=3e4)
    return [found.verdict, found.accuracy]


ENTRIES = {
    "evaluate": lambda m, p, d: verdicts(bv.evaluate(m, p, THREAT, "pgd-5-2")),
    "targeted": lambda m, p, d: verdicts(bv.evaluate(m, p, THREAT, "apgd-t-4-2", first=12)),
    "boundary": lambda m, p, d: verdicts(bv.evaluate(m, p, THREAT, "fab-t-4-2", first=12)),
    "square": lambda m, p, d: verdicts(bv.evaluate(m, p, THREAT, "square-60")),
    "l2": lambda m, p, d: verdicts(bv.evaluate(m, p, bv.L2(0.5), "apgd-ce-10")),
    "attack": lambda m, p, d: bv.attack(m, *p, THREAT, "pgd-5"),
    "curve": curve,
    "distances": lambda m, p, d: minimal_distances(m, p, "linf", steps=5),
    "transfer": lambda m, p, d: verdicts(transfer(copy.deepcopy(m), m, p, THREAT, "pgd-5")),
    "landscape": picture,
    "ranks": lambda m, p, d: ranks.adversarial_rank({"a": m}, p, THREAT, attack="pgd-5").data(),
    "given": lambda m, p, d: ranks.transfer({"a": m, "b": m}, p, THREAT, attack="pgd-5").data(),
    "audit": audited,
    "preflight": lambda m, p, d: [preflight(m, p, THREAT).clean, preflight(m, p, THREAT).near],
    "gradient": lambda m, p, d: bv.upper_gradient(m, bv.methods.trades(THREAT, steps=2), p),
    "coupled": lambda m, p, d: bv.upper_gradient(m, bv.methods.fast_bat(THREAT, step_size=1.0), p),
    "train": trained("at", steps=2),
    "train-trades": trained("trades", steps=2),
    "train-done": trained("done_adam", steps=2),
    "train-free": trained("free_at", replays=2),
    "train-bilaw": trained("bilaw", steps=2),
    "train-mail": trained("mail_at", steps=2),
}


def same(a, b) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return a == b


@pytest.fixture(scope="module")
def expected(points, digits):
    kept = {}

    def of(name: str):
        if name not in kept:
            kept[name] = ENTRIES[name](made(Twin), points, digits)
        return kept[name]

    return of


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_gives_what_the_honest_twin_gives(name, points, digits, expected):
    before = [t.clone() for t in (*points, *digits.train.tensors(torch.arange(150)))]
    found = ENTRIES[name](made(Overwriting), points, digits)
    assert same(found, expected(name))
    after = (*points, *digits.train.tensors(torch.arange(150)))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", [BehindTheBack, Learned])
@pytest.mark.parametrize("name", ["evaluate", "attack", "train", "gradient"])
def test_nor_where_it_hides(kind, name, points, digits, expected):
    assert same(ENTRIES[name](made(kind), points, digits), expected(name))


@pytest.mark.parametrize(("kind", "named"), [(Twin, False), (Overwriting, True), (BehindTheBack, True)])
def test_preflight_names_it(kind, named, points):
    found = preflight(made(kind), points, THREAT)
    assert (found.named("in-place") is not None) == named
    assert found.ok
    assert ("x.sub_(mean)" in str(found)) == named


def test_an_honest_network_is_given_the_tensor_itself(points):
    seen = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0] is points[0]))
    for _ in range(3):
        call_unharmed(model, points[0])
    assert seen == [False, True, True]
    assert not writes_to_input(model)


def test_one_that_begins_to_write_later_is_refused(points):
    class Later(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.mul_(2).flatten(1) if self.calls > 2 else x.flatten(1)

    model, x = Later(), points[0].clone()
    assert torch.equal(call_unharmed(model, x), call_unharmed(model, x))
    with pytest.raises(UserError, match="Later changed its input in place"):
        call_unharmed(model, x)


def test_images_made_in_inference_mode_are_kept_too(points):
    model = made(Overwriting)
    with torch.inference_mode():
        x = points[0].clone()
        found = [call_unharmed(model, x) for _ in range(2)]
        assert torch.equal(found[0], found[1])
    assert torch.equal(x, points[0])
