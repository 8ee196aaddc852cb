"""A CUDA device that is none: tensors that say `cuda:0`, compute on the processor, refuse what CUDA refuses.

    from tests.device import standin
    with standin.cuda() as log:          # torch.cuda has one device; bv.train(..., device="cuda") works
        ...
    log.syncs, log.uploads, log.ops      # by file:line, where the host waited for the device, or fed it

How: PyTorch's out-of-tree device (PrivateUse1) with one boxed fallback in Python. A tensor of the device is
an ordinary `torch.Tensor` whose storage has the device's tag and a processor storage's memory; the fallback
makes aliases of its arguments on the processor, runs the kernel there and tags what comes out. Autograd,
forward mode, views, operations in place, Parameters, deepcopy and hooks are PyTorch's own. A
TorchFunctionMode translates the name `cuda` both ways, and a few functions of torch.cuda are replaced.

Not seen: other rounding and nondeterminism of CUDA kernels, TF32, streams and races of asynchronous copies,
out of memory, a second device, `.device` within hooks and Functions of a backward pass (it reads `card:0`
there), `torch.Generator("cuda")`, torch.compile (PyTorch 2.13: its
guards fail at functions that are replaced here, and inductor asks the dispatcher for a kernel of the device,
which a fallback in Python is none). The generator of the device is the processor's. It stays in
a process once it is there, so tests ask it in one of its own (`tests/device/asked.py`).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from tests.device import standin_graphs
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME, PACKAGE = "card", "/bivallate/"
CARD, CUDA, CPU = None, torch.device("cuda", 0), torch.device("cpu")
log = SimpleNamespace(ops=Counter(), syncs=Counter(), uploads=Counter(), casts=Counter())
aten, Key, Keys = torch.ops.aten, torch._C.DispatchKey, torch._C.DispatchKeySet
_DEVICE, _IS_CUDA = Tensor.device.__get__, Tensor.is_cuda.__get__
_SYNCS = {
    "_local_scalar_dense",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
_NUMBERS = {
    "fill",
    "fill_",
    "masked_fill",
    "masked_fill_",
    "index_fill",
    "index_fill_",
} | _INDEXED  # and pointwise
_library: list[torch.library.Library] = []
_late: list[bool] = []  # not empty while a copy is made that nobody waits for
recorded: list[list[tuple]] = []  # not empty while kernels are recorded for a graph (standin_graphs.py)


def _alias(t: Tensor) -> Tensor:
    """The same memory as a tensor of the processor."""
    owner = t.untyped_storage().owner
    return torch.empty(0, dtype=t.dtype).set_(owner, t.storage_offset(), t.size(), t.stride())


def _point(t: Tensor, storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    place = like.storage_offset(), like.size(), like.stride()
    return aten.set_.source_Storage_storage_offset.redispatch(Keys(Key.CPU), t, storage, *place)


def _tagged(owner: torch.UntypedStorage) -> torch.UntypedStorage:
    storage = torch._C._construct_storage_from_data_pointer(owner.data_ptr(), CARD, owner.nbytes())
    storage.owner = owner  # keeps the memory
    return storage


def _wrap(like: Tensor, storage: torch.UntypedStorage | None = None, inference: bool | None = None) -> Tensor:
    with torch.inference_mode(torch.is_inference_mode_enabled() if inference is None else inference):
        blank = torch._C._acc.create_empty_tensor((0,), like.dtype)
    return _point(blank, storage if storage is not None else _tagged(like.untyped_storage()), like)


def _check(op, name: str, args: tuple, kwargs: dict) -> None:
    """What CUDA refuses: tensors of the processor beside the device's, but for single numbers and indices."""
    numbers = torch.Tag.pointwise in op.tags or name in _NUMBERS or name.startswith("_foreach")

    def look(value, argument, position: int) -> None:
        if isinstance(value, list | tuple):
            for each in value:
                look(each, argument, position)
        elif isinstance(value, torch.Generator) and value.device.type != NAME:
            raise RuntimeError(
                f"Expected a 'cuda' device type for generator but found '{value.device}' ({op})"
            )
        elif isinstance(value, Tensor) and value.device.type != NAME:
            written = argument.alias_info is not None and argument.alias_info.is_write
            index = name in _INDEXED and position == 1
            if not index and not (numbers and value.ndim == 0 and not written):
                both = f"at least two devices, cuda:0 and {value.device}"
                raise RuntimeError(f"Expected all tensors to be on the same device, but found {both}! ({op})")

    for i, argument in enumerate(op._schema.arguments):
        look(args[i] if i < len(args) else kwargs.get(argument.name), argument, i)


def _place() -> str:
    """The innermost line of the package under test."""
    frame = sys._getframe(2)
    while frame is not None and PACKAGE not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition(PACKAGE)[2]}:{frame.f_lineno}" if frame else "elsewhere"


def _note(name: str, args: tuple) -> None:
    log.ops[name] += 1
    crosses = name in ("copy_", "_copy_from") and args[0].device != args[1].device
    if recorded and (name in _SYNCS or crosses):
        raise RuntimeError("operation not permitted when stream is capturing")
    if name == "copy_" and args[0].dtype != args[1].dtype:
        log.casts[_place()] += 1
    if name in _SYNCS:
        log.syncs[f"{_place()} {name}"] += 1
    elif name in ("copy_", "_copy_from") and args[0].device != args[1].device:
        to = args[0] if name == "copy_" else args[1]
        if to.device.type != "cpu" or not _late:
            (log.syncs if to.device.type == "cpu" else log.uploads)[f"{_place()} copy"] += 1
    elif name in _INDEXED:
        indices = [t for t in args[1] if t is not None]
        if "put" in name and any(
            t.dtype == torch.bool for t in indices
        ):  # when read, nonzero comes by itself
            log.syncs[f"{_place()} boolean mask"] += 1
        if any(t.device.type == "cpu" for t in indices):
            log.uploads[f"{_place()} index"] += 1


def _kernel(op, *args, **kwargs):
    """Every operation of the device."""
    with torch._C.DisableTorchFunction(), torch._C._AutoDispatchBelowAutograd():
        name = op._schema.name.partition("::")[2]
        _note(name, args)
        if name not in ("copy_", "_copy_from", "set_"):
            _check(op, name, args, kwargs)
        made: list[tuple[Tensor, Tensor]] = []

        def lower(value):
            if isinstance(value, Tensor) and value.device.type == NAME:
                made.append((value, _alias(value)))
                return made[-1][1]
            return CPU if isinstance(value, torch.device) and value.type == NAME else value

        # a wrapped number arrives as a plain one, for which another overload is meant
        pairs = zip(op._schema.arguments, args, strict=False)
        plain = any(str(a.type) == "Tensor" and isinstance(v, int | float) for a, v in pairs)
        call = op.overloadpacket if plain else op, tree_map(lower, args), tree_map(lower, kwargs)
        found = call[0](*call[1], **call[2])
        if recorded:
            recorded[-1].append((*call, found))
        bases = {a.untyped_storage()._cdata: (t.untyped_storage(), t.is_inference()) for t, a in made}
        for own, alias in made:  # resized, squeezed in place, ...
            mine, now = own.untyped_storage(), alias.untyped_storage()
            same = now._cdata == mine.owner._cdata and now.nbytes() == mine.nbytes()
            if not same or (alias.size(), alias.stride()) != (own.size(), own.stride()):
                _point(own, mine if same else _tagged(now), alias)

        def lift(value):
            if not isinstance(value, Tensor) or any(value is a for a in args):  # a copy to the processor
                return value
            for own, alias in made:
                if alias is value:
                    return own
            if value._is_zerotensor():  # forward mode's zeros without memory
                value = torch.zeros(value.size(), dtype=value.dtype)
            return _wrap(value, *bases.get(value.untyped_storage()._cdata, (None, None)))

        return tree_map(lift, found)


def _lowered(op):
    """What autocast does to convolutions and matrix products, without its cache."""

    def kernel(*args, **kwargs):
        dtype = torch.get_autocast_dtype(NAME)
        with torch._C._ExcludeDispatchKeyGuard(Keys(Key.AutocastPrivateUse1)):
            cast = tree_map(
                lambda v: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v, args
            )
            return op(*cast, **kwargs)

    return kernel


class _AsCuda(TorchFunctionMode):
    """Translates the name: what goes in as `cuda` is the stand-in, what it says of itself is `cuda`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        if func == _DEVICE:
            return self.named(func(*args), NAME, CUDA)
        if func == _IS_CUDA:
            return args[0].device.type == NAME  # a mode is off within itself
        if func is Tensor.to and kwargs.get("non_blocking"):
            return self.later(*args, **kwargs)
        if func is Tensor.pin_memory:
            return args[0]
        if func is Tensor.cuda:
            return args[0].to(CARD)
        if func is Tensor.__deepcopy__ and args[0].device.type == NAME:
            return self.deepcopy(*args)
        args = [self.named(a, "cuda", CARD) for a in args]
        return func(
            *args, **{k: self.named(v, "cuda", CARD) if k == "device" else v for k, v in kwargs.items()}
        )

    def later(self, t: Tensor, device: torch.device | str, non_blocking: bool) -> Tensor:
        """A copy that the host does not wait for: there is no pinned memory, so it is only not counted."""
        _late.append(True)
        try:
            return t.to(self.named(device, "cuda", CARD))
        finally:
            _late.pop()

    @staticmethod
    def named(value, old: str, new):
        """The device's other name."""
        known = isinstance(value, torch.device | str)
        return new if known and str(value).partition(":")[0] == old else value

    @staticmethod
    def deepcopy(t: Tensor, memo: dict) -> Tensor:
        """There is no allocator of storages, which PyTorch's own way asks for."""
        if id(t) not in memo:
            new = t.detach().clone()
            new = torch.nn.Parameter(new) if isinstance(t, torch.nn.Parameter) else new
            memo[id(t)] = new.requires_grad_(t.requires_grad)
            new.grad = t.grad.detach().clone() if t.is_leaf and t.grad is not None else None
        return memo[id(t)]


def _listed(name: str) -> Any:
    """The operation, if it is one on lists of tensors: CUDA has kernels for these, others take them apart."""
    if not name.startswith("aten::_foreach_") or name.endswith("out"):
        return None
    packet, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(aten, packet), overload or "default")


def install() -> None:
    """Makes the device, once a process."""
    global CARD
    if CARD is not None:
        return
    _setup_privateuseone_for_python_backend(NAME)
    CARD = torch.device(NAME, 0)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    boxed, named = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _library.extend([boxed, named])
    boxed.fallback(_kernel, "PrivateUse1")
    boxed.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for op in (aten.convolution.default, aten.convolution_backward.default, aten.copy_.default):
        named.impl(op, lambda *a, _op=op, **k: _kernel(_op, *a, **k), "PrivateUse1")
    for op in map(_listed, torch._C._dispatch_get_all_op_names()):
        if op is not None:
            named.impl(op, lambda *a, _op=op, **k: _kernel(_op, *a, **k), "PrivateUse1")
    for op in (
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.linear.default,
        aten.matmul.default,
        aten.bmm.default,
    ):
        named.impl(op, _lowered(op), "AutocastPrivateUse1")


class _Event:
    """All that was asked for is done at once."""

    def record(self) -> None:
        pass

    synchronize = record


@contextmanager
def cuda() -> Iterator[SimpleNamespace]:
    """Within: torch.cuda has one device, the stand-in."""
    install()
    state, autocast = torch.get_rng_state(), torch.autocast
    new = {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1,
        "current_device": lambda: 0, "set_device": lambda d: None, "synchronize": lambda d=None: None,
        "empty_cache": lambda: None, "mem_get_info": lambda d=None: (1 << 30, 1 << 34),
        "memory_reserved": lambda d=None: 0, "memory_allocated": lambda d=None: 0,
        "max_memory_allocated": lambda d=None: 0, "reset_peak_memory_stats": lambda d=None: None,
        "get_device_capability": lambda d=None: (9, 0), "get_device_name": lambda d=None: "stand-in",
        "is_bf16_supported": lambda *a: True, "_lazy_init": lambda: None, "manual_seed_all": lambda s: None,
        "get_rng_state": lambda d=0: state, "set_rng_state": lambda s, d=0: None,
        "Event": _Event,
        "get_rng_state_all": lambda: [state], "set_rng_state_all": lambda s: None,
    }  # fmt: skip
    with ExitStack() as stack:
        for name, value in {**new, **standin_graphs.REPLACED}.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        named = lambda kind, *a, **k: autocast(NAME if kind == "cuda" else kind, *a, **k)  # noqa: E731
        stack.enter_context(mock.patch.object(torch, "autocast", named))
        stack.enter_context(_AsCuda())
        yield log
