"""Error control of adaptive methods: scaled error, step-size factor, first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ...arguments import shown
from ...errors import AccuracyWarning, warn
from ...rhs import RHS
from ...solution import Retcode
from ..limits import SHIFT

Norm = Callable[[Tensor], float]


# Where the search for an event has no end: none came before the time overflowed; or none yet.
NO_EVENT = (
    "event_fn keeps its sign up to there: look at it, or give the solve an end, "
    "solve(func, y0, [t0, t1], event_fn=...)."
)
NOT_YET = f"{NO_EVENT} For a later event raise options['max_num_steps']."


class StepFailure(Exception):
    """The integration cannot go on; becomes a retcode and a sentence."""

    def __init__(self, retcode: Retcode, t: float, what: str, advice: str | None = None):
        super().__init__(what)
        self.retcode, self.t = retcode, t
        self.advice = retcode.advice if advice is None else advice

    @property
    def message(self) -> str:
        return f"{self.retcode}: {self} at t = {self.t:.9g}. {self.advice}".rstrip()


def farthest(dtype: torch.dtype) -> float:
    """How far a search for an event goes: from there a step may grow tenfold, within the dtype."""
    return 0.01 * torch.finfo(dtype).max


def no_event(t: float) -> StepFailure:
    """A search for an event that has come as far as times go."""
    return StepFailure(Retcode.FAILURE, t, "there is no event", NO_EVENT)


def rms(x: Tensor) -> float:
    """Root mean square; the one host synchronisation of a step."""
    return float(torch.linalg.vector_norm(x)) / math.sqrt(max(x.numel(), 1))


class Control:
    """An integral controller with the usual limits.

    A step of error ratio r (scaled so that 1 is just accepted) is followed by h times
    safety * r^(-1/order), within [dfactor, ifactor]; an accepted step never shrinks the next.
    """

    def __init__(
        self,
        order: int,
        rtol: float | Tensor,
        atol: float | Tensor,
        norm: Norm = rms,
        max_steps: int = 10_000,
        first_step: float | None = None,
        min_step: float = 0.0,
        max_step: float = math.inf,
        safety: float = 0.9,
        ifactor: float = 10.0,
        dfactor: float = 0.2,
    ):
        self.order, self.rtol, self.atol, self.norm = order, rtol, atol, norm
        self.max_steps, self.first_step = max_steps, first_step
        self.min_step, self.max_step = float(min_step), float(max_step)
        self.safety, self.ifactor, self.dfactor = float(safety), float(ifactor), float(dfactor)
        self.scaled: Tensor | None = None  # error of the last trial by h, in units of the tolerance
        self._rejected: tuple[Tensor, Tensor] | None = None
        self._before: tuple[Tensor, Tensor] | None = None

    def ratio(self, error: Tensor, h: float, y0: Tensor, y1: Tensor) -> float:
        """Norm of h * error / (atol + rtol max(|y0|, |y1|)).

        |y1| is kept: it is the |y0| of the step that follows an accepted one.
        """
        known = self._before
        abs0 = known[1] if known is not None and known[0] is y0 else y0.detach().abs()
        abs1 = (y1.detach() if y1.requires_grad else y1).abs()
        self._before, self._rejected = (y1, abs1), (y0, abs0)
        largest = torch.maximum(abs0, abs1)
        scale = largest.mul_(self.rtol).add_(self.atol)
        self.scaled = error.div_(scale)
        return abs(h) * self.norm(self.scaled)

    def rejected(self) -> None:
        """Forget the trial: the next one starts from the same state."""
        self._before = self._rejected

    def factor(self, ratio: float) -> float:
        if ratio == 0.0:
            return self.ifactor
        shrink = 1.0 if ratio < 1.0 else self.dfactor
        return min(self.ifactor, max(shrink, self.safety * ratio ** (-1.0 / self.order)))

    @torch.no_grad()
    def initial_step(
        self, rhs: RHS, t0: float, y0: Tensor, f0: Tensor, direction: float, room: float
    ) -> float:
        """First step size after Hairer, Nørsett & Wanner, Solving ODEs I, II.4.

        One evaluation, at most ``room`` away: not beyond the span or the next discontinuity.
        """
        if self.first_step is not None:
            return float(self.first_step)
        y0, f0 = y0.detach(), f0.detach()
        scale = y0.abs().mul_(self.rtol).add_(self.atol)
        d0, d1 = self.norm(y0 / scale), self.norm(f0 / scale)
        self.check_start(t0, y0, f0, d0, d1)
        h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
        h0 = min(h0, room, self.max_step)
        y1 = torch.add(y0, f0, alpha=direction * h0)
        d2 = self.norm((rhs(t0 + direction * h0, y1) - f0) / scale) / h0
        return self.first_size(d1, d2, h0)

    def check_start(self, t0: float, y0: Tensor, f0: Tensor, d0: float, d1: float) -> None:
        """Raise where the norms of the first state or slope are not finite."""
        if not (math.isfinite(d0) and math.isfinite(d1)):
            raise self._unmeasured(t0, y0, f0)

    def _unmeasured(self, t0: float, y0: Tensor, f0: Tensor) -> StepFailure:
        """Why a norm, in units of the tolerance, is not finite."""
        if not bool(y0.isfinite().all()):
            return StepFailure(Retcode.UNSTABLE, t0, "y0 is not finite (NaN or Inf)", "")
        if not bool(f0.isfinite().all()):
            return StepFailure(Retcode.UNSTABLE, t0, "the field at y0 is not finite")
        return StepFailure(
            Retcode.FAILURE,
            t0,
            f"rtol = {shown(self.rtol)} and atol = {shown(self.atol)} are too small to measure y0 "
            f"in, of dtype {y0.dtype},",
            "Pass larger tolerances, or a float64 state.",
        )

    def first_size(self, d1: float, d2: float, h0: float) -> float:
        """First step size from the norms of the first two derivatives and a first guess."""
        if not math.isfinite(d2):
            return h0
        if d1 <= 1e-15 and d2 <= 1e-15:
            h1 = max(1e-6, h0 * 1e-3)
        else:
            h1 = (0.01 / max(d1, d2)) ** (1.0 / self.order)
        return min(100 * h0, h1)


# The common step of a batch is controlled by the mean over it: the error of one sample may be as
# many times the tolerance as the root of their number. Told is of one whose errors are thrice the
# tolerance on average (in ordinary models twice at most), and a hundred times it in sum.
MEAN, SUM = 3.0, 100.0
LOOK = 8  # every so many accepted steps, from the fourth


class SampleErrors:
    """Errors of the samples of a batch that is solved with common steps."""

    def __init__(self, shape: tuple[int, ...], dim: int):
        self.shape, self.size = shape, shape[dim]
        self.others = tuple(i for i in range(len(shape)) if i != dim)
        self.points = math.prod(shape) / self.size
        self.total: Tensor | None = None
        self.looks = 0

    @classmethod
    def of(cls, shapes: tuple[tuple[int, ...], ...], dim: int) -> SampleErrors | None:
        """None where there are no samples, or too few for one to be averaged away."""
        if len(shapes) > 1 or not dim < len(shapes[0]) or len(shapes[0]) < 2:
            return None
        shape = shapes[0]
        return cls(shape, dim) if shape[dim] > MEAN**2 and math.prod(shape) else None

    def look(self, scaled: Tensor, h: float) -> None:
        """Add the errors of an accepted step; nothing waits for the device."""
        found = torch.linalg.vector_norm(scaled.view(self.shape), dim=self.others)
        self.total = torch.add(0.0 if self.total is None else self.total, found, alpha=abs(h))
        self.looks += 1

    def report(self, steps: int) -> None:
        """Warn of the sample with the largest errors, where they are worth it."""
        if self.total is None:
            return
        mean = float(self.total.max()) / self.looks / math.sqrt(self.points)
        if mean > MEAN and mean * steps > SUM:
            warn(
                f"sample {int(self.total.argmax())} of {self.size} has errors of {mean:.2g} times "
                f"the tolerance in each of {steps} steps: the common steps of a batch follow the "
                "mean error over it, and this sample is harder than most. options={'per_sample': "
                "True} gives every sample steps of its own; smaller tolerances, or a norm of the "
                "largest error (options={'norm': lambda x: x.abs().max()}), bound it too",
                AccuracyWarning,
            )


def between(times: Iterable[float], t0: float, t1: float) -> list[float]:
    """Those strictly between t0 and t1, in the order in which they are met."""
    low, high = min(t0, t1), max(t0, t1)
    return sorted((t for t in times if low < t < high), reverse=t1 < t0)


def resolution(t: float) -> float:
    """The smallest sensible step at t: a few units in the last place of a Python float."""
    return 4.0 * math.ulp(max(abs(t), 1e-12))


def unresolved(t: float, h: float, start: float, end: float, whose: str = "") -> StepFailure:
    """A step of length h at t is too short; it may be the times that are too coarse."""
    what, apart = f"underflow in dt{whose} (dt = {h:.3g})", math.ulp(t)
    if apart <= 1e-10 * abs(end - start):
        return StepFailure(Retcode.DT_LESS_THAN_MIN, t, what)
    what += f", as the floating-point numbers there are {apart:.2g} apart,"
    return StepFailure(Retcode.DT_LESS_THAN_MIN, t, what, f"{SHIFT.capitalize()}.")
