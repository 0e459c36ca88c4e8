"""Chebyshev polynomials on an interval, with the initial value and slope imposed.

On x in [-1, 1], t = t0 + (x + 1) h / 2, the scaled derivative p = (h/2) y' is a combination of
T_0 ... T_{N-2}; p(-1) = g0 takes away T_0's coefficient, and y = y0 + the integral of p from -1 has
the N coefficients of the method. All of these maps are linear and the same for every interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

F64 = torch.float64


@dataclass(frozen=True)
class Basis:
    """The maps of N coefficients and M nodes, made in float64.

    Attributes:
        n, m: N and M.
        x: nodes -cos(pi k / (M - 1)), shape (M,): the first is the start, the last the end.
        fit: (N - 2, M): from g - g0 at the nodes to the free coefficients d of p, by least squares
            with equal weights (half of it at the ends), in which the T_j are orthogonal.
        rise: (M, N - 2): from d to y - y0 - g0 (x + 1) at the nodes.
        slope: (M, N - 2): from d to p - g0 at the nodes.
    """

    n: int
    m: int
    x: Tensor
    fit: Tensor
    rise: Tensor
    slope: Tensor

    @property
    def integrals(self) -> Tensor:
        """(M, M): from slopes p at the nodes to y - y0 at the nodes."""
        return self.integrals_at(self.x)

    def integrals_at(self, x: Tensor) -> Tensor:
        """(S, M): from slopes p at the nodes to y - y0 at x (S,) in [-1, 1]."""
        found = rises_at(x.cpu(), self.n).to(self.fit) @ self.fit
        found[:, 0] += (x + 1).to(self.fit) - found.sum(1)
        return found

    @property
    def weights(self) -> Tensor:
        """Weights (M,) of the quadrature over [-1, 1] that is exact for degree M - 1."""
        return clenshaw_curtis(self.m).to(self.x)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is made there could serve no gradient later
def basis(n: int, m: int, dtype: torch.dtype, device: torch.device) -> Basis:
    """The basis of N = ``n`` coefficients (at least 3) on M = ``m`` (at least N - 1) nodes."""
    x = -torch.cos(math.pi * torch.arange(m, dtype=F64) / (m - 1))
    x[0], x[-1] = -1.0, 1.0
    slope, rise = _slopes(x, n), _rises(x, n)
    root = torch.ones(m, 1, dtype=F64)
    root[0] = root[-1] = 0.5**0.5
    q, r = torch.linalg.qr(root * slope)
    fit = torch.linalg.solve_triangular(r, q.T * root.T, upper=True)
    return Basis(n, m, *(a.to(dtype).to(device) for a in (x, fit, rise, slope)))


def chebyshev(x: Tensor, n: int) -> Tensor:
    """T_0 ... T_{n-1} at x, shape (*x.shape, n)."""
    return torch.cos(x.clamp(-1, 1).acos()[..., None] * torch.arange(n, dtype=x.dtype))


def _slopes(x: Tensor, n: int) -> Tensor:
    """T_j(x) - T_j(-1) for j = 1 ... n - 2."""
    signs = (-1.0) ** torch.arange(1, n - 1, dtype=F64)
    return chebyshev(x, n - 1)[:, 1:] - signs


def _rises(x: Tensor, n: int) -> Tensor:
    """The integrals from -1 to x of T_j - T_j(-1), for j = 1 ... n - 2."""
    t = chebyshev(x, n)
    j = torch.arange(2, n - 1, dtype=F64)
    signs = (-1.0) ** torch.arange(n, dtype=F64)
    upper = t[:, 3:] / (2 * (j + 1)) - t[:, 1 : n - 2] / (2 * (j - 1))
    lower = signs[3:] / (2 * (j + 1)) - signs[1 : n - 2] / (2 * (j - 1))
    integrals = torch.cat([(x[:, None] ** 2 - 1) / 2, upper - lower], dim=1)
    return integrals - signs[1 : n - 1] * (x[:, None] + 1)


def rises_at(x: Tensor, n: int) -> Tensor:
    """As ``Basis.rise``, at any x in [-1, 1]: (len(x), n - 2), float64."""
    return _rises(x.to(F64), n)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is made there could serve no gradient later
def clenshaw_curtis(m: int) -> Tensor:
    """Weights of the nodes -cos(pi k / (m - 1)) on [-1, 1]."""
    k = torch.arange(m, dtype=F64)
    moments = torch.zeros(m, dtype=F64)
    moments[::2] = 2.0 / (1.0 - torch.arange(0, m, 2, dtype=F64) ** 2)
    values = torch.cos(math.pi * k[:, None] * k / (m - 1))  # T_j at the k-th node, up to order
    halves = torch.ones(m, dtype=F64)
    halves[0] = halves[-1] = 0.5
    return 2.0 / (m - 1) * halves * (values @ (halves * moments))
