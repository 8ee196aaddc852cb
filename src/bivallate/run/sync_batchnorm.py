"""BatchNorm over the rows of all processes, for networks and methods that allow it."""

from __future__ import annotations

from torch import nn

from bivallate import collective
from bivallate.errors import UserError
from bivallate.lower.curriculum import BatchMixing
from bivallate.lower.synced_batchnorm import synchronise
from bivallate.method import Method

__all__ = ["synchronise_batchnorm"]


def synchronise_batchnorm(model: nn.Module, method: Method) -> None:
    """Let BatchNorm normalise over the rows of all processes, if there are several.

    Raises:
        UserError: a layer cannot. Or the method attacks parts of a minibatch in train mode: a process may
            have no row of a part. Or its loss takes the nuclear norm: each process would take that of its own
            rows.
    """
    if not collective.is_distributed():
        return
    if isinstance(method.solver, BatchMixing) and method.attack_mode != "eval":
        raise UserError(
            "sync_batchnorm: this curriculum attacks parts of a minibatch one after another in train mode, "
            "and a process may have no row of a part: use attack_mode=eval, or sync_batchnorm=false"
        )
    parts = (method.objective, method.loss, getattr(method.loss, "base", None))
    if any(getattr(part, "distance", None) == "nuclear" for part in parts):
        raise UserError(
            f"sync_batchnorm: {method.name} takes the nuclear norm of a process's own rows, so that several "
            "would not make the steps of one: use sync_batchnorm=false, or another distance"
        )
    synchronise(model)
