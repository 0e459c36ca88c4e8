"""Solve until an event, with the event's time and state in autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .backends import AdjointRequest, Result, backend_for
from .errors import UnsupportedError
from .problem import Problem, State
from .rhs import RHS
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
    return solution.raise_if_failed() if throw else solution


def solve_event(
    problem: Problem, solver: Solver, adjoint: AdjointRequest, event_fn: EventFn, throw: bool
) -> Solution:
    """Find the event without a graph, then solve up to it with one where gradients are enabled.

    The gradient of the event's time is that of the implicit function theorem on
    event_fn(t, y(t)) = 0. Without an event within the times this is an ordinary solve.
    """
    tracked = problem.y0.requires_grad or problem.t.requires_grad or bool(problem.params)
    if problem.mass is not None and tracked and torch.is_grad_enabled():
        raise UnsupportedError(
            "events of a system with a mass matrix have no gradient; solve under torch.no_grad()"
        )
    backend = backend_for(problem, solver, adjoint, event_fn)
    with torch.no_grad():
        found = backend.solve(problem, solver, adjoint, event_fn)
    if found.event is None:
        if math.isinf(problem.times[-1]) or not found.retcode.successful:
            return to_solution(problem, found, throw)
        return to_solution(problem, backend.solve(problem, solver, adjoint), throw)
    t_event, y_event = found.event
    n = found.y.shape[0]  # requested times up to the event
    if n > 1 and problem.times[n - 1] == t_event:
        n -= 1
    t = problem.t[:n].to(torch.float64)
    upto = replace(
        problem,
        t=torch.cat([t, t.new_tensor([t_event])]),
        times=[*problem.times[:n], t_event],
        repeats=None,
    )
    if torch.is_grad_enabled() and t_event != problem.times[0]:
        result = backend.solve(upto, solver, adjoint)
        result.stats.nfe_forward += found.stats.nfe_forward
        if not result.retcode.successful:
            return to_solution(upto, result, throw)
        rows = result.y
    else:
        result, rows = found, torch.cat([found.y[:n], y_event[None]])
    event_t, last = _event_gradient(problem, event_fn, t_event, rows[-1])
    result.stats.retcode = result.retcode = found.retcode
    result.y = torch.cat([rows[:-1], last[None]])
    solution = to_solution(upto, result, throw)
    solution.t = torch.cat([t, event_t[None].to(torch.float64)])
    solution.event_t = event_t
    return solution


def _event_gradient(
    problem: Problem, event_fn: EventFn, t_event: float, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Event time and state there, with gradients: dt = -dg / (∂g/∂t + ∂g/∂y f)."""
    rhs = RHS(problem)
    t = torch.tensor(t_event, dtype=torch.float64, device=y.device)
    if not torch.is_grad_enabled():
        return t.to(problem.time_dtype), y
    with torch.no_grad():
        slope = rhs(t_event, y.detach())
    t_leaf, y_leaf = rhs.time(t).clone().requires_grad_(), y.detach().requires_grad_()
    value = _first_event(event_fn(t_leaf, problem.structure.unpack(y_leaf)))
    if not value.requires_grad:
        return t.to(problem.time_dtype), y
    g_t, g_y = torch.autograd.grad(value, (t_leaf, y_leaf), allow_unused=True)
    rate = torch.zeros_like(value) if g_t is None else g_t
    if g_y is not None:
        rate = rate + torch.dot(g_y, slope)
    value = _first_event(event_fn(rhs.time(t), problem.structure.unpack(y)))
    if not value.requires_grad or float(rate) == 0.0:
        return rhs.time(t), y
    shift = -(value - value.detach()) / rate.detach()
    return rhs.time(t) + shift, y + slope * shift


def _first_event(value: Tensor) -> Tensor:
    """The element that is zero, or nearest to it."""
    value = value.reshape(-1)
    return value[value.detach().abs().argmin()]
