"""Events: the first time at which a component of event_fn(t, y) leaves the side that it is on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...rhs import RHS
from ..base import event_value


class EventFinder:
    """Watches the accepted steps, at ``points`` times within each.

    ``event_fn(t, y)`` returns a tensor of any shape; every element is on the side of its sign
    (True and False are sides too), and the first that leaves its side ends the solve. An element
    that is zero at the start, or within rounding of it, as in the state at an event that was found
    before, is on no side until it has a sign; one that is NaN stays where it was. Two crossings
    between two of the points are not seen.
    """

    def __init__(
        self,
        rhs: RHS,
        event_fn: Callable[[Tensor, Any], Tensor],
        t0: float,
        y0: Tensor,
        points: int,
    ):
        self.rhs, self.event_fn, self.points = rhs, event_fn, points
        self._first: Tensor | None = self._value(t0, y0)
        self._side = _sign(self._first)
        self._decided = False  # every element is on a side

    @torch.no_grad()
    def _value(self, t: float, y: Tensor) -> Tensor:
        return event_value(self.event_fn(self.rhs.time(t), self.rhs.structure.unpack(y)))

    @torch.no_grad()
    def find(self, step: Any) -> tuple[float, int, float] | None:
        """(time, element, time just before) of the first event within an accepted step, or None."""
        if self._first is not None:
            self._settle(step, self._first)
            self._first = None
        span = step.t1 - step.t0
        times = [step.t0 + span * k / self.points for k in range(1, self.points)] + [step.t1]
        states = step.states(times[:-1]) + [step.y1]
        values = torch.stack([self._value(t, y) for t, y in zip(times, states, strict=True)])
        if self._decided:
            left = self._left(values).any(dim=1).tolist()
        else:
            left = [self._look(value) for value in values]
        if not any(left):
            return None
        k = left.index(True)
        return self._bisect(step, times[k - 1] if k else step.t0, times[k])

    def _settle(self, step: Any, first: Tensor) -> None:
        """Elements that were zero at the start, but for rounding: the side that comes next."""
        span = step.t1 - step.t0
        early = step.t0 + 1e-4 * span
        value = self._value(early, self._state(step, early))
        slope = (value - first).abs() / abs(early - step.t0)
        rounding = 100 * torch.finfo(slope.dtype).eps * (abs(step.t0) + abs(span))
        self._side = torch.where(first.abs() <= slope * rounding, _sign(value), self._side)
        self._decided = bool((self._side != 0).all())

    def _look(self, value: Tensor) -> bool:
        """Whether an element has left its side; elements on none take that of their sign."""
        left = bool(self._left(value).any())
        self._side = torch.where(self._side == 0, _sign(value), self._side)
        self._decided = bool((self._side != 0).all())
        return left

    def _left(self, values: Tensor) -> Tensor:
        away = (values.sign() != self._side) & (self._side != 0)
        return away & ~values.isnan()

    def _state(self, step: Any, t: float) -> Tensor:
        return step.y1 if t == step.t1 else step.interpolate(t)

    def _bisect(self, step: Any, low: float, high: float) -> tuple[float, int, float]:
        """The crossing between two times of a step, to the last digits."""
        left = self._left(self._value(high, self._state(step, high)))
        while abs(high - low) > 4 * math.ulp(max(abs(low), abs(high))):
            mid = 0.5 * (low + high)
            found = self._left(self._value(mid, self._state(step, mid)))
            if bool(found.any()):
                high, left = mid, found
            else:
                low = mid
        return high, int(left.int().argmax()), low


def _sign(value: Tensor) -> Tensor:
    return value.sign().nan_to_num()
