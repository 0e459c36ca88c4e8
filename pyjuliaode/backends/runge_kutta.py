"""One explicit Runge-Kutta step: on preallocated slopes without a graph, or as autograd ops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..rhs import RHS, Time
from .tableau import Tableau


@dataclass(frozen=True)
class Sides:
    """On which side of a discontinuity the field is evaluated.

    At the times of ``jumps`` (at every step boundary when ``perturb``) a step starts just after
    the boundary and ends just before it.
    """

    dtype: torch.dtype
    jumps: frozenset[float] = frozenset()
    perturb: bool = False

    def apart(self, t: float) -> bool:
        """Whether the slope before t differs from the one after it."""
        return self.perturb or t in self.jumps

    def after(self, t: float, t1: float, clock: Mapping[float, Tensor]) -> Time:
        """Where to evaluate the first slope of a step from t to t1."""
        return self._aside(t, t1, clock) if self.apart(t) else clock.get(t, t)

    def before(self, t: float, t1: float, clock: Mapping[float, Tensor]) -> Time | None:
        """Where to evaluate the last slopes of a step from t to t1, if not at t1."""
        return self._aside(t1, t, clock) if self.apart(t1) else None

    def _aside(self, t: float, towards: float, clock: Mapping[float, Tensor]) -> Time:
        """The number next to t, with the gradient of t where t carries one."""
        aside, at = nudge(t, towards, self.dtype), clock.get(t)
        return aside if at is None else aside + (at - at.detach())


def nudge(t: float, towards: float, dtype: torch.dtype) -> float:
    """The normal number in ``dtype`` next to t on the side of another."""
    if t == 0.0:  # next to it are subnormal numbers, which some devices and libraries flush to it
        return math.copysign(torch.finfo(dtype).tiny, towards)
    if dtype == torch.float64:
        return math.nextafter(t, towards)
    x = torch.tensor([t, towards], dtype=torch.float64, device="cpu").to(dtype)
    return float(torch.nextafter(x[0], x[1]))


class NeedsGraph(Exception):
    """A slope requires a gradient although the solve was begun without a graph."""


class Step:
    """An accepted step from (t0, y0) to (t1, y1) with its slopes.

    A step of a buffered stepper is valid until the next one is attempted.
    """

    __slots__ = ("_stepper", "h", "t0", "t1", "y0", "y1")

    def __init__(self, stepper: Stepper, t0: float, t1: float, h: Time, y0: Tensor, y1: Tensor):
        self._stepper, self.t0, self.t1, self.h, self.y0, self.y1 = stepper, t0, t1, h, y0, y1

    def interpolate(self, t: float, at: Time | None = None) -> Tensor:
        """The state at t within the step, by the method's continuous extension.

        ``at`` is t with its gradient, where it carries one.
        """
        stepper = self._stepper
        if stepper.tableau.interpolant is None:
            return restep(stepper, self.t0, self.y0, t)
        stepper.complete(self)
        return stepper.extend(self.y0, self.h, self.fraction(t, t if at is None else at))

    def fraction(self, t: float, at: Time) -> Time:
        """The part of the step up to t; a value that does not suffer from a tensor's rounding."""
        return moved(t - self.t0, at - self.start) / self.h

    def states(self, times: Sequence[float]) -> list[Tensor]:
        """The states at several times within the step; no autograd graph."""
        stepper = self._stepper
        if stepper.tableau.interpolant is None or not times:
            return [self.interpolate(t) for t in times]
        q = self.polynomial()
        theta = [(t - self.t0) / (self.t1 - self.t0) for t in times]
        theta = torch.tensor(theta, dtype=torch.float64, device="cpu")
        powers = theta ** torch.arange(1, q.shape[1] + 1, device="cpu")[:, None]
        return list(torch.addmm(self.y0.detach()[:, None], q, powers.to(q)).unbind(1))

    def landing(self, t: float) -> Tensor:
        """The state at t by a step of its own, as accurate as any; with a graph if this has one."""
        return restep(self._stepper, self.t0, self.y0, t)

    afresh = landing

    @property
    def first(self) -> Tensor:
        """The slope that it began with."""
        return self._stepper.k[0]

    @property
    def last(self) -> Tensor | None:
        """The slope at its end, where that was evaluated."""
        return self._stepper.next_slope()

    @property
    def start(self) -> Time:
        """t0, with its gradient where it carries one."""
        return self._stepper.clock.get(self.t0, self.t0)

    def polynomial(self) -> Tensor:
        """Coefficients (N, degree) of y(θ) = y0 + Σ_j q_j θ^(j+1), detached."""
        self._stepper.complete(self)
        return self._stepper.polynomial(float(self.h))


def moved(value: float, by: Time | None) -> Time:
    """``value``, with the gradient of ``by`` where that carries one; it is not rounded by it."""
    return value + (by - by.detach()) if isinstance(by, Tensor) else value


def span_between(t0: float, t1: float, h: float, clock: Mapping[float, Tensor]) -> Time:
    """h, with the gradient of its ends where these carry one; its value is not rounded by them."""
    if t0 not in clock and t1 not in clock:
        return h
    return moved(h, clock.get(t1, t1) - clock.get(t0, t0))


class Stepper:
    """What the two ways of stepping share.

    ``clock`` maps those times that carry a gradient to their tensors; it is empty unless the
    gradient with respect to the times was asked for.
    """

    def __init__(self, rhs: RHS, tableau: Tableau, clock: Mapping[float, Tensor] | None = None):
        self.rhs = rhs
        self.tableau = tableau
        self.k: Sequence[Tensor] = ()  # the slopes of the last trial
        self.clock = clock or {}
        self._known = 0  # slopes that have been evaluated since the last trial began
        self._end: Time = 0.0  # where the field is evaluated at the end of the last trial

    def span(self, t0: float, t1: float, h: float) -> Time:
        """The step length: a tensor where one of its ends carries a gradient."""
        return span_between(t0, t1, h, self.clock)

    def start(self, slope: Tensor) -> None:
        """Set the first slope of the next step."""
        raise NotImplementedError

    def trial(self, t: float, t1: float, h: Time, y: Tensor, t_end: Time | None = None) -> Tensor:
        """Attempt a step whose first slope is set; stages at c = 1 are evaluated at ``t_end``."""
        raise NotImplementedError

    def next_slope(self) -> Tensor | None:
        """f(t1, y1) where it is known after a trial, else None."""
        if self.tableau.fsal:
            return self.k[-1]
        return self.k[self.tableau.stages] if self._known > self.tableau.stages else None

    def complete(self, step: Step) -> None:
        """Make the slopes known that the continuous extension alone reads."""
        tab = self.tableau
        if self._known == tab.stages < tab.rows:
            self._put(self.rhs(self._end, step.y1))
            for i, (c, _) in enumerate(tab.extra):
                self._put(self.rhs(step.start + c * step.h, self._extra_state(step, i)))

    def _put(self, slope: Tensor) -> None:
        """Keep the next slope after those that are known."""
        raise NotImplementedError

    def _extra_state(self, step: Step, i: int) -> Tensor:
        """Where the i-th of the extra stages is evaluated."""
        return combine(step.y0, step.h, self.tableau.extra[i][1], self.k)

    def error(self) -> Tensor:
        """Embedded error estimate of the last trial divided by its h, detached."""
        raise NotImplementedError

    def initial_step(
        self, control: Any, t0: float, y0: Tensor, f0: Tensor, direction: float, room: float
    ) -> float:
        """Size of the first step, at most ``room``."""
        return control.initial_step(self.rhs, t0, y0, f0, direction, room)

    def ratio(self, control: Any, h: float, y0: Tensor, y1: Tensor) -> float:
        """Norm of the last trial's error in units of the tolerance."""
        return control.ratio(self.error(), h, y0, y1)

    def extend(self, y0: Tensor, h: Time, theta: Time) -> Tensor:
        raise NotImplementedError

    def polynomial(self, h: float) -> Tensor:
        raise NotImplementedError


def restep(stepper: Stepper, t0: float, y0: Tensor, t: float) -> Tensor:
    """The state at t by a step of its own, for methods without an interpolant of their order."""
    fresh = GraphStepper(stepper.rhs, stepper.tableau, stepper.clock)
    fresh.start(stepper.k[0])
    return fresh.trial(t0, t, fresh.span(t0, t, t - t0), y0, close=False)


def powers_of(theta: float, degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[θ, θ², ..., θ^degree] on the device, without waiting for it."""
    return torch.pow(theta, _exponents(degree, dtype, device)).to(dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is made there could serve no gradient later
def _exponents(degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    real = torch.empty((), dtype=dtype).abs().dtype
    return torch.arange(1, degree + 1, dtype=real, device=device)


def extended(y0: Tensor, h: Time, theta: float, kt: Tensor, matrix: Tensor) -> Tensor:
    """y(θ) of the continuous extension with ``matrix``, from slopes (N, rows)."""
    powers = powers_of(theta, matrix.shape[1], matrix.dtype, matrix.device)
    return torch.addmv(y0, kt, torch.mv(matrix, powers).to(y0.dtype), alpha=h)


def coefficients(kt: Tensor, matrix: Tensor) -> Tensor:
    """Slopes (N, rows) times ``matrix``, in the more precise of their dtypes, in that of kt."""
    return torch.mm(kt.to(matrix.dtype), matrix).to(kt.dtype)


class BufferedStepper(Stepper):
    """Steps on one preallocated (rows, N) buffer of slopes: a stage is one gemv and one copy."""

    def __init__(self, rhs: RHS, tableau: Tableau, like: Tensor):
        super().__init__(rhs, tableau)
        self.w = tableau.weights(like.dtype, like.device)
        k = torch.empty(tableau.rows, like.numel(), dtype=like.dtype, device=like.device)
        self.k = list(k.unbind(0))
        kt = k.t()
        self.kt = [kt.narrow(1, 0, i) for i in range(tableau.rows + 1)]
        targets = rhs.destinations(k)
        self._stages = list(zip(self.w.a, self.kt[1:], targets[1:], strict=False))

    def start(self, slope: Tensor) -> None:
        if slope.requires_grad and torch.is_grad_enabled():
            raise NeedsGraph
        self.k[0].copy_(slope)

    def trial(self, t: float, t1: float, h: Time, y: Tensor, t_end: Time | None = None) -> Tensor:
        into, addmv, yi = self.rhs.into, torch.addmv, y
        self._known, self._end = self.tableau.stages, t1 if t_end is None else t_end
        times = self.rhs.stage_times(t, h, self.tableau.c[1:], self.w.c)
        if t_end is not None:
            end = self.rhs.end_time(t_end)
            times = [end if c == 1.0 else x for c, x in zip(self.tableau.c[1:], times, strict=True)]
        for (a, kt, target), at in zip(self._stages, times, strict=False):
            yi = addmv(y, kt, a, alpha=h)
            if into(target, at, yi):
                raise NeedsGraph
        if self.tableau.fsal:
            return yi
        return torch.addmv(y, self.kt[self.tableau.stages], self.w.b, alpha=h)

    def _put(self, slope: Tensor) -> None:
        if slope.requires_grad and torch.is_grad_enabled():
            raise NeedsGraph
        self.k[self._known].copy_(slope)
        self._known += 1

    def _extra_state(self, step: Step, i: int) -> Tensor:
        return torch.addmv(step.y0, self.kt[self._known], self.w.extra[i], alpha=step.h)

    def error(self) -> Tensor:
        return torch.mv(self.kt[self.tableau.stages], self.w.error)

    def extend(self, y0: Tensor, h: Time, theta: Time) -> Tensor:
        return extended(y0, h, theta, self.kt[self.tableau.rows], self.w.interpolant)

    def polynomial(self, h: float) -> Tensor:
        return coefficients(self.kt[self.tableau.rows], self.w.interpolant).mul_(h)


class GraphStepper(Stepper):
    """Steps of autograd operations on a list of slopes."""

    def __init__(self, rhs: RHS, tableau: Tableau, clock: Mapping[float, Tensor] | None = None):
        super().__init__(rhs, tableau, clock)
        self._graph = True

    def start(self, slope: Tensor) -> None:
        self.k = [slope]

    def trial(
        self,
        t: float,
        t1: Time,
        h: Time,
        y: Tensor,
        t_end: Time | None = None,
        close: bool = True,
    ) -> Tensor:
        """As in the base class; without ``close`` slopes that only the interpolant reads are left
        out."""
        tab, k = self.tableau, self.k[:1]
        start = self.clock.get(t, t)
        end = self.clock.get(t1, t1) if t_end is None else t_end
        self._end, self._graph = end, torch.is_grad_enabled()
        yi = y
        for c, a in zip(tab.c[1:], tab.a, strict=True):
            if not (close or tab.fsal) and len(k) == tab.core:
                break
            yi = combine(y, h, a, k)
            if not close and tab.fsal and len(k) == tab.stages - 1:
                break
            k.append(self.rhs(end if c == 1.0 else start + c * h, yi))
        self.k, self._known = k, len(k)
        return yi if tab.fsal else combine(y, h, tab.b, k)

    def complete(self, step: Step) -> None:
        # the next step begins with one of the slopes: with its graph, also where someone only looks
        with torch.set_grad_enabled(self._graph):
            super().complete(step)

    def _put(self, slope: Tensor) -> None:
        self.k.append(slope)
        self._known += 1

    @torch.no_grad()
    def error(self) -> Tensor:
        k = [x.detach() for x in self.k]
        return combine(None, 1.0, self.tableau.error, k)

    def extend(self, y0: Tensor, h: Time, theta: Time) -> Tensor:
        p = self.tableau.interpolant
        if isinstance(theta, Tensor):
            matrix = self.tableau.weights(theta.dtype, theta.device).interpolant
            powers = theta ** _exponents(matrix.shape[1], theta.dtype, theta.device)
            weights = (matrix @ powers.to(matrix.dtype)).to(y0.dtype)
            return y0 + h * (torch.stack(self.k, dim=-1) @ weights)
        powers = [theta ** (j + 1) for j in range(len(p[0]))]
        weights = [sum(x * q for x, q in zip(row, powers, strict=True)) for row in p]
        return combine(y0, h, weights, self.k)

    def polynomial(self, h: float) -> Tensor:
        k = torch.stack([x.detach() for x in self.k], dim=-1)
        return coefficients(k, self.tableau.weights(k.dtype, k.device).interpolant).mul_(h)


def combine(y: Tensor | None, h: Time, weights: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    """y + h Σ w_i k_i, as few fused operations as autograd allows; y = None stands for zero."""
    if isinstance(h, Tensor):
        total = combine(None, 1.0, weights, k)
        return y + h.to(total.dtype) * total
    for w, slope in zip(weights, k, strict=False):
        if w != 0.0:
            y = slope * (h * w) if y is None else torch.add(y, slope, alpha=h * w)
    return torch.zeros_like(k[0]) if y is None else y


def state_at(step: Step, t: float, at: Time, linear: bool) -> Tensor:
    """The state at a requested time t of a step; ``at`` is t, or its tensor."""
    if t == step.t1:
        return step.y1
    if linear:
        return step.y0 + step.fraction(t, at) * (step.y1 - step.y0)
    return step.interpolate(t) if at is t else step.interpolate(t, at)
