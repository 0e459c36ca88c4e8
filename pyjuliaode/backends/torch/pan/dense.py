"""Dense output: the polynomials themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from ....adjoints.checks import Witness
from ...runge_kutta import Sides
from ..dense import DenseOutput
from .interval import Piece


class PanOutput(DenseOutput):
    """The pieces of a solve, one after another."""

    def __init__(self, t0: float, direction: float):
        super().__init__(t0, direction)
        self.pieces: list[Piece] = []

    def append(self, step: Any) -> None:
        self.pieces.append(step.piece)
        self.h.append(step.t1 - step.t0)
        self.bounds.append(step.t1)

    def nodes(self, i: int) -> int:
        return self.pieces[i].basis.m

    def witnesses(self, sides: Sides) -> list[Witness]:
        """Times, states and slopes at the begin of all intervals."""
        times = [sides.after(a, b, {}) for a, b in pairwise(self.bounds)]
        pieces = self.pieces
        return [(t, p.y0, p.k[0]) for t, p in zip(times, pieces, strict=True)]

    def at(self, t: float) -> Tensor:
        return self.pieces[self.segment(t)].between([t])[0]

    def at_all(self, times: Sequence[float]) -> Tensor:
        found = [self.pieces[i].between(list(ts)) for i, ts in groupby(times, self.segment)]
        return torch.cat(found)
