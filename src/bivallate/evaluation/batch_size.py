"""How many points fit into memory at once, and how many are worth a core."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.lower.input_guard import call_unharmed

__all__ = ["NO_ROOM", "estimate_batch", "example_bytes", "example_work", "free_bytes"]

CAP = 2048  # beyond this a larger batch is no faster
CACHED = 2**27  # bytes: on a processor, a batch whose activations leave the cache is slower
NO_ROOM = "one point does not fit into the device's memory; use --device cpu"
SHARE = 0.25  # of the free memory that an evaluation may take


def example_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that one example's activations and their gradients take, measured on x (1, C, H, W).

    Activations are the outputs of the layers, or what autograd keeps, whichever is more: functions, and what
    a module does between its layers, show in the latter only.
    """
    seen = sum(output.nbytes for _, output in _layers(model, x))
    return 3 * max(seen, _kept_bytes(model, x)) + 16 * x.nbytes


def example_work(model: nn.Module, x: Tensor) -> int:
    """Multiplications in the layers of one example's forward, counted on x (1, C, H, W).

    A layer counts its outputs times the weights that each reads.
    """
    weighed = ((getattr(module, "weight", None), output) for module, output in _layers(model, x))
    return sum(out.numel() * w[0].numel() for w, out in weighed if isinstance(w, Tensor) and w.ndim > 1)


def _kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for one example's backward pass.

    Those for two examples less those for one, so that weights do not count.
    """

    def kept(point: Tensor) -> int:
        storages: dict[int, torch.UntypedStorage] = {}

        def note(saved: Tensor) -> None:
            storage = saved.untyped_storage()
            storages[storage.data_ptr()] = storage  # held, so that no other comes to lie there

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
            call_unharmed(model, point.requires_grad_())
        return sum(storage.nbytes() for storage in storages.values())

    try:
        return kept(torch.cat([x, x])) - kept(x.clone())
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # foreign code that cannot be differentiated keeps nothing
        return 0


def _layers(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Every layer that a forward of x passes, with its output."""
    passed: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            passed.append((module, output))

    hooks = [m.register_forward_hook(note) for m in model.modules() if not any(m.children())]
    try:
        with torch.no_grad():
            call_unharmed(model, x)
    finally:
        for hook in hooks:
            hook.remove()
    return passed


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; of CUDA's, what torch holds and does not use is free to us."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system says
        return 2**31


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def estimate_batch(model: nn.Module, x: Tensor, shares: int = 1) -> int:
    """Points to attack at once, in so many shares, so that a quarter of the free memory suffices for all.

    Cost: four forwards of one point. Raises UserError if it does not fit into a CUDA device's memory, or
    if the model fails on it.
    """
    try:
        need = max(1, example_bytes(model, x[:1]))
    except torch.cuda.OutOfMemoryError:
        raise UserError(NO_ROOM) from None
    except UserError:
        raise
    except Exception as error:  # the user's own code, asked for the first time
        raise UserError(f"the model failed on images of shape {tuple(x.shape)} ({_said(error)})") from error
    room = int(SHARE * free_bytes(x.device) // need)
    useful = min(512, max(64, CACHED // need)) if x.device.type == "cpu" else CAP
    return max(1, min(useful * shares, room))
