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
    """Watches the accepted steps for a sign change.

    ``event_fn(t, y)`` returns a tensor of any shape; each element is an event and the first one
    ends the solve. An element that is exactly zero at the start takes its sign from the first step.
    """

    def __init__(self, rhs: RHS, event_fn: Callable[[Tensor, Any], Tensor], t0: float, y0: Tensor):
        self.rhs, self.event_fn = rhs, event_fn
        value = self._value(t0, y0)
        self.sign = value.sign()

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
        """(time, state) of the event within an accepted step, or None."""
        end = self._value(step.t1, step.y1)
        self.sign = torch.where(self.sign == 0, end.sign(), self.sign)
        distance = float((end * self.sign).min())
        if distance > 0:
            return None
        if distance == 0:
            return step.t1, step.y1
        low, high = step.t0, step.t1
        with torch.no_grad():
            while True:
                mid = 0.5 * (low + high)
                tight = abs(high - low) <= 4 * math.ulp(max(abs(low), abs(high)))
                if tight or mid in (low, high):
                    return high, step.interpolate(high) if high != step.t1 else step.y1
                if self._distance(mid, step.interpolate(mid)) > 0:
                    low = mid
                else:
                    high = mid
