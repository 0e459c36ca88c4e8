"""The gradient of an approximation, by the implicit function theorem.

On an interval K = f(t, Y) at the M nodes and Y = y0 + (h/2) A K: an implicit Runge-Kutta method of
M stages. For cotangents v of K, w = v + (h/2) A' J' w; then J' w summed over the nodes is the
gradient of y0, and the products of w with df/dparams are those of the parameters. Every iteration
is one batched product; memory is that of the trajectory and the graph of one interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....adjoints.checks import Unchanged, warn_of_lost_gradients
from ....adjoints.node import Gradients, Needs, Way
from ....errors import SolverError
from ....problem import Problem
from ....rhs import RHS
from ....solution import Retcode, SolveStats
from ..forward import Trace, run
from ..plan import Plan
from .basis import F64
from .dense import PanOutput
from .interval import DENSE_LINEAR, DENSE_UNKNOWNS, Piece
from .krylov import gmres

ROUNDS = 60  # products, after which GMRES takes over
SLOW = 0.5  # contraction of the iteration that forming the matrix of a small state betters


class PanWay(Way):
    """A run without a graph, differentiated through the equations that it has solved."""

    name = "adjoint 'direct' (of pan)"

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        rhs: RHS,
        f0: Tensor,
        stats: SolveStats,
        options: Mapping[str, Any],
    ):
        super().__init__(problem, stats)
        self.plan, self.rhs, self.f0, self.options = plan, rhs, f0, dict(options)
        # more digits than the equations were solved to say nothing
        eps, rtol = torch.finfo(problem.y0.dtype).eps, torch.as_tensor(plan.rtol)
        self.tol = max(10 * eps, 1e-3 * float(rtol.min()))
        self.dense: PanOutput | None = None
        self.trace: Trace | None = None

    def forward(self, y0: Tensor, needs_t: bool) -> list[Tensor]:
        options = {**self.options, "dense": True, "graph": False, "witness": True}
        f0 = self.f0.detach()
        trace = run(self.plan, self.problem, self.rhs, y0, f0, self.stats, **options)
        self.dense = trace.dense
        more = partial(trace.dense.witnesses, self.plan.sides(self.problem.time_dtype))
        self.unchanged = Unchanged(self.problem, trace.witnesses, more)
        if not self.options["dense"]:
            trace.dense = None
        self.trace, self.rhs, self.f0 = trace, None, None
        return trace.rows

    def backward(self, rows: Tensor, grad: Tensor, needs: Needs) -> Gradients:
        return _Sweep(self, needs).run(grad)


class _Sweep:
    """One pass backward over the intervals."""

    def __init__(self, way: PanWay, needs: Needs):
        self.problem, self.dense, self.tol, self.needs = way.problem, way.dense, way.tol, needs
        self.rhs = RHS(self.problem, backward=True, needs=needs.tensors)
        self.totals = [torch.zeros_like(p) for p in self.rhs.inputs]
        self.lost = False  # some tensor's gradient is known to be

    def run(self, grad: Tensor) -> Gradients:
        """For cotangents ``grad`` (T', N) of the rows."""
        dense, rhs, times = self.dense, self.rhs, self.problem.times[: len(grad)]
        lam, pending = torch.zeros_like(grad[0]), len(times) - 1
        for piece, begin in zip(reversed(dense.pieces), reversed(dense.bounds[:-1]), strict=True):
            inside = []
            while pending > 0 and dense.direction * (times[pending] - begin) > 0:
                inside.append(pending)
                pending -= 1
            lam = self._through(piece, lam, [times[i] for i in inside], grad[inside])
        return Gradients(
            lam, self.needs.spread(self.totals), nfe=rhs.n_vjp + rhs.nfe, alongside=rhs.alongside
        )

    def _inspect(self, out: Tensor, y: Tensor) -> None:
        self.lost = warn_of_lost_gradients(self.problem, out, y, *self.rhs.inputs)

    def _through(self, piece: Piece, lam: Tensor, times: Sequence[float], grad: Tensor) -> Tensor:
        """The cotangent of an interval's first state, for ``lam`` of its last one and ``grad``
        (S, N) of states at ``times`` within.
        """
        basis, half, rhs = piece.basis, 0.5 * piece.h, self.rhs
        x = torch.cat([torch.ones(1, dtype=F64), piece.places(times)])
        rows = torch.cat([lam[None], grad])
        v = half * basis.integrals_at(x).T @ rows
        transposed = half * basis.integrals.T
        rhs.inspect = None if self.lost else self._inspect
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
