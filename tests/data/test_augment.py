"""Augmentation puts every pixel where it should be, and its inverse restores the window."""

import pytest
import torch

from bivallate.data import Augment, View
from bivallate.errors import UserError
from bivallate.noise import Noise


def straight(x: torch.Tensor, view: View, pad: int, fill: float) -> torch.Tensor:
    """Crop and flip, one image after the other."""
    out = []
    for k, image in enumerate(x):
        c, h, w = image.shape
        canvas = torch.full((c, h + 2 * pad, w + 2 * pad), fill, dtype=x.dtype)
        canvas[:, pad : pad + h, pad : pad + w] = image
        top, left = int(view.top[k]), int(view.left[k])
        window = canvas[:, top : top + h, left : left + w]
        out.append(window.flip(-1) if view.flip[k] else window)
    return torch.stack(out)


def noise(n: int = 64, seed: int = 0, epoch: int = 0) -> Noise:
    return Noise(seed, torch.arange(n) * 7, epoch)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_equals_one_image_at_a_time(dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, (64, 3, 9, 7)).to(dtype)
    augment = Augment(pad=3, flip=True)
    got, view = augment(x, noise())
    assert view.flip.any()
    assert not view.flip.all()
    assert view.top.unique().tolist() == list(range(7)) == view.left.unique().tolist()
    assert got.dtype == dtype
    assert torch.equal(got, straight(x, view, 3, 0.0))


def test_rows_copied_and_pixels_gathered_agree() -> None:
    augment = Augment(pad=2, flip=True)
    x = torch.rand(32, 3, 8, 8)
    view = augment.view(noise(32), (3, 8, 8))
    canvas = augment.canvas(x)
    copied = view.apply(canvas)
    gathered = view.apply(canvas.requires_grad_())  # takes the other path
    assert gathered.requires_grad
    assert torch.equal(copied, gathered.detach())


def test_fill_and_reflection() -> None:
    x = torch.arange(16, dtype=torch.float32).view(1, 1, 4, 4) / 16
    assert Augment(pad=1, fill=0.5).canvas(x)[0, 0, 0].eq(0.5).all()
    assert Augment(pad=1, fill=0.5).canvas((x * 16).byte())[0, 0, 0].eq(128).all()
    expected = torch.nn.functional.pad(x, (3,) * 4, mode="reflect")
    assert torch.equal(Augment(pad=3, fill="reflect").canvas(x), expected)
    with pytest.raises(UserError, match="less than the image's side 4"):
        Augment(pad=4, fill="reflect").canvas(x)


def test_write_inverts_apply_and_touches_the_window_alone() -> None:
    augment = Augment(pad=4, flip=True)
    view = augment.view(noise(16), (3, 8, 8))
    assert view.flip.any()
    bank = torch.randn(16, 3, 16, 16)
    before = bank.clone()
    assert torch.equal(view.write(bank, view.apply(bank)), before)
    crop = torch.randn(16, 3, 8, 8)
    assert view.write(bank, crop) is bank
    assert torch.equal(view.apply(bank), crop)
    assert (bank != before).flatten(1).sum(1).tolist() == [3 * 8 * 8] * 16


def test_a_view_is_a_function_of_row_seed_and_epoch() -> None:
    augment = Augment(pad=4, flip=True, rotate=10)
    rows = torch.tensor([5, 900, 17])
    some, swapped = (augment.view(Noise(3, index, 2), (3, 8, 8)) for index in (rows, rows.flip(0)))
    assert some.angle is not None
    assert swapped.angle is not None
    for name in ("top", "left", "flip", "angle"):
        assert torch.equal(getattr(some, name), getattr(swapped, name).flip(0))
    assert torch.equal(some[1:].top, some.top[1:])
    many = noise(200)
    later = augment.view(Noise(0, many.index, 1), (3, 8, 8))
    assert not torch.equal(augment.view(many, (3, 8, 8)).top, later.top)


def test_rotation_turns_and_cannot_be_undone() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 0, 2] = 1  # top middle
    zero = torch.zeros(1, dtype=torch.int64)
    quarter = View(zero, zero, zero.bool(), (5, 5), 0, torch.tensor([90.0]))
    turned = quarter.apply(x)
    assert turned[0, 0, 2, 0] == 1  # counter-clockwise: left middle
    assert turned.sum() == 1
    with pytest.raises(UserError, match="rotated"):
        quarter.write(x, turned)
    still = View(zero, zero, zero.bool(), (5, 5), 0, torch.tensor([0.0]))
    assert torch.equal(still.apply(x), x)


def test_uint8_stays_uint8_under_rotation() -> None:
    x = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    got, view = Augment(rotate=15)(x, noise(8))
    assert got.dtype == torch.uint8
    assert view.angle is not None
    assert view.angle.abs().max() <= 15
    assert set(got.unique().tolist()) <= {0, *x.unique().tolist()}


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "crop:4",
        "crop:4,flip",
        "flip,rotate:15",
        "crop:2,fill:reflect",
        "crop:1,fill:0.5",
        "crop:4,cutout:8,cutmix:0.5",
        "flip,shift:8,colors:shape,erase:1:0.5",
        "cutmix:1",
    ],
)
def test_words_round_trip(text: str) -> None:
    assert str(Augment.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crop:x", "needs a number"),
        ("flop", "did you mean 'flip'"),
        ("crop:-1", "pad >= 0"),
        ("crop:1,fill:2", "fill"),
        ("cutout:-1", "cutout"),
        ("cutmix:1.5", "cutmix"),
        ("erase:x", "needs a number"),
        ("crop:1,shift:2", "takes the place of crop"),
        ("colors:colour", "did you mean 'color'"),
        ("idbh", "idbh:weak"),
    ],
)
def test_bad_words(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augment.parse(text)


def test_the_wrong_canvas_is_refused() -> None:
    view = Augment(pad=2).view(noise(4), (3, 8, 8))
    with pytest.raises(ValueError, match="canvases"):
        view.apply(torch.zeros(4, 3, 8, 8))
    with pytest.raises(ValueError, match="contiguous"):
        view.write(torch.zeros(4, 3, 12, 12).transpose(2, 3), torch.zeros(4, 3, 8, 8))
