"""Solve until an event, with the event's time and state in autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._torch import traced
from .backends import Result, backend_for
from .backends.base import event_value
from .errors import GradientWarning, InvalidArgumentError, UnsupportedError, solver_error, warn
from .problem import Problem, State
from .refusal import differentiable, transforms_active
from .rhs import RHS
from .signature import check_func
from .solution import Solution
from .solver import Solver

EventFn = Callable[[Tensor, State], Tensor]


def to_solution(problem: Problem, result: Result, throw: bool) -> Solution:
    """The user's view of a backend's result; raises SolverError for a failed one if ``throw``."""
    y = result.y
    n = (y[0] if problem.structure.is_tuple else y).shape[0]
    t = problem.t if n == problem.t.numel() else problem.t[:n]
    if problem.repeats is not None:
        t, y = _repeated(problem, y, n)
    solution = Solution(
        t, y, result.stats, result.retcode, result.message, result.step_t, dense=result.dense
    )
    if throw and not solution.retcode.successful:
        raise solver_error(solution.message, solution.retcode, solution, drop_in=problem.drop_in)
    return solution


def _repeated(problem: Problem, y: State, n: int) -> tuple[Tensor, State]:
    """Times as they were asked for, and the states there, of which ``n`` different ones are known.

    Each of several equal times has its own gradient: dy(t) = f dt.
    """
    asked, all_rows = problem.repeats
    rows = [row for row in all_rows if row < n]
    t = asked[: len(rows)]
    index = torch.tensor(rows, device=problem.y0.device)
    if not problem.structure.is_tuple:
        found = y[index]
    else:
        found = tuple(part[index] for part in y)
    if not (transforms_active() or (t.requires_grad and torch.is_grad_enabled())):
        return t, found
    flat = problem.structure.packed(found if problem.structure.is_tuple else (found,))
    rhs, moved, first = RHS(problem), [], 0
    for i, y in enumerate(flat):
        if i and rows[i] == rows[first]:
            y = _later(rhs, t[first], y, (t[i] - t[first]).to(y.dtype))
        else:
            first = i
        moved.append(y)
    return t, problem.structure.unpack(torch.stack(moved), (len(rows),))


def _later(rhs: RHS, t: Tensor, y: Tensor, by: Tensor, slope: Tensor | None = None) -> Tensor:
    """The state a little later, right to second order in ``by``."""
    half, slope = 0.5 * by, rhs(t, y) if slope is None else slope
    return y + by * rhs(t + half, y + half * slope)


def solve_event(problem: Problem, solver: Solver, event_fn: EventFn, throw: bool) -> Solution:
    """Solve up to the first event; without one within the times this is an ordinary solve.

    The gradients of the event's time and state are those of the implicit function theorem on
    event_fn(t, y(t)) = 0, for the element of event_fn that left its side; where the solve keeps
    the autograd graph of its steps they can be differentiated again, up to third derivatives.
    """
    if not callable(event_fn):
        raise InvalidArgumentError(
            f"event_fn must be callable as event_fn(t, y), got {type(event_fn).__name__}"
        )
    if transforms_active():
        raise UnsupportedError(
            "torch.func transforms and forward-mode differentiation do not pass through an event; "
            "use torch.autograd.grad, or torch.autograd.functional, and a batch dimension"
        )
    check_func(event_fn, name="event_fn")
    refuse_traced(problem.y0)
    if problem.mass is not None and problem.wants_gradient:
        raise UnsupportedError(
            "events of a system with a mass matrix have no gradient; solve under torch.no_grad()"
        )
    result = backend_for(problem, solver, event_fn).solve(problem, solver, event_fn)
    if result.event is None:
        return to_solution(problem, result, throw)
    upto = problem.up_to(result.event.t)
    at = _Moving(problem, event_fn, result)
    event_t, last = at.located()
    # as it was found, and not in the digits of the state's dtype
    event_t = result.event.t + (event_t - at.t).to(torch.float64)
    result.stats.nfe_forward += at.rhs.nfe
    rows = torch.cat([at.rows[:-1], last[None]])
    result.y = problem.structure.unpack(rows, (rows.shape[0],))
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
    rounding: Tensor  # what the value changes by where t and y do by rounding


class _Moving:
    """The event's time and state as functions of all that they depend on."""

    def __init__(self, problem: Problem, event_fn: EventFn, result: Result):
        self.rhs, self.unpack = RHS(problem), problem.structure.unpack
        self.event_fn, self.event = event_fn, result.event
        structure = problem.structure
        self.rows = structure.packed(result.y if structure.is_tuple else (result.y,))
        self.t, self.y = self.rhs.time(result.event.t), self.rows[-1]
        # a graph of the steps can be differentiated again, an adjoint's gradient cannot
        self.graph = result.stats.adjoint == "direct" and result.stats.backend == "torch"
        self.end = problem.times[-1]
        since = problem.times[0] if result.event.since is None else result.event.since
        self.reach = abs(
            result.event.t - since
        )  # the event is within the step that it was found in

    def located(self) -> tuple[Tensor, Tensor]:
        """Event time and state there."""
        with torch.inference_mode(False):
            at, flat = self._reference()
        tracked = torch.is_grad_enabled() and (
            self.y.requires_grad or self._value(self.t, self.y).requires_grad
        )
        constant = _NO_RATE if at is None else _JUMPS if self._jumps(at, flat) else None
        if constant is not None:
            if tracked:
                warn(f"{constant}: the event's time is taken as a constant", GradientWarning)
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
                rate = rate + torch.vdot(g_y, slope).real  # g_y is ∂g/∂Re y + i ∂g/∂Im y
        return _At(t, y, slope, value, rate, self._rounding(t, y, g_t, g_y))

    @torch.no_grad()
    def _rounding(self, t: Tensor, y: Tensor, g_t: Tensor | None, g_y: Tensor | None) -> Tensor:
        pairs = ((x, g) for x, g in ((t, g_t), (y, g_y)) if g is not None)
        size = sum((g.abs() * x.abs()).sum() for x, g in pairs)
        return torch.finfo(t.dtype).eps * size

    def _jumps(self, at: _At, flat: bool) -> bool:
        """Whether event_fn jumps over zero, rather than passing through it, so that its rate says
        nothing about when."""
        far = not flat and bool((at.value / at.rate).abs() > self.reach)
        return far or self.event.jump > 64 * float(at.rounding)

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
        """One step of Newton's method from the time that was found, if it leads nearer to zero;
        not beyond the end of the span."""
        by = -at.value.detach() / at.rate.detach()
        if (self.event.t + float(by) - self.end) * (self.end - self.event.before) > 0:
            by = torch.full_like(by, self.end - self.event.t)
        if float(by) != 0.0 and bool(by.isfinite()):
            y = _later(self.rhs, at.t, at.y, by, at.slope)
            if float(self._value(self.t + by, y).abs()) < float(at.value.abs()):
                return float(by), y
        return 0.0, self.y.detach()

    def _once(self, at: _At) -> tuple[Tensor, Tensor]:
        """dt = -dg / (∂g/∂t + ∂g/∂y f), and dy = f dt beside what the solve itself gives."""
        value = self._value(at.t.detach(), self.y + (at.y - self.y).detach())
        by = differentiable(-value / at.rate.detach(), 1, _ONCE)
        return by, self.y + at.slope.detach() * by

    def _slow(self, at: _At, by: Tensor) -> bool:
        """Whether the steps of Newton's method converge linearly: t + by hardly depends on t where
        they do not, and does by 1 - 1/m at a root of multiplicity m."""
        g_t, g_y = torch.autograd.grad(by, (at.t, at.y), retain_graph=True, allow_unused=True)
        along = 0.0 if g_t is None else float(g_t)
        if g_y is not None:
            along += float(torch.vdot(g_y, at.slope.detach()).real)
        return abs(1.0 + along) > 0.25

    def _twice(self) -> tuple[Tensor, Tensor] | None:
        """Two steps of Newton's method as a graph: its second derivatives are right too.

        None where the second would begin on the flat side of an event_fn such as relu, and at a
        multiple root, where so few steps do not converge.
        """
        at = self._at(self.t, self.y, again=True)
        first = -at.value / at.rate
        if self._slow(at, first):
            return None
        there = self._at(at.t + first, _later(self.rhs, at.t, at.y, first, at.slope), again=True)
        if there is None or not _usable(there.rate):
            return None
        by = differentiable(first - there.value / there.rate, 2, _TWICE)
        return by, _later(self.rhs, at.t, at.y, by, at.slope)


def _usable(rate: Tensor) -> bool:
    return bool(rate != 0) and bool(rate.isfinite())


_NO_RATE = "event_fn has no derivative at the event (a comparison has none)"
_JUMPS = "event_fn jumps over zero at the event, where its derivative does not say how that moves"
_ONCE = (
    "the gradient of an event's time cannot be differentiated again here: use adjoint='direct' "
    "with options={'checkpoint': False}, backend='torch', and a smooth event_fn with a simple root"
)
_TWICE = "the gradient of an event's time has second derivatives, and no third ones"
