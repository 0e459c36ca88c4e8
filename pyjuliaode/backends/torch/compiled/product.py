"""The discrete adjoint of a step by a compiled program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....problem import Problem
from ...tableau import Tableau
from .field import CompiledField


class StepProduct:
    """The product of cotangents with the derivative of a step, added up for the parameters."""

    def __init__(self, problem: Problem, field: CompiledField, tableau: Tableau, linear: bool):
        self.problem, self.field, self.tableau, self.linear = problem, field, tableau, linear
        self.totals = [torch.zeros_like(p) for p in problem.params]

    @torch.no_grad()
    def __call__(
        self,
        t0: float,
        t1: float,
        y: Tensor,
        cotangent: Tensor,
        times: Sequence[float] = (),
        grad: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, int]:
        """See :class:`pyjuliaode.backends.replay.Product`."""
        tableau, h = self.tableau, t1 - t0
        within = len(times) > 0 and not self.linear
        extra, direct = [], None
        if times:
            theta = torch.tensor([(t - t0) / h for t in times], dtype=y.dtype)
            direct = grad.sum(0)
            if self.linear:
                moved = theta @ grad
                cotangent, direct = cotangent + moved, direct - moved
            else:
                matrix = tableau.weights(y.dtype, y.device).interpolant.to(y.dtype)
                degrees = torch.arange(1, matrix.shape[1] + 1)
                powers = theta ** degrees[:, None]
                extra = [torch.linalg.multi_dot([matrix, powers, h * grad])]
        clock = torch.tensor([t0, h, t1], dtype=y.dtype)
        inputs = (clock, y, cotangent, *extra, *self.totals)
        y1, g_y, *totals = self.field.product(self.problem, tableau, within, *inputs)(*inputs)
        self.totals = [a if b is None else b for a, b in zip(self.totals, totals, strict=True)]
        if g_y is None:
            g_y = torch.zeros_like(y)
        return y1, g_y if direct is None else g_y + direct, tableau.rows if within else tableau.core
