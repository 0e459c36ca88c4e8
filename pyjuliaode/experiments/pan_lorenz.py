"""The Lorenz system of the PAN paper, table 2."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import torch
from torch import Tensor

from .pan_tables import PanTable
from .taylor import Field, Series, integrate, product

SIGMA, RHO, BETA = 10.0, 28.0, 8.0 / 3.0


def series_field() -> Field:
    # the parameters as float64 has them, which is what all solvers are given
    sigma, rho, beta = (Decimal(x) for x in (SIGMA, RHO, BETA))

    def rate(y: Sequence[Series], k: int) -> list[Decimal]:
        a, b, c = y
        return [
            sigma * (b[k] - a[k]),
            rho * a[k] - product(a, c, k) - b[k],
            product(a, b, k) - beta * c[k],
        ]

    return rate


class PanLorenz(PanTable):
    __doc__ = PanTable.__doc__
    name = "pan-lorenz"
    summary = "Lorenz's system to t = 15 by PAN and others: errors and evaluations (PAN, table 2)"
    title = "Lorenz to t = 15"
    y0, end = (2.0, 1.0, 1.0), 15.0
    fixed = tuple(
        {"num_coeffs": n, "num_points": m, "step_size": 0.3} for n, m in ((50, 64), (100, 125))
    )

    def field(self, t: Tensor | None, y: Tensor) -> Tensor:
        a, b, c = y.unbind(-1)
        return torch.stack([SIGMA * (b - a), a * (RHO - c) - b, a * b - BETA * c], -1)

    def reference(self) -> list[float]:
        start = [Decimal(2), Decimal(1), Decimal(1)]
        return integrate(series_field, start, Decimal(15), steps=600, order=30)


EXPERIMENT = PanLorenz()
