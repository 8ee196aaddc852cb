"""Estimate how many points to attack at once, from memory and the number of cores."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from bivallate.errors import UserError
from bivallate.evaluation.verify import failed_on
from bivallate.lower.input_guard import call_unharmed

__all__ = ["NO_ROOM", "estimate_batch", "example_bytes", "example_work", "free_bytes"]

CAP = 2048  # points of a batch beyond which a larger one is no faster
CACHED = 2**27  # bytes of activations of a batch on a CPU; a batch that exceeds the cache is slower
NO_ROOM = "one point does not fit into the device's memory; use --device cpu"
SHARE = 0.25  # share of the free memory that an evaluation may take


def example_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of one example's activations and their gradients, measured on x (1, C, H, W).

    Activations are measured twice, and the larger number counts: by the outputs of the layers, and by the
    tensors that autograd keeps. Only the latter includes operations outside of layers.
    """
    seen = sum(output.nbytes for _, output in _layers(model, x))
    return 3 * max(seen, _kept_bytes(model, x)) + 16 * x.nbytes


def example_work(model: nn.Module, x: Tensor) -> int:
    """Multiplications in the layers of one example's forward, counted on x (1, C, H, W).

    A layer counts its number of outputs times the weights that each output reads.
    """
    weighed = ((getattr(module, "weight", None), output) for module, output in _layers(model, x))
    return sum(out.numel() * w[0].numel() for w, out in weighed if isinstance(w, Tensor) and w.ndim > 1)


def _kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for one example's backward pass.

    It is the number for two examples less that for one, so that weights do not count.
    """

    def kept(point: Tensor) -> int:
        storages: dict[int, torch.UntypedStorage] = {}

        def note(saved: Tensor) -> None:
            storage = saved.untyped_storage()
            storages[storage.data_ptr()] = storage  # kept alive, so that its address is not used again

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
            call_unharmed(model, point.requires_grad_())
        return sum(storage.nbytes() for storage in storages.values())

    try:
        return kept(torch.cat([x, x])) - kept(x.clone())
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # a user's model that cannot be differentiated keeps nothing
        return 0


def _layers(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Every layer that a forward pass of x calls, with its output."""
    passed: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            passed.append((module, output))

    inner = [
        m for m in model.modules() if not any(m.children()) and not isinstance(m, torch.jit.ScriptModule)
    ]
    hooks = [m.register_forward_hook(note) for m in inner]
    try:
        with torch.no_grad():
            logits = call_unharmed(model, x)
    finally:
        for hook in hooks:
            hook.remove()
    return passed or [(model, logits)]  # a script's layers take no hooks


def free_bytes(device: torch.device) -> int:
    """Free memory of a device; on CUDA this includes memory that torch has reserved but does not use."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not available on every system
        return 2**31


def estimate_batch(model: nn.Module, x: Tensor, threads: int = 1) -> int:
    """Number of points to attack at once, by all threads together, within a quarter of the free memory.

    Cost: four forwards of one point.

    Raises:
        UserError: one point does not fit into a CUDA device's memory, or the model fails on it.
    """
    try:
        need = max(1, example_bytes(model, x[:1]))
    except torch.cuda.OutOfMemoryError:
        raise UserError(NO_ROOM) from None
    except UserError:
        raise
    except Exception as error:  # the first call of the user's own code
        raise failed_on(x, error) from error
    room = int(SHARE * free_bytes(x.device) // need)
    useful = min(512, max(64, CACHED // need)) if x.device.type == "cpu" else CAP
    return max(1, min(useful * threads, room))
