"""Direct (discrete) adjoint: the exact gradient of the accepted steps.

Two ways to the same gradient. *graph*: the steps are autograd operations; fastest, any
transformation of the gradient works, memory grows with every evaluation. *replay*: only the
accepted states are kept; backward() repeats each step with a graph and takes one joint
vector-Jacobian product through it; memory is one state per step and the graph of one step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...problem import Problem
from ...refusal import once_only
from ...rhs import RHS
from ...solution import SolveStats
from ..autocast import autocast_off
from ..replay import Product, Steps, clock_of, replay
from .forward import Trace, differentiated, run
from .plan import Plan


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
    product: Callable[[], Product] | None = None
    trace: Trace | None = None


def run_replay(
    problem: Problem,
    plan: Plan,
    rhs: RHS,
    f0: Tensor | None,
    stats: SolveStats,
    product: Callable[[], Product] | None = None,
    **kwargs: Any,
) -> Trace:
    """Forward run without a graph, differentiated by replaying its accepted steps.

    ``product`` makes what takes the products through the steps otherwise than by replaying.
    """
    task = ReplayTask(problem, plan, stats, {"rhs": rhs, **kwargs}, f0, product)
    return differentiated(_Replay, task)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: ReplayTask, y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        options = dict(task.run_options)
        rhs = options.pop("rhs")
        root, y0 = y0, y0.detach().clone()
        f0 = None if task.f0 is None else task.f0.detach()
        options.update(graph=False, record=True, land=ctx.needs_input_grad[2])
        trace = run(task.plan, task.problem, rhs, y0, f0, task.stats, **options)
        sides = task.plan.sides(task.problem.time_dtype)
        ctx.problem, ctx.stats = task.problem, task.stats
        ended = trace.step_t[-1] == task.problem.times[-1]
        ctx.steps = Steps(
            task.plan.tableau,
            trace.step_t,
            trace.step_y,
            sides,
            task.plan.linear,
            end=trace.rows[-1] if ended else None,
        )
        ctx.product = task.product
        trace.step_y = trace.step_y if task.run_options["record"] else []
        ctx.save_for_backward(root, t, *params)
        task.trace = trace
        return torch.stack(trace.rows)

    @staticmethod
    @autocast_off
    def backward(ctx: Any, grad: Tensor) -> Any:
        started = time.perf_counter()
        y0, t, *params = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        product = None if ctx.product is None else ctx.product()
        grads, nfe = replay(
            ctx.problem, ctx.steps, grad.detach(), t, params, needs, product=product
        )
        ctx.stats.nfe_backward = nfe
        ctx.stats.seconds_backward = time.perf_counter() - started
        if torch.is_grad_enabled():
            grads = once_only("adjoint 'direct' (replay)", grads, [grad, y0, t, *params])
        return None, *grads
