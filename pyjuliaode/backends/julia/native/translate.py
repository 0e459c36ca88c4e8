"""From a module's graph of torch operations to a Tape."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ...numbers_read import numbers_read
from .builder import Builder, MixedSamples, Untranslatable
from .operations import COMPUTES, MOVES, SAME
from .tape import Tape


def translate(
    func: nn.Module, t: Tensor, y: Tensor, known: Callable[[Tensor], bool] = lambda x: False
) -> Tape:
    """The tape of ``func(t, y)`` at the shape and dtype of ``y``; ``known`` says of a tensor
    whether it is the same in every call.

    Raises:
        Untranslatable: with the name of the operation, or what else stands in the way.
    """
    with torch.no_grad():
        try:
            with numbers_read(known) as numbers:
                graph = make_fx(func, pre_dispatch=True)(t, y)
        except Exception as error:  # whatever the user's module and the tracer make of each other
            raise Untranslatable(f"tracing it raised {type(error).__name__}: {error}") from error
    reason = None
    for axis in _axes(y):
        try:
            tape = _built(graph, Builder(y.shape, axis, y.dtype))
            tape.numbers = numbers
            return tape
        except MixedSamples as error:
            reason = error
    raise Untranslatable(str(reason)) from reason


def _axes(y: Tensor) -> list[int | None]:
    """Axes that may be the batch, the longest first; None: the state is one sample."""
    axes = [i for i in range(y.ndim - 1) if y.shape[i] > 1]
    return [*sorted(axes, key=lambda i: -y.shape[i]), None]


def _built(graph: torch.fx.GraphModule, build: Builder) -> Tape:
    inputs = iter([build.time, build.state])
    values: dict[torch.fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            found = next(inputs)
        elif node.op == "get_attr":
            found = build.tensor(getattr(graph, node.target))
        else:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            found = args[0] if node.op == "output" else _value(build, node, args, kwargs)
        values[node] = found
    return build.finish(found)


def _value(build: Builder, node: torch.fx.Node, args: Any, kwargs: Any) -> Any:
    if node.target is operator.getitem:
        return args[0][args[1]]
    if node.target in MOVES:
        return node.target(*args, **kwargs)
    if node.target in SAME:
        if node.meta["tensor_meta"].dtype != build.dtype:  # of the result
            raise Untranslatable(f"operation {node.target} changes the dtype")
        return args[0]
    compute = COMPUTES.get(node.target)
    if compute is None:
        raise Untranslatable(f"operation {node.target} has no native form")
    return compute(build, *args, **kwargs)
