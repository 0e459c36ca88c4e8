"""What the limit of a momentum network, eps x'' + x' = f(x), can represent (Sander et al. 2021).

With x'(0) = 0 and a linear f(x) = theta x, x(1) = Psi_eps(theta) x(0). A first-order flow reaches
matrices with a real logarithm only, none with a negative determinant; with momentum every
diagonalisable matrix can be reached whose eigenvalues are real and at least lambda_eps < 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InvalidArgumentError


def eps_of(gamma: float) -> float:
    """eps = 1 / (1 - gamma), 0 <= gamma < 1, for layers one unit of time apart (section 3.1)."""
    if not 0 <= gamma < 1:
        raise InvalidArgumentError(f"gamma must lie in [0, 1), got {gamma!r}")
    return 1.0 / (1.0 - gamma)


def linear_map(theta: Tensor, eps: float, t: float = 1.0) -> Tensor:
    """Psi_eps(theta), (N, N): x(t) = Psi x(0) where eps x'' + x' = theta x, x'(0) = 0 (Prop. 4).

    The upper left block of exp(t [[0, 1], [theta / eps, -1 / eps]]).

    Arguments:
        theta: a real square matrix (N, N).
        eps: positive.
        t: time.
    """
    _check(eps)
    if theta.dim() != 2 or theta.shape[0] != theta.shape[1]:
        raise InvalidArgumentError(f"theta must be a square matrix, got shape {tuple(theta.shape)}")
    n = len(theta)
    one = torch.eye(n, dtype=theta.dtype, device=theta.device)
    rows = [torch.cat([0 * one, one], 1), torch.cat([theta / eps, -one / eps], 1)]
    return torch.linalg.matrix_exp(t * torch.cat(rows))[:n, :n]


def eigenvalue_map(theta: Tensor, eps: float) -> Tensor:
    """Psi_eps of eigenvalues, element by element: exp(-1/(2 eps)) (cosh s + sinh s / (2 eps s)).

    s = sqrt(1 + 4 eps theta) / (2 eps), which is imaginary where theta < -1/(4 eps): there the
    solution oscillates, and Psi may be negative.

    Arguments:
        theta: real eigenvalues, of any shape.
        eps: positive.
    """
    _check(eps)
    square = (1 + 4 * eps * theta) / (4 * eps**2)
    s = square.abs().sqrt()
    small = s < 1e-4  # sinh s / s = 1 + s^2 / 6 + ..., and so with sin
    safe = torch.where(small, torch.ones_like(s), s)
    even = torch.where(square >= 0, torch.cosh(s), torch.cos(s))
    odd = torch.where(square >= 0, torch.sinh(safe), torch.sin(safe)) / safe
    odd = torch.where(small, 1 + square / 6, odd)
    return math.exp(-0.5 / eps) * (even + odd / (2 * eps))


def least_eigenvalue(eps: float) -> float:
    """lambda_eps = min over alpha of exp(-1/(2 eps)) (cos alpha + sin alpha / (2 eps alpha)).

    It lies in (-exp(-1/(2 eps)) (1 + 1/(2 eps)), 0): momentum makes it negative, more so the
    larger eps is. The minimum is that where the derivative first vanishes beyond 0, at alpha in
    (pi / 2, 3 pi / 2); found by golden sections.
    """
    _check(eps)

    def psi(alpha: float) -> float:
        return math.cos(alpha) + math.sin(alpha) / (2 * eps * alpha)

    low, high, part = 0.5 * math.pi, 1.5 * math.pi, (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        a, b = high - part * (high - low), low + part * (high - low)
        low, high = (low, b) if psi(a) < psi(b) else (a, high)
    return math.exp(-0.5 / eps) * psi(0.5 * (low + high))


def step_eigenvalues(slope: Tensor, gamma: float) -> Tensor:
    """Eigenvalues, (..., 2), of a layer at a fixed point, for those of df/dx there.

    The roots of z^2 - (1 + gamma + (1 - gamma) a) z + gamma. For a real a they lie within the unit
    circle where -2 (1 + gamma) / (1 - gamma) < a < 0: the fixed point attracts, which in a
    reversible network without momentum is impossible (Prop. 1).

    Arguments:
        slope: eigenvalues a of df/dx, real or complex, of any shape.
        gamma: momentum, 0 <= gamma < 1.
    """
    half = 0.5 * (1 + gamma + (1 - gamma) * slope)
    root = (half * half - gamma + 0j).sqrt()
    return torch.stack([half - root, half + root], dim=-1)


def _check(eps: float) -> None:
    if not 0 < eps < math.inf:
        raise InvalidArgumentError(f"eps must be positive and finite, got {eps!r}")
