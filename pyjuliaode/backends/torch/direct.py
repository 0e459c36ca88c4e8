"""Direct (discrete) adjoint: the exact gradient of the accepted steps.

Two ways to the same gradient. *graph*: the steps are autograd operations; fastest, any
transformation of the gradient works, memory grows with every evaluation. *replay*: only the
accepted states are kept; backward() repeats each step with a graph and takes one joint
vector-Jacobian product through it; memory is one state per step and the graph of one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...problem import Problem
from ...rhs import RHS
from ...solution import SolveStats
from .forward import Trace, run, state_at
from .plan import Plan
from .refusal import once_only
from .runge_kutta import GraphStepper, Step


def clock_of(problem: Problem, t: Tensor) -> dict[float, Tensor]:
    """Each requested time mapped to its 0-d tensor, in the dtype in which the field sees it."""
    tensors = t.to(dtype=problem.time_dtype, device=problem.y0.device).unbind(0)
    return dict(zip(problem.times, tensors, strict=True))


def run_graph(
    problem: Problem, plan: Plan, rhs: RHS, f0: Tensor | None, stats: SolveStats, **kwargs: Any
) -> Trace:
    """Forward run whose rows carry the autograd graph of every accepted step."""
    needs_times = problem.t.requires_grad and torch.is_grad_enabled()
    clock = clock_of(problem, problem.t) if needs_times else {}
    if clock:
        f0 = None  # it was evaluated at a time without a gradient
    before = rhs.nfe
    kwargs = {"graph": True, "clock": clock, "land": bool(clock), **kwargs}
    trace = run(plan, problem, rhs, problem.y0, f0, stats, **kwargs)
    products = _evaluations_on_path(plan, stats, rhs.nfe - before + (f0 is not None))

    def count(_: Tensor) -> None:
        stats.nfe_backward = products

    last = trace.rows[-1]
    if last.requires_grad and not torch._C._are_functorch_transforms_active():
        last.register_hook(count)
    return trace


def _evaluations_on_path(plan: Plan, stats: SolveStats, nfe: int) -> int:
    """Evaluations through which the gradient passes: not those of rejected steps."""
    if plan.kind != "adaptive":
        return nfe
    first_step = 0 if "first_step" in plan.options or plan.dt is not None else 1
    return nfe - first_step - stats.n_rejected * (plan.tableau.stages - 1)


@dataclass
class ReplayTask:
    """What the forward run and its replay share."""

    problem: Problem
    plan: Plan
    stats: SolveStats
    run_options: Mapping[str, Any]
    f0: Tensor | None = None
    trace: Trace | None = None


def run_replay(
    problem: Problem, plan: Plan, rhs: RHS, f0: Tensor | None, stats: SolveStats, **kwargs: Any
) -> Trace:
    """Forward run without a graph, differentiated by replaying its accepted steps."""
    task = ReplayTask(problem, plan, stats, {"rhs": rhs, **kwargs}, f0)
    rows = _Replay.apply(task, problem.y0, problem.t, *problem.params)
    trace = task.trace
    trace.rows = rows
    return trace


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: ReplayTask, y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        options = dict(task.run_options)
        rhs = options.pop("rhs")
        root, y0 = y0, y0.detach().clone()
        f0 = None if task.f0 is None else task.f0.detach()
        options.update(graph=False, record=True, land=ctx.needs_input_grad[2])
        trace = run(task.plan, task.problem, rhs, y0, f0, task.stats, **options)
        ctx.problem, ctx.plan, ctx.stats = task.problem, task.plan, task.stats
        ctx.step_t, ctx.step_y = trace.step_t, trace.step_y
        trace.step_y = trace.step_y if task.run_options["record"] else []
        ctx.save_for_backward(root, t, *params)
        task.trace = trace
        return torch.stack(trace.rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y0, t, *params = ctx.saved_tensors
        grads = _replay_backward(ctx, grad.detach(), t, params)
        if torch.is_grad_enabled():
            grads = once_only("direct (replay)", grads, [grad, y0, t, *params])
        return None, *grads


def _replay_backward(
    ctx: Any, grad: Tensor, t: Tensor, params: list[Tensor]
) -> list[Tensor | None]:
    problem, plan, times = ctx.problem, ctx.plan, ctx.problem.times
    rhs = RHS(problem)
    t_leaf = t.detach().requires_grad_() if ctx.needs_input_grad[2] else None
    inputs = [p for p, need in zip(params, ctx.needs_input_grad[3:], strict=True) if need]
    if t_leaf is not None:
        inputs.append(t_leaf)
    totals: list[Tensor | None] = [None] * len(inputs)
    cotangent = torch.zeros_like(grad[0])
    pending = grad.shape[0] - 1
    for i in reversed(range(len(ctx.step_y))):
        t0, t1 = ctx.step_t[i], ctx.step_t[i + 1]
        inside = []
        while pending > 0 and abs(times[pending] - times[0]) > abs(t0 - times[0]):
            if times[pending] == t1:
                cotangent = cotangent + grad[pending]
            else:
                inside.append(pending)
            pending -= 1
        with torch.enable_grad():
            clock = {} if t_leaf is None else clock_of(problem, t_leaf)
            y = ctx.step_y[i].detach().requires_grad_()
            step = _repeat(rhs, plan, clock, t0, t1, y, close=bool(inside) and not plan.linear)
            outputs = [step.y1]
            outputs += [
                state_at(step, times[j], clock.get(times[j], times[j]), plan.linear) for j in inside
            ]
        cotangents = [cotangent, *(grad[j] for j in inside)]
        found = torch.autograd.grad(outputs, [y, *inputs], cotangents, allow_unused=True)
        cotangent = found[0]
        totals = [_add(a, b) for a, b in zip(totals, found[1:], strict=True)]
    ctx.stats.nfe_backward = rhs.nfe
    # zero, not None, for what was asked for and never used
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, totals, strict=True)]
    d_t = None if t_leaf is None else found.pop()
    rest = iter(found)
    return [
        cotangent + grad[0],
        d_t,
        *(next(rest) if n else None for n in ctx.needs_input_grad[3:]),
    ]


def _repeat(
    rhs: RHS,
    plan: Plan,
    clock: Mapping[float, Tensor],
    t0: float,
    t1: float,
    y: Tensor,
    close: bool,
) -> Step:
    """One accepted step again, as autograd operations."""
    stepper = GraphStepper(rhs, plan.tableau, clock)
    sides = plan.sides(rhs.time_dtype)
    stepper.start(rhs(sides.after(t0, t1, clock), y))
    h = stepper.span(t0, t1, t1 - t0)
    y1 = stepper.trial(t0, t1, h, y, sides.before(t0, t1, clock), close=close)
    return Step(stepper, t0, t1, h, y, y1)


def _add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more
