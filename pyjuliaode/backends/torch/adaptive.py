"""Adaptive Runge-Kutta methods: a stream of accepted steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from ...rhs import RHS
from ...solution import Retcode, SolveStats
from ..runge_kutta import Sides, Step, Stepper
from .callbacks import Callbacks
from .control import (
    LOOK,
    NOT_YET,
    Control,
    SampleErrors,
    StepFailure,
    between,
    farthest,
    no_event,
    resolution,
    unresolved,
)

# Every so many attempts it is asked whether the end can be reached at this pace: where it would
# take so many times the most steps, hours of work are spared.
PACE, HOPELESS = 5_000, 10


class AdaptiveRK:
    """Integrates from one time to another, choosing the steps.

    The steps end on every time of ``stops``, on the discontinuities that ``sides`` knows, and on
    the end of the span; nothing is evaluated beyond it.
    """

    def __init__(
        self,
        rhs: RHS,
        stepper: Stepper,
        control: Control,
        stats: SolveStats,
        sides: Sides,
        callbacks: Callbacks | None = None,
        stops: Sequence[float] = (),
    ):
        self.rhs, self.stepper, self.control = rhs, stepper, control
        self.stats, self.callbacks, self.sides = stats, callbacks, sides
        self.stops = {*stops, *sides.jumps}
        self.samples: SampleErrors | None = None
        self.h: float | None = None  # the size that the controller wants next
        self.counted_from = 0  # attempts that max_steps does not count
        self._start, self._end = 0.0, math.inf
        self._farthest = farthest(rhs.time_dtype)
        self._pace: list[float] = []  # times at every so many attempts

    def steps(self, y: Tensor, t0: float, t1: float, f0: Tensor | None = None) -> Iterator[Step]:
        """Yield accepted steps from t0 to t1; raise :class:`StepFailure` where there are none."""
        direction = 1.0 if t1 > t0 else -1.0
        self._start, self._end, self._pace = t0, t1, []
        if f0 is None:
            f0 = self._slope(t0, t1, y)
        self.stepper.start(f0)
        marks = [*between(self.stops, t0, t1), t1]
        if self.h is None:
            room = abs(marks[0] - t0)
            self.h = self.stepper.initial_step(self.control, t0, y, f0, direction, room)
        t = t0
        for mark in marks:
            while t != mark:
                step = self._accepted(t, mark, y, direction)
                yield step
                t, y = step.t1, step.y1
                if t == t1:
                    return
                slope = None if self.sides.apart(t) else self.stepper.next_slope()
                self.stepper.start(self._slope(t, t1, y) if slope is None else slope)

    def _slope(self, t: float, t1: float, y: Tensor) -> Tensor:
        return self.rhs(self.sides.after(t, t1, self.stepper.clock), y)

    def _accepted(self, t: float, mark: float, y: Tensor, direction: float) -> Step:
        """Attempt steps from (t, y) towards ``mark`` until one is accepted."""
        control, stepper, stats = self.control, self.stepper, self.stats
        last_ratio = 1.0
        while True:
            h, t1, cut = self._propose(t, mark, direction, last_ratio)
            self._check_count(stats.n_accepted + stats.n_rejected - self.counted_from, t)
            # of the times as they are rounded, or the steps would not add up to the span
            span = stepper.span(t, t1, t1 - t)
            y1 = stepper.trial(t, t1, span, y, self.sides.before(t, t1, stepper.clock))
            ratio = stepper.ratio(control, h, y, y1)
            accept = ratio <= 1.0 or (abs(h) <= control.min_step and math.isfinite(ratio))
            if self.callbacks is not None:
                self.callbacks.report(accept, t, y, h)
            if accept:
                stats.n_accepted += 1
                if self.samples is not None and stats.n_accepted % LOOK == 4:
                    self.samples.look(control.scaled, h)
                wanted = abs(h) * control.factor(ratio)
                # a step cut short to end on a mark says little about the size that is possible
                self.h = max(wanted, self.h) if cut else wanted
                return Step(stepper, t, t1, span, y, y1)
            stats.n_rejected += 1
            control.rejected()
            last_ratio = ratio
            self.h = abs(h) * (control.factor(ratio) if math.isfinite(ratio) else 0.1)

    def _check_count(self, attempts: int, t: float) -> None:
        """Raise where the steps are spent, or would be long before the end of the span."""
        most = self.control.max_steps
        if attempts >= most:
            if math.isinf(self._end):
                what = f"{most} steps were attempted without an event"
                raise StepFailure(Retcode.MAX_ITERS, t, what, NOT_YET)
            raise StepFailure(Retcode.MAX_ITERS, t, f"{most} steps were attempted")
        if attempts % PACE or math.isinf(self._end):
            return
        self._pace = [*([] if attempts == 0 else self._pace[-2:]), t]
        if len(self._pace) < 3:
            return
        first, second, last = self._pace
        if abs(last - second) > 2 * abs(second - first):  # the steps still grow
            return
        needed = PACE * abs(self._end - t) / max(abs(last - second), 1e-300)
        if needed > HOPELESS * most:
            raise StepFailure(
                Retcode.MAX_ITERS,
                t,
                f"{attempts} steps were attempted, which grow no longer, and {needed:.1e} more "
                f"would be needed to reach t = {self._end:g}, as where a problem is stiff;",
            )

    def begin_interval(self) -> None:
        """Count max_steps from here on."""
        self.counted_from = self.stats.n_accepted + self.stats.n_rejected

    def _propose(
        self, t: float, mark: float, direction: float, last_ratio: float
    ) -> tuple[float, float, bool]:
        """(signed h, end of step, whether it was cut) of the next trial."""
        h = min(max(self.h, self.control.min_step), self.control.max_step)
        if math.isinf(mark) and abs(t) + h > self._farthest:
            raise no_event(t)
        remaining = abs(mark - t)
        if h >= remaining * (1 - 1e-9):
            return mark - t, mark, h > remaining
        if 2 * h > remaining:  # two equal steps rather than a last one of no size
            h = 0.5 * remaining
        if h < resolution(t):
            if math.isfinite(last_ratio):
                raise unresolved(t, h, self._start, self._end)
            raise StepFailure(Retcode.UNSTABLE, t, "no step, however small, has a finite result")
        return direction * h, t + direction * h, False
