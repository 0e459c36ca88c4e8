"""Events: the first time at which a component of event_fn(t, y) changes sign."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidArgumentError
from ...rhs import RHS


class EventFinder:
    """Watches the accepted steps for a sign change, at ``points`` times within each.

    ``event_fn(t, y)`` returns a tensor of any shape; each element is an event and the first one
    ends the solve. An element that is exactly zero at the start takes the sign that it has just
    after it. Two crossings between two of the points are not seen.
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
        self.sign = self._value(t0, y0).sign()
        self._undecided = bool((self.sign == 0).any())

    @torch.no_grad()
    def _value(self, t: float, y: Tensor) -> Tensor:
        value = self.event_fn(self.rhs.time(t), self.rhs.structure.unpack(y))
        if not isinstance(value, Tensor) or value.is_complex():
            raise InvalidArgumentError(
                f"event_fn must return a real tensor, got {type(value).__name__}"
            )
        return value.reshape(-1)

    def _distance(self, t: float, y: Tensor) -> float:
        """Positive before the event, negative after it."""
        return float((self._value(t, y) * self.sign).min())

    def find(self, step: Any) -> tuple[float, Tensor] | None:
        """(time, state) of the first event within an accepted step, or None."""
        low = step.t0
        for k in range(1, self.points + 1):
            high = step.t1 if k == self.points else step.t0 + (step.t1 - step.t0) * k / self.points
            state = self._state(step, high)
            value = self._value(high, state)
            if self._undecided:
                self._decide(step, value)
            distance = float((value * self.sign).min())
            if distance == 0:
                return high, state
            if distance < 0:
                return self._bisect(step, low, high)
            low = high
        return None

    def _decide(self, step: Any, value: Tensor) -> None:
        """Elements that were zero at the start: the sign that they take just after it."""
        after = step.t0 + 1e-4 * (step.t1 - step.t0)
        early = self._value(after, self._state(step, after)) if self.points > 1 else value
        self.sign = torch.where(self.sign == 0, early.sign(), self.sign)
        self._undecided = bool((self.sign == 0).any())

    @torch.no_grad()
    def _state(self, step: Any, t: float) -> Tensor:
        return step.y1 if t == step.t1 else step.interpolate(t)

    def _bisect(self, step: Any, low: float, high: float) -> tuple[float, Tensor]:
        """The crossing between two times of a step, to the last digits."""
        while True:
            mid = 0.5 * (low + high)
            tight = abs(high - low) <= 4 * math.ulp(max(abs(low), abs(high)))
            if tight or mid in (low, high):
                return high, self._state(step, high)
            if self._distance(mid, self._state(step, mid)) > 0:
                low = mid
            else:
                high = mid
