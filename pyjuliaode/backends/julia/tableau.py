"""Tableaus of Julia's explicit Runge-Kutta methods, as the replay of steps needs them."""

from __future__ import annotations

from functools import lru_cache

from ..tableau import Tableau
from .runtime import Runtime

_ROUNDING = 1e-13  # of the fit of the interpolant


@lru_cache(maxsize=64)
def tableau_of(runtime: Runtime, method: str) -> Tableau | None:
    """The tableau that Julia reads off a method by one step; None where it is not of that kind."""
    with runtime.errors():
        text = runtime.tableau(method)
    if not text:
        return None
    rows: dict[str, list[tuple[float, ...]]] = {"c": [], "b": [], "a": [], "d": []}
    for line in text.splitlines():
        kind, *numbers = line.split()
        rows[kind].append(tuple(float(x) for x in numbers))
    (b,), (c,) = rows["b"], rows["c"]
    return Tableau(
        name=method,
        order=99,  # no polynomial is to be made up where the method's own was not found
        a=tuple(rows["a"]),
        c=c,
        b=b,
        dense=_trimmed(rows["d"]) if rows["d"] else None,
    )


def _trimmed(dense: list[tuple[float, ...]]) -> tuple[tuple[float, ...], ...]:
    """Without the powers of θ whose coefficients are nothing but rounding."""
    degree = max(
        (j + 1 for row in dense for j, x in enumerate(row) if abs(x) > _ROUNDING), default=1
    )
    return tuple(row[:degree] for row in dense)
