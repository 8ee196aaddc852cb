"""Methods with second or forward-mode derivatives on networks with attention and on other layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import bivallate as bv
from bivallate.errors import UserError
from bivallate.methods.entries import create, registry

THREAT = bv.Linf(0.1)
SECOND = ["fast-bat", "done-gd", "done-pgd", "done-adam", "done-fast", "fast-at-ga"]
LEARNED = ["bilaw", "bilaw-trades", "non-parametric"]


class Attention(nn.Module):
    """One head, fused or written out."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.mix = fused, nn.Linear(8, 24)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.mix(h).unsqueeze(1).chunk(3, -1)
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)[:, 0]
        return ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v)[:, 0]


class Whole(nn.Module):
    """What torch brings: multi-head attention, and an encoder's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        h = self.layer(h)
        return h + self.heads(h, h, h, need_weights=False)[0]


class Distances(nn.Module):
    """An operation that torch differentiates once."""

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.cdist(h, h).mean(-1, keepdim=True)


class Forced(nn.Module):
    """Attention that insists on the fused kernel."""

    def forward(self, h: Tensor) -> Tensor:
        h = h.contiguous().unsqueeze(1)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(h, h, h)[:, 0]


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * 3 * ctx.saved_tensors[0] ** 2


class Cube(nn.Module):
    """A function of one's own without tangents."""

    def forward(self, h: Tensor) -> Tensor:
        return _Cube.apply(h)  # pyright: ignore


class Patches(nn.Module):
    """Four tokens of 4 x 4 pixels, a layer in the middle, and the tokens' mean."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(1, 8, 4, stride=4), middle, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


def network(middle: nn.Module) -> Patches:
    model = Patches(middle).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = drawn if parameter.ndim > 1 else 1 + 0.1 * drawn
    return model


def minibatch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, torch.arange(rows) % 3


def gradient(model: nn.Module, method: bv.Method) -> dict[str, Tensor]:
    meta = minibatch(4, 1) if method.weighting.needs_meta else None
    return bv.upper_gradient(model, method, minibatch(5), meta=meta)


@pytest.mark.parametrize("name", SECOND + LEARNED)
def test_fused_attention_has_the_gradient_of_the_formula(name):
    method = create(name, THREAT)
    fused, plain = (gradient(network(Attention(fused)), method) for fused in (True, False))
    assert fused.keys() == plain.keys()
    for key, value in plain.items():
        torch.testing.assert_close(fused[key], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", registry())
def test_every_method_steps_on_torchs_own_layers(name):
    found = gradient(network(Whole()), registry()[name].illustration(THREAT))
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert float(found["stem.weight"].abs().max()) > 0


def test_passes_that_need_no_second_derivative_stay_fused(monkeypatch):
    kinds = []
    own = torch.nn.functional.scaled_dot_product_attention

    def watched(*args, **options):
        kinds.append(torch.backends.cuda.flash_sdp_enabled())
        return own(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    gradient(network(Attention(True)), bv.methods.fast_bat(THREAT, step_size=1.0))
    assert kinds.count(False) == 1
    assert kinds.count(True) >= 1
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("layer", [Distances, Forced])
@pytest.mark.parametrize("name", SECOND)
def test_a_layer_without_second_derivative_is_named_with_a_remedy_that_works(name, layer):
    model = network(layer())
    words = rf"{name} .* layer middle \({layer.__name__}\) has no second derivative .* at, trades or n-fgsm"
    with pytest.raises(UserError, match=words) as told:
        gradient(model, create(name, THREAT))
    assert "\n" not in str(told.value)
    for other in ("at", "trades", "n-fgsm"):
        assert gradient(model, create(other, THREAT))


@pytest.mark.parametrize("name", LEARNED)
def test_a_layer_without_tangent_is_named_with_a_remedy_that_works(name):
    method, model = create(name, THREAT), network(Cube())
    words = r"layer middle \(Cube\) has no forward-mode .* set weighting.second_order=true"
    with pytest.raises(UserError, match=words) as told:
        gradient(model, method)
    assert "\n" not in str(told.value)
    assert gradient(model, method.but(weighting__second_order=True))
    with pytest.raises(UserError, match=r"layer middle \(Distances\) has no second derivative"):
        gradient(network(Distances()), method.but(weighting__second_order=True))


def test_learned_weights_agree_with_the_second_order_graph_on_attention():
    model, method = network(Attention(True)), create("bilaw", THREAT)
    first, second = (gradient(model, method.but(weighting__second_order=on)) for on in (False, True))
    for key, value in second.items():
        torch.testing.assert_close(first[key], value, rtol=1e-7, atol=1e-10)


def test_the_check_of_gradients_attends_and_explains():
    method = bv.methods.fast_bat(THREAT, step_size=1.0)
    assert bv.check_gradient(network(Attention(True)), method, minibatch(3), directions=2).ok
    with pytest.raises(UserError, match=r"layer middle \(Distances\)"):
        bv.check_gradient(network(Distances()), method, minibatch(3), directions=2)
