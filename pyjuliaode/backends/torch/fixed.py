"""Methods on a fixed grid of steps: explicit Runge-Kutta, Adams-Bashforth and Adams-Moulton."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...arguments import times as grid_times
from ...errors import InvalidArgumentError, add_note
from ...rhs import RHS, Time
from ...solution import Retcode, SolveStats
from ..limits import number_of_steps
from ..runge_kutta import Sides, Step, Stepper, combine
from .callbacks import Callbacks
from .control import StepFailure, rms
from .tableaus import RK4


def fixed_grid(
    func: Callable, y0: Any, t: Tensor, times: list[float], dt: float | None, constructor: Any
) -> list[float]:
    """Step boundaries over the requested times.

    Without ``dt`` or ``grid_constructor`` there is one step between two requested times.
    """
    if constructor is not None:
        grid = list(
            grid_times("what grid_constructor returns", _constructed(constructor, func, y0, t))
        )
        if not grid or grid[0] != times[0] or grid[-1] != times[-1]:
            raise InvalidArgumentError(
                "grid_constructor must return times from t[0] to t[-1], "
                f"{times[0]:g} to {times[-1]:g}"
            )
        sign = 1 if times[-1] > times[0] else -1
        if any(sign * (b - a) <= 0 for a, b in pairwise(grid)):
            raise InvalidArgumentError("grid_constructor must return strictly monotone times")
        return grid
    if dt is None:
        return times
    start, end = times[0], times[-1]
    n = number_of_steps(start, end, dt)
    signed = math.copysign(dt, end - start)
    return [start + i * signed for i in range(n)] + [end]


def _constructed(constructor: Callable, func: Callable, y0: Any, t: Tensor) -> Any:
    try:
        return constructor(func, y0, t)
    except Exception as error:
        add_note(error, f"(grid_constructor was called with func, y0 and {len(t)} times)")
        raise


class FixedRK:
    """An explicit Runge-Kutta method that steps on a grid."""

    def __init__(
        self,
        rhs: RHS,
        stepper: Stepper,
        stats: SolveStats,
        sides: Sides,
        callbacks: Callbacks | None = None,
    ):
        self.rhs, self.stepper, self.stats = rhs, stepper, stats
        self.sides, self.callbacks = sides, callbacks

    def steps(self, y: Tensor, grid: Iterable[float], f0: Tensor | None = None) -> Iterator[Step]:
        """Yield the steps along ``grid``."""
        stepper, slope = self.stepper, f0
        for t, t1 in pairwise(grid):
            self.stats.n_accepted += 1
            if slope is None:
                slope = self.rhs(self.sides.after(t, t1, stepper.clock), y)
            stepper.start(slope)
            h = stepper.span(t, t1, t1 - t)
            y1 = stepper.trial(t, t1, h, y, self.sides.before(t, t1, stepper.clock))
            if self.callbacks is not None:
                self.callbacks.report(True, t, y, t1 - t)
            yield Step(stepper, t, t1, h, y, y1)
            y, slope = y1, None if self.sides.apart(t1) else stepper.next_slope()


def endless_grid(start: float, dt: float, max_steps: int) -> Iterator[float]:
    """Step boundaries from ``start`` on, where the search for an event has no end."""
    yield from (start + i * dt for i in range(max_steps + 1))
    raise StepFailure(
        Retcode.MAX_ITERS, start + max_steps * dt, f"{max_steps} steps were taken without an event"
    )


class HermiteStep:
    """A step known by its ends: states and slopes there; cubic Hermite between."""

    __slots__ = ("_f1", "f0", "h", "t0", "t1", "y0", "y1")

    def __init__(
        self,
        t0: float,
        t1: float,
        h: Time,
        y0: Tensor,
        y1: Tensor,
        f0: Tensor,
        f1: Callable[[], Tensor],
    ):
        self.t0, self.t1, self.h, self.y0, self.y1, self.f0, self._f1 = t0, t1, h, y0, y1, f0, f1

    @property
    def start(self) -> Time:
        """t0, with its gradient where it carries one."""
        return self.t1 - self.h

    def _coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        d, a, b = self.y1 - self.y0, self.h * self.f0, self.h * self._f1()
        return a, 3 * d - 2 * a - b, a + b - 2 * d

    def interpolate(self, t: Time) -> Tensor:
        theta = 1 + (t - self.t1) / self.h  # so that a start that carries a gradient moves it
        q1, q2, q3 = self._coefficients()
        return self.y0 + theta * (q1 + theta * (q2 + theta * q3))

    def states(self, times: Sequence[float]) -> list[Tensor]:
        return [self.interpolate(t) for t in times]

    def landing(self, t: float) -> Tensor:
        return self.interpolate(t)

    def polynomial(self) -> Tensor:
        return torch.stack([q.detach() for q in self._coefficients()], dim=-1)


class Adams:
    """Adams-Bashforth, or Adams-Bashforth-Moulton when implicit, started by Runge-Kutta steps.

    The weights come from the actual times of the history, so the grid need not be uniform.
    """

    def __init__(
        self,
        rhs: RHS,
        stats: SolveStats,
        implicit: bool,
        rtol: float | Tensor,
        atol: float | Tensor,
        clock: dict[float, Tensor],
        sides: Sides,
        max_order: int = 4,
        max_iters: int = 4,
        callbacks: Callbacks | None = None,
    ):
        self.rhs, self.stats = rhs, stats
        self.implicit, self.rtol, self.atol, self.clock = implicit, rtol, atol, clock
        self.max_order, self.max_iters = int(max_order), int(max_iters)
        self.sides, self.callbacks = sides, callbacks

    def steps(
        self, y: Tensor, grid: Iterable[float], f0: Tensor | None = None
    ) -> Iterator[HermiteStep]:
        """Yield the steps along ``grid``."""
        history: list[tuple[float, Tensor]] = []  # newest first
        slope = f0
        for t, t1 in pairwise(grid):
            if slope is None:
                slope = self.rhs(self.sides.after(t, t1, {}), y)
            if t in self.clock:
                # the start moves along the solution: dy/dt0 = -Φ f; its history stays in place
                shift = self.clock[t] - self.clock[t].detach()
                y = y - slope * shift.to(y.dtype)
                slope = self.rhs(self.sides.after(t, t1, {}), y)
            history = [(t, slope), *history[: self.max_order - 1]]
            self.stats.n_accepted += 1
            h = t1 - t
            y1 = self._advance(t, t1, h, y, history)
            if self.callbacks is not None:
                self.callbacks.report(True, t, y, t1 - t)
            later = _Once(self.rhs, self._end(t, t1), y1)
            yield HermiteStep(t, t1, h, y, y1, history[0][1], later)
            y, slope = y1, None if self.sides.apart(t1) else later.value

    def _end(self, t: float, t1: float) -> Time:
        """Where the field is evaluated at the end of a step."""
        at = self.sides.before(t, t1, {})
        return t1 if at is None else at

    def _advance(
        self, t: float, t1: float, h: Time, y: Tensor, history: list[tuple[float, Tensor]]
    ) -> Tensor:
        if len(history) < self.max_order and self.max_order > 1:
            return self._starting_step(t, t1, h, y, history[0][1])
        nodes = tuple(round((s - t) / (t1 - t), 10) for s, _ in history)
        slopes = [f for _, f in history]
        y1 = combine(y, h, adams_weights(nodes), slopes)
        return self._correct(self._end(t, t1), h, y, y1, nodes, slopes) if self.implicit else y1

    def _starting_step(self, t: float, t1: float, h: Time, y: Tensor, slope: Tensor) -> Tensor:
        k = [slope]
        for c, a in zip(RK4.c[1:], RK4.a, strict=True):
            at = self._end(t, t1) if c == 1.0 else t + c * h
            k.append(self.rhs(at, combine(y, h, a, k)))
        return combine(y, h, RK4.b, k)

    def _correct(
        self, end: Time, h: Time, y: Tensor, y1: Tensor, nodes: tuple, slopes: list[Tensor]
    ) -> Tensor:
        """Fixed-point iterations of the Adams-Moulton formula of one order more."""
        weights = adams_weights((1.0, *nodes))
        known = combine(y, h, weights[1:], slopes)
        for _ in range(self.max_iters):
            before = y1
            slope = self.rhs(end, y1)
            y1 = combine(known, h, weights[:1], [slope])
            with torch.no_grad():
                change = (y1 - before) / (self.atol + self.rtol * y1.abs())
                if rms(change) <= 1.0:
                    break
        return y1


class _Once:
    """The slope at a time, evaluated when first asked for."""

    def __init__(self, rhs: RHS, t: Time, y: Tensor):
        self._args = (rhs, t, y)
        self.value: Tensor | None = None

    def __call__(self) -> Tensor:
        if self.value is None:
            rhs, t, y = self._args
            self.value = rhs(t, y)
        return self.value


@lru_cache(maxsize=4096)
def adams_weights(nodes: tuple[float, ...]) -> tuple[float, ...]:
    """Weights of ∫_0^1 of the polynomial through values at ``nodes`` (units of the step)."""
    s = torch.tensor(nodes, dtype=torch.float64)
    m = torch.arange(len(nodes), dtype=torch.float64)
    return tuple(torch.linalg.solve(s[None, :] ** m[:, None], 1.0 / (m + 1)).tolist())
