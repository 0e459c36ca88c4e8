"""Events: the first time at which a component of event_fn(t, y) leaves the side that it is on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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

    Between the ends of a step the points are looked at on its interpolant, which may swing over a
    value that the solution never takes: a side is left where a step of its own to that point says
    so too.
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
    def find(self, step: Any) -> tuple[float, int, float, float, float] | None:
        """The first event within an accepted step, or None: its time, element, a time just before,
        the start of the step, and by how much event_fn jumps."""
        if self._first is not None:
            self._settle(step, self._first)
            self._first = None
        span = step.t1 - step.t0
        times = [step.t0 + span * k / self.points for k in range(1, self.points)] + [step.t1]
        states = step.states(times[:-1]) + [step.y1]
        values = torch.stack([self._value(t, y) for t, y in zip(times, states, strict=True)])
        for k, left in self._leavings(values):
            true = left if times[k] == step.t1 else left & self._landed(step, times[k])
            if bool(true.any()):
                low = times[k - 1] if k else step.t0
                t, element, before = self._bisect(step, low, times[k], true | ~left)
                jump = self._jump(step, values[:, element], t, element, before)
                return t, element, before, step.t0, jump
        return None

    def _leavings(self, values: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The points at which elements have left their side, and which; elements on no side take
        that of their sign."""
        if self._decided:
            left = self._left(values)
            yield from ((k, left[k]) for k, any_left in enumerate(left.any(1).tolist()) if any_left)
            return
        for k, value in enumerate(values):
            left = self._left(value)
            if bool(left.any()):
                yield k, left
            self._side = torch.where(self._side == 0, _sign(value), self._side)
        self._decided = bool((self._side != 0).all())

    def _landed(self, step: Any, t: float) -> Tensor:
        """The elements that have left their side in the state at ``t`` by a step of its own."""
        return self._left(self._value(t, step.afresh(t)))

    def _settle(self, step: Any, first: Tensor) -> None:
        """Elements that were zero at the start, but for rounding: the side that comes next."""
        span = step.t1 - step.t0
        early = step.t0 + 1e-4 * span
        value = self._value(early, self._state(step, early))
        slope = (value - first).abs() / abs(early - step.t0)
        rounding = 100 * torch.finfo(slope.dtype).eps * (abs(step.t0) + abs(span))
        self._side = torch.where(first.abs() <= slope * rounding, _sign(value), self._side)
        self._decided = bool((self._side != 0).all())

    def _left(self, values: Tensor) -> Tensor:
        away = (values.sign() != self._side) & (self._side != 0)
        return away & ~values.isnan()

    def _state(self, step: Any, t: float) -> Tensor:
        return step.y1 if t == step.t1 else step.interpolate(t)

    def _bisect(
        self, step: Any, low: float, high: float, asked: Tensor
    ) -> tuple[float, int, float]:
        """The first crossing of the elements ``asked`` about, between two times of a step, to the
        last digits."""
        left = asked & self._left(self._value(high, self._state(step, high)))
        while abs(high - low) > 4 * math.ulp(max(abs(low), abs(high))):
            mid = 0.5 * (low + high)
            found = asked & self._left(self._value(mid, self._state(step, mid)))
            if bool(found.any()):
                high, left = mid, found
            else:
                low = mid
        return high, int(left.int().argmax()), low

    def _jump(self, step: Any, values: Tensor, t: float, element: int, before: float) -> float:
        """By how much an element changes between two times that are next to each other.

        0 where that is little beside its values over the step, as at a root, or very much more, as
        at a pole, which is where the root of 1 / event_fn is.
        """
        at, ahead, first = (
            self._value(s, y)[element]
            for s, y in (
                (t, self._state(step, t)),
                (before, self._state(step, before)),
                (step.t0, step.y0),
            )
        )
        jump, size = float((at - ahead).abs()), float(torch.stack([first, *values]).abs().max())
        small = math.sqrt(torch.finfo(step.y1.dtype).eps)
        return jump if small * size < jump < size / small else 0.0


def _sign(value: Tensor) -> Tensor:
    return value.sign().nan_to_num()
