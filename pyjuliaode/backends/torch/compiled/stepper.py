"""Steps by a compiled program."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ....errors import UnsupportedError
from ....problem import Problem
from ....rhs import RHS, Time
from ...runge_kutta import Stepper, coefficients, extended
from ..control import Control, rms
from .field import CompiledField
from .program import Program, agree, largest

if TYPE_CHECKING:
    from ..plan import Plan


class CompiledStepper(Stepper):
    """Steps without a graph, each by one call."""

    def __init__(self, rhs: RHS, plan: Plan, problem: Problem, field: CompiledField):
        super().__init__(rhs, plan.tableau)
        like = problem.y0
        self.problem, self.field = problem, field
        self.w = self.tableau.weights(like.dtype, like.device)
        self._rms = plan.norm is rms
        tolerances = (plan.rtol, plan.atol) if self.tableau.error is not None else ()
        self._tolerances = [torch.as_tensor(x, dtype=like.dtype) for x in tolerances]
        self._points = math.sqrt(max(like.numel(), 1))
        self._step: Program | None = None
        self._checked = False

    def start(self, slope: Tensor) -> None:
        self._first = slope.detach()

    @torch.no_grad()
    def initial_step(
        self, control: Control, t0: float, y0: Tensor, f0: Tensor, direction: float, room: float
    ) -> float:
        if control.first_step is not None or not self._rms:
            return super().initial_step(control, t0, y0, f0, direction, room)
        clock = self._clock(t0, direction, min(room, control.max_step))
        inputs = (clock, y0.detach(), *self._tolerances)
        slope, norms = self.field.start(self.problem, *inputs)(*inputs)
        self._check(slope, f0)
        self.rhs.nfe += 1
        d0, d1, d2, h0 = norms.tolist()
        control.check_start(t0, y0, f0, d0, d1)
        return control.first_size(d1, d2, h0)

    @torch.no_grad()
    def trial(self, t: float, t1: float, h: Time, y: Tensor, t_end: Time | None = None) -> Tensor:
        self._known, self._end = self.tableau.stages, t1 if t_end is None else t_end
        inputs = (self._clock(t, h, self._end), y.detach(), self._first, *self._tolerances)
        if self._step is None:
            self._step = self.field.step(self.problem, self.tableau, self._rms, *inputs)
        y1, self.k, *self._error = self._step(*inputs)
        if self.tableau.stages > 1 and (not self._checked or t1 == self.problem.times[-1]):
            self._check_stage(t, h, y, y1)
        self.rhs.nfe += self.tableau.stages - 1
        return y1

    def _clock(self, *numbers: float) -> Tensor:
        return torch.tensor(numbers, dtype=self.problem.time_dtype)

    def _check_stage(self, t: float, h: Time, y: Tensor, y1: Tensor) -> None:
        """Of the last slope where that is the field's at the end of the step, or of the second."""
        if self.tableau.fsal:
            self._check(self.k[-1], self.rhs(self._end, y1))
        else:
            second = torch.add(y, self._first, alpha=h * self.tableau.a[0][0])
            self._check(self.k[1], self.rhs(t + h * self.tableau.c[1], second))
        self.rhs.nfe -= 1

    def _check(self, slope: Tensor, wanted: Tensor) -> None:
        """At the start and the end of a solve: that the module is what was compiled, also where it
        reads what no look at its code finds (a file, an object made when it is called).
        """
        self._checked = True
        if not agree(slope, wanted, largest(wanted)):
            raise UnsupportedError(
                "func gives other values than when it was compiled, and nothing that its code is "
                "seen to read was changed: it depends on something else (a file, a clock, what an "
                "object holds). Leave out options={'compile': True}"
            )

    def _put(self, slope: Tensor) -> None:
        self.k = torch.cat([self.k, slope.detach()[None]])
        self._known += 1

    def error(self) -> Tensor:
        return self._error[0]

    def ratio(self, control: Control, h: float, y0: Tensor, y1: Tensor) -> float:
        if self._rms:
            return float(self._error[0]) / self._points
        return super().ratio(control, h, y0, y1)

    def extend(self, y0: Tensor, h: Time, theta: Time) -> Tensor:
        return extended(y0, h, theta, self.k.t(), self.w.interpolant)

    def polynomial(self, h: float) -> Tensor:
        return coefficients(self.k.t(), self.w.interpolant).mul_(h)
