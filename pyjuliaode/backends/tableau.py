"""A Butcher tableau with its continuous extension, and the same as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Row = Sequence[float]


class Weights(NamedTuple):
    """A tableau as tensors of one dtype and device."""

    a: tuple[Tensor, ...]
    b: Tensor
    c: Tensor  # without c[0] = 0, real
    error: Tensor | None
    interpolant: Tensor | None
    extra: tuple[Tensor, ...]  # rows of the stages that the interpolant alone reads


@dataclass(frozen=True, eq=False)
class Tableau:
    """An explicit Runge-Kutta method.

    Attributes:
        order: order of the solution that is carried on.
        a: rows 1.. of the strictly lower triangular matrix; c: abscissae (c[0] = 0); b: weights.
        error: b minus the embedded weights; None for methods of fixed step.
        dense: rows of the continuous extension y(θ) = y0 + h Σ_i k_i Σ_j dense[i][j] θ^(j+1), of
            local error O(h^(order)) at least, so that states between the steps keep the method's
            order. None: made of a cubic Hermite polynomial where the order is at most 4.
        extra: further stages (c, row of a), evaluated only where a state within the step is asked
            for. They, and the extension, read f(t1, y1) after the stages.
    """

    name: str
    order: int
    a: tuple[Row, ...]
    c: Row
    b: Row
    error: Row | None = None
    dense: tuple[Row, ...] | None = None
    extra: tuple[tuple[float, Row], ...] = ()

    @cached_property
    def stages(self) -> int:
        return len(self.b)

    @cached_property
    def core(self) -> int:
        """Stages that the solution reads: those after them serve the interpolant."""
        return max(i for i, w in enumerate(self.b) if w != 0) + 1

    @cached_property
    def fsal(self) -> bool:
        """The last stage is the first of the next step."""
        return self.b[-1] == 0 and tuple(self.b[:-1]) == tuple(self.a[-1]) if self.a else False

    @cached_property
    def rows(self) -> int:
        """Slopes that the continuous extension reads: the stages and, without FSAL, f(t1, y1)."""
        if self.dense is not None:
            return len(self.dense)
        return self.stages if self.fsal else self.stages + 1

    @cached_property
    def interpolant(self) -> tuple[Row, ...] | None:
        """The matrix of the continuous extension, (rows, degree), or None."""
        if self.dense is not None:
            return self.dense
        if self.order > 4:
            return None
        b = [*self.b] + [0.0] * (self.rows - self.stages)
        p = [[0.0, 3 * w, -2 * w] for w in b]
        p[0] = [x + y for x, y in zip(p[0], (1.0, -2.0, 1.0), strict=True)]
        p[-1] = [x + y for x, y in zip(p[-1], (0.0, -1.0, 1.0), strict=True)]
        return tuple(map(tuple, p))

    def weights(self, dtype: torch.dtype, device: torch.device) -> Weights:
        return _weights(self, dtype, device)


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # what is made there could serve no gradient later
def _weights(tab: Tableau, dtype: torch.dtype, device: torch.device) -> Weights:
    def tensor(rows: object, dtype: torch.dtype = dtype) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64, device="cpu").to(dtype=dtype, device=device)

    interpolant = None if tab.interpolant is None else tensor(tab.interpolant)
    if tab.extra:  # coefficients of some hundreds that cancel, which single precision would show
        interpolant = tensor(tab.interpolant, torch.promote_types(dtype, torch.float64))
    return Weights(
        tuple(tensor(row) for row in tab.a),
        tensor(tab.b),
        tensor(tab.c[1:]).real if dtype.is_complex else tensor(tab.c[1:]),
        None if tab.error is None else tensor(tab.error),
        interpolant,
        tuple(tensor(row) for _, row in tab.extra),
    )
