"""What is refused, or warned of: more steps than anyone waits for, errors and times in no unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import AccuracyWarning, InvalidArgumentError, warn
from ..problem import Problem

MOST_STEPS = 10_000_000
COARSE = 1e-4  # part of the span to which times may be rounded: less than most tolerances
SHIFT = "solve in the time since the start: pass t - t[0], and add t[0] to t within the field"


def number_of_steps(start: float, end: float, dt: float) -> int:
    """How many steps of size ``dt`` there are between two times.

    Raises:
        InvalidArgumentError: more than anyone waits for.
    """
    steps = max(1.0, abs(end - start) / dt - 1e-9)
    if steps > MOST_STEPS:
        raise InvalidArgumentError(
            f"step_size (dt) = {dt:g} makes {steps:.3g} steps from t = {start:g} to {end:g}, and "
            f"more than {MOST_STEPS:,} are refused: take a larger one, or an adaptive method, or "
            "hand over the grid itself as t"
        )
    return math.ceil(steps)


def check_step_size(dt: float, t: float) -> None:
    """Raise where steps of size ``dt`` are lost in the rounding of times as large as ``t``.

    Raises:
        InvalidArgumentError: names the distance of floating-point numbers there.
    """
    apart = math.ulp(t)
    if dt < 4.0 * apart:
        raise InvalidArgumentError(
            f"step_size (dt) = {dt:.3g} is too short at t = {t:.9g}, where floating-point numbers "
            f"are {apart:.2g} apart: take a longer one, or {SHIFT}"
        )


def warn_of_coarse_times(problem: Problem, reached: float) -> None:
    """Warn where the times that the field is handed are rounded beyond use."""
    start, end, dtype = problem.times[0], problem.times[-1], problem.time_dtype
    end = reached if math.isinf(end) else end
    eps, span = torch.finfo(dtype).eps, abs(end - start)
    apart = eps * max(abs(start), abs(end))
    if not apart > max(COARSE, 4 * eps) * span:  # in half precision none are better
        return
    wider = "" if dtype == torch.float64 else "make the state float64 (and the times), or "
    warn(
        f"the field is handed times in the dtype of the state, {dtype}, whose numbers near t = "
        f"{start:.9g} are {apart:.1g} apart, while the solve spans {span:.3g}: if it reads t, "
        f"{wider}{SHIFT}",
        AccuracyWarning,
    )


def check_scale(problem: Problem, rtol: float | Tensor, atol: float | Tensor) -> None:
    """Raise where the error of an element of y0 would be measured in units of zero.

    Raises:
        InvalidArgumentError: atol is 0 where y0 is, or both tolerances are; names the remedy.
    """
    if isinstance(atol, float) and atol > 0.0:
        return
    with torch.no_grad():
        scale = problem.y0.detach().abs().mul_(rtol).add_(atol)
        if bool((scale != 0).all()):  # NaN, of a y0 that is not finite, is reported as that
            return
    raise InvalidArgumentError(
        "the tolerance is 0 where y0 is 0 (atol = 0), or everywhere (rtol = 0 too): no step can be "
        "that accurate. Pass an absolute tolerance, atol > 0, of the size of an error that does "
        "not matter"
    )
