"""Tableaus of Julia's explicit Runge-Kutta methods, as the replay of steps needs them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..tableau import Tableau
from .runtime import Runtime


@lru_cache(maxsize=64)
def numbers_of(tableau: Tableau) -> tuple[int, Tensor]:
    """The degree of the interpolant, and c, b, a, and the interpolant by rows, for Julia."""
    s = tableau.stages
    a = [[*row, *(0.0 for _ in range(s - len(row)))] for row in ((), *tableau.a)]
    dense = tableau.dense or [()] * s
    rows = [tableau.c, tableau.b, *a, *dense]
    flat = [x for row in rows for x in row]
    return len(dense[0]), torch.tensor(flat, dtype=torch.float64, device="cpu")


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
