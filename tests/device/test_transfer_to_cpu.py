"""Numbers that are fetched from a device together arrive bit for bit."""

import torch

from bivallate.transfer_to_cpu import OneTransfer


def values(device: str) -> list[torch.Tensor]:
    wide = torch.tensor([2**53 + 1, -7])
    numbers = [
        torch.tensor(0.1),
        wide,
        torch.rand(2, 3).double(),
        torch.tensor([float("nan")]),
        torch.tensor([True, False, True]),
        torch.tensor(0.1, dtype=torch.bfloat16),
        torch.tensor(-3, dtype=torch.int8),
        torch.rand(3, 2).t(),
        torch.zeros(0),
    ]
    return [value.to(device) for value in numbers]


def raw(value: torch.Tensor) -> bytes:
    bits = value.contiguous().flatten().view(torch.uint8)
    return bits.numpy().tobytes() + f"{value.shape} {value.dtype}".encode()


def there() -> list[bytes]:
    """What is read, though the tensors change before; of two lists in one transfer."""
    from tests.device import standin

    torch.manual_seed(0)
    transfer, sent = OneTransfer(), values("cuda")
    first = transfer.later(sent, lambda found: found)
    for value in sent:
        value.zero_()
    second = transfer.later([torch.ones(3).to("cuda")], lambda found: found[0].tolist())
    standin.log.syncs.clear()
    assert second() == [1.0] * 3
    found = first()
    assert sum(standin.log.syncs.values()) == 1
    return [raw(value) for value in found]


def test_they_come_back_bit_for_bit(card) -> None:
    torch.manual_seed(0)
    assert card(there) == [raw(v) for v in values("cpu")]


def test_what_is_on_the_processor_stays_there() -> None:
    kept = values("cpu")
    found = OneTransfer().later(kept, lambda found: found)()
    assert all(
        a is not b and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(kept, found, strict=True)
    )
    assert not OneTransfer().later([torch.ones(1, requires_grad=True)], lambda v: v)()[0].requires_grad
