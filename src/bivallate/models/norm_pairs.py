"""The pairs of a convolution and the BatchNorm that directly follows it, found by tracing a network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import fx, nn

from bivallate.lower.folded_norm import listened
from bivallate.models.stem import FewChannels

__all__ = ["pairs_in", "pairs_of", "traced"]

KNOWN = ("torch.nn.modules.", "bivallate.")
Pair = tuple[nn.Conv2d, nn.BatchNorm2d]

_one_tracer = threading.Lock()
_found: WeakKeyDictionary[nn.Module, tuple[list[int], list[Pair]]] = WeakKeyDictionary()


def pairs_of(network: nn.Module) -> list[Pair]:
    """The pairs of a network, which is traced when it is first asked for and when its layers have changed.

    Empty for a network with layers that are neither torch's nor the package's: tracing runs their code, and
    what they do may depend on the images. Empty too while hooks listen to modules that contain others.
    """
    modules = list(network.modules())  # asked before every pass of an attack
    if any(listened(module) for module in modules if module._modules):
        return []
    layers = [id(module) for module in modules]
    known = _found.get(network)
    if known is None or known[0] != layers:
        known = _found[network] = layers, _search(network)
    return known[1]


class _Tracer(fx.Tracer):
    """A tracer that treats `FewChannels` as a leaf, as torch's tracer treats torch's own layers.

    Tracing replaces methods of `nn.Module` for all threads meanwhile: calls of others go their usual way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, FewChannels) or super().is_leaf_module(m, module_qualified_name)


def traced(network: nn.Module) -> fx.GraphModule:
    """The network's graph, with the network's own layers. Raises whatever its code raises on proxies."""
    with _one_tracer:  # of two at once, the second would leave the first one's methods in `nn.Module`
        return fx.GraphModule(network, _Tracer().trace(network))


def _search(network: nn.Module) -> list[Pair]:
    if not all(type(module).__module__.startswith(KNOWN) for module in network.modules()):
        return []
    try:
        graph = traced(network)
    except Exception:  # a combination of layers that cannot be traced has no pairs that one could rely on
        return []
    return [(_layer(network, before), _layer(network, after)) for before, after in pairs_in(graph)]


def _layer(network: nn.Module, node: fx.Node) -> Any:
    return network.get_submodule(str(node.target))


def pairs_in(graph: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    """Nodes (convolution, BatchNorm2d) of which the second can be folded into the first.

    Each of the two modules is called once in the graph, their parameters are read by nobody else, and only
    the BatchNorm reads the convolution's output.
    """
    calls: dict[Any, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    read = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    pairs = []
    for node in graph.graph.nodes:
        if node.op != "call_module" or not isinstance(graph.get_submodule(node.target), nn.BatchNorm2d):
            continue
        norm, before = graph.get_submodule(node.target), node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        alone = calls[node.target] == calls[before.target] == 1
        apart = not any(name.startswith((f"{before.target}.", f"{node.target}.")) for name in read)
        convolution = graph.get_submodule(str(before.target))
        if (
            alone
            and apart
            and type(convolution) in (nn.Conv2d, FewChannels)
            and norm.running_mean is not None
        ):
            pairs.append((before, node))
    return pairs
