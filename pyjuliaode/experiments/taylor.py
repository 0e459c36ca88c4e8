"""Reference solutions to 30 digits and more: Taylor series in decimal arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext

Series = list[Decimal]
# coefficients of y up to order k -> the coefficient of order k of y'
Field = Callable[[Sequence[Series], int], Sequence[Decimal]]


def integrate(
    field: Callable[[], Field],
    y0: Sequence[Decimal],
    span: Decimal,
    steps: int,
    order: int = 30,
    digits: int = 40,
) -> list[float]:
    """y(span) from y(0) = y0 by ``steps`` equal steps.

    Arguments:
        field: makes the field anew for every step; it may keep series of what it computes.
    """
    with localcontext() as context:
        context.prec = digits
        h, y = span / steps, list(y0)
        for _ in range(steps):
            rate, series = field(), [[value] for value in y]
            for k in range(order):
                for own, slope in zip(series, rate(series, k), strict=True):
                    own.append(slope / (k + 1))
            y = [horner(own, h) for own in series]
        return [float(value) for value in y]


def horner(series: Series, h: Decimal) -> Decimal:
    total = Decimal(0)
    for coefficient in reversed(series):
        total = total * h + coefficient
    return total


def product(a: Sequence[Decimal], b: Sequence[Decimal], k: int) -> Decimal:
    """The coefficient of order k of a b."""
    return sum((a[i] * b[k - i] for i in range(k + 1)), Decimal(0))


def tanh(u: Decimal) -> Decimal:
    e = (2 * u).exp()
    return (e - 1) / (e + 1)
