"""Gradients: ways over forward solves in Julia.

direct: the accepted steps that Julia chose are replayed in torch, with the method's own tableau, or
by a tape in Julia.
gauss, interpolating, quadrature, backsolve: SciMLSensitivity solves the adjoint equations, with
vector-Jacobian products of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ...adjoints.checks import Unchanged, refuse_lost_gradients
from ...adjoints.node import Gradients, Needs, Way
from ...errors import UnsupportedError, solver_error
from ...problem import Problem
from ...solution import Retcode, SolveStats
from ..replay import Steps, replay
from ..runge_kutta import Sides
from ..tableau import Tableau
from .forward import Forward, Kept, accepted_steps, held_until, run_forward
from .native.field import NativeField, NativeUnchanged
from .plan import Plan, advice
from .requests import AdjointReport, AdjointRequest, address, doubles
from .runtime import Runtime
from .tableau import numbers_of
from .workspace import drain


class JuliaWay(Way):
    """A solve in Julia, and its gradient.

    Attributes:
        done: what the forward solve left, for who asked for it.
    """

    def __init__(
        self,
        runtime: Runtime,
        problem: Problem,
        plan: Plan,
        stats: SolveStats,
        keep_dense: bool,
        native: NativeField | None = None,
    ):
        super().__init__(problem, stats)
        self.runtime, self.plan, self.native = runtime, plan, native
        self.keep_dense = keep_dense
        self.done: Forward | None = None

    def _solved(self, keep: str, land: bool = False, adjoint: bool = False) -> Forward:
        done = run_forward(
            *(self.runtime, self.problem, self.plan, self.stats),
            keep=keep,
            land=land,
            adjoint=adjoint,
            native=self.native,
        )
        if self.native is None:
            self.unchanged = Unchanged(self.problem, done.witnesses)
        else:
            self.unchanged = NativeUnchanged(self.native)
        self.done = done
        return done


class Replay(JuliaWay):
    """Differentiated by replaying the accepted steps."""

    name = "adjoint 'direct' (replay)"
    times_itself = linear = True
    tableau: Tableau
    steps: Steps

    def forward(self, y0: Tensor, needs_t: bool) -> Tensor:
        problem, plan = self.problem, self.plan
        # the derivative with respect to a time is that of a step that ends there
        land = needs_t or self.tableau.dense is None
        inside = len(problem.times) > 2 and not land
        done = self._solved("dense" if inside or self.keep_dense else "steps", land)
        taken = accepted_steps(self.runtime, done.kept, problem)
        done.step_t = taken.t
        # steps of a failed solve beyond the last row carry nothing
        last = abs(problem.times[done.rows.shape[0] - 1] - problem.times[0])
        n = sum(s < last for s in taken.since)
        lengths = taken.lengths(None if plan.adaptive else plan.dt)[:n]
        self.steps = Steps(
            self.tableau,
            taken.t[: n + 1],
            taken.y[:n],
            Sides(problem.time_dtype, frozenset((*plan.jumps, *held_until(problem.times)))),
            end=taken.y[n] if n < len(taken.y) else None,
            lengths=[done.kept.sign * h for h in lengths],
        )
        if not self.keep_dense:
            done.kept = None
        return done.rows

    def backward(self, rows: Tensor, grad: Tensor, needs: Needs) -> Gradients:
        inspect = partial(refuse_lost_gradients, self.problem)
        refusal = self.unchanged.refusal
        return replay(self.problem, self.steps, grad, needs, inspect, refusal)


class NativeReplay(JuliaWay):
    """The same gradient by the products of a tape, in Julia; not that of the times."""

    name = "adjoint 'direct' (replay)"
    linear = True
    tableau: Tableau
    kept: Kept

    def forward(self, y0: Tensor, needs_t: bool) -> Tensor:
        land = self.tableau.dense is None or len(self.tableau.dense) != self.tableau.stages
        dense = self.keep_dense or (len(self.problem.times) > 2 and not land)
        done = self._solved("dense" if dense else "steps", land, adjoint=True)
        self.kept = done.kept
        return done.rows

    def backward(self, rows: Tensor, grad: Tensor, needs: Needs) -> Gradients:
        self.runtime.check()
        problem, kept = self.problem, self.kept
        grad = grad.contiguous()
        du0 = torch.empty_like(grad[0])
        dp = grad.new_empty(sum(map(Tensor.numel, problem.params)) or 1)
        times = doubles([kept.sign * x for x in problem.times[: grad.shape[0]]])
        degree, numbers = numbers_of(self.tableau)
        with kept.workspace.calling():
            nfe = self.runtime.replay(
                *(kept.number, self.tableau.stages, degree, numbers.data_ptr()),
                *(address(times), len(times), grad.data_ptr(), du0.data_ptr(), dp.data_ptr()),
            )
        # Julia's is with the cotangent of the first row
        return Gradients(du0 - grad[0], _of_each(dp, problem.params), nfe=int(nfe))


class ContinuousInJulia(JuliaWay):
    """Differentiated by a continuous adjoint of SciMLSensitivity."""

    kept: Kept

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"adjoint {self.plan.adjoint!r}"

    def unit(self, size: float) -> float:
        return super().unit(size) if self.plan.relative_atol else 1.0

    def forward(self, y0: Tensor, needs_t: bool) -> Tensor:
        plan = self.plan
        few = plan.checkpoints is not None or plan.adjoint == "backsolve"
        self.runtime.adjoints()
        keep = "checkpoints" if few and not self.keep_dense else "dense"
        done = self._solved(keep, adjoint=True)
        self.kept = done.kept
        return done.rows

    def backward(self, rows: Tensor, grad: Tensor, needs: Needs) -> Gradients:
        self.runtime.check()
        drain(self.runtime)
        problem = self.problem
        carries = (grad != 0).any(dim=1).tolist()
        if self.plan.initialization == "brown" and problem.mass is not None and carries[0]:
            raise UnsupportedError(
                "a loss on the states at t[0] has no gradient here where options="
                "{'initialization': 'brown'} replaced y0; leave them out of the loss, or pass a "
                "consistent y0"
            )
        if not any(carries[1:]):
            return Gradients(torch.zeros_like(grad[0]), [None] * len(problem.tensors))
        # backward steps end on the times that carry a cotangent: on a grid, all of them do
        used = [i for i in range(1, len(grad)) if carries[i] or self.plan.grid]
        return self._solve_adjoint(grad[used].contiguous(), used)

    def _solve_adjoint(self, cotangents: Tensor, used: Sequence[int]) -> Gradients:
        runtime, problem, plan, kept = self.runtime, self.problem, self.plan, self.kept
        workspace = kept.workspace
        size = float(cotangents.square().mean(dim=1).max().sqrt()) if plan.relative_atol else 1.0
        lam = torch.empty_like(problem.y0)
        dp = cotangents.new_empty(max(sum(p.numel() for p in problem.tensors), 1))
        rhs = workspace.rhs
        if self.native is None:
            rhs = workspace.serve_products(problem)
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
        with workspace.calling():
            code = runtime.adjoint(
                *(kept.number, plan.adjoint_method.name, plan.adjoint),
                *(address(request), address(report)),
            )
        nfe = rhs.nfe - before[0] + rhs.n_vjp - before[1]
        if self.native is not None:
            nfe = int(report.vjp_u + report.vjp_p + report.vjp + report.nf)
        retcode = Retcode.of(str(code))
        if not retcode.successful:
            raise solver_error(
                f"the {plan.adjoint} adjoint ({plan.adjoint_method.name}) failed at "
                f"t = {kept.sign * report.reached:.6g} with retcode {retcode}. "
                f"{advice(retcode, plan, backward=True)}",
                retcode,
                drop_in=problem.drop_in,
            )
        dp = dp[: dp.numel() if problem.tensors else 0]
        jacobians = rhs.n_jacobians - before[2]
        return Gradients(lam, _of_each(dp, problem.tensors), nfe=nfe, jacobians=jacobians)


def _of_each(dp: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors' gradients, of one vector; without tensors it may have any length."""
    pieces = dp.split_with_sizes([p.numel() for p in tensors]) if tensors else ()
    found = [g.view(p.shape) for g, p in zip(pieces, tensors, strict=True)]
    return [g if g.dtype == p.dtype else g.to(p.dtype) for g, p in zip(found, tensors, strict=True)]
