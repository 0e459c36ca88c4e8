"""dL/dθ of the adjoint "gauss" of method "pan": Clenshaw-Curtis quadrature, in batched products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ....errors import SolverError
from ....rhs import RHS
from ....solution import Retcode
from ...runge_kutta import Sides
from ..control import between, resolution
from ..quadrature import Watch
from .basis import F64, clenshaw_curtis
from .interval import Piece
from .stream import PanStep

MOST_HALVED = 10_000  # panels, beyond which there is no convergence


class PanQuadrature:
    """Adds up the integral of λᵀ ∂f/∂θ over one interval of λ after another, in ``totals``.

    Panels end where intervals of the forward solve do. The nodes of a rule are every second one of
    the next finer one: their difference is the error of the coarser, of which the finer has about
    the square; a panel on which that is too large is halved.
    """

    def __init__(
        self,
        rhs: RHS,
        states: Callable[[Sequence[float]], Tensor],
        rtol: float,
        atol: float,
        stops: Sequence[float],
        sides: Sides,
        watch: Watch | None = None,
    ):
        self.rhs, self.states, self.rtol, self.atol = rhs, states, rtol, atol
        self.stops, self.sides, self.watch = stops, sides, watch
        self.totals = [torch.zeros_like(p) for p in rhs.inputs]
        self._halved = 0
        self._seen: list[tuple[float, float, Tensor, Tensor]] = []  # of the panel, for ``watch``

    def add(self, step: PanStep) -> None:
        """The integral over an interval of λ."""
        edges = [step.t0, *between(self.stops, step.t0, step.t1), step.t1]
        pending = list(pairwise(edges))
        while pending:
            a, b = pending.pop()
            found = self._integral(step.piece, a, b)
            if found is None:
                self._halved += 1
                if self._halved > MOST_HALVED:
                    raise SolverError(
                        "the gradient of the parameters is an integral that does not converge at "
                        f"t = {a:.9g}, as where the field jumps: tell its times by "
                        "options={'jump_t': [...]}, or use adjoint='direct'",
                        Retcode.CONVERGENCE_FAILURE,
                    )
                middle = 0.5 * (a + b)
                pending += [(a, middle), (middle, b)]
                continue
            if found:
                torch._foreach_add_(self.totals, found)
            for node in self._seen:
                self.watch(*node)

    def _integral(self, piece: Piece, a: float, b: float) -> list[Tensor] | None:
        """The integral over a panel, or None where its error is too large."""
        half = piece.basis.n // 2 + 1
        m, h = 2 * half + 1, b - a
        x = -torch.cos(math.pi * torch.arange(m, dtype=F64) / (m - 1))
        times = (a + 0.5 * h * (x + 1)).tolist()
        before = self.sides.before(a, b, {})
        times[0], times[-1] = self.sides.after(a, b, {}), b if before is None else before
        at = torch.tensor(times, dtype=self.rhs.time_dtype, device=piece.y0.device)
        y, lam = self.states(times), piece.between(times)
        products = self.rhs.pullback(at, y)
        if self.watch is not None:
            weights = (0.5 * abs(h) * clenshaw_curtis(m)).tolist()
            self._seen = list(zip(times, weights, y, lam, strict=True))
        coarse = torch.zeros(m, dtype=F64)
        coarse[::2] = clenshaw_curtis(half + 1)
        rules = (clenshaw_curtis(m), coarse)
        fine, other = (
            [
                torch.zeros_like(p) if g is None else g
                for g, p in zip(
                    products((-0.5 * h) * w.to(lam)[:, None] * lam, params=True),
                    self.totals,
                    strict=True,
                )
            ]
            for w in rules
        )
        if not fine or 0.5 * abs(h) < resolution(a):
            return fine
        apart = torch._foreach_norm(torch._foreach_sub(fine, other))
        norms = torch.stack(
            [torch.stack(x) for x in (apart, torch._foreach_norm(fine), self._known())]
        )
        for p, off, size, total in zip(self.totals, *norms.tolist(), strict=True):
            if not math.isfinite(off + size):
                return fine  # as backpropagation
            root = max(p.numel(), 1) ** 0.5
            whole = max(size, total)
            allowed = max(
                self.atol * root + self.rtol * whole, 100 * torch.finfo(p.dtype).eps * whole
            )
            if off > max(allowed, (allowed * whole) ** 0.5):
                return None
        return fine

    def _known(self) -> list[Tensor]:
        return list(torch._foreach_norm(self.totals))
