"""Gradients: autograd functions over forward solves in Julia.

direct: the accepted steps that Julia chose are replayed in torch, with the method's own tableau.
gauss, interpolating, quadrature, backsolve: SciMLSensitivity solves the adjoint equations, with
vector-Jacobian products of torch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedError, solver_error
from ...problem import Problem
from ...refusal import once_only
from ...rhs import RHS, refuse_lost_gradients
from ...solution import Retcode, SolveStats
from ..autocast import autocast_off
from ..replay import Steps, replay
from ..runge_kutta import Sides
from ..tableau import Tableau
from .forward import Forward, Kept, accepted_steps, held_until, run_forward
from .native.field import NativeField
from .plan import Plan, advice
from .requests import AdjointReport, AdjointRequest, address, doubles
from .runtime import Runtime
from .tableau import numbers_of
from .workspace import drain


@dataclass
class Task:
    """What the backend hands to an autograd function, and gets back from it."""

    runtime: Runtime
    problem: Problem
    plan: Plan
    stats: SolveStats
    keep_dense: bool
    native: NativeField | None = None
    tableau: Tableau | None = None
    forward: Forward | None = None


def run_direct(task: Task) -> Tensor:
    """Rows (T', N), differentiated by replaying the accepted steps."""
    function = _Direct if task.native is None or task.problem.t.requires_grad else _NativeDirect
    return function.apply(task, task.problem.y0, task.problem.t, *task.problem.params)


def run_continuous(task: Task) -> Tensor:
    """Rows (T', N), differentiated by a continuous adjoint in Julia."""
    return _Continuous.apply(task, task.problem.y0, task.problem.t, *task.problem.params)


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: Task, y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        problem, plan = task.problem, task.plan
        # the derivative with respect to a time is that of a step that ends there
        land = ctx.needs_input_grad[2] or task.tableau.dense is None
        inside = len(problem.times) > 2 and not land
        keep = "dense" if inside or task.keep_dense else "steps"
        done = run_forward(
            *(task.runtime, problem, plan, task.stats),
            keep=keep,
            land=land,
            native=task.native,
        )
        taken = accepted_steps(task.runtime, done.kept, problem)
        done.step_t = taken.t
        # steps of a failed solve beyond the last row carry nothing
        last = abs(problem.times[done.rows.shape[0] - 1] - problem.times[0])
        n = sum(s < last for s in taken.since)
        sides = Sides(problem.time_dtype, frozenset((*plan.jumps, *held_until(problem.times))))
        lengths = taken.lengths(None if plan.adaptive else plan.dt)
        sign = done.kept.sign
        ctx.steps = Steps(
            task.tableau, taken.t[: n + 1], (), sides, lengths=[sign * h for h in lengths[:n]]
        )
        ctx.problem, ctx.stats = problem, task.stats
        ctx.save_for_backward(taken.y[: n + 1], y0, t, *params)
        if not task.keep_dense:
            done.kept = None
        task.forward = done
        return done.rows

    @staticmethod
    @autocast_off
    def backward(ctx: Any, grad: Tensor) -> Any:
        started = time.perf_counter()
        states, y0, t, *params = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        steps = replace(ctx.steps, y=states[:-1], end=states[-1])
        inspect = partial(refuse_lost_gradients, ctx.problem)
        grads, nfe = replay(ctx.problem, steps, grad.detach(), t, params, needs, inspect)
        ctx.stats.nfe_backward = nfe
        ctx.stats.seconds_backward = time.perf_counter() - started
        if torch.is_grad_enabled():
            grads = once_only("adjoint 'direct' (replay)", grads, [grad, y0, t, *params])
        return None, *grads


class _NativeDirect(torch.autograd.Function):
    """The same gradient as :class:`_Direct`, by the products of a tape, in Julia."""

    @staticmethod
    def forward(ctx: Any, task: Task, y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        problem, tableau = task.problem, task.tableau
        land = tableau.dense is None or len(tableau.dense) != tableau.stages
        keep = "dense" if task.keep_dense else "steps"
        inside = len(problem.times) > 2 and not land
        done = run_forward(
            *(task.runtime, problem, task.plan, task.stats),
            keep="dense" if inside else keep,
            land=land,
            adjoint=True,
            native=task.native,
        )
        ctx.runtime, ctx.problem, ctx.stats = task.runtime, problem, task.stats
        ctx.kept, ctx.tableau = done.kept, tableau
        ctx.save_for_backward(y0, t, *params)
        task.forward = done
        return done.rows

    @staticmethod
    @autocast_off
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.runtime.check()
        started = time.perf_counter()
        y0, t, *params = ctx.saved_tensors
        problem, kept = ctx.problem, ctx.kept
        rows = grad.detach().contiguous()
        du0 = torch.empty_like(rows[0])
        dp = rows.new_empty(sum(map(Tensor.numel, params)) or 1)
        times = doubles([kept.sign * x for x in problem.times[: rows.shape[0]]])
        degree, numbers = numbers_of(ctx.tableau)
        with kept.workspace.calling():
            nfe = ctx.runtime.replay(
                *(kept.number, ctx.tableau.stages, degree, numbers.data_ptr()),
                *(address(times), len(times), rows.data_ptr(), du0.data_ptr(), dp.data_ptr()),
            )
        ctx.stats.nfe_backward = int(nfe)
        ctx.stats.seconds_backward = time.perf_counter() - started
        grads = [du0, None, *_of_each(dp, params)]
        if torch.is_grad_enabled():
            grads = once_only("adjoint 'direct' (replay)", grads, [grad, y0, t, *params])
        return None, *grads


class _Continuous(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: Task, y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        plan = task.plan
        few = plan.checkpoints is not None or plan.adjoint == "backsolve"
        keep = "checkpoints" if few and not task.keep_dense else "dense"
        task.runtime.adjoints()
        done = run_forward(
            *(task.runtime, task.problem, plan, task.stats),
            keep=keep,
            adjoint=True,
            native=task.native,
        )
        ctx.native = task.native is not None
        ctx.runtime, ctx.problem, ctx.plan, ctx.stats = task.runtime, task.problem, plan, task.stats
        ctx.kept = done.kept
        ctx.save_for_backward(done.rows.clone(), y0, t, *params)
        task.forward = done
        return done.rows

    @staticmethod
    @autocast_off
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.runtime.check()
        drain(ctx.runtime)
        started = time.perf_counter()
        rows, y0, t, *params = ctx.saved_tensors
        with torch.no_grad():
            grads = _gradient(ctx, grad.detach(), rows, params)
        ctx.stats.seconds_backward = time.perf_counter() - started
        if torch.is_grad_enabled():
            grads = once_only(f"adjoint {ctx.plan.adjoint!r}", grads, [grad, y0, t, *params])
        return None, *grads


def _gradient(
    ctx: Any, grad: Tensor, rows: Tensor, params: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of (y0, t, *params)."""
    problem, kept = ctx.problem, ctx.kept
    n_rows = grad.shape[0]
    if not bool(grad.isfinite().all()):  # as backpropagation: NaN, for a gradient scaler to see
        return [torch.full_like(x, torch.nan) for x in (rows[0], problem.t, *params)]
    carries = (grad != 0).any(dim=1).tolist()
    if ctx.plan.initialization == "brown" and problem.mass is not None and carries[0]:
        raise UnsupportedError(
            "a loss on the states at t[0] has no gradient here where options={'initialization': "
            "'brown'} replaced y0; leave them out of the loss, or pass a consistent y0"
        )
    # backward steps end on the times that carry a cotangent: on a grid, all of them do
    used = [i for i in range(1, n_rows) if carries[i] or ctx.plan.grid]
    if any(carries[1:]):
        lam, dp = _solve_adjoint(ctx, kept, grad, used)
    else:
        lam, dp = torch.zeros_like(rows[0]), rows.new_zeros(sum(p.numel() for p in params))
    d_t = None
    if ctx.needs_input_grad[2]:
        rhs = RHS(problem)
        slopes = [
            torch.dot(g, rhs(t, y)) for g, t, y in zip(grad, problem.times, rows, strict=False)
        ]
        slopes[0] = -torch.dot(lam, rhs(problem.times[0], rows[0]))
        d_t = torch.zeros_like(problem.t)
        d_t[:n_rows] = torch.stack(slopes).to(problem.t)
        ctx.stats.nfe_backward += rhs.nfe
    return [lam + grad[0], d_t, *_of_each(dp, params)]


def _of_each(dp: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """The parameters' gradients, of one vector; without parameters it may have any length."""
    pieces = dp.split_with_sizes([p.numel() for p in params]) if params else ()
    found = [g.view(p.shape) for g, p in zip(pieces, params, strict=True)]
    return [g if g.dtype == p.dtype else g.to(p.dtype) for g, p in zip(found, params, strict=True)]


def _solve_adjoint(
    ctx: Any, kept: Kept, grad: Tensor, used: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """dL/dy0 through the flow, and dL/dparams as one vector."""
    runtime, problem, plan = ctx.runtime, ctx.problem, ctx.plan
    workspace = kept.workspace
    cotangents = grad[list(used)].contiguous()
    size = float(cotangents.square().mean(dim=1).max().sqrt()) if plan.relative_atol else 1.0
    lam = torch.empty_like(problem.y0)
    dp = grad.new_empty(max(sum(p.numel() for p in problem.params), 1))
    rhs = workspace.rhs
    if not ctx.native:
        rhs.inspect = partial(refuse_lost_gradients, problem)
    before = (rhs.nfe, rhs.n_vjp, rhs.n_jacobians)
    times_c = doubles([kept.sign * problem.times[i] for i in used])
    request, report = AdjointRequest(), AdjointReport()
    request.times, request.ntimes = address(times_c), len(used)
    request.cotangents = cotangents.data_ptr()
    request.du0, request.dp = lam.data_ptr(), dp.data_ptr()
    request.abstol, request.reltol = plan.adjoint_atol * (size or 1.0), plan.adjoint_rtol
    request.maxiters, request.adaptive = plan.max_steps * len(used), plan.adaptive
    if not plan.adaptive:
        request.dt = plan.dt or abs(problem.times[-1] - problem.times[0])
    if plan.jumps:
        jumps_c = doubles([kept.sign * t for t in plan.jumps])
        request.jumps, request.njumps = address(jumps_c), len(jumps_c)
    request.checkpointing = plan.checkpoints is not None or plan.adjoint == "backsolve"
    try:
        with workspace.calling():
            code = runtime.adjoint(
                *(kept.number, plan.adjoint_method.name, plan.adjoint),
                *(address(request), address(report)),
            )
    finally:
        ctx.stats.nfe_backward = rhs.nfe - before[0] + rhs.n_vjp - before[1]
        if ctx.native:
            products = report.vjp_u + report.vjp_p + report.vjp
            ctx.stats.nfe_backward = int(products + report.nf)
        ctx.stats.n_jacobians += rhs.n_jacobians - before[2]
    retcode = Retcode.of(str(code))
    if not retcode.successful:
        raise solver_error(
            f"the {plan.adjoint} adjoint ({plan.adjoint_method.name}) failed at "
            f"t = {kept.sign * report.reached:.6g} with retcode {retcode}. "
            f"{advice(retcode, plan, backward=True)}",
            retcode,
            drop_in=problem.drop_in,
        )
    return lam, dp[: dp.numel() if problem.params else 0]
