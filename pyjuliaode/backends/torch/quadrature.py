"""dL/dθ of a continuous adjoint: the integral of λᵀ ∂f/∂θ over the steps of λ, with its own error
control.

λ may be smooth where ∂f/∂θ is not (a forcing and its amplitude), and then nothing in the steps of λ
tells how the integrand varies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...errors import solver_error
from ...rhs import RHS
from ...solution import Retcode
from .control import between, resolution

# abscissae and weights of Gauss-Legendre quadrature on [0, 1], by number of points
LEGENDRE = {
    1: ((0.5, 1.0),),
    2: ((0.5 - 0.5 / 3**0.5, 0.5), (0.5 + 0.5 / 3**0.5, 0.5)),
    3: (
        (0.5 - 0.5 * 0.6**0.5, 5 / 18),
        (0.5, 8 / 18),
        (0.5 + 0.5 * 0.6**0.5, 5 / 18),
    ),
}
_FIRST, _SECOND = 5 / 6 * 0.6**0.5, 5 / 9  # from differences to Legendre coefficients
# Kronrod's extension of the rule of three points: its own points on [0, 1], as distances from the
# ends, with their weights, and the weights of Gauss's points
KRONROD = ((0.0197543656459899, 0.0523281130132336), (0.2828781253265987, 0.2006987073879811))
KRONROD_GAUSS = (0.1342440449341667, 0.2254582693292371, 0.1342440449341667)
# Coefficients of analytic integrands decay faster than geometrically: those of an exponential have
# a fortieth of what is extrapolated.
ANALYTIC = 1 / 20
MOST_HALVED = 10_000  # panels, beyond which there is no convergence
Watch = Callable[[float, float, Tensor, Tensor], None]  # of a time, a weight, y and λ


class Quadrature:
    """Adds up the integral over one panel after another, in ``totals``.

    By three Gauss points a panel, of order 6. The Legendre coefficients c1 and c2 that they
    determine say how fast the expansion of the integrand decays, and so how large c6, the error,
    is; a panel on which that is above the tolerance is halved, and the next ones begin as short.
    The first panel is compared with Kronrod's rule of seven points, as three points of a fast
    oscillation may agree by chance. ``stops`` are the steps of the forward solve: a panel that
    spans more than two of them is split there, as what made them short is in the field.
    """

    def __init__(
        self,
        rhs: RHS,
        state: Callable[[float], Tensor],
        rtol: float,
        atol: float,
        stops: Sequence[float],
        drop_in: bool = False,
        watch: Watch | None = None,
    ):
        self.rhs, self.state, self.rtol, self.atol = rhs, state, rtol, atol
        self.stops, self.drop_in = stops, drop_in
        self.totals = [torch.zeros_like(p) for p in rhs.inputs]
        self._roots = [max(p.numel(), 1) ** 0.5 for p in rhs.inputs]
        self._rounding = 100 * max((torch.finfo(p.dtype).eps for p in rhs.inputs), default=0.0)
        self._longest = math.inf
        self._panels = 0
        self._first = True
        self.watch = watch
        self._seen: list[tuple[float, float, Tensor, Tensor]] = []  # of the panel, for ``watch``
        self._last: list[list[Tensor]] = []  # the products at its points

    def add(self, step: Any) -> None:
        """The integral over a step of λ, from step.t0 to step.t1."""
        inside = between(self.stops, step.t0, step.t1)
        edges = [step.t0, *(inside if len(inside) > 2 else ()), step.t1]
        for a, b in pairwise(edges):
            self._over(step, a, b)

    def _over(self, step: Any, a: float, b: float) -> None:
        """Panels from a to b, each no longer than the last ones have to be."""
        while a != b:
            left = abs(b - a)
            n = math.ceil(left / self._longest * (1 - 1e-9)) if self._longest < left else 1
            end = b if n == 1 else a + (b - a) / n
            found = self._integral(step, a, end)
            if found is not None:
                if found:
                    torch._foreach_add_(self.totals, found)
                for node in self._seen:
                    self.watch(*node)
                a = end
                continue
            self._longest = 0.5 * abs(end - a)
            self._panels += 1
            if self._panels > MOST_HALVED:
                raise self._failure(a)

    def _integral(self, step: Any, a: float, b: float) -> list[Tensor] | None:
        """The integral over a panel, or None where its error is too large."""
        self._seen = []
        size, c0, c1, c2 = self._coefficients(step, a, b)
        if not c0 or 0.5 * abs(b - a) < resolution(a):
            return c0
        norms = torch.stack([torch.stack(torch._foreach_norm(x)) for x in (c1, c2, self.totals)])
        worst = 0.0
        for n, first, second, total, root in zip(size, *norms.tolist(), self._roots, strict=True):
            if not math.isfinite(n + first + second):
                return c0  # as backpropagation
            decay = min(second / first, 1.0) if first > 0.0 else 1.0
            error = ANALYTIC * second * decay**4
            worst = max(worst, error / self._allowed(n, total, root))
        if worst > 1.0:
            return None
        if not self._first:
            if worst < 1e-2:
                self._longest *= 2.0
            return c0
        self._first = False
        return self._confirmed(step, a, b, c0)

    def _allowed(self, size: float, total: float, root: float) -> float:
        """The error that a panel may have, of products of a size; never less than rounding."""
        return max(self.atol * root + self.rtol * max(total, size), self._rounding * size, 1e-300)

    def _confirmed(self, step: Any, a: float, b: float, whole: list[Tensor]) -> list[Tensor] | None:
        """The integral over a panel by Kronrod's rule, where that by Gauss's agrees."""
        h, inner = b - a, self._seen
        self._seen = [
            (t, w * abs(h), y, lam) for (t, _, y, lam), w in zip(inner, KRONROD_GAUSS, strict=False)
        ]
        found = torch._foreach_mul(self._last[0], -KRONROD_GAUSS[0] * h)
        for products, w in zip(self._last[1:], KRONROD_GAUSS[1:], strict=True):
            torch._foreach_add_(found, products, alpha=-w * h)
        for x, w in KRONROD:
            for at in (a + x * h, b - x * h):
                torch._foreach_add_(found, self._products(step, at, w * h), alpha=-w * h)
        apart = torch.stack(torch._foreach_norm(torch._foreach_sub(found, whole))).tolist()
        sizes = torch.stack(torch._foreach_norm(found)).tolist()
        for n, off, root in zip(sizes, apart, self._roots, strict=True):
            # what is compared errs by far more than what is returned
            if off > 64 * self._allowed(n, 0.0, root):
                return None
        return found

    def _coefficients(
        self, step: Any, a: float, b: float
    ) -> tuple[list[float], list[Tensor], list[Tensor], list[Tensor]]:
        """Sizes of what is integrated over a panel, the integral, and its Legendre coefficients of
        degree 1 and 2.
        """
        h = b - a
        self._last = [self._products(step, a + x * h, w * h) for x, w in LEGENDRE[3]]
        g1, g2, g3 = self._last
        if not self.totals:
            return [], [], [], []
        sizes = (torch.stack(torch._foreach_norm(g2)) * abs(h)).tolist()
        ends = torch._foreach_add(g1, g3)
        c0 = torch._foreach_mul(ends, -5 / 18 * h)
        torch._foreach_add_(c0, g2, alpha=-8 / 18 * h)
        c1 = torch._foreach_mul(torch._foreach_sub(g3, g1), _FIRST * h)
        c2 = torch._foreach_mul(torch._foreach_sub(ends, g2, alpha=2), _SECOND * h)
        return sizes, c0, c1, c2

    def _products(self, step: Any, t: float, weight: float) -> list[Tensor]:
        """λᵀ ∂f/∂θ at a time."""
        y, lam = self.state(t), step.interpolate(t)
        if self.watch is not None:
            self._seen.append((t, abs(weight), y, lam))
        _, _, grads = self.rhs.vjp(t, y, lam, state=False)
        pairs = zip(grads, self.totals, strict=True)
        return [torch.zeros_like(x) if g is None else g for g, x in pairs]

    def _failure(self, t: float) -> Exception:
        return solver_error(
            "the gradient of the parameters is an integral that does not converge at t = "
            f"{t:.9g}, as where the field jumps: tell its times by options={{'jump_t': [...]}}, "
            "raise adjoint_rtol and adjoint_atol, or use adjoint='direct'",
            Retcode.CONVERGENCE_FAILURE,
            drop_in=self.drop_in,
        )


class FixedQuadrature:
    """The same without error control, for steps that the user chose."""

    def __init__(
        self,
        rhs: RHS,
        state: Callable[[float], Tensor],
        order: int,
        watch: Watch | None = None,
    ):
        self.rhs, self.state, self.watch = rhs, state, watch
        self.points = LEGENDRE[min(3, (order + 1) // 2)]
        self.totals = [torch.zeros_like(p) for p in rhs.inputs]

    def add(self, step: Any) -> None:
        """The integral over a step of λ."""
        h = step.t1 - step.t0
        for x, w in self.points:
            t = step.t0 + x * h
            y, lam = self.state(t), step.interpolate(t)
            if self.watch is not None:
                self.watch(t, abs(w * h), y, lam)
            _, _, grads = self.rhs.vjp(t, y, lam, state=False)
            for total, g in zip(self.totals, grads, strict=True):
                if g is not None:
                    total.add_(g, alpha=-w * h)
