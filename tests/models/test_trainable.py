"""Models given to `train`: they are trained, or an error says in one line why not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bivallate as bv
from bivallate import data, models
from bivallate.errors import UserError
from bivallate.run.config import Validation

QUICK = {"batch_size": 30, "threads": 1, "epochs": 1, "validation": Validation(1, 20)}


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    found = data.load("digits")
    return found.but(train=found.train.subset(slice(0, 60)))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))


class Around(nn.Module):
    """The network with something wrong about it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()


class Auxiliary(Around):
    def forward(self, x: Tensor):
        logits = self.inner(x)
        return (logits, logits) if self.training else logits


class Fewer(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[:, :5] if self.training else self.inner(x)


class NoGrad(Around):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Blind(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach())


class Untouched(Around):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10]


class EvalOnly(Around):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("not\nyet")
        return self.inner(x)


def frozen() -> nn.Module:
    return network().requires_grad_(False)


def half_frozen() -> nn.Module:
    model = network()
    model[0].requires_grad_(False)
    return model


def lazy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.LazyConv2d(4, 3, 2), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )


def inferred() -> nn.Module:
    with torch.inference_mode():
        return network()


def empty() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device="meta"))


REFUSED = {
    "frozen": (
        frozen,
        r"no parameter of Sequential asks for a gradient \(6 do not\).*requires_grad_\(True\)",
    ),
    "tuple in train mode": (Auxiliary, r"logits in train mode too, here \(2, 10\); it returned tuple"),
    "fewer in train mode": (Fewer, r"in train mode too, here \(2, 10\); it returned \(2, 5\)"),
    "fails in train mode": (EvalOnly, "works in eval mode but failed in train mode"),
    "no gradient": (NoGrad, r"cannot be trained: no gradient leaves its logits; remove torch.no_grad\(\)"),
    "no gradient to images": (Blind, "no gradient leads from Blind's logits to the images"),
    "none to parameters": (Untouched, "no gradient leads from Untouched's logits to its parameters"),
    "no parameters": (lambda: nn.Flatten(), "there is nothing to train|must return logits"),
    "inference mode": (inferred, "0.weight of Sequential was made in inference mode"),
    "without values": (empty, "1.weight of Sequential has no values"),
    "a class": (lambda: nn.Linear, "got the class Linear: call it"),
    "a function": (lambda: lambda x: x, "got function: make one of it"),
    "nothing": (lambda: None, "name a network"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_told_before_the_first_minibatch(case, digits):
    made, words = REFUSED[case]
    for method in (bv.methods.at(bv.Linf(0.1), steps=1), bv.methods.plain(bv.Linf(0.1))):
        with pytest.raises(UserError, match=words):
            bv.train(made(), digits, method, **QUICK)


@pytest.mark.parametrize(
    "made",
    [
        lambda: network().double(),
        lambda: network().half(),
        lambda: network().bfloat16(),
        half_frozen,
        lazy,
        lambda: network().eval(),
    ],
    ids=["float64", "half", "bfloat16", "half frozen", "lazy", "eval"],
)
def test_what_can_be_trained_is(made, digits, tmp_path):
    model = made()
    run = bv.train(model, digits, bv.methods.fast_bat(bv.Linf(0.1)), out=tmp_path / "run", **QUICK)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    again = bv.load(tmp_path / "run", model=network())
    assert bv.evaluate(again, digits.test, bv.Linf(0.1), "fgsm", first=10).n == 10
    assert len(bv.resume(tmp_path / "run", model=made(), dataset=digits).history) == 1


def test_the_look_before_leaves_the_module_as_it_is(digits):
    model = network()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    wrapped = models.wrap(model, num_classes=10, shape=(1, 8, 8))
    models.trainable.trainable(wrapped)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(p.grad is None for p in model.parameters())


class Own(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, of every compiled module
@pytest.mark.parametrize("own", [False, True], ids=["classifier", "module"])
def test_a_compiled_model_is_trained_compiled_and_saved_under_its_own_names(own, digits, tmp_path):
    plain = Own() if own else models.create("tiny-cnn", num_classes=10, shape=(1, 8, 8), seed=0)
    calls = []

    def backend(graph, inputs):
        calls.append(1)
        return graph.forward

    compiled = torch.compile(copy.deepcopy(plain), backend=backend)
    method, given = bv.methods.at(bv.Linf(0.1), steps=1), {**QUICK, "average": 0.5}
    runs = [
        bv.train(model, digits, method, out=tmp_path / name, **given)
        for name, model in (("plain", plain), ("compiled", compiled))
    ]
    assert calls
    assert runs[0].history[0]["loss"] == pytest.approx(runs[1].history[0]["loss"], rel=1e-5)
    x, _ = digits.test.tensors(torch.arange(5))
    for weights, trained in (("last", runs[1].model), ("ema", runs[1].average)):
        again = bv.load(tmp_path / "compiled", weights, model=Own() if own else None)
        torch.testing.assert_close(again(x), trained(x))
        assert again.architecture == ("Own" if own else "tiny-cnn")
    assert bv.resume(tmp_path / "compiled", model=Own() if own else None, dataset=digits).history


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module."])
def test_weights_saved_under_a_wrapper_s_names_are_read(prefix, tmp_path):
    model = models.wrap(network(), num_classes=10, shape=(1, 8, 8))
    inner = {k.replace("network.", f"network.{prefix}"): v for k, v in model.state_dict().items()}
    other = models.wrap(network(), num_classes=10, shape=(1, 8, 8))
    for value in other.parameters():
        value.data.zero_()
    models.io.fill(other, inner, "a file")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(UserError, match=r"architecture than Sequential: it adds network\.more$"):
        models.io.fill(other, {**inner, "network.more": torch.zeros(1)}, "a file")


def _whole(**changes):
    def run(digits, tmp_path):
        bv.train(network(), digits, bv.methods.at(bv.Linf(0.1), steps=1), **{**QUICK, **changes})

    return run


def _scored(**options):
    def run(digits, tmp_path):
        return bv.evaluate(network(), digits.test, bv.Linf(0.1), "fgsm", **{"first": 4, **options})

    return run


NUMBERS = {
    "eps": lambda d, p: bv.evaluate(network(), d.test, bv.Linf(np.float32(0.1)), "fgsm", first=4),
    "eps of no dimension": lambda d, p: bv.L2(np.array(0.5)).eps,
    "eps of torch": lambda d, p: bv.Linf(torch.tensor(0.5)).eps,
    "epochs": _whole(epochs=np.int64(1)),
    "seed": _whole(seed=np.uint8(3)),
    "batch size": _whole(batch_size=np.int32(20)),
    "lr": _whole(lr=np.float64(0.1)),
    "average": _whole(average=np.float32(0.5)),
    "threads": _whole(threads=np.int64(1)),
    "validation": _whole(validation=Validation(np.int64(1), np.int16(20))),
    "evaluation seed": _scored(seed=np.int64(1)),
    "evaluation n": _scored(n=np.int64(3), first=None),
    "evaluation first": _scored(first=np.int64(3)),
    "evaluation batch": _scored(batch_size=np.int64(3)),
    "steps": lambda d, p: bv.methods.at(bv.Linf(0.1), steps=np.int64(3), step_size=np.float32(0.5)),
    "load": lambda d, p: data.load("digits", seed=np.int64(1), validation=np.float64(0.2)),
    "create": lambda d, p: models.create(
        "fc1",
        num_classes=np.int64(3),
        shape=np.array([1, 8, 8]),
        std=np.float32(0.5),
        hidden=np.int64(4),
        seed=np.int64(0),
    ),
    "audit": lambda d, p: bv.audit(
        network(), d.test, bv.Linf(0.1), n=np.int64(20), seed=np.int64(1), budget_passes=np.float64(2e4)
    ),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numpys_numbers_are_numbers(case, digits, tmp_path):
    NUMBERS[case](digits, tmp_path)


def test_a_configuration_of_numpys_numbers_is_written_and_read(digits, tmp_path):
    method = bv.methods.at(bv.Linf(np.float64(0.1)), steps=np.int64(1), step_size=np.float32(0.5))
    given = {**QUICK, "epochs": np.int64(2), "keep": (np.int64(1),), "average": np.float32(0.5)}
    run = bv.train(
        models.create("linear", num_classes=10, shape=(1, 8, 8)), digits, method, out=tmp_path / "r", **given
    )
    assert len(run.history) == 2
    models.save(NUMBERS["create"](digits, tmp_path), tmp_path / "m")
    assert models.load(tmp_path / "m").num_classes == 3
    assert bv.load(tmp_path / "r", "epoch-1").num_classes == 10


@pytest.mark.parametrize("wrong", [2.9, True, (1,), np.float64(2.5), None])
@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_what_is_no_whole_number_is_refused(name, wrong, digits):
    if (name, wrong) == ("epochs", None):
        pytest.skip("None is the default")
    with pytest.raises(UserError, match=f"{name} must be "):
        _whole(**{name: wrong})(digits, None)


@pytest.mark.parametrize(
    "options",
    [{}, {"mean": 0.5, "std": 0.25}, {"activation": "silu"}, {"name": "fc1", "hidden": 7}],
    ids=["plain", "statistics", "activation", "option"],
)
def test_a_run_of_a_model_that_was_handed_over_is_resumed_without_it(options, digits, tmp_path):
    made = {"name": "tiny-cnn", "num_classes": 10, "shape": (1, 8, 8), "seed": 0, **options}
    model = models.create(made.pop("name"), **made)
    run = bv.train(model, digits, bv.methods.at(bv.Linf(0.1), steps=1), out=tmp_path / "run", **QUICK)
    again = bv.resume(tmp_path / "run", dataset=digits).model
    x, _ = digits.test.tensors(torch.arange(5))
    assert torch.equal(again(x), run.model(x))


UNFIT = {
    "a class": (nn.Linear, "got the class Linear: call it"),
    "nothing": (None, "got NoneType"),
    "lazy": (lazy(), r"0\.weight of Sequential is lazy: pass a batch through the model first"),
    "without values": (empty(), "has no values"),
    "two precisions": (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10).double(), nn.Linear(10, 10)),
        "RuntimeError",
    ),
    "another size": (
        nn.Sequential(nn.Flatten(), nn.Linear(3, 10)),
        "the model fail.* on .*images.*RuntimeError",
    ),
    "a function that fails": (lambda x: 1 / 0, "ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_evaluated_is_told(case, digits):
    model, words = UNFIT[case]
    refuses(model, (words,) * 3, digits)


def test_a_name_is_a_run_or_nothing(digits):
    """What takes a run's folder by name looks for one; what takes networks alone says so."""
    words = "no run in tiny-cnn", "got str", "a run is audited on its own data"
    refuses("tiny-cnn", words, digits)


def refuses(model, words, digits):
    """One line for each of evaluate, attack and audit."""
    calls = [
        lambda: bv.evaluate(model, digits.test, bv.Linf(0.1), "fgsm", first=5),
        lambda: bv.attack(model, *digits.test.tensors(torch.arange(3)), bv.Linf(0.1), "fgsm"),
        lambda: bv.audit(model, digits.test, bv.Linf(0.1), n=20, budget_passes=3e4),
    ]
    for call, expected in zip(calls, words, strict=True):
        with pytest.raises(UserError, match=expected) as told:
            call()
        assert "\n" not in str(told.value)
