"""Tableaus of Julia's explicit Runge-Kutta methods, as the replay of steps needs them."""

from __future__ import annotations

from functools import lru_cache

from ..tableau import Tableau
from .runtime import Runtime


@lru_cache(maxsize=64)
def tableau_of(runtime: Runtime, method: str) -> Tableau | None:
    """The tableau that Julia reads off a method by one step; None where it is not of that kind."""
    with runtime.errors():
        text = str(runtime.package.tableau(method))
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
        dense=tuple(rows["d"]) or None,
    )
