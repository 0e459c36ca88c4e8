"""Names of torch that are not public, which may change from one version to the next."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

Function = TypeVar("Function", bound=Callable[..., Any])


NOT_TRACED = (
    "the steps of an ODE solver depend on values, so pyjuliaode's solves are not traced. Leave out "
    "fullgraph=True (a solve is one graph break), or compile the field alone, as in "
    "NeuralODE(HBNODE(torch.compile(field))); to export a model, use torch.export with "
    "strict=False and a solver of fixed steps, Solver('rk4', dt=0.1, backend='torch')"
)


def opaque(reason: str) -> Callable[[Function], Function]:
    """Decorator: torch.compile calls the function as it is, with everything that it calls.

    Its compiler, dynamo, would specialise on every step's time and on every number that is read
    from a tensor. The same as torch.compiler.disable, which would import the compiler, for
    seconds. ``reason`` is what ``fullgraph=True`` and strict exports say.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        @wraps(function)
        def disabled(*args: Any, **kwargs: Any) -> Any:
            if "torch._dynamo" in sys.modules:
                return torch.compiler.disable(function)(*args, **kwargs)
            return function(*args, **kwargs)

        if hasattr(_frames, "set_code_exec_strategy"):
            skip = _frames._FrameExecStrategy(_frames._FrameAction.SKIP, _frames._FrameAction.SKIP)
            _frames.set_code_exec_strategy(called.__code__, skip)
        else:  # before torch 2.6
            called = disabled
        called._torchdynamo_disable = True  # type: ignore[attr-defined]
        called._torchdynamo_disable_msg = reason  # type: ignore[attr-defined]
        return called  # type: ignore[return-value]

    return decorate


__all__ = ["opaque", "pytree", "traced"]
_frames: Any = torch._C._dynamo.eval_frame


def traced(x: torch.Tensor) -> bool:
    """Whether operations on ``x`` are recorded, by torch.export or torch.jit.trace."""
    fakes = sys.modules.get("torch._subclasses.fake_tensor")
    return torch.jit.is_tracing() or (fakes is not None and isinstance(x, fakes.FakeTensor))


def unknown_when_run(x: torch.Tensor) -> bool:
    """Whether the numbers of ``x`` are another's where what is recorded now runs: those of an
    input or of a parameter, which a trace would keep as they are today."""
    if not traced(x):
        return False
    if not torch.jit.is_tracing() or x.requires_grad:
        return True
    pending = [torch._C._get_value_trace(x).node()]
    while pending:
        node = pending.pop()
        if node.kind() == "prim::Param":
            return True
        if not node.kind().startswith("prim::"):
            pending += [value.node() for value in node.inputs()]
    return False
