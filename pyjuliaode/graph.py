"""The autograd graph below a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor


def nodes(root: Tensor, *stops: Tensor) -> Iterator[Any]:
    """Every node from which ``root`` was computed, once, but not what made ``stops``."""
    seen, pending = {stop.grad_fn for stop in stops}, [root.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending += [parent for parent, _ in node.next_functions]


def leaves(root: Tensor, *stops: Tensor) -> Iterator[Tensor]:
    """The leaves among :func:`nodes`: what a gradient of ``root`` is collected in."""
    for node in nodes(root, *stops):
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            yield leaf


def saved_bytes(root: Tensor, origin: Tensor) -> int:
    """Bytes of activations kept by the graph from ``origin`` to ``root``.

    Leaves (parameters) are not counted: they live anyway.
    """
    seen, total = set(), 0
    for node in nodes(root, origin):
        for name in _saved_by(type(node)):
            value = getattr(node, name, None)
            for x in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(x, Tensor) and not x.is_leaf and memory(x) not in seen:
                    seen.add(memory(x))
                    total += x.nbytes
    return total


@cache
def _saved_by(kind: type) -> tuple[str, ...]:
    """Names under which nodes of a kind keep tensors; to list them takes long."""
    return tuple(name for name in dir(kind) if name.startswith("_saved_"))


def memory(x: Tensor) -> int:
    """What tensors of the same memory have in common."""
    try:
        return x.data_ptr()
    except RuntimeError:  # of torch.func's wrappers, before torch 2.5
        return id(x)
