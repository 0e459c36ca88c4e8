"""The factor k(t) = t^(-r/2) e^(t/2) of the Nesterov models, its inverse and its rate."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .base import Time, as_number


def factor(t: Tensor, r: float) -> Tensor:
    """k(t); through the logarithm, so that neither power overflows on its own."""
    return torch.sub(t, torch.log(t), alpha=r).mul(0.5).exp()


def inverse_factor(t: Tensor, r: float) -> Tensor:
    """1/k(t)."""
    return torch.sub(t, torch.log(t), alpha=r).mul(-0.5).exp()


def rate(t: Tensor, r: float) -> Tensor:
    """k'(t)/k(t) = 1/2 - r/(2t)."""
    return 0.5 - (0.5 * r) / t


def check_friction(r: object) -> float:
    """The friction constant r as a float.

    Raises:
        InvalidArgumentError: it is not a finite number >= 3.
    """
    if not isinstance(r, Real) or not math.isfinite(r) or r < 3:
        raise InvalidArgumentError(f"r must be a finite number >= 3, got {r!r}")
    return float(r)


def check_positive_start(t0: Time, form: str, hint: str) -> None:
    """Raise where the first time is not positive."""
    now = as_number(t0)
    if not now > 0:
        raise InvalidArgumentError(
            f"{form} needs a first time t0 > 0, got {now:g}, because k(t) = t^(-r/2) e^(t/2) "
            f"has no value there: {hint}"
        )
