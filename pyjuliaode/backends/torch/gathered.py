"""Cotangents of many states within one step, as those of a few nodes of the step.

Between the steps of a solve y is, to the accuracy of the solve, the polynomial through its values
at some nodes. So Σ g_i y(t_i) = Σ_j (Σ_i L_j(t_i) g_i) y(τ_j), with Lagrange's polynomials L_j of
the nodes τ_j: an adjoint need stop there alone, and not at every t_i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .dense import DenseOutput

F64 = torch.float64


def gathered(
    dense: DenseOutput, times: Sequence[float], grad: Tensor
) -> tuple[list[float], Tensor]:
    """Times and cotangents (T', N) for an adjoint with dense output, the first being t[0].

    Times without a cotangent are left out; those of a step that holds more than its polynomial has
    nodes are gathered at these.
    """
    carries = (grad != 0).any(dim=1).tolist()
    groups: dict[int, list[int]] = {}
    for i in range(1, len(times)):
        if carries[i]:
            groups.setdefault(dense.segment(times[i]), []).append(i)
    stops, rows = [times[0]], [torch.zeros_like(grad[:1])]
    for segment, members in groups.items():
        a, b = dense.bounds[segment], dense.bounds[segment + 1]
        m = dense.nodes(segment)
        if len(members) <= m:
            stops += [times[i] for i in members]
            rows.append(grad[members])
            continue
        x, scale = _nodes(m)
        inside = [2 * (times[i] - a) / (b - a) - 1 for i in members]
        weights = _lagrange(x, scale, torch.tensor(inside, dtype=F64))
        stops += [*(a + 0.5 * (b - a) * (x[:-1] + 1)).tolist(), b]
        rows.append(weights.to(grad) @ grad[members])
    return stops, torch.cat(rows)


@lru_cache(maxsize=64)
def _nodes(m: int) -> tuple[Tensor, Tensor]:
    """Radau-Chebyshev nodes in (-1, 1], ascending, and their barycentric weights."""
    x = torch.cos(2 * math.pi * torch.arange(m, dtype=F64) / (2 * m - 1)).flip(0)
    apart = x[:, None] - x
    apart.fill_diagonal_(1.0)
    return x, 1.0 / (2 * apart).prod(dim=1)


def _lagrange(x: Tensor, scale: Tensor, at: Tensor) -> Tensor:
    """L_j(at_i), shape (nodes, len(at))."""
    apart = at - x[:, None]
    hit = apart == 0
    terms = scale[:, None] / torch.where(hit, torch.ones_like(apart), apart)
    found = terms / terms.sum(dim=0)
    return torch.where(hit.any(dim=0), hit.to(F64), found)
