"""Continuous adjoints: backsolve, interpolating and gauss.

With λ = dL/dy, going backward in time: λ' = -λᵀ ∂f/∂y and dL/dθ = ∫ λᵀ ∂f/∂θ dt; λ jumps by
∂L/∂y(t_i) at every requested time (Pontryagin; Chen et al. 2018, eq. 3 to 5).

* backsolve: solves (y, λ, dL/dθ) backward together, y again from its final value at each interval.
* interpolating: solves (λ, dL/dθ); y comes from the dense output of the forward solve.
* gauss: solves λ alone; dL/dθ is a Gauss-Legendre quadrature on each accepted step, so the
  parameters are neither carried by the Runge-Kutta method nor seen by its error norm.

The equations are linear in λ, so their absolute tolerance is taken relative to the size of the
incoming gradient, unless the user sets it: scaling the loss scales the gradient and nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import StopIterationPasses, solver_error
from ...problem import Problem
from ...refusal import once_only
from ...rhs import RHS, Time, warn_of_lost_gradients
from ...solution import SolveStats
from ..autocast import autocast_off, unwrapped
from .callbacks import Callbacks
from .control import StepFailure, rms
from .dense import DenseOutput
from .fixed import fixed_grid
from .forward import Trace, differentiated, run
from .pan import PanStep
from .plan import Plan

# abscissae and weights of Gauss-Legendre quadrature on [0, 1], by number of points
_LEGENDRE = {
    1: ((0.5, 1.0),),
    2: ((0.5 - 0.5 / 3**0.5, 0.5), (0.5 + 0.5 / 3**0.5, 0.5)),
    3: (
        (0.5 - 0.5 * 0.6**0.5, 5 / 18),
        (0.5, 8 / 18),
        (0.5 + 0.5 * 0.6**0.5, 5 / 18),
    ),
}


@dataclass(frozen=True)
class AdjointPlan:
    """How to go backward.

    Attributes:
        kind: "backsolve", "interpolating" or "gauss".
        plan: method and tolerances of the backward solve.
        norm: "seminorm" (parameters out of the error norm), a callable on the tuple
            (t, y, adj_y, *adj_params) for backsolve, or None.
        relative_atol: whether atol is relative to the size of the incoming gradient.
    """

    kind: str
    plan: Plan
    norm: str | Callable[..., Any] | None = None
    relative_atol: bool = True


@dataclass
class AdjointTask:
    problem: Problem
    plan: Plan
    adjoint: AdjointPlan
    stats: SolveStats
    rhs: RHS
    run_options: Mapping[str, Any]
    backward_rhs: Callable[[Problem], RHS] = RHS
    trace: Trace | None = None


def run_continuous(
    problem: Problem,
    plan: Plan,
    adjoint: AdjointPlan,
    rhs: RHS,
    stats: SolveStats,
    backward_rhs: Callable[[Problem], RHS] = RHS,
    **kwargs: Any,
) -> Trace:
    """Forward run without a graph, differentiated by a continuous adjoint.

    ``backward_rhs`` makes what takes the products of the backward solve.
    """
    task = AdjointTask(problem, plan, adjoint, stats, rhs, kwargs, backward_rhs)
    return differentiated(_ContinuousAdjoint, task)


class _ContinuousAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: AdjointTask, y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        options = dict(task.run_options)
        options["dense"] = options.get("dense", False) or task.adjoint.kind != "backsolve"
        root, y0 = y0, y0.detach().clone()
        trace = run(task.plan, task.problem, task.rhs, y0, None, task.stats, graph=False, **options)
        rows = torch.stack(trace.rows)
        ctx.problem, ctx.adjoint, ctx.stats = task.problem, task.adjoint, task.stats
        ctx.dense, ctx.backward_rhs = trace.dense, task.backward_rhs
        ctx.save_for_backward(rows.clone(), root, t, *params)
        task.trace = trace
        return rows

    @staticmethod
    @autocast_off
    def backward(ctx: Any, grad: Tensor) -> Any:
        started = time.perf_counter()
        rows, y0, t, *params = ctx.saved_tensors
        with torch.no_grad():
            sweep = _Sweep(ctx, rows, grad.detach(), params)
            try:
                grads = sweep.run(need_t=ctx.needs_input_grad[2])
            finally:
                sweep.stream = None  # it refers back to the sweep
        ctx.stats.nfe_backward = sweep.rhs.n_vjp + sweep.rhs.nfe
        ctx.stats.alongside_backward = sweep.rhs.alongside
        ctx.stats.seconds_backward = time.perf_counter() - started
        if torch.is_grad_enabled():
            grads = once_only(f"adjoint {ctx.adjoint.kind!r}", grads, [grad, y0, t, *params])
        return None, *grads


class _Sweep:
    """One pass backward over all requested times."""

    def __init__(self, ctx: Any, rows: Tensor, grad: Tensor, params: Sequence[Tensor]):
        self.problem: Problem = ctx.problem
        self.adjoint: AdjointPlan = ctx.adjoint
        self.dense: DenseOutput | None = ctx.dense
        self.rows, self.grad, self.params = rows, grad, params
        self.rhs: RHS = ctx.backward_rhs(self.problem)
        self.steps_taken = SolveStats()
        self.rhs.inspect = partial(warn_of_lost_gradients, self.problem)
        like = rows[0]
        self.totals = [torch.zeros_like(p) for p in params]
        kind, n = self.adjoint.kind, like.numel()
        extra = 0 if kind == "gauss" else sum(p.numel() for p in params)
        self.has_y = kind == "backsolve"
        self.sizes = ([n] if self.has_y else []) + [n, extra]
        self.size = float(self.grad.abs().square().mean(dim=1).max().sqrt()) if n else 0.0
        self.plan = self._scaled_plan()
        callbacks = Callbacks.of(
            unwrapped(self.problem.func),
            self.rhs.time,
            self._for_callbacks,
            self.plan.callbacks,
            "_adjoint",
        )
        field = _AdjointField(self)
        self.stream = self.plan.stream(
            field, self._pack(like, like), self.steps_taken, False, None, callbacks
        )

    def _scaled_plan(self) -> Plan:
        plan = self.adjoint.plan
        atol = plan.atol
        if self.adjoint.relative_atol and not self.has_y and self.size > 0:
            atol = atol * self.size
        return replace(
            plan, atol=self._extended(atol), rtol=self._extended(plan.rtol), norm=self._norm()
        )

    def _extended(self, tol: float | Tensor) -> float | Tensor:
        """A tolerance per state element, continued over the parts of the adjoint state."""
        if not isinstance(tol, Tensor):
            return tol
        parts = [tol] * (2 if self.has_y else 1)
        return torch.cat([*parts, tol.new_full((self.sizes[-1],), float(tol.min()))])

    def _norm(self) -> Callable[[Tensor], float]:
        sizes, norm = self.sizes, self.adjoint.norm
        if callable(norm):
            return lambda z: float(norm(self._as_user_tuple(z)))
        last = -1 if norm == "seminorm" or sizes[-1] == 0 else len(sizes)
        if len(sizes) == 2 and last == -1:
            return lambda z: rms(z[: sizes[0]])
        return lambda z: float(
            torch.stack(
                [
                    torch.linalg.vector_norm(x) / max(x.numel(), 1) ** 0.5
                    for x in z.split(sizes)[:last]
                ]
            ).max()
        )

    def _as_user_tuple(self, z: Tensor) -> tuple[Any, ...]:
        """(t, y, adj_y, *adj_params), as torchdiffeq hands it to an adjoint norm."""
        y, lam, flat = z.split(self.sizes)
        parts: list[Any] = [z.new_zeros(())]
        for value in (y, lam):
            value = self.problem.structure.unpack(value)
            parts.extend(value if isinstance(value, tuple) else (value,))
        parts.extend(self._split_params(flat))
        return tuple(parts)

    def _for_callbacks(self, z: Tensor) -> Any:
        """The whole adjoint state for backsolve, else λ in the shape of the state."""
        if self.has_y:
            return self._as_user_tuple(z)
        return self.problem.structure.unpack(z[: self.sizes[0]].clone())

    def _split_params(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split([p.numel() for p in self.params])
        return [x.view_as(p) for x, p in zip(pieces, self.params, strict=True)]

    def _pack(self, y: Tensor, lam: Tensor) -> Tensor:
        """Adjoint state at the start of an interval: parameters begin at zero."""
        parts = ([y] if self.has_y else []) + [lam]
        if self.sizes[-1]:
            parts.append(lam.new_zeros(self.sizes[-1]))
        return torch.cat(parts) if len(parts) > 1 else lam.clone()

    def run(self, need_t: bool) -> list[Tensor | None]:
        """Gradients of (y0, t, *params)."""
        times, rows, grad = self.problem.times, self.rows, self.grad
        if not math.isfinite(self.size):  # as backpropagation: NaN, for a gradient scaler to see
            nan = [torch.full_like(x, math.nan) for x in (rows[0], *self.totals)]
            d_t = torch.full_like(self.problem.t, math.nan) if need_t else None
            return [nan[0], d_t, *nan[1:]]
        lam = torch.zeros_like(rows[0])
        d_t = torch.zeros(len(times), dtype=torch.float64, device=rows.device)
        for i in reversed(range(1, rows.shape[0])):
            if need_t:
                d_t[i] = _inner(grad[i], self.rhs(times[i], rows[i]))
            lam = self._interval(times[i], times[i - 1], rows[i], lam + grad[i])
        if need_t:
            d_t[0] = -_inner(lam, self.rhs(times[0], rows[0]))
        d_times = d_t.to(self.problem.t) if need_t else None
        return [lam + grad[0], d_times, *self.totals]

    @StopIterationPasses()
    def _interval(self, t1: float, t0: float, y: Tensor, lam: Tensor) -> Tensor:
        z = self._pack(y, lam)
        self.steps_taken.n_accepted = self.steps_taken.n_rejected = 0  # max_steps an interval
        try:
            for step in self._steps(z, t1, t0):
                z = step.y1
                if self.adjoint.kind == "gauss" and self.params:
                    self._quadrature(step)
        except StepFailure as failure:
            raise solver_error(
                f"the {self.adjoint.kind} adjoint failed going back from t = {t1:g}. "
                f"{failure.message}",
                failure.retcode,
                drop_in=self.problem.drop_in,
            ) from None
        parts = z.split(self.sizes)
        if self.sizes[-1]:
            for total, part in zip(self.totals, self._split_params(parts[-1]), strict=True):
                total.add_(part if total.is_complex() or not part.is_complex() else part.real)
        return parts[-2]

    def _steps(self, z: Tensor, t1: float, t0: float) -> Any:
        if self.plan.chooses_steps:
            return self.stream.steps(z, t1, t0)
        constructor = self.plan.options.get("grid_constructor")
        span = torch.tensor([t1, t0], dtype=torch.float64, device="cpu")
        grid = fixed_grid(self.problem.func, z, span, [t1, t0], self.plan.dt, constructor)
        return self.stream.steps(z, grid)

    def _quadrature(self, step: Any) -> None:
        if isinstance(step, PanStep):
            return self._pan_quadrature(step)
        h = step.t1 - step.t0
        order = self.plan.tableau.order if self.plan.tableau is not None else 4
        for x, w in _LEGENDRE[min(3, (order + 1) // 2)]:
            t = step.t0 + x * h
            lam = step.interpolate(t)
            _, _, grads = self.rhs.vjp(t, self.dense.at(t), lam, state=False)
            for total, g in zip(self.totals, grads, strict=True):
                if g is not None:
                    total.add_(g, alpha=-w * h)

    def _pan_quadrature(self, step: PanStep) -> None:
        """By the nodes of the interval, in one batched product."""
        piece = step.piece
        states = self.dense.at_all(piece.times.tolist())
        products = self.rhs.pullback(piece.times, states)
        weights = piece.basis.weights.to(piece.y0)[:, None]
        grads = products((-0.5 * piece.h) * weights * piece.nodes(), params=True)
        for total, g in zip(self.totals, grads, strict=True):
            if g is not None:
                total.add_(g)


class _AdjointField:
    """The adjoint right-hand side, in the shape of an RHS that steppers can call."""

    second_order, linear = False, True

    def __init__(self, sweep: _Sweep):
        self.sweep, self.rhs = sweep, sweep.rhs
        self.time_dtype, self.device = sweep.rhs.time_dtype, sweep.rhs.device
        self._at: tuple[list[float], Any] = ([], None)

    def destinations(self, k: Tensor) -> list[Tensor]:
        return list(k.unbind(0))

    def stage_times(self, t: float, h: float, c: Sequence[float], _: Tensor) -> list[float]:
        return [t + x * h for x in c]

    def end_time(self, t: float) -> float:
        return t

    def into(self, row: Tensor, t: float, z: Tensor) -> bool:
        row.copy_(self(t, z))
        return False

    def batched(self, t: Tensor, z: Tensor) -> Tensor:
        """At M times at once, for kind "gauss": (M,), (M, N) -> (M, N)."""
        times = t.tolist()
        if times != self._at[0]:  # an iteration asks at the same ones
            self._at = (times, self.rhs.pullback(t, self.sweep.dense.at_all(times)))
        return -self._at[1](z)[0]

    def __call__(self, t: Time, z: Tensor) -> Tensor:
        sweep = self.sweep
        if sweep.has_y:
            y, lam, _ = z.split(sweep.sizes)
        else:
            lam = z[: sweep.sizes[0]] if sweep.sizes[-1] else z
            y = sweep.dense.at(t)
        f, g_y, g_p = self.rhs.vjp(t, y, lam, params=sweep.sizes[-1] > 0)
        d_lam = torch.zeros_like(lam) if g_y is None else -g_y
        if not sweep.has_y and not sweep.sizes[-1]:
            return d_lam
        parts = [f, d_lam] if sweep.has_y else [d_lam]
        for p, g in zip(sweep.params, g_p, strict=False):
            parts.append(lam.new_zeros(p.numel()) if g is None else -g.reshape(-1).to(lam.dtype))
        return torch.cat(parts)


def _inner(g: Tensor, f: Tensor) -> Tensor:
    return (g.conj() * f).real.sum() if g.is_complex() else torch.dot(g, f)
