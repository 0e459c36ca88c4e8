"""Direct (discrete) adjoint: the exact gradient of the accepted steps.

Two ways to the same gradient. *graph*: the steps are autograd operations; fastest, any
transformation of the gradient works, memory grows with every evaluation. *replay*: only the
accepted states are kept; backward() repeats each step with a graph and takes one joint
vector-Jacobian product through it; memory is one state per step and the graph of one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...adjoints.checks import Unchanged, warn_of_lost_gradients
from ...adjoints.node import Gradients, Needs, Way
from ...problem import Problem
from ...refusal import transforms_active
from ...rhs import RHS
from ...solution import SolveStats
from ..replay import Product, Steps, clock_of, replay
from .forward import Trace, run
from .plan import Plan


def run_graph(
    problem: Problem, plan: Plan, rhs: RHS, f0: Tensor | None, stats: SolveStats, **kwargs: Any
) -> Trace:
    """Forward run whose rows carry the autograd graph of every accepted step."""
    # within torch.func's transforms a tangent of the times is not seen from outside
    needs_times = problem.t.requires_grad or transforms_active()
    clock = clock_of(problem, problem.t) if needs_times and torch.is_grad_enabled() else {}
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


class ReplayWay(Way):
    """A run without a graph, whose accepted steps are replayed.

    ``product`` makes what takes the products through the steps otherwise than by replaying.
    """

    name = "adjoint 'direct' (replay)"
    times_itself = linear = True

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        rhs: RHS,
        f0: Tensor,
        stats: SolveStats,
        options: Mapping[str, Any],
        product: Callable[[], Product] | None = None,
    ):
        super().__init__(problem, stats)
        self.plan, self.rhs, self.f0, self.options = plan, rhs, f0, dict(options)
        self.product = product
        self.trace: Trace | None = None

    def forward(self, y0: Tensor, needs_t: bool) -> list[Tensor]:
        options = {**self.options, "graph": False, "record": True, "land": needs_t, "witness": True}
        f0 = self.f0.detach()
        trace = run(self.plan, self.problem, self.rhs, y0, f0, self.stats, **options)
        # steps of a failed run beyond the last row carry nothing
        last = self.problem.times[len(trace.rows) - 1]
        n = sum(abs(t - trace.step_t[0]) < abs(last - trace.step_t[0]) for t in trace.step_t)
        self.steps = Steps(
            self.plan.tableau,
            trace.step_t[: n + 1],
            trace.step_y[:n],
            self.plan.sides(self.problem.time_dtype),
            self.plan.linear,
            end=trace.rows[-1] if trace.step_t[n] == last else None,
        )
        self.unchanged = Unchanged(self.problem, trace.witnesses)
        trace.step_y = trace.step_y if self.options.get("record") else []
        self.trace, self.rhs, self.f0 = trace, None, None
        return trace.rows

    def backward(self, rows: Tensor, grad: Tensor, needs: Needs) -> Gradients:
        product = None if self.product is None else self.product()
        inspect = partial(warn_of_lost_gradients, self.problem)
        return replay(
            self.problem, self.steps, grad, needs, inspect, self.unchanged.refusal, product
        )
