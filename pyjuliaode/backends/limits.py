"""What is refused before a solve begins: more steps than anyone waits for, errors in no unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..problem import Problem

MOST_STEPS = 10_000_000


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
