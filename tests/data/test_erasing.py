"""Cutout, random erasing, CropShift, colour and shape changes, CutMix: by row, and where they are allowed."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from tests.data.test_augment import noise
from tests.data.test_batches import make

import bivallate as bv
from bivallate import UserError
from bivallate.data import Augment, Batches, View
from bivallate.data.erasing import inside
from bivallate.data.palette import CHANGES, Palette, draw
from bivallate.method import check_two_labels
from bivallate.noise import Noise
from bivallate.types import Mixed


def levels(n: int = 64, side: int = 9) -> torch.Tensor:
    """Images without a black pixel."""
    return torch.randint(1, 256, (n, 3, side, side), dtype=torch.uint8)


def test_cutout_blanks_a_square_about_every_pixel_alike() -> None:
    x = levels(400)
    got, view = Augment(cutout=4, fill=0.5)(x, noise(400))
    assert view.holes is not None
    size = view.holes[:, 0, 2:] - view.holes[:, 0, :2]
    assert size.eq(4).all()
    assert view.holes[:, 0, 0].unique().tolist() == list(range(-2, 7))
    hole = inside(view.holes[:, 0], (9, 9)).expand_as(x)
    assert got[hole].eq(128).all()
    assert torch.equal(got[~hole], x[~hole])
    assert {4, 16} <= set(hole[:, 0].sum((1, 2)).tolist())  # cut off at a corner, and whole


def test_random_erasing_takes_its_share_of_the_images_and_of_their_area() -> None:
    x = levels(600, 32)
    got, _ = Augment(erase=0.5)(x, noise(600))
    gone = got.eq(0)[:, 0].float().mean((1, 2))
    assert 0.4 < gone.gt(0).float().mean() < 0.6
    assert 0.01 < gone[gone > 0].min() < 0.05
    assert 0.28 < gone.max() < 0.37
    blank = got.eq(0)[:, 0]
    rows, cols = blank.any(2).sum(1), blank.any(1).sum(1)
    assert torch.equal(rows * cols, blank.sum((1, 2)))  # rectangles


def test_a_shift_is_a_part_of_the_image_elsewhere() -> None:
    x = levels(300)
    got, view = Augment(shift=4, flip=True)(x, noise(300))
    assert view.frame is not None
    lost = 18 - (view.frame[:, 2] - view.frame[:, 0]) - (view.frame[:, 3] - view.frame[:, 1])
    assert lost.unique().tolist() == [0, 1, 2, 3, 4]
    for image, made, flip, frame in zip(x, got, view.flip, view.frame.tolist(), strict=True):
        top, left, bottom, right = frame
        part = made[:, top:bottom, left:right]
        source = image.flip(-1) if flip else image
        height, width = part.shape[1:]
        cuts = [
            source[:, r : r + height, c : c + width] for r in range(10 - height) for c in range(10 - width)
        ]
        assert any(torch.equal(part, cut) for cut in cuts)
        assert made.gt(0).sum() == part.numel()
    assert (got.eq(0).sum((1, 2, 3)) > 0).any()


def test_what_lies_on_the_canvas_goes_by_crop_and_flip_and_comes_back() -> None:
    augment = Augment.parse("flip,shift:3,cutout:3")
    view = augment.view(noise(16), (3, 8, 8))
    canvas = torch.rand(16, 3, 14, 14)
    window = view.apply(canvas)
    assert window.gt(0).all()
    assert torch.equal(
        view.write(torch.zeros_like(canvas), window).gt(0).sum((1, 2, 3)), torch.full((16,), 192)
    )
    bent = Augment(colors="shape").view(noise(16), (3, 8, 8))
    with pytest.raises(UserError, match="rotated view"):
        bent.write(torch.zeros(16, 3, 8, 8), torch.zeros(16, 3, 8, 8))
    with pytest.raises(UserError, match="through a rotation or a change of colour or shape"):
        bv.methods.atta(bv.Linf(0.1)).bind(
            bv.Facts(16, (3, 8, 8), 10, rotates=Augment(colors="color").reshapes)
        )


ORACLES = {
    "color": lambda image, s: ImageEnhance.Color(image).enhance(s),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(s),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("strength", [0.3, 1.7])
def test_colours_change_as_pillow_changes_them(name: str, strength: float) -> None:
    x = torch.randint(40, 200, (4, 3, 24, 24), dtype=torch.uint8)
    which = [n for n, _ in CHANGES].index(name)
    got = Palette(torch.full((4,), which), torch.full((4,), strength))(x)
    assert got.dtype == torch.uint8
    for image, made in zip(x, got, strict=True):
        oracle = ORACLES[name](Image.fromarray(image.permute(1, 2, 0).numpy()), strength)
        apart = np.abs(np.asarray(oracle).astype(int) - made.permute(1, 2, 0).numpy())
        assert apart.max() <= 2  # it rounds between its steps
    assert not torch.equal(got, x)


def test_shapes_bend_by_their_strength() -> None:
    x = levels(1, 9).float() / 255
    across = dict(CHANGES)["shear x"](x, torch.tensor([0.5]).atan())
    down = dict(CHANGES)["shear y"](x, torch.tensor([0.5]).atan())
    for row in (0, 2, 4, 6, 8):  # half a pixel for each row away from the middle
        far = (row - 4) // 2
        kept = range(max(0, -far), min(9, 9 - far))
        assert all(torch.equal(across[0, :, row, c], x[0, :, row, c + far]) for c in kept)
        assert all(torch.equal(down[0, :, c, row], x[0, :, c + far, row]) for c in kept)
    turned = dict(CHANGES)["rotate"](x, torch.tensor([90.0]))
    assert torch.equal(turned, torch.rot90(x, 1, (2, 3)))


def test_changes_come_as_often_and_as_strong_as_they_should() -> None:
    drawn = draw(noise(4000), "shape")
    share = torch.bincount(drawn.which, minlength=9) / 4000
    expected = torch.tensor([0.08, 0.08, 0.04, 0.08, 0.04, 0.08, 0.15, 0.15, 0.3])
    torch.testing.assert_close(share, expected, atol=0.03, rtol=0)
    degrees = drawn.strength[drawn.which == 8]
    assert sorted({*degrees.abs().tolist()}) == list(range(1, 31))
    assert 0.4 < (degrees > 0).float().mean() < 0.6
    saturation = drawn.strength[drawn.which == 0]
    assert 0.1 <= saturation.min() < 0.2 < 1.8 < saturation.max() <= 1.9


@pytest.mark.parametrize("words", ["idbh:weak", "idbh:strong", "idbh:svhn", "crop:2,cutout:4", "cutmix:0.5"])
def test_all_of_it_hangs_on_the_row_seed_and_epoch(words: str) -> None:
    split, augment = make(), Augment.parse(words)

    def seen(size: int, epoch: int, seed: int = 0, **more: int) -> dict[int, torch.Tensor]:
        batches = Batches(split, size, seed, augment, **more).epoch(epoch)
        return {int(i): x for b in batches for i, x in zip(b.index, b.x, strict=True)}

    small, large = seen(5, 2), seen(32, 2)
    assert all(torch.equal(small[k], large[k]) for k in range(50))
    parts = [seen(32, 2, rank=rank, world=2) for rank in range(2)]
    assert all(torch.equal(large[k], x) for part in parts for k, x in part.items())
    assert any(not torch.equal(large[k], seen(32, 3)[k]) for k in range(50))
    assert any(not torch.equal(large[k], seen(32, 2, 1)[k]) for k in range(50))


def test_cutmix_pastes_the_share_that_the_label_says() -> None:
    split = bv.data.from_tensors(
        torch.arange(40.0).view(40, 1, 1, 1).repeat(1, 1, 10, 10) / 40, torch.arange(40)
    )
    batch = next(Batches(split, 40, 0, Augment(cutmix=0.7)).epoch(0))
    assert batch.mixed is not None
    level = (40 * batch.x[:, 0]).round().long()
    own = level == batch.y[:, None, None]
    assert torch.equal(level[~own], batch.mixed.y[:, None, None].expand_as(level)[~own])
    same = batch.y == batch.mixed.y
    torch.testing.assert_close(own.float().mean((1, 2))[~same], batch.mixed.share[~same])
    assert 0.0 < batch.mixed.share.min() < 0.4
    assert 0.2 < batch.mixed.share.eq(1).float().mean() < 0.6  # unmixed, or by a rectangle of nothing


TAKES = {"at", "at-awp", "backward-smoothing", "done-adam", "done-fast", "done-gd", "done-pgd", "fast-at"}
TAKES |= {
    "fast-at-ga",
    "fast-bat",
    "fgsm-at",
    "gat",
    "lbgat",
    "max-at",
    "msd",
    "n-fgsm",
    "nuat",
    "plain",
    "trades",
    "trades-awp",
}


@pytest.mark.parametrize("name", sorted(bv.methods.entries.registry()))
def test_a_method_takes_two_labels_or_says_which_part_does_not(name: str) -> None:
    method = bv.methods.entries.create(name, bv.Linf(0.1))
    if name in TAKES:
        check_two_labels(method)
        return
    with pytest.raises(UserError, match=r"two labels.*without cutmix"):
        check_two_labels(method)


@pytest.mark.parametrize("name", sorted(TAKES))
def test_a_step_on_two_labels_is_the_mean_of_the_steps_on_each(name: str) -> None:
    """By their shares, where the attack does not move: the losses are linear in the labels."""
    threat = bv.Linf(0.0) if name != "fast-at-ga" else bv.Linf(1e-9)
    method = bv.methods.entries.create(name, threat).but(weighting=bv.Equal())
    if name.endswith("awp"):  # its step in the weights is of the mixture
        method = method.but(loss=method.loss.loss)
    x, share = torch.rand(4, 1, 8, 8), torch.tensor([0.25, 0.5, 0.75, 1.0])
    first, second = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 1])
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    guide = torch.rand(4, 3)  # logits of a second network, where the loss reads them

    def losses(y: torch.Tensor, mixed: Mixed | None) -> torch.Tensor:
        batch = bv.Batch(x, y, torch.arange(4), mixed=mixed)
        problem = bv.LowerProblem(model, batch, method.objective, threat)
        problem.helper = guide
        terms = method.loss(problem, x)
        return terms.robust + terms.anchor

    got = losses(first, Mixed(second, share))
    expected = share * losses(first, None) + (1 - share) * losses(second, None)
    torch.testing.assert_close(got, expected)


def test_training_with_it_says_no_before_it_begins_or_ends_well() -> None:
    digits = bv.data.load("digits")
    few = digits.but(
        train=digits.train.subset(slice(0, 80)), validation=None, augment=Augment.parse("cutmix:1,cutout:2")
    )
    options = {"epochs": 1, "batch_size": 40, "threads": 1}
    with pytest.raises(UserError, match="the weighting After"):
        bv.train("linear", few, bv.methods.mail_at(bv.Linf(0.1)), **options)
    run = bv.train("linear", few, bv.methods.trades(bv.Linf(0.1), steps=1), **options)
    assert run.history[0]["loss"] > 0


def test_a_view_moves_with_its_parts() -> None:
    view: View = Augment.parse("idbh:strong").view(Noise(0, torch.arange(6)), (3, 32, 32))
    some = view.to("cpu")[torch.tensor([4, 1])]
    x = torch.rand(6, 3, 32, 32)
    augment = Augment.parse("idbh:strong")
    assert torch.equal(augment.cut(x[[4, 1]], some), augment.cut(x, view)[[4, 1]])


def test_a_part_may_answer_for_two_labels_by_the_earlier_name() -> None:
    with pytest.warns(DeprecationWarning, match="takes_mixed is now called takes_two_labels"):

        class Older(bv.Loss):
            def takes_mixed(self) -> bool:
                return True

            def __call__(self, problem, x_adv):
                raise AssertionError

    assert Older().takes_two_labels()
