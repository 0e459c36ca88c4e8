"""Methods on a fixed grid of steps: explicit Runge-Kutta, Adams-Bashforth and Adams-Moulton."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from ...arguments import times as grid_times
from ...errors import InvalidArgumentError, add_note
from ...refusal import batched
from ...rhs import RHS, Time
from ...solution import Retcode, SolveStats
from ..limits import check_step_size, number_of_steps
from ..runge_kutta import Sides, Step, Stepper, combine, moved
from .callbacks import Callbacks
from .control import NOT_YET, StepFailure, no_event, resolution, rms
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
    if n > 1:
        check_step_size(dt, max(abs(start), abs(end)))
    signed = math.copysign(dt, end - start)
    grid = [start + i * signed for i in range(n)]
    while len(grid) > 1 and abs(end - grid[-1]) < resolution(end):
        grid.pop()
    return [*grid, end]


def ending_on(marks: Iterable[float], grid: Iterable[float]) -> Iterator[float]:
    """The boundaries of ``grid`` with the marks between them.

    A boundary that differs from a mark by rounding gives way to it, but for the first and the last.
    """
    grid = iter(grid)
    t, t1 = next(grid), next(grid)
    sign = math.copysign(1.0, t1 - t)
    ahead = sorted((x for x in marks if sign * (x - t) > 0), reverse=sign > 0)  # the next is last
    yield t
    for later in chain(grid, (None,)):
        slack = 0.0 if later is None else 1e-9 * abs(t1 - t)
        while ahead and sign * (t1 - ahead[-1]) > slack:
            yield ahead.pop()
        yield ahead.pop() if ahead and sign * (ahead[-1] - t1) <= slack else t1
        t, t1 = t1, later


def _constructed(constructor: Callable, func: Callable, y0: Any, t: Tensor) -> Any:
    try:
        return constructor(func, y0, t)
    except Exception as error:
        add_note(error, f"(grid_constructor was called with func, y0 and {len(t)} times)")
        raise


class FixedRK:
    """An explicit Runge-Kutta method that steps on a grid, and ends steps on ``marks`` too."""

    def __init__(
        self,
        rhs: RHS,
        stepper: Stepper,
        stats: SolveStats,
        sides: Sides,
        callbacks: Callbacks | None = None,
        marks: Sequence[float] = (),
    ):
        self.rhs, self.stepper, self.stats = rhs, stepper, stats
        self.sides, self.callbacks = sides, callbacks
        self.marks = {*marks, *sides.jumps}

    def steps(self, y: Tensor, grid: Iterable[float], f0: Tensor | None = None) -> Iterator[Step]:
        """Yield the steps along ``grid``."""
        stepper, slope = self.stepper, f0
        for t, t1 in pairwise(ending_on(self.marks, grid)):
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


def endless_grid(start: float, dt: float, max_steps: int, dtype: torch.dtype) -> Iterator[float]:
    """Step boundaries from ``start`` on, where the search for an event has no end."""
    check_step_size(abs(dt), start)
    t, end = start, torch.finfo(dtype).max
    for i in range(1, max_steps + 1):
        yield t
        if abs(start + i * dt) > end:
            raise no_event(t)
        t = start + i * dt
    yield t
    what = f"{max_steps} steps were taken without an event"
    raise StepFailure(Retcode.MAX_ITERS, start + max_steps * dt, what, NOT_YET)


class HermiteStep:
    """A step known by its ends: states and slopes there; cubic Hermite between.

    ``afresh(t)`` is the state at t by a step of its own.
    """

    __slots__ = ("_f1", "afresh", "f0", "h", "t0", "t1", "y0", "y1")

    def __init__(
        self,
        t0: float,
        t1: float,
        h: Time,
        y0: Tensor,
        y1: Tensor,
        f0: Tensor,
        f1: Callable[[], Tensor],
        afresh: Callable[[float], Tensor],
    ):
        self.t0, self.t1, self.h, self.y0, self.y1, self.f0, self._f1 = t0, t1, h, y0, y1, f0, f1
        self.afresh = afresh

    @property
    def start(self) -> Time:
        """t0, with its gradient where it carries one."""
        return self.t1 - self.h

    @property
    def first(self) -> Tensor:
        """The slope that it began with."""
        return self.f0

    last = None  # evaluated for a next step, or for a state within this one

    def _coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        d, a, b = self.y1 - self.y0, self.h * self.f0, self.h * self._f1()
        return a, 3 * d - 2 * a - b, a + b - 2 * d

    def fraction(self, t: float, at: Time) -> Time:
        """As of :class:`Step`."""
        return moved(t - self.start, at) / self.h

    def interpolate(self, t: float, at: Time | None = None) -> Tensor:
        theta = 1 + moved(t - self.t1, at) / self.h
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

    The weights come from the actual times of the history, so the grid need not be uniform. Where
    they would magnify rounding, as with times that nearly coincide, a Runge-Kutta step is taken;
    after a discontinuity the history begins anew.
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
        marks: Sequence[float] = (),
    ):
        self.rhs, self.stats = rhs, stats
        self.implicit, self.rtol, self.atol, self.clock = implicit, rtol, atol, clock
        self.max_order, self.max_iters = int(max_order), int(max_iters)
        self.sides, self.callbacks = sides, callbacks
        self.marks = {*marks, *sides.jumps}

    def steps(
        self, y: Tensor, grid: Iterable[float], f0: Tensor | None = None
    ) -> Iterator[HermiteStep]:
        """Yield the steps along ``grid``."""
        history: list[tuple[float, Tensor]] = []  # newest first
        slope = f0
        for t, t1 in pairwise(ending_on(self.marks, grid)):
            if slope is None:
                slope = self.rhs(self.sides.after(t, t1, {}), y)
            if t in self.clock:
                # the start moves along the solution: dy/dt0 = -Φ f; its history stays in place
                shift = self.clock[t] - self.clock[t].detach()
                y = y - slope * shift.to(y.dtype)
                slope = self.rhs(self.sides.after(t, t1, {}), y)
            older = [] if t in self.sides.jumps else _apart(t, t1, history)
            history = [(t, slope), *older[: self.max_order - 1]]
            self.stats.n_accepted += 1
            h = t1 - t
            y1 = self._advance(t, t1, h, y, history)
            if self.callbacks is not None:
                self.callbacks.report(True, t, y, t1 - t)
            later = _Once(self.rhs, self._end(t, t1), y1)
            afresh = partial(self._runge_kutta, t, y, history[0][1])
            yield HermiteStep(t, t1, h, y, y1, history[0][1], later, afresh)
            y, slope = y1, None if self.sides.apart(t1) else later.value

    def _end(self, t: float, t1: float) -> Time:
        """Where the field is evaluated at the end of a step."""
        at = self.sides.before(t, t1, {})
        return t1 if at is None else at

    def _advance(
        self, t: float, t1: float, h: Time, y: Tensor, history: list[tuple[float, Tensor]]
    ) -> Tensor:
        nodes = tuple(round((s - t) / (t1 - t), 10) for s, _ in history)
        if len(history) < self.max_order > 1 or not even_enough(nodes):
            return self._runge_kutta(t, y, history[0][1], t1)
        slopes = [f for _, f in history]
        y1 = combine(y, h, adams_weights(nodes), slopes)
        return self._correct(t, t1, h, y, y1, nodes, slopes) if self.implicit else y1

    def _runge_kutta(self, t: float, y: Tensor, slope: Tensor, t1: float) -> Tensor:
        k, h = [slope], t1 - t
        for c, a in zip(RK4.c[1:], RK4.a, strict=True):
            at = self._end(t, t1) if c == 1.0 else t + c * h
            k.append(self.rhs(at, combine(y, h, a, k)))
        return combine(y, h, RK4.b, k)

    def _correct(
        self,
        t: float,
        t1: float,
        h: Time,
        y: Tensor,
        y1: Tensor,
        nodes: tuple[float, ...],
        slopes: list[Tensor],
    ) -> Tensor:
        """Fixed-point iterations of the Adams-Moulton formula of one order more."""
        weights, end = adams_weights((1.0, *nodes)), self._end(t, t1)
        known = combine(y, h, weights[1:], slopes)
        hidden, size = batched(y1), math.inf
        for _ in range(self.max_iters):
            before, last = y1, size
            slope = self.rhs(end, y1)
            y1 = combine(known, h, weights[:1], [slope])
            if hidden:  # whether it has converged cannot be seen
                continue
            with torch.no_grad():
                scale = self.atol + self.rtol * y1.abs()
                size = rms((y1 - before) / scale)
                if size <= 1.0:
                    return y1
        if not hidden:
            self._check_contracts(t, t1, size, size / last, y1.detach() / scale)
        return y1

    def _check_contracts(
        self, t: float, t1: float, size: float, rate: float, scaled: Tensor
    ) -> None:
        """Raise where the iteration has not ended and is too slow for the method to be stable."""
        rounding = 100 * torch.finfo(scaled.dtype).eps * rms(scaled)
        if size > rounding and rate > largest_rate(self.max_order, self.max_iters):
            raise StepFailure(
                Retcode.CONVERGENCE_FAILURE,
                t,
                f"the fixed-point iteration of implicit_adams does not converge with a step of "
                f"{abs(t1 - t):.3g}",
                "Take shorter steps (dt, or options['step_size']); a stiff problem needs an "
                "implicit method with Newton's iteration (Rodas5P of the Julia backend, or "
                "scipy_solver with options={'solver': 'BDF'}).",
            )


def _apart(t: float, t1: float, history: list[tuple[float, Tensor]]) -> list[tuple[float, Tensor]]:
    """The history without times so near a later one that they tell nothing more of this step."""
    kept, last = [], t
    for s, slope in history:
        if abs(last - s) >= 1e-3 * abs(t1 - t):
            kept.append((s, slope))
            last = s
    return kept


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


@lru_cache(maxsize=4096)
def even_enough(nodes: tuple[float, ...]) -> bool:
    """Whether the weights magnify rounding no more than a hundredfold what equal steps do."""
    if nodes[-1] < -1e4:  # the step is short beside its history, and the equations are singular
        return False
    equal = adams_weights(tuple(-float(i) for i in range(len(nodes))))
    return sum(map(abs, adams_weights(nodes))) <= 100 * sum(map(abs, equal))


@lru_cache(maxsize=64)
def largest_rate(order: int, iterations: int) -> float:
    """The contraction b0 h |df/dy| up to which decaying solutions decay.

    Of Adams-Bashforth of ``order``, corrected by so many iterations of Adams-Moulton of one order
    more, by the roots of its characteristic polynomial over y' = λ y and equal steps.
    """
    nodes = tuple(-float(i) for i in range(order))
    predict, (b0, *correct) = adams_weights(nodes), adams_weights((1.0, *nodes))
    companion = torch.eye(order, dtype=torch.float64).roll(1, 0)
    one = companion.new_zeros(order)
    one[0] = 1.0
    for rate in (0.01 * i for i in range(1, 100)):
        z, left = -rate / b0, (-rate) ** iterations
        known, guess = one + z * one.new_tensor(correct), one + z * one.new_tensor(predict)
        companion[0] = left * guess + (1 - left) / (1 + rate) * known
        if float(torch.linalg.eigvals(companion).abs().max()) > 1.0 + 1e-9:
            return rate
    return 1.0
