"""A Python function of tensors, traced at given inputs and compiled."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ...fingerprint import Kinds
from ...numbers_read import Numbers, UnknownRead, numbers_read

# The wrapper in C++ rather than Python: a third less time for a step of a small network.
_OPTIONS = {"cpp_wrapper": True}
# Relative to the largest number of a result: rounding in another order, of sums of any length.
_AGREEMENT = {torch.float64: 1e-10, torch.float32: 1e-3}


class CannotCompile(Exception):
    """Why a function cannot be compiled."""


class Program:
    """The compiled function: tensors in, tensors out, no autograd; call it without gradients.

    Tensors that the function uses besides its arguments (parameters, buffers) are read anew in
    every call, so that their values may change; ``None`` among the results stays where it was.
    The results, or the first ``compared`` of them, are checked once against the function's own.
    ``known`` says of a tensor whether it is the same in every call.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor | None]],
        *inputs: Tensor,
        known: Callable[[Tensor], bool],
        compared: int | None = None,
    ):
        inputs = tuple(x.detach().contiguous() for x in inputs)
        with torch.no_grad():
            graph, self.held, self._numbers = _trace(function, inputs, known)
            self._present = _without_none(graph)
            self._run = _compile(graph, (*inputs, *(x.detach() for x in self.held)))
            self._kinds = Kinds(self.held)
            _compare(self(*inputs)[:compared], function(*inputs)[:compared])

    def __call__(self, *inputs: Tensor) -> list[Tensor | None]:
        found = self._run(*map(Tensor.contiguous, inputs), *self.held)  # compiled for such
        if all(self._present):
            return found
        rest = iter(found)
        return [next(rest) if there else None for there in self._present]

    def readable(self) -> bool:
        """Whether the tensors that it holds are still what it was compiled for, and those whose
        numbers it keeps still hold these.
        """
        return self._kinds.unchanged() and self._numbers.unchanged()


def _trace(
    function: Callable[..., Any], inputs: Sequence[Tensor], known: Callable[[Tensor], bool]
) -> tuple[fx.GraphModule, list[Tensor], Numbers]:
    """The graph of a function, the tensors that it uses besides its inputs as further ones, and
    the numbers that it keeps.
    """
    try:
        with numbers_read(known) as numbers:
            traced = make_fx(function)(*inputs)
    except UnknownRead as error:
        raise CannotCompile(str(error)) from error
    except Exception as error:  # whatever the user's module and the tracer make of each other
        first = str(error).strip().split("\n")[0]
        raise CannotCompile(f"tracing it raised {type(error).__name__}: {first}") from error
    graph, held = traced.graph, []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    lifted: dict[int, fx.Node] = {}
    for node in list(graph.nodes):
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise CannotCompile(f"it draws random numbers ({node.target})")
        if node.op != "get_attr":
            continue
        tensor = getattr(traced, node.target)
        if id(tensor) not in lifted:
            with graph.inserting_after(last):
                last = lifted[id(tensor)] = graph.placeholder(f"held_{len(held)}")
            held.append(tensor)
        node.replace_all_uses_with(lifted[id(tensor)])
        graph.erase_node(node)
    for node in graph.nodes:
        node.meta.clear()  # shapes of the tracer's own, which the compiler would not accept
    traced.recompile()
    return traced, held, numbers


def _without_none(traced: fx.GraphModule) -> list[bool]:
    """Leave out what is None among the outputs; which of them are there."""
    output = next(node for node in traced.graph.nodes if node.op == "output")
    found = output.args[0]
    output.args = (tuple(x for x in found if x is not None),)
    traced.recompile()
    return [x is not None for x in found]


def _compile(traced: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    from torch import _inductor

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _inductor.compile(traced, list(inputs), options=_OPTIONS)
    except Exception as error:  # no compiler, no headers, an operation that it does not know
        first = str(error).strip().split("\n")[0]
        raise CannotCompile(f"torch's inductor raised {type(error).__name__}: {first}") from error


def _compare(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> None:
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if b is not None]
    # of all together: one gradient may be nothing but rounding
    size = max((largest(b) for _, b in pairs), default=0.0)
    if not all(agree(a, b, size) for a, b in pairs):
        raise CannotCompile("compiled, it gave other values")


def largest(x: Tensor) -> float:
    return float(x.detach().abs().max()) if x.numel() else 0.0


def agree(found: Tensor, wanted: Tensor, size: float) -> bool:
    """Whether two tensors are the same but for rounding of numbers of a size; NaN is NaN."""
    if not math.isfinite(size):
        return torch.equal(found.isfinite(), wanted.isfinite())
    return largest(found - wanted) <= _AGREEMENT[wanted.dtype] * (size + 1e-30)
