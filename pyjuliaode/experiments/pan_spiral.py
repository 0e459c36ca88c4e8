"""The spiral of the PAN paper, table 1."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import torch
from torch import Tensor

from .pan_tables import PanTable
from .taylor import Field, Series, integrate, product, tanh

# The paper prints another sign; its numbers come out with this one, which is that of its code.
P = ((-0.4, 1.0), (-1.0, -0.4))


def series_field() -> Field:
    """w = tanh(u), u = P y, by w' = (1 - w^2) u'."""
    p = [[Decimal(str(x)) for x in row] for row in P]
    u: list[Series] = [[], []]
    w: list[Series] = [[], []]
    q: list[Series] = [[], []]  # 1 - w^2

    def rate(y: Sequence[Series], k: int) -> list[Decimal]:
        for i in range(2):
            u[i].append(p[i][0] * y[0][k] + p[i][1] * y[1][k])
            if k == 0:
                w[i].append(tanh(u[i][0]))
            else:
                terms = (q[i][k - 1 - j] * (j + 1) * u[i][j + 1] for j in range(k))
                w[i].append(sum(terms, Decimal(0)) / k)
            q[i].append((1 if k == 0 else 0) - product(w[i], w[i], k))
        return [w[0][k], w[1][k]]

    return rate


class PanSpiral(PanTable):
    __doc__ = PanTable.__doc__
    name = "pan-spiral"
    summary = "y' = tanh(P y) to t = 10 by PAN and others: errors and evaluations (PAN, table 1)"
    title = "spiral to t = 10"
    y0, end = (2.0, 1.0), 10.0
    fixed = tuple(
        {"num_coeffs": n, "num_points": m, "step_size": 10.0} for n, m in ((50, 63), (100, 125))
    )

    def field(self, t: Tensor | None, y: Tensor) -> Tensor:
        return torch.tanh(y @ torch.tensor(P, dtype=y.dtype, device=y.device).T)

    def reference(self) -> list[float]:
        start = [Decimal(2), Decimal(1)]
        return integrate(series_field, start, Decimal(10), steps=100, order=30)


EXPERIMENT = PanSpiral()
