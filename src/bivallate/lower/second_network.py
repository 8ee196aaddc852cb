"""Solvers that keep a second network, of the architecture of the trained one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bivallate.lower.solver import Solver

__all__ = ["WithSecondNetwork", "tensors_of"]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The module's own parameters and buffers by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


class WithSecondNetwork(Solver, nn.Module):
    """A solver of one run that keeps the tensors of a second network, and saves them with their names.

    There are none before the first `keep`. A name may have a prefix before a colon, such as "momentum:", for
    what belongs to the tensor of that name.

    Attributes:
        names: of the kept tensors.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.names: list[str] = []
        self._in_place = True  # on the network's device and in its memory layout

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep these tensors themselves, without a copy, and forget the earlier ones."""
        for k in range(len(self.names)):
            delattr(self, f"plain{k}")
        self.names = list(tensors)
        for k, value in enumerate(tensors.values()):
            self.register_buffer(f"plain{k}", value)

    def kept(self, module: nn.Module) -> dict[str, Tensor]:
        """The kept tensors by name, on the device and in the memory layout of the module's own."""
        if not self._in_place:
            own = tensors_of(module)
            self.keep({n: _placed(value, own.get(n.rpartition(":")[2])) for n, value in self._named()})
            self._in_place = True
        return dict(self._named())

    def _named(self) -> list[tuple[str, Tensor]]:
        return [(name, getattr(self, f"plain{k}")) for k, name in enumerate(self.names)]

    def get_extra_state(self) -> dict[str, Any]:
        """The names of the kept tensors."""
        return {"names": self.names}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Do nothing: `load_state_dict` restores the names."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Restore kept tensors, also into a solver that has kept others or none.

        A checkpoint's are on the processor; `kept` moves them to the network's device when it is next asked.
        """
        names = state_dict["_extra_state"]["names"]
        self.keep({name: state_dict[f"plain{k}"].clone() for k, name in enumerate(names)})
        self._in_place = False


def _placed(value: Tensor, own: Tensor | None) -> Tensor:
    return value if own is None else torch.empty_like(own.detach(), dtype=value.dtype).copy_(value)
