"""Dense output: the trajectory as polynomials between the accepted steps, or by a fresh step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from ...adjoints.checks import Witness
from ...errors import UnsupportedError
from ...problem import Problem
from ...rhs import RHS, Time
from ..runge_kutta import GraphStepper, Sides, powers_of
from .plan import Plan


class DenseOutput:
    """Piecewise trajectory on the flat state; no autograd graph.

    Memory: (degree + 1) times the state for every accepted step.
    """

    def __init__(self, t0: float, direction: float):
        self.direction = direction
        self.bounds = [t0]  # step boundaries, in the order of the solve
        self.y: list[Tensor] = []
        self.q: list[Tensor] = []
        self.h: list[float] = []

    def append(self, step: Any) -> None:
        """Keep one accepted step."""
        self.y.append(step.y0.detach())
        self.q.append(step.polynomial())
        self.h.append(step.t1 - step.t0)
        self.bounds.append(step.t1)

    def end_at(self, t: float, y: Tensor) -> None:
        """End within the last step, where an event was found."""
        self.bounds[-1] = t

    def segment(self, t: float) -> int:
        """Index of the step that holds t."""
        d = self.direction
        i = bisect_left(self.bounds, d * t, key=lambda b: d * b) - 1
        return min(max(i, 0), len(self.h) - 1)

    def at(self, t: float) -> Tensor:
        """The flat state at a time within the span."""
        i = self.segment(t)
        theta = (t - self.bounds[i]) / self.h[i]
        q = self.q[i]
        return torch.addmv(self.y[i], q, powers_of(theta, q.shape[1], q.dtype, q.device))

    def at_all(self, times: Sequence[float]) -> Tensor:
        """Flat states (S, N)."""
        return torch.stack([self.at(t) for t in times])

    def nodes(self, i: int) -> int:
        """How many values within a step determine it at least as well as its polynomial."""
        return self.q[i].shape[1] + 2

    def witnesses(self, sides: Sides) -> list[Witness]:
        """Times, states and slopes at the begin of all steps."""
        spans = pairwise(self.bounds)
        times = [sides.after(a, b, {}) for a, b in spans]
        slopes = [q[:, 0] / h for q, h in zip(self.q, self.h, strict=True)]
        return list(zip(times, self.y, slopes, strict=True))


class StepsOutput(DenseOutput):
    """The steps themselves, of a method whose steps last: their states and interpolants."""

    def __init__(self, t0: float, direction: float):
        super().__init__(t0, direction)
        self.steps: list[Any] = []

    def append(self, step: Any) -> None:
        self.steps.append(step)
        self.h.append(step.h)
        self.bounds.append(step.t1)

    def at(self, t: float) -> Tensor:
        step = self.steps[self.segment(t)]
        known = {step.t0: step.y0, step.t1: step.y1}
        return known[t] if t in known else step.interpolate(t)

    def nodes(self, i: int) -> int:
        return 14  # the highest order is LSODA's, 12

    def witnesses(self, sides: Sides) -> list[Witness]:
        return [(sides.after(s.t0, s.t1, {}), s.y0, s.first) for s in self.steps]


class RestepOutput(DenseOutput):
    """Dense output by a fresh step from the last step boundary to the time itself.

    Of the method's full order; costs one step's evaluations for every time asked for, one more for
    every step that holds some, which is compared with what it was, and one state for every
    accepted step. ``y`` holds the states at all of ``bounds``.
    """

    def __init__(self, t0: float, direction: float, rhs: RHS, plan: Plan):
        super().__init__(t0, direction)
        self.stepper = GraphStepper(rhs, plan.tableau)
        self.sides = plan.sides(rhs.time_dtype)

    @classmethod
    def of(
        cls, step_t: list[float], step_y: list[Tensor], problem: Problem, plan: Plan
    ) -> RestepOutput:
        """From recorded step boundaries, and the states at them."""
        direction = 1.0 if step_t[-1] >= step_t[0] else -1.0
        dense = cls(step_t[0], direction, RHS(problem), plan)
        dense.bounds, dense.y = step_t, step_y
        dense.h = [b - a for a, b in pairwise(step_t)]
        return dense

    def append(self, step: Any) -> None:
        if not self.y:
            self.y.append(step.y0.detach())
        self.y.append(step.y1.detach())
        self.h.append(step.t1 - step.t0)
        self.bounds.append(step.t1)

    def end_at(self, t: float, y: Tensor) -> None:
        self.bounds[-1], self.y[-1] = t, y.detach()

    def at(self, t: float) -> Tensor:
        return self.at_all([t])[0]

    @torch.no_grad()
    def at_all(self, times: Sequence[float]) -> Tensor:
        found = []
        for i, within in groupby(times, self.segment):
            found += self._within(i, list(within))
        return torch.stack(found)

    def _within(self, i: int, times: list[float]) -> list[Tensor]:
        """The states at times of one step."""
        known = {self.bounds[i]: self.y[i], self.bounds[i + 1]: self.y[i + 1]}
        if all(t in known for t in times):
            return [known[t] for t in times]
        start, end, y = self.bounds[i], self.bounds[i + 1], self.y[i]
        self.stepper.start(self.stepper.rhs(self.sides.after(start, end, {}), y))
        again = self._step(start, end, y, self.sides.before(start, end, {}))
        self._check_same(again, known[end], (end - start) * self.stepper.k[0])
        return [known[t] if t in known else self._step(start, t, y) for t in times]

    def _step(self, start: float, t: float, y: Tensor, t_end: Time | None = None) -> Tensor:
        return self.stepper.trial(start, t, t - start, y, t_end, close=False)

    def _check_same(self, again: Tensor, before: Tensor, rise: Tensor) -> None:
        """Raise where the field is another than it was: its steps are then of another solution."""
        if not before.numel():
            return
        size = float(torch.stack([before, rise]).abs().max())
        off = float((again - before).abs().max())
        # rounding of one step, seen through the field, is far below
        if not off <= torch.finfo(before.dtype).eps ** 0.6 * size:
            raise UnsupportedError(
                f"a step of this solution, taken again, differs by {off:.1e}: its field is another "
                "than it was when it was solved (parameters changed, dropout, random numbers). "
                "Solve with options={'dense': True}, which keeps polynomials, ask for the times in "
                "t, or ask before the field changes"
            )
