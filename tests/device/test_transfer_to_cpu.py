"""Numbers that are fetched from a device together arrive bit for bit."""

import torch

from bivallate.transfer_to_cpu import to_cpu


def values(device: str) -> list[torch.Tensor]:
    wide = torch.tensor([2**53 + 1, -7])
    numbers = [
        torch.tensor(0.1),
        wide,
        torch.rand(2, 3).double(),
        torch.tensor([float("nan")]),
        torch.zeros(0),
    ]
    return [value.to(device) for value in numbers]


def there() -> list[bytes]:
    torch.manual_seed(0)
    return [value.numpy().tobytes() + str(value.shape).encode() for value in to_cpu(values("cuda"))]


def test_they_come_back_bit_for_bit(card) -> None:
    torch.manual_seed(0)
    assert card(there) == [v.numpy().tobytes() + str(v.shape).encode() for v in values("cpu")]


def test_what_is_on_the_processor_stays_there() -> None:
    kept = values("cpu")
    assert all(
        a is not b and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(kept, to_cpu(kept), strict=True)
    )
    assert not to_cpu([torch.ones(1, requires_grad=True)])[0].requires_grad
