"""The stream of accepted intervals: how long they are, and with how many coefficients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....errors import warn
from ....rhs import RHS, Time
from ....solution import Retcode, SolveStats
from ...runge_kutta import Sides
from ..control import NOT_YET, StepFailure, between, farthest, no_event, resolution
from .basis import F64, Basis, basis
from .interval import SAFE, IntervalSolver, Outcome, Piece

LADDER = (6, 8, 12, 16, 24, 32, 48, 64, 96)
ROUNDS = 25  # batched evaluations, beyond which an interval was too long


@dataclass(frozen=True)
class PanStep:
    """An accepted interval, as the other methods' steps are seen."""

    piece: Piece
    t0: float
    t1: float
    y0: Tensor
    y1: Tensor

    @property
    def start(self) -> float:
        return self.t0

    @property
    def h(self) -> float:
        return self.t1 - self.t0

    @property
    def first(self) -> Tensor:
        """The slope that it began with."""
        return self.piece.k[0]

    last = None  # those at the nodes belong to the iterate before

    def interpolate(self, t: Time) -> Tensor:
        return self.piece.between([float(t)])[0]

    def states(self, times: Sequence[float]) -> list[Tensor]:
        return list(self.piece.between(list(times))) if times else []

    def landing(self, t: float) -> Tensor:
        return self.interpolate(t)

    afresh = landing


class PanStream:
    """Polynomial approximation over intervals that follow one another (Panagiotopoulos, PAN, 2024).

    With ``num_coeffs`` the number of coefficients is fixed, with ``step_size`` the length of the
    intervals; what is not fixed follows the tolerances: an interval is accepted where the iteration
    has converged and the last coefficients are below the tolerance. Where both are fixed, nothing
    follows them, and a warning says that they are not met. An interval on which the iteration
    does not converge is halved in any case. Intervals end on every time of ``stops`` and on the
    discontinuities that ``sides`` knows: no polynomial converges across one.
    """

    def __init__(
        self,
        rhs: RHS,
        stats: SolveStats,
        rtol: float | Tensor,
        atol: float | Tensor,
        norm: Any,
        max_steps: int,
        options: Mapping[str, Any],
        sides: Sides,
        stops: Sequence[float] = (),
    ):
        self.rhs, self.stats, self.max_steps = rhs, stats, max_steps
        self.solver = IntervalSolver(rhs, rtol, atol, norm, options.get("max_iters", 50))
        rhs.chunk_size = options.get("chunk_size")
        self.length = options.get("step_size")
        self.most = float(options.get("max_step", math.inf))
        self.fixed, self.points = options.get("num_coeffs"), options.get("num_points")
        self.given = self.fixed is not None and self.length is not None
        self.coarse = options.get("coarse_steps", 0)
        self.largest = options.get("max_coeffs", 48)
        self.n = self.fixed or min(self._first_n(rtol), self.largest)
        self.h: float | None = options.get("first_step")
        self._warned, self._finite = False, True
        self.sides, self.stops = sides, {*stops, *sides.jumps}
        self._farthest = farthest(rhs.time_dtype)

    def steps(self, y: Tensor, t0: float, t1: float, f0: Tensor | None = None) -> Iterator[PanStep]:
        """Yield intervals from t0 to t1; raise :class:`StepFailure` where there are none."""
        direction = 1.0 if t1 > t0 else -1.0
        marks = [*between(self.stops, t0, t1), t1]
        t = t0
        with torch.no_grad():
            f = self._slope(t0, t1, y) if f0 is None else f0.detach()
            y = y.detach()
        if self.h is None:
            self.h = self.length or self._first(t0, y, f, direction, abs(marks[0] - t0))
        for mark in marks:
            while t != mark:
                with torch.no_grad():
                    piece = self._accepted(t, mark, y, f, direction)
                    reached = abs(piece.h) >= abs(mark - t)
                    end, y1 = mark if reached else piece.t1, piece.nodes()[-1]
                    step = PanStep(piece, t, end, y, y1)
                yield step
                t, y = end, y1
                if t != t1:
                    with torch.no_grad():
                        f = self._slope(t, t1, y)

    def _slope(self, t: float, t1: float, y: Tensor) -> Tensor:
        return self.rhs(self.sides.after(t, t1, {}), y)

    def _times(self, chosen: Basis, t: float, h: float, end: float) -> Tensor:
        """Of the nodes, in float64 whatever the state: only the field sees them rounded."""
        times = t + 0.5 * h * (chosen.x.to("cpu", F64) + 1)
        before = self.sides.before(t, end, {})
        times[0], times[-1] = self.sides.after(t, end, {}), end if before is None else before
        return times

    @staticmethod
    def _first_n(rtol: float | Tensor) -> int:
        """Coefficients to begin with: one and a half for every digit, and some more."""
        digits = -math.log10(max(float(torch.as_tensor(rtol).min()), 1e-14))
        return next(n for n in LADDER if n >= 6 + 1.5 * digits)

    def _first(self, t: float, y: Tensor, f: Tensor, direction: float, room: float) -> float:
        """Length of the first interval: a few times what the slope needs to change."""
        scale = self.solver._scale(y[None])
        size, slope = self.solver.norm(y / scale), self.solver.norm(f / scale)
        if not (math.isfinite(size) and math.isfinite(slope)):
            what = "y0" if not math.isfinite(size) else "the field at y0"
            raise StepFailure(Retcode.UNSTABLE, t, f"{what} is not finite")
        small = min(1e-3 * max(size, 1e-3) / slope if slope > 0 else 1.0, room)
        changed = self.rhs(t + direction * small, y + direction * small * f)
        change = self.solver.norm((changed - f) / scale)
        rate = change / small / max(slope, change, 1e-300)
        wanted = 4.0 / rate if 0 < rate < math.inf else math.inf
        return min(wanted, self.most, room if math.isfinite(room) else 1.0)

    def _accepted(self, t: float, t1: float, y: Tensor, f: Tensor, direction: float) -> Piece:
        """Attempt intervals from (t, y) until one is accepted; sets up the next."""
        before: Piece | None = None  # of an attempt that needs more coefficients only
        while True:
            if self.stats.n_accepted + self.stats.n_rejected >= self.max_steps:
                what = f"{self.max_steps} intervals were attempted"
                endless = NOT_YET if math.isinf(t1) else None
                raise StepFailure(Retcode.MAX_ITERS, t, what, endless)
            h, last = self._propose(t, t1)
            chosen = basis(self.n, self._points(), y.dtype, y.device)
            guess = self._guess(chosen, before, t, direction * h, y, f)
            end = t1 if last else t + direction * h
            times = self._times(chosen, t, direction * h, end).to(y.device)
            found = self.solver.solve(
                chosen, t, direction * h, y, f, times, guess, None if self.given else SAFE
            )
            if found.converged and (self.given or found.tail <= SAFE):
                self.stats.n_accepted += 1
                if found.tail > 1 and not self._warned:
                    self._warn_of(found.tail, t, h)
                self._lengthen(found, h, last)
                return found.piece
            self.stats.n_rejected += 1
            self._finite = found.finite
            before = self._retry(found, h)

    def _warn_of(self, tail: float, t: float, h: float) -> None:
        self._warned = True
        warn(
            f"the interval of length {h:.3g} at t = {t:.6g} has an estimated error of {tail:.1e} "
            f"times the tolerance: with num_coeffs = {self.n} and a step size both given, nothing "
            "follows the tolerances. Give more coefficients or shorter intervals, or leave one of "
            "the two out"
        )

    def _propose(self, t: float, t1: float) -> tuple[float, bool]:
        """Length of the next interval, and whether it ends at t1."""
        room = abs(t1 - t)
        h = min(self.h, self.most)
        if math.isinf(t1) and abs(t) + h > self._farthest:
            raise no_event(t)
        if h >= room * (1 - 1e-9):
            return room, True
        if self.length is None and 2 * h > room:  # two equal ones rather than a last one of no size
            h = 0.5 * room
        if h < resolution(t):
            if not self._finite:
                raise StepFailure(Retcode.UNSTABLE, t, "the field is not finite just after")
            what = f"the iteration converges on no interval, however short ({h:.3g})"
            raise StepFailure(Retcode.CONVERGENCE_FAILURE, t, what)
        return h, False

    def _points(self) -> int:
        return self.points or math.ceil(1.25 * self.n)

    def _guess(
        self, chosen: Basis, before: Piece | None, t: float, h: float, y: Tensor, f: Tensor
    ) -> Tensor | None:
        """Slopes at the nodes to begin with: of the last attempt, or by a few steps of Euler."""
        if before is not None:
            times = t + 0.5 * h * (chosen.x.double() + 1)
            states = before.between(times.tolist())
            return self.rhs.batched(times.to(y.device), states)
        if self.coarse < 1:
            return None
        slopes, state, span = [f], y, h / self.coarse
        for i in range(1, self.coarse + 1):
            state = state + span * slopes[-1]
            slopes.append(self.rhs(t + i * span, state))
        place = 0.5 * (chosen.x.double().cpu() + 1) * self.coarse
        left = place.floor().clamp(0, self.coarse - 1)
        part = (place - left).to(y)[:, None]
        known, left = torch.stack(slopes), left.long().to(y.device)
        return (1 - part) * known[left] + part * known[left + 1]

    def _lengthen(self, found: Outcome, h: float, last: bool) -> None:
        """Length, and number of coefficients, for the next interval."""
        if self.length is not None:
            self.h = self.length
            return
        # a coefficient of order n changes like h^n
        factor = (0.3 * SAFE / max(found.tail, 1e-30)) ** (1 / self.n)
        if not found.newton:
            factor = min(factor, ROUNDS / found.rounds)
        wanted = h * min(max(factor, 0.3), 2.0)
        self.h = max(wanted, self.h) if last else wanted

    def _retry(self, found: Outcome, h: float) -> Piece | None:
        """After a rejection: more coefficients where they promise to do, or a shorter interval."""
        if found.piece is None:
            self.h = 0.5 * h
            return None
        if not self.fixed and found.tail > SAFE:
            missing = math.log(0.5 * SAFE / found.tail) / math.log(min(found.decay, 0.9))
            wanted = self.n + missing
            larger = [n for n in LADDER if self.n < n <= self.largest and n >= wanted]
            if larger and math.isfinite(wanted):
                self.n = larger[0]
                return found.piece
        if self.length is not None:
            self.h = 0.5 * h
            return None
        factor = (0.3 * SAFE / found.tail) ** (1 / self.n) if found.tail > 0 else 0.5
        self.h = h * min(max(factor, 0.2), 0.8)
        return found.piece if found.converged else None
