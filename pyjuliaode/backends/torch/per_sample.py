"""Own step sizes for every sample of a batch (options={"per_sample": True}).

In a joint solve one difficult sample makes the steps of all others small. Here every sample has
its own time, step and error control; one evaluation of the field serves all of them, at times of
shape (B, 1, ..., 1). The gradient is the direct one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...adjoints import Adjoint, Direct
from ...errors import InvalidArgumentError, UnsupportedError
from ...problem import Problem
from ...rhs import RHS
from ...solution import Retcode, SolveStats
from ...solver import Solver
from .control import StepFailure, unresolved
from .forward import Trace
from .plan import Plan


@dataclass
class _Batch:
    """Where the samples lie in the state, and how per-sample numbers broadcast against it."""

    shape: tuple[int, ...]
    dim: int

    @property
    def size(self) -> int:
        return self.shape[self.dim]

    def spread(self, x: Tensor) -> Tensor:
        """(B,) -> (B, 1, ..., 1): broadcasts against the state."""
        return x.reshape(self.size, *[1] * (len(self.shape) - self.dim - 1))

    def norm(self, x: Tensor) -> Tensor:
        """Root mean square of each sample, (B,)."""
        return x.abs().movedim(self.dim, 0).reshape(self.size, -1).square().mean(1).sqrt()

    def finite(self, x: Tensor) -> Tensor:
        """Whether each sample is finite, (B,)."""
        return x.detach().isfinite().movedim(self.dim, 0).reshape(self.size, -1).all(1)


def run(
    problem: Problem,
    plan: Plan,
    rhs: RHS,
    solver: Solver,
    adjoint: Adjoint,
    stats: SolveStats,
    events: bool,
) -> Trace:
    """Solve; see the module's docstring.

    Raises:
        InvalidArgumentError: a tuple state, or no batch dimension where ``batch_dim`` says.
        UnsupportedError: a method without error control or interpolant, a continuous adjoint,
            gradients with respect to the times.
    """
    batch = _check(problem, plan, solver, adjoint)
    ignored = [n for n in ("jump_t", "step_t", "perturb", "norm") if solver.option(n)]
    if events or solver.option("dense", False) is True or ignored:
        what = ", ".join(ignored) or ("events" if events else "dense output")
        raise UnsupportedError(f"per_sample does not support {what}; use a joint solve")
    stats.adjoint = "direct"
    loop = _Loop(problem, plan, rhs, batch, stats)
    failure = None
    try:
        loop.run()
    except StepFailure as found:
        failure = found
    rows = [r.reshape(-1) for r in loop.reached()]
    return Trace(rows, problem.times[: len(rows)], failure=failure)


def _check(problem: Problem, plan: Plan, solver: Solver, adjoint: Adjoint) -> _Batch:
    if problem.structure.is_tuple:
        raise InvalidArgumentError("per_sample needs a tensor state, got a tuple")
    if plan.kind != "adaptive" or not plan.has_interpolant:
        raise UnsupportedError(
            f"per_sample needs an adaptive method with an interpolant, not {plan.method!r}; use "
            "'dopri5', 'tsit5' or 'bosh3'"
        )
    if not isinstance(adjoint, Direct):
        raise UnsupportedError(f"per_sample has adjoint='direct' only, not {adjoint.name!r}")
    if problem.t.requires_grad:
        raise UnsupportedError("per_sample has no gradient with respect to the times")
    shape = problem.structure.shapes[0]
    dim = int(solver.option("batch_dim", 0))
    if not 0 <= dim < len(shape):
        raise InvalidArgumentError(f"batch_dim {dim} is not a dimension of y0, shape {shape}")
    return _Batch(shape, dim)


class _Loop:
    """The solve; times and steps are float64 whatever the state is."""

    def __init__(self, problem: Problem, plan: Plan, rhs: RHS, batch: _Batch, stats: SolveStats):
        self.problem, self.plan, self.rhs, self.batch, self.stats = problem, plan, rhs, batch, stats
        self.control = plan.control()
        self.sign = 1.0 if problem.times[-1] > problem.times[0] else -1.0
        self.rtol, self.atol = (
            x.view(batch.shape) if isinstance(x, Tensor) else x for x in (plan.rtol, plan.atol)
        )
        y0 = problem.y0.view(batch.shape)
        # NaN until a sample comes by
        self.rows = [y0, *(torch.full_like(y0, torch.nan) for _ in problem.times[1:])]
        start = problem.times[0]
        self.t = torch.full((batch.size,), start, dtype=torch.float64, device=y0.device)

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rhs(self.batch.spread(t), y.reshape(-1)).view(self.batch.shape)

    def reached(self) -> list[Tensor]:
        """States (*batch.shape) at the requested times, up to the first that is not complete."""
        complete = [bool(self.batch.finite(row).all()) for row in self.rows[1:]]
        return self.rows[: 1 + [*complete, False].index(False)]

    def run(self) -> None:
        """Fill the rows; raise :class:`StepFailure` where one stays incomplete."""
        end, batch, t = self.problem.times[-1], self.batch, self.t
        y = self.rows[0].clone()
        f = self.field(t, y)
        self._check_finite(y, "y0")
        self._check_finite(f, "the field at y0")
        h = self._first_step(t, y, f)
        for _ in range(self.control.max_steps):
            room = (end - t).abs()
            t1 = torch.where(h >= room * (1 - 1e-9), end, t + self.sign * h)
            cut, span = torch.minimum(h, room), t1 - t
            y1, f1, slopes, ratio = self._trial(t, span, y, f)
            accept = ratio <= 1.0  # False where the ratio is NaN
            accept = accept | ((cut <= self.control.min_step) & ratio.isfinite())
            if not bool(accept.all()):
                self.stats.n_rejected += 1
                if y1.requires_grad:
                    # a rejected trial may hold NaN, which reaches the gradient through where():
                    # repeat it with a step of no length for the samples that it rejects
                    kept = torch.where(accept, span, torch.zeros_like(span))
                    y1, f1, slopes, _ = self._trial(t, kept, y, f)
            self._write(t, t1, accept, y, y1, slopes)
            active = t != end
            self.stats.n_accepted += 1
            self.t = t = torch.where(accept, t1, t)
            keep = batch.spread(accept)
            y, f = torch.where(keep, y1, y), torch.where(keep, f1, f)
            h = torch.where(active, self._next(h, cut, ratio, accept), h)
            self._check_progress(t, h, ratio)
            if bool((t == end).all()):
                self._check_complete()
                return
        slowest = self.sign * float((self.sign * t).min())
        raise StepFailure(Retcode.MAX_ITERS, slowest, "the largest number of steps is spent")

    def _check_finite(self, x: Tensor, what: str) -> None:
        finite = self.batch.finite(x)
        if not bool(finite.all()):
            sample = int((~finite).nonzero()[0])
            what = f"{what} of sample {sample} is not finite (NaN or Inf)"
            raise StepFailure(Retcode.UNSTABLE, float(self.t[sample]), what)

    def _check_complete(self) -> None:
        finite = torch.stack([self.batch.finite(row) for row in self.rows])
        if not bool(finite.all()):
            row, sample = (~finite).nonzero()[0].tolist()
            what = f"the state of sample {sample} is not finite"
            raise StepFailure(Retcode.UNSTABLE, self.problem.times[row], what)

    @torch.no_grad()
    def _first_step(self, t: Tensor, y: Tensor, f: Tensor) -> Tensor:
        if self.control.first_step is not None:
            return torch.full_like(t, self.control.first_step)
        scale = y.abs() * self.rtol + self.atol
        d0, d1 = self.batch.norm(y / scale), self.batch.norm(f / scale)
        small = (d0 < 1e-5) | (d1 < 1e-5)
        h0 = torch.where(small, torch.full_like(d0, 1e-6), 0.01 * d0 / d1.clamp(min=1e-30))
        h0 = h0.clamp(max=min(abs(self.problem.times[-1] - self.problem.times[0]), 1e30))
        f1 = self.field(t + self.sign * h0, y + self.batch.spread(self.sign * h0) * f)
        d2 = self.batch.norm((f1 - f) / scale) / h0
        largest = torch.maximum(d1, d2)
        h1 = (0.01 / largest.clamp(min=1e-15)) ** (1.0 / self.control.order)
        return torch.where(d2.isfinite(), torch.minimum(100 * h0, h1), h0).to(t.dtype)

    def _trial(
        self, t: Tensor, signed: Tensor, y: Tensor, f: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """(y1, f1, slopes, error ratio) of one step of every sample."""
        tab = self.plan.tableau
        wide = self.batch.spread(signed).to(y.dtype)
        k = [f]
        yi = y
        for c, a in zip(tab.c[1:], tab.a, strict=True):
            yi = y + wide * _weighted(a, k)
            k.append(self.field(t + c * signed, yi))
        y1 = yi if tab.fsal else y + wide * _weighted(tab.b, k)
        f1 = k[-1] if tab.fsal else self.field(t + signed, y1)
        with torch.no_grad():
            error = wide * _weighted(tab.error, k)
            scale = torch.maximum(y.abs(), y1.abs()) * self.rtol + self.atol
            ratio = self.batch.norm(error / scale)
        return y1, f1, k if tab.fsal else [*k, f1], ratio

    def _write(
        self, t: Tensor, t1: Tensor, accept: Tensor, y: Tensor, y1: Tensor, k: list[Tensor]
    ) -> None:
        """Fill in the requested times that lie in the accepted steps of the samples."""
        sign, batch, times, rows = self.sign, self.batch, self.problem.times, self.rows
        span = t1 - t
        length = torch.where(span == 0, 1.0, span)  # of a sample that has ended
        low, high = float((sign * t).min()), float((sign * t1).max())
        due = [j for j in range(1, len(times)) if low < sign * times[j] <= high]
        if due:
            k = self._completed(t, torch.where(accept, span, torch.zeros_like(span)), y, k)
        for j in due:
            inside = accept & (sign * t < sign * times[j]) & (sign * times[j] <= sign * t1)
            theta = ((times[j] - t) / length).clamp(0, 1).to(y.dtype)
            state = self._extend(y, batch.spread(span.to(y.dtype)), batch.spread(theta), k)
            state = torch.where(batch.spread(t1 == times[j]), y1, state)
            rows[j] = torch.where(batch.spread(inside), state, rows[j])

    def _completed(self, t: Tensor, signed: Tensor, y: Tensor, k: list[Tensor]) -> list[Tensor]:
        """The slopes with those that the continuous extension alone reads."""
        wide = self.batch.spread(signed).to(y.dtype)
        for c, a in self.plan.tableau.extra:
            k = [*k, self.field(t + c * signed, y + wide * _weighted(a, k))]
        return k

    def _extend(self, y: Tensor, h: Tensor, theta: Tensor, k: list[Tensor]) -> Tensor:
        total = torch.zeros_like(y)
        for row, slope in zip(self.plan.tableau.interpolant, k, strict=True):
            weight = torch.zeros_like(theta)
            for q in reversed(row):
                weight = (weight + q) * theta
            total = total + weight * slope
        return y + h * total

    @torch.no_grad()
    def _next(self, h: Tensor, cut: Tensor, ratio: Tensor, accept: Tensor) -> Tensor:
        c = self.control
        factor = c.safety * ratio.clamp(min=1e-20) ** (-1.0 / c.order)
        factor = factor.clamp(c.dfactor, c.ifactor)
        factor = torch.where(accept, factor.clamp(min=1.0), factor)
        factor = torch.where(ratio.isfinite(), factor, torch.full_like(factor, 0.1))
        wanted = cut * factor
        wanted = torch.where(accept & (cut < h), torch.maximum(wanted, h), wanted)
        return wanted.clamp(c.min_step, c.max_step)

    def _check_progress(self, t: Tensor, h: Tensor, ratio: Tensor) -> None:
        with torch.no_grad():
            eps, (start, *_, end) = torch.finfo(t.dtype).eps, self.problem.times
            stuck = (h < 4 * eps * t.abs().clamp(min=1e-12)) & (t != end)
            if not bool(stuck.any()):
                return
            sample = int(stuck.nonzero()[0])
            at, size, finite = float(t[sample]), float(h[sample]), bool(ratio[sample].isfinite())
            if finite:
                raise unresolved(at, size, start, end, f" of sample {sample}")
            what = f"no step of sample {sample}, however small, has a finite result"
            raise StepFailure(Retcode.UNSTABLE, at, what)


def _weighted(weights: tuple[float, ...], k: list[Tensor]) -> Tensor:
    terms = [w * slope for w, slope in zip(weights, k, strict=False) if w != 0.0]
    return sum(terms[1:], terms[0])
