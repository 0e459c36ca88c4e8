"""Which modules are residual blocks: x + f(x), told by the graph of their forward."""

from __future__ import annotations

import inspect
import operator
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules import activation, normalization
from torch.nn.modules.batchnorm import _NormBase

# post-norm and pre-norm alike; their forward branches on values, which no symbolic trace can follow
KNOWN = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

_ADDING = {operator.add, operator.iadd, torch.add, "add", "add_"}
_NOT_ELEMENTWISE = {"MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax", "GLU"}
# what may follow a sum: activations as in post-activation ResNets, normalisations as in post-norm
# transformers
_AFTER = (
    _NormBase,
    *(getattr(normalization, name) for name in normalization.__all__),
    *(getattr(activation, name) for name in activation.__all__ if name not in _NOT_ELEMENTWISE),
)
_AFTER_NAMES = {
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("hardswish", "hardtanh", "softplus", "tanh", "sigmoid"),
    *("layer_norm", "batch_norm", "group_norm", "rms_norm"),
}


@dataclass(frozen=True)
class Finding:
    """What is known of a module.

    Attributes:
        residual: whether it is a residual block whose skip connection is the identity; None where
            its forward cannot be traced.
        reason: why it is not one, or cannot be told; empty where it is.
    """

    residual: bool | None
    reason: str = ""


def examine(block: nn.Module) -> Finding:
    """Whether ``block`` is a residual block.

    It is one if its input reaches its value through sums only, apart from activations and
    normalisations after a sum, and if all else in the sums comes from its modules or parameters.
    Its submodules are not looked into. Its forward runs once, with symbols for tensors. That a sum
    is written into the input does not show; the momentum network says so when it is run.
    """
    if any(isinstance(block, known) and type(block).forward is known.forward for known in KNOWN):
        return Finding(True)
    if type(block).__module__.startswith("torch.nn."):
        return Finding(False, f"is an nn.{type(block).__name__}, no residual block")
    try:
        graph = _trace(block)
    except Exception as error:  # whatever code that meets a symbol may raise
        first_line = str(error).partition("\n")[0]
        return Finding(None, f"cannot be traced ({type(error).__name__}: {first_line})")
    reason = _Paths(block, graph).why_not()
    return Finding(not reason, reason)


class _OwnForward(fx.Tracer):
    """Follows the forward of the root; every submodule is one node."""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return True


def _trace(block: nn.Module) -> fx.Graph:
    """The graph; optional arguments have their defaults, which code may branch on."""
    parameters = inspect.signature(block.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that defaults are not asserted in the graph
        return _OwnForward().trace(block, concrete_args=defaults)


class _Paths:
    """The ways from a block's input to its value."""

    def __init__(self, block: nn.Module, graph: fx.Graph):
        self.modules = dict(block.named_modules())
        nodes = list(graph.nodes)
        self.input = next((n for n in nodes if n.op == "placeholder"), None)
        self.value = next(n for n in nodes if n.op == "output").args[0]
        self.carries = cache(self._carries)
        self.uses_modules = cache(self._uses_modules)

    def why_not(self) -> str:
        """Why the input does not reach the value by an identity; empty where it does."""
        if not isinstance(self.value, fx.Node):
            return f"returns a {type(self.value).__name__}, not one tensor"
        if self.carries(self.value):
            return ""
        total = self._last_sum()
        if total is None:
            return "its value is not the sum of its input and something else"
        terms = " and ".join(map(self._said, self._terms(total)))
        return f"its skip connection is not the identity (the last sum is of {terms})"

    def _carries(self, node: Any) -> bool:
        """Whether the input is a term of ``node``, once, and all else is of the block's making."""
        node = self._through_identities(node)
        if node is self.input:
            return True
        if not isinstance(node, fx.Node):
            return False
        if self._is_sum(node):
            first, second = self._terms(node)
            if self.carries(second) and "alpha" not in node.kwargs:  # which multiplies the second
                first, second = second, first
            made = self.uses_modules(second) and not self.carries(second)
            return self.carries(first) and made
        return self._is_after_sum(node) and self.carries(node.args[0])

    def _uses_modules(self, node: Any) -> bool:
        if not isinstance(node, fx.Node):
            return False
        if node.op in ("call_module", "get_attr") and self._through_identities(node) is node:
            return True
        return any(map(self.uses_modules, node.all_input_nodes))

    def _is_sum(self, node: fx.Node) -> bool:
        called = node.op in ("call_function", "call_method")
        return called and node.target in _ADDING and len(self._terms(node)) == 2

    def _is_after_sum(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            fits = isinstance(self.modules[node.target], _AFTER)
        else:
            name = node.target if isinstance(node.target, str) else node.target.__name__
            fits = node.op.startswith("call") and name in _AFTER_NAMES
        # of the input itself it would be part of f, as in a block that normalises first
        return fits and bool(node.args) and self._through_identities(node.args[0]) is not self.input

    def _through_identities(self, node: Any) -> Any:
        while isinstance(node, fx.Node) and node.op == "call_module":
            module = self.modules[node.target]
            empty = isinstance(module, nn.Sequential) and len(module) == 0
            if not (empty or isinstance(module, nn.Identity)):
                break
            node = node.args[0]
        return node

    def _terms(self, node: fx.Node) -> list[Any]:
        """The two terms of a sum, by position or by torch.add's names."""
        return [*node.args, *(node.kwargs[k] for k in ("input", "other") if k in node.kwargs)][:2]

    def _last_sum(self) -> fx.Node | None:
        node = self.value
        while isinstance(node, fx.Node) and not self._is_sum(node):
            node = node.args[0] if self._is_after_sum(node) else None
        return node

    def _said(self, term: Any) -> str:
        if self._through_identities(term) is self.input:
            return "its input"
        if isinstance(term, fx.Node) and term.op == "call_module":
            return f"{term.target!r} ({type(self.modules[term.target]).__name__})"
        return str(term)
