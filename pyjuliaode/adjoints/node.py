"""The one autograd node of all solves: what differs is the way that is handed to it."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..autocast import autocast_off
from ..errors import add_note
from ..problem import Problem, State
from ..refusal import once_only
from ..rhs import RHS
from ..solution import SolveStats
from .checks import Unchanged, quiet


@dataclass(frozen=True)
class Needs:
    """Which gradients a backward is asked for."""

    t: bool
    tensors: tuple[bool, ...]

    def spread(self, found: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of the tensors that are needed, with None for the others between them."""
        rest = iter(found)
        return [next(rest) if need else None for need in self.tensors]


@dataclass
class Gradients:
    """What a way finds for cotangents of the rows.

    Attributes:
        start: dL/dy0 through the flow: without the cotangent of the first row itself.
        tensors: of the problem's tensors; None stands for zero.
        t: of the requested times, where the way finds it itself.
        nfe, alongside, jacobians: what it cost, see :class:`SolveStats`.
    """

    start: Tensor
    tensors: Sequence[Tensor | None]
    t: Tensor | None = None
    nfe: int = 0
    alongside: int = 0
    jacobians: int = 0


class Way(ABC):
    """A solve without a graph, and the gradient of it.

    Attributes:
        name: what messages call it.
        times_itself: it finds dL/dt itself; else that is the inner product with the field.
        linear: it is linear in the cotangents to the last digit, as backpropagation is: also those
            that are not finite go through. Else all gradients are NaN then, for a gradient scaler
            to see, none is computed of zeros, and ``backward`` is handed numbers of a usual size.
        unchanged: what the field was when it was solved.
        measured_in: the unit of the cotangents that ``backward`` is handed.
    """

    name: str
    times_itself: ClassVar[bool] = False
    linear: ClassVar[bool] = False

    def __init__(self, problem: Problem, stats: SolveStats):
        self.problem, self.stats = problem, stats
        self.unchanged: Unchanged | None = None
        self.measured_in = 1.0

    @abstractmethod
    def forward(self, y0: Tensor, needs_t: bool) -> list[Tensor] | Tensor:
        """Solve; the rows (T', N) at the requested times that were reached."""

    @abstractmethod
    def backward(self, rows: Tensor, grad: Tensor, needs: Needs) -> Gradients:
        """Gradients, for cotangents ``grad`` (T', N) of the rows; no graph."""

    def unit(self, size: float) -> float:
        """What the cotangents are measured in, the largest of which is ``size``: a power of two, so
        that nothing is rounded, and squares of tiny or huge ones neither vanish nor overflow.
        """
        return 2.0 ** math.frexp(size)[1]


def differentiated(way: Way) -> State:
    """The states at the requested times, (T', *shape) each, differentiated by ``way``."""
    problem = way.problem
    found = _Node.apply(way, problem.y0, problem.t, *problem.tensors)
    return found if problem.structure.is_tuple else found[0]


class _Node(torch.autograd.Function):
    """What is returned has the user's shapes: a view of it would keep a field that keeps its own
    solution from being freed, as the cycle then passes where Python's collector does not see.
    """

    @staticmethod
    def forward(ctx: Any, way: Way, y0: Tensor, t: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        rows = way.forward(y0.detach(), ctx.needs_input_grad[2])
        ctx.rows = torch.stack(rows) if isinstance(rows, list) else rows
        ctx.way, ctx.roots = way, (y0, t)  # whose values are not read: they may be written to
        ctx.save_for_backward(*tensors)
        return way.problem.structure.copied(ctx.rows)

    @staticmethod
    @autocast_off
    def backward(ctx: Any, *grads: Tensor) -> Any:
        started = time.perf_counter()
        tensors, way = _saved(ctx), ctx.way
        inputs = (*ctx.roots, *tensors)
        needs = Needs(ctx.needs_input_grad[2], ctx.needs_input_grad[3:])
        with torch.no_grad():
            found = _gradients(way, ctx.rows, way.problem.structure.packed(grads), needs, inputs)
        way.stats.seconds_backward = time.perf_counter() - started
        if torch.is_grad_enabled():
            found = once_only(way.name, found, [*grads, *inputs])
        if not _kept():
            del ctx.way, ctx.rows, ctx.roots
        return None, *found


def _saved(ctx: Any) -> Sequence[Tensor]:
    """The tensors that a gradient is taken of; an error of torch's says what was written to."""
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        way = getattr(ctx, "way", None)
        if way is not None and way.unchanged is not None and (changes := way.unchanged.changes()):
            add_note(error, f"(backward of a solve, since which {', '.join(changes)})")
        raise


def _kept() -> bool:
    """Whether this graph may be gone through again (torch knows since 2.5)."""
    known = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return known is None or known()


def _gradients(
    way: Way, rows: Tensor, grad: Tensor, needs: Needs, inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """Of y0, t and the tensors."""
    unit = 1.0
    if not way.linear:
        size = float(grad.abs().amax()) if grad.numel() else 0.0
        if not math.isfinite(size):
            return [torch.full_like(x, torch.nan) for x in inputs]
        if size == 0.0:
            return [torch.zeros_like(x) for x in inputs]
        unit = way.measured_in = way.unit(size)
        grad = grad if unit == 1.0 else grad / unit
    with quiet(inputs[2:]):
        nfe = 0 if way.unchanged is None else way.unchanged.check()
        gradients = way.backward(rows, grad, needs)
    d_t = gradients.t
    if needs.t and not way.times_itself:
        d_t, more = _of_times(way.problem, gradients.start, grad, rows)
        nfe += more
    way.stats.nfe_backward = gradients.nfe + nfe
    way.stats.alongside_backward = gradients.alongside
    way.stats.n_jacobians += gradients.jacobians
    tensors = [
        torch.zeros_like(x) if g is None and need else g
        for x, g, need in zip(inputs[2:], gradients.tensors, needs.tensors, strict=True)
    ]
    found = [gradients.start + grad[0], d_t, *tensors]
    return found if unit == 1.0 else [None if g is None else g * unit for g in found]


def _of_times(problem: Problem, start: Tensor, grad: Tensor, rows: Tensor) -> tuple[Tensor, int]:
    """dL/dt: a later row moves along the field, an earlier start against it."""
    rhs = RHS(problem)
    slopes = [rhs(t, y) for t, y in zip(problem.times, rows, strict=False)]
    found = [_inner(g, f) for g, f in zip(grad, slopes, strict=True)]
    found[0] = -_inner(start, slopes[0])
    d_t = torch.zeros_like(problem.t)
    d_t[: len(found)] = torch.stack(found).to(d_t)
    return d_t, rhs.nfe


def _inner(g: Tensor, f: Tensor) -> Tensor:
    return (g.conj() * f).real.sum() if g.is_complex() else torch.dot(g, f)
