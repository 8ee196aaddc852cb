"""Minibatches on an accelerator are the same as on the processor."""

import pytest
import torch

from bivallate.data import Augment, Batches, from_tensors

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("augment", [None, Augment(pad=2, flip=True), Augment(pad=2, fill="reflect")])
def test_minibatches_equal_the_processors(augment: Augment | None) -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    split = from_tensors(images, torch.arange(40) % 4)
    for there, here in zip(
        Batches(split, 16, 0, augment, device="cuda").epoch(0),
        Batches(split, 16, 0, augment).epoch(0),
        strict=True,
    ):
        assert there.x.is_cuda
        assert torch.equal(there.x.cpu(), here.x)
        assert torch.equal(there.y.cpu(), here.y)
        if augment is not None:
            bank = torch.rand(len(here.y), 3, 12, 12)
            written = there.view.write(bank.cuda(), torch.zeros_like(there.x))
            assert torch.equal(written.cpu(), here.view.write(bank, torch.zeros_like(here.x)))
