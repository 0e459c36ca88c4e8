"""Vector-Jacobian products of the field by compiled programs, for the continuous adjoints."""

from __future__ import annotations

import torch
from torch import Tensor

from ....problem import Problem
from ....rhs import RHS, Time
from .field import CompiledField


class CompiledRHS(RHS):
    """An RHS whose products are compiled; its values are the module's."""

    def __init__(self, problem: Problem, field: CompiledField):
        super().__init__(problem)
        self._problem, self._field = problem, field

    @torch.no_grad()
    def vjp(
        self, t: Time, y: Tensor, cotangent: Tensor, state: bool = True, params: bool = True
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...]]:
        self.n_vjp += 1
        inputs = (self.time(t), y, cotangent)
        value, *grads = self._field.vjp(self._problem, state, params, *inputs)(*inputs)
        return value, grads.pop(0) if state else None, tuple(grads)
