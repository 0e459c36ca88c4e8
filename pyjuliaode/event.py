"""Solve until an event, with the event's time and state in autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._torch import traced
from .backends import AdjointRequest, Result, backend_for
from .backends.base import event_value
from .errors import GradientWarning, InvalidArgumentError, UnsupportedError, solver_error, warn
from .problem import Problem, State
from .refusal import differentiable
from .rhs import RHS
from .signature import check_func
from .solution import Solution
from .solver import Solver

EventFn = Callable[[Tensor, State], Tensor]


def to_solution(problem: Problem, result: Result, throw: bool) -> Solution:
    """The user's view of a backend's result; raises SolverError for a failed one if ``throw``."""
    n = result.y.shape[0]
    flat, t = result.y, problem.t if n == problem.t.numel() else problem.t[:n]
    if problem.repeats is not None:
        rows = [row for row in problem.repeats if row < n]
        flat, t, n = flat[rows], t[rows], len(rows)
    y = problem.structure.unpack(flat, (n,))
    solution = Solution(
        t, y, result.stats, result.retcode, result.message, result.step_t, dense=result.dense
    )
    if throw and not solution.retcode.successful:
        raise solver_error(solution.message, solution.retcode, solution, drop_in=problem.drop_in)
    return solution


def solve_event(
    problem: Problem, solver: Solver, adjoint: AdjointRequest, event_fn: EventFn, throw: bool
) -> Solution:
    """Solve up to the first event; without one within the times this is an ordinary solve.

    The gradients of the event's time and state are those of the implicit function theorem on
    event_fn(t, y(t)) = 0, for the element of event_fn that left its side; where the solve keeps
    the autograd graph of its steps they can be differentiated again, up to third derivatives.
    """
    if not callable(event_fn):
        raise InvalidArgumentError(
            f"event_fn must be callable as event_fn(t, y), got {type(event_fn).__name__}"
        )
    check_func(event_fn, "event_fn")
    refuse_traced(problem.y0)
    tracked = problem.y0.requires_grad or problem.t.requires_grad or bool(problem.params)
    if problem.mass is not None and tracked and torch.is_grad_enabled():
        raise UnsupportedError(
            "events of a system with a mass matrix have no gradient; solve under torch.no_grad()"
        )
    backend = backend_for(problem, solver, adjoint, event_fn)
    result = backend.solve(problem, solver, adjoint, event_fn)
    if result.event is None:
        return to_solution(problem, result, throw)
    upto = problem.up_to(result.event.t)
    at = _Moving(problem, event_fn, result)
    event_t, last = at.located()
    result.stats.nfe_forward += at.rhs.nfe
    result.y = torch.cat([result.y[:-1], last[None]])
    solution = to_solution(upto, result, throw)
    solution.t = torch.cat([upto.t[:-1], event_t[None].to(torch.float64)])
    solution.event_t = event_t
    if solution.dense is not None:
        solution.dense.end = float(event_t.detach())
    return solution


def refuse_traced(y0: State) -> None:
    """Raise where a model is exported or traced: where an event lies depends on values."""
    if traced(y0 if isinstance(y0, Tensor) else y0[0]):
        raise UnsupportedError(
            "an event ends a solve by values that are not there while a model is exported or "
            "traced: export the field alone, or solve between given times"
        )


@dataclass
class _At:
    """A point of the solution, and what event_fn is and does there."""

    t: Tensor
    y: Tensor
    slope: Tensor
    value: Tensor
    rate: Tensor  # derivative of the value along the solution


class _Moving:
    """The event's time and state as functions of all that they depend on."""

    def __init__(self, problem: Problem, event_fn: EventFn, result: Result):
        self.rhs, self.unpack = RHS(problem), problem.structure.unpack
        self.event_fn, self.event = event_fn, result.event
        self.t, self.y = self.rhs.time(result.event.t), result.y[-1]
        # a graph of the steps can be differentiated again, an adjoint's gradient cannot
        self.graph = result.stats.adjoint == "direct" and result.stats.backend == "torch"

    def located(self) -> tuple[Tensor, Tensor]:
        """Event time and state there."""
        with torch.inference_mode(False):
            at, flat = self._reference()
        tracked = torch.is_grad_enabled() and (
            self.y.requires_grad or self._value(self.t, self.y).requires_grad
        )
        if at is None:
            if tracked:
                warn(
                    "event_fn has no derivative at the event (a comparison has none): the event's "
                    "time is taken as a constant",
                    GradientWarning,
                )
            return self.t, self.y
        shift, moved = (0.0, self.y.detach()) if flat else self._corrected(at)
        if not tracked:
            return self.t + shift, moved
        found = self._twice() if self.graph and not flat else None
        by, y = self._once(at) if found is None else found
        return self.t + (by + (shift - by.detach())), y + (moved - y.detach())

    def _value(self, t: Tensor, y: Tensor) -> Tensor:
        return event_value(self.event_fn(t, self.unpack(y)))[self.event.element]

    def _at(self, t: Tensor, y: Tensor, again: bool = False) -> _At | None:
        """event_fn and its rate at a point, in a graph where ``again``; None: it has no rate."""
        with torch.set_grad_enabled(again):
            slope = self.rhs(t, y)
        with torch.enable_grad():
            t = t if t.requires_grad else t.detach().clone().requires_grad_()
            y = y if y.requires_grad else y.detach().clone().requires_grad_()
            value = self._value(t, y)
            if not value.requires_grad:
                return None
            g_t, g_y = torch.autograd.grad(value, (t, y), allow_unused=True, create_graph=again)
            rate = torch.zeros_like(value) if g_t is None else g_t
            if g_y is not None:
                rate = rate + torch.dot(g_y, slope)
        return _At(t, y, slope, value, rate)

    def _reference(self) -> tuple[_At | None, bool]:
        """Where event_fn is differentiated: at the event, or just before it where it is flat on the
        other side, as relu, clamp and maximum are (then True). None: it has no derivative."""
        y = self.y.detach().clone()
        at = self._at(self.t, y)
        if at is None or _usable(at.rate):
            return at, False
        eps = torch.finfo(self.t.dtype).eps * max(abs(self.event.t), 1e-3)
        back = math.copysign(1.0, self.event.before - self.event.t)
        for offset in (eps, 16 * eps, 256 * eps):
            before = self._at(self.t + back * offset, y + at.slope * (back * offset))
            if before is not None and _usable(before.rate):
                return before, True
        return None, True

    @torch.no_grad()
    def _corrected(self, at: _At) -> tuple[float, Tensor]:
        """One step of Newton's method from the time that was found, if it leads nearer to zero."""
        by = -at.value.detach() / at.rate.detach()
        if float(by) != 0.0 and bool(by.isfinite()):
            y = self._later(at, by)
            if float(self._value(self.t + by, y).abs()) < float(at.value.abs()):
                return float(by), y
        return 0.0, self.y.detach()

    def _later(self, at: _At, by: Tensor) -> Tensor:
        """The state a little later, right to second order in ``by``."""
        half = 0.5 * by
        return at.y + by * self.rhs(at.t + half, at.y + half * at.slope)

    def _once(self, at: _At) -> tuple[Tensor, Tensor]:
        """dt = -dg / (∂g/∂t + ∂g/∂y f), and dy = f dt beside what the solve itself gives."""
        value = self._value(at.t.detach(), self.y + (at.y - self.y).detach())
        by = differentiable(-value / at.rate.detach(), 1, _ONCE)
        return by, self.y + at.slope.detach() * by

    def _twice(self) -> tuple[Tensor, Tensor] | None:
        """Two steps of Newton's method as a graph: its second derivatives are right too.

        None where the second would begin on the flat side of an event_fn such as relu.
        """
        at = self._at(self.t, self.y, again=True)
        first = -at.value / at.rate
        there = self._at(at.t + first, self._later(at, first), again=True)
        if there is None or not _usable(there.rate):
            return None
        by = differentiable(first - there.value / there.rate, 2, _TWICE)
        return by, self._later(at, by)


def _usable(rate: Tensor) -> bool:
    return bool(rate != 0) and bool(rate.isfinite())


_ONCE = (
    "the gradient of an event's time cannot be differentiated again here: use adjoint='direct' "
    "with options={'checkpoint': False}, backend='torch', and a smooth event_fn"
)
_TWICE = "the gradient of an event's time has second derivatives, and no third ones"
