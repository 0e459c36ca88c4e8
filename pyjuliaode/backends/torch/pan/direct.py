"""The gradient of an approximation, by the implicit function theorem.

On an interval K = f(t, Y) at the M nodes and Y = y0 + (h/2) A K: an implicit Runge-Kutta method of
M stages. For cotangents v of K, w = v + (h/2) A' J' w; then J' w summed over the nodes is the
gradient of y0, and the products of w with df/dparams are those of the parameters. Every iteration
is one batched product; memory is that of the trajectory and the graph of one interval.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....errors import SolverError
from ....problem import Problem
from ....refusal import once_only
from ....rhs import RHS
from ....solution import Retcode, SolveStats
from ...autocast import autocast_off
from ..forward import Trace, differentiated, run
from ..plan import Plan
from .basis import F64
from .dense import PanOutput
from .interval import DENSE_LINEAR, DENSE_UNKNOWNS, Piece
from .krylov import gmres

ROUNDS = 60  # products, after which GMRES takes over
SLOW = 0.5  # contraction of the iteration that forming the matrix of a small state betters


@dataclass
class PanTask:
    """What :func:`run_pan` hands to its autograd function, and gets back."""

    problem: Problem
    plan: Plan
    rhs: RHS
    stats: SolveStats
    run_options: dict[str, Any]
    f0: Tensor
    trace: Trace | None = None


def run_pan(
    problem: Problem, plan: Plan, rhs: RHS, f0: Tensor, stats: SolveStats, **options: Any
) -> Trace:
    """Forward run, differentiated through the equations that it has solved."""
    task = PanTask(problem, plan, rhs, stats, options, f0)
    return differentiated(_Pan, task)


class _Pan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: PanTask, y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        options = {**task.run_options, "dense": True}
        start, f0 = y0.detach().clone(), task.f0.detach()
        options |= {"graph": False, "y0": start, "f0": f0, "stats": task.stats}
        trace = run(task.plan, task.problem, task.rhs, **options)
        ctx.problem, ctx.stats, ctx.dense = task.problem, task.stats, trace.dense
        # more digits than the equations were solved to say nothing
        eps, rtol = torch.finfo(y0.dtype).eps, torch.as_tensor(task.plan.rtol)
        ctx.tol = max(10 * eps, 1e-3 * float(rtol.min()))
        rows = torch.stack(trace.rows)
        ctx.save_for_backward(rows.clone(), y0, t, *params)
        if not task.run_options["dense"]:
            trace.dense = None
        task.trace = trace
        return rows

    @staticmethod
    @autocast_off
    def backward(ctx: Any, grad: Tensor) -> Any:
        started = time.perf_counter()
        rows, y0, t, *params = ctx.saved_tensors
        with torch.no_grad():
            sweep = _Sweep(ctx.problem, ctx.dense, ctx.tol)
            grads = sweep.run(rows, grad.detach(), ctx.needs_input_grad[2])
        ctx.stats.nfe_backward = sweep.rhs.n_vjp + sweep.rhs.nfe
        ctx.stats.alongside_backward = sweep.rhs.alongside
        ctx.stats.seconds_backward = time.perf_counter() - started
        if torch.is_grad_enabled():
            grads = once_only("adjoint 'direct' (of pan)", grads, [grad, y0, t, *params])
        return None, *grads


class _Sweep:
    """One pass backward over the intervals."""

    def __init__(self, problem: Problem, dense: PanOutput, tol: float):
        self.problem, self.dense, self.tol = problem, dense, tol
        self.rhs = RHS(problem)
        self.totals = [torch.zeros_like(p) for p in problem.params]

    def run(self, rows: Tensor, grad: Tensor, need_t: bool) -> list[Tensor | None]:
        """Gradients of (y0, t, *params), for cotangents ``grad`` (T', N) of the rows."""
        dense, rhs, times = self.dense, self.rhs, self.problem.times[: len(rows)]
        lam, pending = torch.zeros_like(rows[0]), len(times) - 1
        for piece, begin in zip(reversed(dense.pieces), reversed(dense.bounds[:-1]), strict=True):
            inside = []
            while pending > 0 and dense.direction * (times[pending] - begin) > 0:
                inside.append(pending)
                pending -= 1
            lam = self._through(piece, lam, [times[i] for i in inside], grad[inside])
        d_t = None
        if need_t:
            slopes = [torch.dot(g, rhs(s, y)) for g, s, y in zip(grad, times, rows, strict=True)]
            slopes[0] = -torch.dot(lam, rhs(times[0], rows[0]))
            d_t = torch.zeros_like(self.problem.t)
            d_t[: len(slopes)] = torch.stack(slopes).to(d_t)
        return [lam + grad[0], d_t, *self.totals]

    def _through(self, piece: Piece, lam: Tensor, times: Sequence[float], grad: Tensor) -> Tensor:
        """The cotangent of an interval's first state, for ``lam`` of its last one and ``grad``
        (S, N) of states at ``times`` within.
        """
        basis, half, rhs = piece.basis, 0.5 * piece.h, self.rhs
        x = torch.cat([torch.ones(1, dtype=F64), piece.places(times)])
        rows = torch.cat([lam[None], grad])
        v = half * basis.integrals_at(x).T @ rows
        transposed = half * basis.integrals.T
        products = rhs.pullback(piece.times, piece.nodes())
        w, u = _solved(v, lambda w: products(w)[0], transposed, self.tol)
        for i, g in enumerate(products(w, params=True)):
            if g is not None:
                self.totals[i] = self.totals[i] + g
        return rows.sum(0) + u.sum(0)


def _solved(
    v: Tensor, pull: Callable[[Tensor], Tensor], transposed: Tensor, tol: float
) -> tuple[Tensor, Tensor]:
    """w = v + transposed J' w, and J' w."""
    if v.numel() == 0:  # of an empty batch
        return v, v
    if not bool(v.isfinite().all()):  # as backpropagation: NaN, for a gradient scaler to see
        return v, torch.full_like(v, torch.nan)
    w, last = v, math.inf
    small = v.shape[1] <= DENSE_LINEAR and v.numel() <= DENSE_UNKNOWNS
    for k in range(ROUNDS):
        u = pull(w)
        found = v + transposed @ u
        size, change = float(found.abs().max()), float((found - w).abs().max())
        w, u_of_last = found, u
        if change <= tol * size or (change <= 100 * tol * size and change >= last):
            return w, u_of_last
        if not change < 2 * last or (small and k > 0 and change > SLOW * last):
            break
        last = change

    if small:
        w = torch.linalg.solve(_matrix(v, pull, transposed), v.reshape(-1)).view_as(v)
    else:

        def apply(z: Tensor) -> Tensor:
            return z - (transposed @ pull(z.view_as(v))).reshape(-1)

        w = gmres(apply, v.reshape(-1), tol, 200).view_as(v)
    u = pull(w)
    left = float((v + transposed @ u - w).abs().max()) / max(float(w.abs().max()), 1e-300)
    if not left < 100 * tol:
        raise SolverError(
            f"the gradient through an interval of method 'pan' did not converge ({left:.1g}); "
            "choose shorter intervals by options={'max_step': ...}",
            Retcode.CONVERGENCE_FAILURE,
        )
    return w, u


def _matrix(v: Tensor, pull: Callable[[Tensor], Tensor], transposed: Tensor) -> Tensor:
    """Of w -> w - transposed J' w, (M N, M N)."""
    units = torch.eye(v.shape[1], dtype=v.dtype, device=v.device)
    j = torch.stack([pull(e.expand_as(v)) for e in units], dim=2)
    a = -torch.einsum("im,mab->iamb", transposed, j).reshape(v.numel(), v.numel())
    a.diagonal().add_(1.0)
    return a
