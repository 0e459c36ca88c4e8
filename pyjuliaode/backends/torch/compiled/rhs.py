"""Vector-Jacobian products of the field by compiled programs, for the continuous adjoints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor

from ....problem import Problem
from ....rhs import RHS, Time
from .field import CompiledField


class CompiledRHS(RHS):
    """An RHS whose products are compiled; its values are the module's."""

    def __init__(
        self,
        problem: Problem,
        field: CompiledField,
        backward: bool = False,
        needs: Sequence[bool] | None = None,
    ):
        super().__init__(problem, backward, needs)
        self._field = field

    @torch.no_grad()
    def vjp(
        self, t: Time, y: Tensor, cotangent: Tensor, state: bool = True, params: bool = True
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...]]:
        self.n_vjp += 1
        inputs = (self.time(t), y, cotangent)
        value, *grads = self._field.vjp(self._problem, state, params, *inputs)(*inputs)
        of_state = grads.pop(0) if state else None
        wanted = grads if self._needs is None else compress(grads, self._needs)
        return value, of_state, tuple(wanted)
