"""Continuous adjoints: backsolve, interpolating and gauss.

With λ = dL/dy, going backward in time: λ' = -λᵀ ∂f/∂y and dL/dθ = ∫ λᵀ ∂f/∂θ dt; λ jumps by
∂L/∂y(t_i) at every requested time (Pontryagin; Chen et al. 2018, eq. 3 to 5).

* backsolve: solves (y, λ, dL/dθ) backward together, y again from its final value at each interval.
* interpolating: solves (λ, dL/dθ); y comes from the dense output of the forward solve.
* gauss: solves λ alone; dL/dθ is a Gauss-Legendre quadrature over its steps, so the parameters are
  neither carried by the Runge-Kutta method nor seen by its error norm.

The equations are linear in λ, so their absolute tolerance is taken relative to the size of the
incoming gradient, unless the user sets it: scaling the loss scales the gradient and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...adjoints import Continuous
from ...adjoints.checks import Unchanged, warn_of_lost_gradients
from ...adjoints.node import Gradients, Needs, Way
from ...autocast import unwrapped
from ...errors import StopIterationPasses, solver_error
from ...problem import Problem
from ...rhs import RHS, Time
from ...solution import SolveStats
from .callbacks import Callbacks
from .control import StepFailure, rms
from .dense import DenseOutput
from .drift import Drift
from .fixed import fixed_grid
from .forward import Trace, run
from .gathered import gathered
from .pan import PanQuadrature
from .plan import Plan
from .quadrature import FixedQuadrature, Quadrature, Watch


class ContinuousWay(Way):
    """A run without a graph, differentiated by a solve backward.

    ``backward`` is the plan of that solve; ``backward_rhs`` makes what takes its products.
    """

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        adjoint: Continuous,
        backward: Plan,
        rhs: RHS,
        stats: SolveStats,
        options: Mapping[str, Any],
        backward_rhs: Callable[..., RHS] = RHS,
    ):
        super().__init__(problem, stats)
        self.name = f"adjoint {adjoint.name!r}"
        self.plan, self.adjoint, self.backward_plan = plan, adjoint, backward
        self.rhs, self.options, self.backward_rhs = rhs, dict(options), backward_rhs
        # tolerances that the user gave are of the gradient itself
        self._relative = adjoint.atol is None and not callable(adjoint.norm)
        self.dense: DenseOutput | None = None
        self.trace: Trace | None = None

    def forward(self, y0: Tensor, needs_t: bool) -> list[Tensor]:
        reads_dense = self.adjoint.name != "backsolve"
        options = {**self.options, "graph": False, "witness": True}
        options["dense"] = options["dense"] or reads_dense
        trace = run(self.plan, self.problem, self.rhs, y0, None, self.stats, **options)
        self.dense = trace.dense if reads_dense else None
        sides = self.plan.sides(self.problem.time_dtype)
        more = tuple if self.dense is None else partial(self.dense.witnesses, sides)
        self.unchanged = Unchanged(self.problem, trace.witnesses, more)
        self.trace, self.rhs = trace, None
        if not self.options["dense"]:
            trace.dense = None
        return trace.rows

    def unit(self, size: float) -> float:
        return super().unit(size) if self._relative else 1.0

    def backward(self, rows: Tensor, grad: Tensor, needs: Needs) -> Gradients:
        sweep = _Sweep(self, rows, grad, needs)
        try:
            return sweep.run()
        finally:
            sweep.close()


class _Sweep:
    """One pass backward over all requested times."""

    def __init__(self, way: ContinuousWay, rows: Tensor, grad: Tensor, needs: Needs):
        self.problem, self.adjoint, self.dense = way.problem, way.adjoint, way.dense
        self.rows, self.grad, self.needs = rows, grad, needs
        self.rhs: RHS = way.backward_rhs(self.problem, backward=True, needs=needs.tensors)
        self.params = self.rhs.inputs
        self.lost = False  # some tensor's gradient is known to be
        self.steps_taken = SolveStats()
        like = rows[0]
        kind, n = self.adjoint.name, like.numel()
        extra = 0 if kind == "gauss" else sum(p.numel() for p in self.params)
        self.has_y = kind == "backsolve"
        self.sizes = ([n] if self.has_y else []) + [n, extra]
        self.plan = self._scaled_plan(way.backward_plan, way._relative)
        self.drift = Drift(self.problem, way.backward_plan) if self.has_y else None
        self.watch = self._told(way) if getattr(self.adjoint, "watch", None) else None
        self.quadrature = self._quadrature(way) if kind == "gauss" else None
        self.totals = [torch.zeros_like(p) for p in self.params]
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

    def _look(self) -> None:
        """Look for lost gradients in every step's first product: a dependence may begin late."""
        self.rhs.inspect = None if self.lost else self._inspect

    def _inspect(self, out: Tensor, y: Tensor) -> None:
        self.lost = warn_of_lost_gradients(self.problem, out, y, *self.params)

    def close(self) -> None:
        """Drop what refers back to this."""
        self.stream = self.rhs.inspect = None

    def _scaled_plan(self, plan: Plan, relative: bool) -> Plan:
        atol = plan.atol
        if relative and not self.has_y:
            atol = atol * (_size(self.grad) or 1.0)
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

    def _quadrature(self, way: ContinuousWay) -> Any:
        plan, dense = self.plan, self.dense
        rtol, atol = (
            float(x.min()) if isinstance(x, Tensor) else x for x in (plan.rtol, plan.atol)
        )
        stops = dense.bounds[1:-1]
        if plan.kind == "pan":
            sides = way.plan.sides(self.rhs.time_dtype)
            return PanQuadrature(self.rhs, dense.at_all, rtol, atol, stops, sides, self.watch)
        if not plan.chooses_steps:
            order = 4 if plan.tableau is None else plan.tableau.order
            return FixedQuadrature(self.rhs, dense.at, order, self.watch)
        drop_in = self.problem.drop_in
        return Quadrature(self.rhs, dense.at, rtol, atol, stops, drop_in, self.watch)

    def _told(self, way: ContinuousWay) -> Watch:
        """The user's watch, told in the user's structure and in units of the loss."""
        watch, unpack, unit = self.adjoint.watch, self.problem.structure.unpack, way.measured_in

        def told(t: float, weight: float, y: Tensor, lam: Tensor) -> None:
            watch(t, weight, unpack(y.clone()), unpack(lam * unit))

        return told

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

    def run(self) -> Gradients:
        """Going back from requested time to requested time."""
        times, grad = self.problem.times[: len(self.grad)], self.grad
        if self.dense is not None and self.plan.chooses_steps:
            times, grad = gathered(self.dense, times, grad)
        lam = torch.zeros_like(self.rows[0])
        for i in reversed(range(1, len(times))):
            lam = self._interval(times[i], times[i - 1], i, lam + grad[i])
        totals = self.totals if self.quadrature is None else self.quadrature.totals
        rhs = self.rhs
        if self.drift is not None:
            self.drift.tell()
        return Gradients(
            lam, self.needs.spread(totals), nfe=rhs.n_vjp + rhs.nfe, alongside=rhs.alongside
        )

    @StopIterationPasses()
    def _interval(self, t1: float, t0: float, i: int, lam: Tensor) -> Tensor:
        z = self._pack(self.rows[i], lam) if self.has_y else self._pack(lam, lam)
        self.steps_taken.n_accepted = self.steps_taken.n_rejected = 0  # max_steps an interval
        try:
            for step in self._steps(z, t1, t0):
                z = step.y1
                self._look()
                if self.quadrature is not None and (self.params or self.watch is not None):
                    self.quadrature.add(step)
        except StepFailure as failure:
            raise solver_error(
                f"the {self.adjoint.name} adjoint failed going back from t = {t1:g}. "
                f"{failure.message}",
                failure.retcode,
                drop_in=self.problem.drop_in,
            ) from None
        parts = z.split(self.sizes)
        if self.drift is not None:
            self.drift.look(t0, parts[0], self.rows[i - 1])
        if self.sizes[-1]:
            for total, part in zip(self.totals, self._split_params(parts[-1]), strict=True):
                total.add_(part if total.is_complex() or not part.is_complex() else part.real)
        return parts[-2]

    def _steps(self, z: Tensor, t1: float, t0: float) -> Any:
        self._look()
        if self.plan.chooses_steps:
            return self.stream.steps(z, t1, t0)
        constructor = self.plan.options.get("grid_constructor")
        span = torch.tensor([t1, t0], dtype=torch.float64, device="cpu")
        grid = fixed_grid(self.problem.func, z, span, [t1, t0], self.plan.dt, constructor)
        return self.stream.steps(z, grid)


def _size(grad: Tensor) -> float:
    """Root mean square of the largest row."""
    return float(grad.abs().square().mean(dim=1).max().sqrt()) if grad.shape[1] else 0.0


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
