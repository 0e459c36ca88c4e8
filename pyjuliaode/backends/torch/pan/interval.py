"""One interval: the polynomial whose derivative is the field at the nodes, by least squares.

The unknown is d, the free coefficients of the scaled derivative. Stage 1 iterates
d <- fit(f(nodes of d)); where that is slow, stage 2 takes Newton's steps on the same equation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ....batching import handled, users_own
from ....rhs import RHS
from .basis import F64, Basis, rises_at
from .krylov import gmres

# Of a state of that many numbers, or for so many unknowns, Jacobians are formed.
DENSE_STATE, DENSE_UNKNOWNS = 64, 800
DENSE_LINEAR = 16  # the same of a linear field, a call for every number
SAFE = 0.5  # of the tolerance, that the last coefficients may be
ROUNDING = 4  # units in the last place of the slopes, that are in the last coefficients
FAST = 0.3  # contraction of stage 1 that stage 2 would not better


@dataclass(frozen=True)
class Piece:
    """The trajectory over one interval, t0 to t0 + h.

    Attributes:
        times: of the nodes, (M,); at an end that is a discontinuity the number next to it, within.
        k: slopes at the nodes, (M, N); the first is f(t0, y0).
        d: free coefficients, (n - 2, N).
    """

    basis: Basis
    t0: float
    h: float
    times: Tensor
    y0: Tensor
    k: Tensor
    d: Tensor

    @property
    def t1(self) -> float:
        return self.t0 + self.h

    def nodes(self) -> Tensor:
        """States at the nodes, (M, N)."""
        x = self.basis.x[:, None]
        return self.y0 + (0.5 * self.h) * self.k[0] * (x + 1) + self.basis.rise @ self.d

    def at(self, x: Tensor) -> Tensor:
        """States (S, N) at x (S,) in [-1, 1], float64 on the CPU."""
        like = self.y0
        rise = rises_at(x, self.basis.n).to(device=like.device, dtype=like.dtype)
        x = (x + 1).to(device=like.device, dtype=like.dtype)[:, None]
        return self.y0 + (0.5 * self.h) * self.k[0] * x + rise @ self.d

    def places(self, times: Sequence[float]) -> Tensor:
        """x (S,) in [-1, 1] of times of the interval."""
        x = torch.tensor([2 * (t - self.t0) / self.h - 1 for t in times], dtype=F64)
        return x.clamp(-1, 1)

    def between(self, times: Sequence[float]) -> Tensor:
        """States (S, N) at times of the interval."""
        return self.at(self.places(times))


@dataclass(frozen=True)
class Outcome:
    """What an attempt at an interval came to.

    Attributes:
        piece: the last iterate; None where it was not finite.
        converged: the iteration did.
        tail: size of the last two coefficients, in units of the tolerance, or of what rounding
            makes of them where that is more than ``SAFE`` tolerances.
        decay: factor from one coefficient to the next, about.
        rounds: batched evaluations.
        newton: whether stage 2 was needed.
        finite: the field was, where it was first evaluated.
    """

    piece: Piece | None
    converged: bool
    tail: float = math.inf
    decay: float = 1.0
    rounds: int = 0
    newton: bool = False
    finite: bool = True


class IntervalSolver:
    """Solves intervals for one right-hand side and one pair of tolerances."""

    def __init__(
        self,
        rhs: RHS,
        rtol: float | Tensor,
        atol: float | Tensor,
        norm: Callable[[Tensor], float],
        rounds: int = 50,
        accuracy: float = 0.02,
    ):
        self.rhs, self.rtol, self.atol, self.norm = rhs, rtol, atol, norm
        self.rounds, self.accuracy = rounds, accuracy

    def solve(
        self,
        basis: Basis,
        t0: float,
        h: float,
        y0: Tensor,
        f0: Tensor,
        times: Tensor,
        guess: Tensor | None = None,
        enough: float | None = 1.0,
    ) -> Outcome:
        """The interval from y0 with slope f0.

        Arguments:
            times: of the nodes (M,), see :class:`Piece`.
            guess: slopes at the nodes (M, N) to begin with; default: f0 everywhere.
            enough: stop early where the tail is settled and larger than that; None: never.
        """
        like, half = y0, 0.5 * h
        g0 = half * f0
        base = y0 + g0 * (basis.x[:, None] + 1)
        d = torch.zeros(basis.n - 2, y0.numel(), dtype=like.dtype, device=like.device)
        if guess is not None:
            d = basis.fit @ (half * guess - g0)
        eps = torch.finfo(like.dtype).eps
        last, before, newton, worse = math.inf, 1.0, False, 0
        for rounds in range(1, self.rounds + 1):
            y = base + basis.rise @ d
            # what a field returns may be memory of its own, a parameter spread over the times
            k = torch.cat([f0[None], self.rhs.batched(times, y)[1:]])
            found = basis.fit @ (half * k - g0)
            if not newton and self._second_order(y, k):  # Newton's are for the plain iteration
                k, found = self._collocated_twice(basis, k, found, base, half)
            step = found - d
            scale = self._scale(y)
            size = self.norm((basis.rise @ step).abs().amax(0) / scale)
            if not math.isfinite(size):
                return Outcome(None, False, rounds=rounds, newton=newton, finite=rounds > 1)
            rate = size / last if math.isfinite(last) else 1.0
            rounding = 10 * eps * self.norm(y.abs().amax(0) / scale)
            worst = max(rate, before, 0.1)  # it may fall and rise again
            rest, before = size * min(worst / max(1 - worst, 0.1), 10.0), rate
            done = rest <= self.accuracy or size <= rounding
            tail, decay = self._tail(found, scale)
            if tail > SAFE:
                noise = ROUNDING * eps * self.norm((half * k).abs().amax(0) / scale)
                tail /= max(1.0, noise / SAFE)
            piece = Piece(basis, t0, h, times, y0, k, found)
            if done:
                return Outcome(piece, True, tail, decay, rounds, newton)
            if enough is not None and tail > 2 * enough and size < 0.1 * tail:
                return Outcome(piece, False, tail, decay, rounds, newton)
            worse = worse + 1 if rate > 1 and rounds > 1 else 0
            if worse > (1 if newton else 3):
                break
            slow = rounds > 1 and rate > FAST and rate * size > self.accuracy
            corrected = self._newton(basis, times, y, half, step) if newton or slow else None
            newton = newton or corrected is not None
            d = found if corrected is None else d + corrected
            last = size
        return Outcome(None, False, rounds=rounds, newton=newton)

    def _second_order(self, y: Tensor, k: Tensor) -> bool:
        """Whether the state is (h, v) with h' = v: not that a class says so, a subclass or a hook
        may have changed it, but that the slopes are these numbers.
        """
        if not self.rhs.second_order:
            return False
        n = y.shape[1] // 2
        return torch.equal(k[1:, :n], y[1:, n:])

    def _collocated_twice(
        self, basis: Basis, k: Tensor, d: Tensor, base: Tensor, half: float
    ) -> tuple[Tensor, Tensor]:
        """Of a state (h, v) with h' = v: collocation on h'', whose integral is v, whose integral is
        h. The slopes of h are the v that follow from the new slopes of v, not the last v; of
        untrained heavy-ball models this takes up to two thirds of the iterations away.
        """
        n = d.shape[1] // 2
        v = base[:, n:] + basis.rise @ d[:, n:]
        rise = basis.fit @ (half * (v - v[0]))
        return torch.cat([v, k[:, n:]], dim=1), torch.cat([rise, d[:, n:]], dim=1)

    def _scale(self, y: Tensor) -> Tensor:
        """atol + rtol |y|: of the ends, and a tenth of what is between them."""
        size = torch.maximum(y[-1].abs(), 0.1 * y.abs().amax(0))
        return self.atol + self.rtol * size

    def _tail(self, d: Tensor, scale: Tensor) -> tuple[float, float]:
        """Size of the last coefficients, and how they decay.

        Of the derivative: as its value at the start is imposed, what is cut off shifts the rest of
        it, and the end of y by as much.
        """
        a = d.abs()
        last = self.norm(a[-2:].amax(0) / scale)
        middle = len(a) // 2
        before = self.norm(a[middle - 1 : middle + 1].amax(0) / scale)
        apart = len(a) - 1 - middle
        decay = (last / before) ** (1 / apart) if before > 0 and last > 0 else 0.5
        return last, min(decay, 1.0)

    def _newton(
        self, basis: Basis, times: Tensor, y: Tensor, half: float, step: Tensor
    ) -> Tensor | None:
        """(1 - half fit J rise)^-1 step; None where the field has no derivatives here."""
        outer = handled()
        try:
            return self._corrected(basis, times, y, half, step)
        except Exception as error:  # no derivatives of an operation, or no batching of it
            if users_own(error, outer):
                raise
            return None

    def _corrected(
        self, basis: Basis, times: Tensor, y: Tensor, half: float, step: Tensor
    ) -> Tensor:
        n, size = step.shape
        most = DENSE_LINEAR if self.rhs.linear else DENSE_STATE
        if size <= most and n * size <= DENSE_UNKNOWNS:
            j = self._jacobians(times, y)
            a = -half * torch.einsum("im,mj,mab->iajb", basis.fit, basis.rise, j)
            a = a.reshape(n * size, n * size)
            a.diagonal().add_(1.0)
            return torch.linalg.solve(a, step.reshape(-1)).view_as(step)

        if self.rhs.linear:  # it is its own derivative
            push = partial(self.rhs.batched, times)
        else:
            push = self._pushforward(times, y)

        def apply(v: Tensor) -> Tensor:
            pushed = push(basis.rise @ v.view_as(step))
            return v - half * (basis.fit @ pushed).reshape(-1)

        return gmres(apply, step.reshape(-1), tol=0.1, most=20).view_as(step)

    def _jacobians(self, times: Tensor, y: Tensor) -> Tensor:
        """(M, N, N)."""
        if self.rhs.linear:
            units = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
            columns = [self.rhs.batched(times, e.expand_as(y)) for e in units]
            return torch.stack(columns, dim=2)
        times = times.to(self.rhs.time_dtype)
        found = torch.func.vmap(torch.func.jacrev(self.rhs.flat, argnums=1))(times, y)
        self._count(y.numel())
        return found.detach()

    def _count(self, evaluations: int) -> None:
        """Of one call."""
        self.rhs.nfe += evaluations
        self.rhs.alongside += evaluations - 1

    def _pushforward(self, times: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        """v (M, N) -> J v at every node, each in one call.

        By two products with the transpose: forward mode has not every operation, and costs a second
        to begin with.
        """
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            out = self.rhs.batched(times, y)
            if not out.requires_grad:  # no function of the state
                return torch.zeros_like
            w = torch.zeros_like(out, requires_grad=True)
            (pulled,) = torch.autograd.grad(out, y, w, create_graph=True, materialize_grads=True)
        self._count(len(y))
        if not pulled.requires_grad:
            return torch.zeros_like

        def push(v: Tensor) -> Tensor:
            self._count(len(y))
            return torch.autograd.grad(
                pulled, w, v, retain_graph=True, allow_unused=True, materialize_grads=True
            )[0]

        return push
