"""Models that look more robust than they are, each in a few lines, and honest ones.

The benchmark `python -m benchmarks.villains` runs them all over five seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bivallate as bv
from bivallate import models
from bivallate.method import Method, facts_for

THREAT = bv.Linf(0.1)
LARGE = bv.Linf(0.2)  # plain training keeps nothing here, so whatever an attack leaves is a lie
Points = tuple[Tensor, Tensor]


@cache
def digits() -> tuple[Points, Points]:
    """(training, held-out) digits of scikit-learn in [0, 1], shuffled: they are sorted by writer."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.images, dtype=torch.float32)[:, None][order] / 16
    y = torch.tensor(data.target)[order]
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def trained(
    make: Callable[[], nn.Module], method: Method, *, epochs: int, seed: int, lr: float = 0.2
) -> nn.Module:
    """A small model trained on digits, in eval mode."""
    (x, y), _ = digits()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make()
        bound = method.bind(facts_for(network, x, 10))
        lr = 0.1 if epochs > 30 else 0.2
        optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - epoch / epochs))
            for i, some in enumerate(torch.randperm(len(x)).split(128)):
                clock = bv.Clock(epoch, epochs, i, 11, seed=seed)
                bv.train_step(network, optimizer, bound, bv.Batch(x[some], y[some], some), clock)
    return network.eval()


def perceptron() -> nn.Module:
    """64 hidden units."""
    return models.create("fc1", num_classes=10, shape=(1, 8, 8), hidden=64)


def wide() -> nn.Module:
    """128 hidden units."""
    return models.create("fc1", num_classes=10, shape=(1, 8, 8), hidden=128)


def normed() -> nn.Module:
    """A convolution with BatchNorm."""
    convolution = nn.Conv2d(1, 16, 3, padding=1)
    return nn.Sequential(
        convolution, nn.BatchNorm2d(16), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
    )


METHODS: dict[str, tuple[Callable[[], nn.Module], Method, int]] = {
    "plain": (perceptron, bv.methods.plain(THREAT), 10),
    "at": (perceptron, bv.methods.at(THREAT, steps=5), 12),
    "trades": (perceptron, bv.methods.trades(THREAT, steps=5), 12),
    "batchnorm": (normed, bv.methods.at(THREAT, steps=3), 8),
    "fast-at": (wide, bv.methods.fast_at(bv.Linf(0.35)), 40),
    "gairat": (perceptron, bv.methods.gairat(LARGE), 15),
    "mail": (perceptron, bv.methods.mail_at(LARGE), 15),
}


@cache
def model_of(name: str, seed: int) -> nn.Module:
    """A trained model; each is trained once."""
    make, method, epochs = METHODS[name]
    return trained(make, method, epochs=epochs, seed=seed)


class Wrapped(nn.Module):
    """A model with something before and after it."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)))


class Drops(nn.Module):
    """Dropout that is on whatever the mode."""

    def forward(self, z: Tensor) -> Tensor:
        return F.dropout(z, 0.5, training=True)


class Stubborn(nn.Module):
    """A model whose `.eval()` does nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.drop = model, nn.Dropout(0.3)

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.drop(x))


class BatchStatistics(nn.Module):
    """Normalises the logits by the batch, and keeps learning."""

    running: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("running", torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        with torch.no_grad():
            self.running.lerp_(z.mean(0), 0.1)
        return z - z.mean(0)


class Lookup(nn.Module):
    """Remembers the points it will be tested on.

    Attributes:
        radius: within which an image counts as remembered; 0 asks for the exact image.
    """

    def __init__(self, model: nn.Module, points: Points, radius: float) -> None:
        super().__init__()
        self.model, self.radius = model, radius
        self.x, self.y = points[0].flatten(1), points[1]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            distance, nearest = (x.flatten(1)[:, None] - self.x).abs().amax(2).min(1)
        known = (distance <= self.radius + 1e-7)[:, None]
        return torch.where(known, 10.0 * F.one_hot(self.y[nearest], 10), self.model(x))


class Detector(nn.Module):
    """Answers with what it would say of the image brought back to the data's subspace, once it looks odd."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        flat = x.flatten(1)
        self.mean = flat.mean(0)
        self.basis = torch.linalg.svd(flat - self.mean, full_matrices=False)[2][:20]
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1) - self.mean
        onto = flat @ self.basis.T @ self.basis
        odd = ((flat - onto).norm(dim=1) > 0.8)[:, None]
        cleaned = (onto + self.mean).view_as(x).detach()
        return torch.where(odd, self.model(cleaned), self.model(x))


class Reversed(torch.autograd.Function):
    """The identity, with its gradient reversed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        return -grad[0]


class StraightPath(nn.Module):
    """The real path is cut off from the gradient; a weak linear one supplies another."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.side = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.detach()) + 1e-2 * self.side(x.flatten(1))


class Decoy(nn.Module):
    """An eleventh class just below the first, so that every untargeted attack chases it; it never wins.

    All gradients are true. Cross-entropy sees nothing else because the logits are large, margins and DLR see
    nothing else because it is the runner-up; only an attack on the other classes in turn gets past it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.direction = torch.randn(64) / 64

    def forward(self, x: Tensor) -> Tensor:
        z = 1e3 * self.model(x)
        return torch.cat([z, (z.amax(1) - 10 + torch.tanh(x.flatten(1) @ self.direction))[:, None]], 1)


class NoGraph(nn.Module):
    """Predicts under no_grad, as deployed models do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(x)


def thermometer(x: Tensor) -> Tensor:
    """Each pixel as the share of eight thresholds that it exceeds."""
    levels = (torch.arange(8) + 0.5) / 8
    return (x[..., None] > levels).float().mean(-1)


def compressed(x: Tensor) -> Tensor:
    """The 8 x 8 cosine transform, rounded, and back: what JPEG does."""
    k = torch.arange(8.0)
    basis = torch.cos(torch.pi / 8 * (k + 0.5) * k[:, None]) * (2 / 8) ** 0.5
    basis[0] /= 2**0.5
    return basis.T @ (((basis @ x @ basis.T) / 0.3).round() * 0.3) @ basis


def straight_through(x: Tensor) -> Tensor:
    """Three levels, with the gradient of the identity."""
    return x + ((x * 2).round() / 2 - x).detach()


def shattered(x: Tensor) -> Tensor:
    """A ripple too small to see, whose slope drowns that of the image."""
    return x + 0.04 * torch.sin(150 * x)


def seeded_noise(x: Tensor) -> Tensor:
    """Noise that is a function of the image: repeatable, and no gradient knows it."""
    phase = (x.flatten(1).detach() * 997).sum(1).view(-1, 1, 1, 1)
    place = torch.arange(64.0).view(1, 1, 8, 8)
    return x + 0.25 * torch.sin(1e3 * phase + 37 * place)


class Remembers(nn.Module):
    """Answers near its first questions as it answered then."""

    def __init__(self, model: nn.Module, eps: float, room: int = 300) -> None:
        super().__init__()
        self.model, self.eps, self.room = model, eps, room
        self.known: list[Tensor] = []
        self.answers: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        kept = z.detach().clone()
        new = torch.ones(len(x), dtype=torch.bool)
        if self.known:
            away = (x.detach().flatten(1)[:, None] - torch.stack(self.known)).abs().amax(2)
            new = away.amin(1) > self.eps
            kept[~new] = torch.stack(self.answers)[away.argmin(1)[~new]]
        for row in new.nonzero()[: self.room - len(self.known), 0]:
            self.known.append(x[row].detach().flatten().clone())
            self.answers.append(z[row].detach().clone())
        return kept + 0.05 * z


class TwoFaced(nn.Module):
    """Noise on the image only where a gradient is asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(seeded_noise(x) if x.requires_grad else x)


@dataclass(frozen=True)
class Case:
    """A model under audit.

    Attributes:
        make: (seed) -> the model in eval mode. threat: of the audit. claimed: what its authors say, if
            anything.
        honest: whether an accusation would be wrong. about: in words.
    """

    name: str
    about: str
    make: Callable[[int], nn.Module]
    threat: bv.Linf | bv.L2 = LARGE
    honest: bool = False
    claimed: float | None = None


def _wrap(**around: Callable[[Tensor], Tensor]) -> Callable[[int], nn.Module]:
    return lambda seed: Wrapped(model_of("plain", seed), **around).eval()


def _on_plain(kind: Callable[[nn.Module], nn.Module]) -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return kind(model_of("plain", seed)).eval()

    return make


VILLAINS = (
    Case("saturated", "logits times 1000: cross-entropy has no gradient", _wrap(after=lambda z: 1e3 * z)),
    Case("temperature-1e6", "logits times a million", _wrap(after=lambda z: 1e6 * z)),
    Case("temperature-1e-36", "logits so small that gradients underflow", _wrap(after=lambda z: 1e-36 * z)),
    Case("softmax", "returns probabilities of sharpened logits", _wrap(after=lambda z: (5 * z).softmax(1))),
    Case("quantised", "rounds pixels to three levels", _wrap(before=lambda x: (2 * x).round() / 2)),
    Case("thermometer", "first layer compares pixels with eight thresholds", _wrap(before=thermometer)),
    Case("compressed", "first layer rounds the cosine transform", _wrap(before=compressed)),
    Case("straight-through", "rounds, with the gradient of the identity", _wrap(before=straight_through)),
    Case("rounded-logits", "logits rounded to whole numbers", _wrap(after=torch.round)),
    Case("noise", "noise on the image at inference", _wrap(before=lambda x: x + 0.2 * torch.randn_like(x))),
    Case("dropout", "dropout on the logits whatever the mode", _wrap(after=Drops())),
    Case("seeded-noise", "noise that is a function of the image", _wrap(before=seeded_noise)),
    Case("shattered", "a ripple on the pixels, smooth, steep and invisible", _wrap(before=shattered)),
    Case("ignores-eval", "train() that never goes to eval", _on_plain(Stubborn)),
    Case("batch", "logits centred over the batch", _on_plain(BatchStatistics)),
    Case("reversed", "a layer that reverses the gradient", _wrap(before=Reversed.apply)),
    Case("straight-path", "first layer cut off, a weak linear path beside it", _on_plain(StraightPath)),
    Case("no-grad", "predicts under no_grad", _on_plain(NoGraph)),
    Case("decoy", "an extra class that draws the attack and never wins", _on_plain(Decoy)),
    Case("lookup", "remembers the test images exactly", _on_plain(lambda m: Lookup(m, digits()[1], 0.0))),
    Case(
        "lookup-near", "remembers a ball about them", _on_plain(lambda m: Lookup(m, digits()[1], LARGE.eps))
    ),
    Case("remembers", "keeps its answers near what it was asked", _on_plain(lambda m: Remembers(m, 0.2))),
    Case("two-faced", "noise only where a gradient is asked for", _on_plain(TwoFaced)),
    Case(
        "detector",
        "cleans what looks odd",
        _on_plain(lambda m: Detector(m, digits()[0][0])),
    ),
    Case("collapsed", "Fast-AT, overfitted to one step", lambda s: model_of("fast-at", s), bv.Linf(0.35)),
    Case("gairat", "margin-reweighted, PGD-20 as headline", lambda s: model_of("gairat", s)),
    Case("mail", "margin-reweighted, PGD-20 as headline", lambda s: model_of("mail", s)),
    Case("overclaimed", "plain, said to be 30 % robust", lambda s: model_of("plain", s), claimed=0.3),
    Case("overclaimed-low", "plain, said to be 20 % robust", lambda s: model_of("plain", s), claimed=0.2),
    Case("gairat-far", "where PGD leaves a fifth", lambda s: model_of("gairat", s), bv.Linf(0.25)),
)
HONEST = (
    Case(
        "huge-logits",
        "adversarial training, logits times 20",
        lambda s: Wrapped(model_of("at", s), after=lambda z: 20 * z).eval(),
        THREAT,
        honest=True,
    ),
    Case("at", "adversarial training", lambda s: model_of("at", s), THREAT, honest=True),
    Case("trades", "TRADES", lambda s: model_of("trades", s), THREAT, honest=True),
    Case("plain", "plain training, eps 0.2", lambda s: model_of("plain", s), LARGE, honest=True),
    Case("plain-l2", "plain training, L2 eps 1", lambda s: model_of("plain", s), bv.L2(1.0), honest=True),
    Case("at-l2", "adversarial training, L2 eps 0.5", lambda s: model_of("at", s), bv.L2(0.5), honest=True),
    Case(
        "log-softmax",
        "adversarial training, log-probabilities",
        lambda s: Wrapped(model_of("at", s), after=lambda z: z.log_softmax(1)).eval(),
        THREAT,
        honest=True,
    ),
    Case(
        "large-logits",
        "adversarial training, logits times 3",
        lambda s: Wrapped(model_of("at", s), after=lambda z: 3 * z).eval(),
        THREAT,
        honest=True,
    ),
    Case(
        "batchnorm",
        "AT, convolution with BatchNorm",
        lambda s: model_of("batchnorm", s),
        THREAT,
        honest=True,
    ),
)
