"""Scalar coefficients of the models: a number, or a 0-d tensor where it is learned."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from ..errors import InvalidArgumentError

# A fixed coefficient stays a Python number: exact in float32 and float64 alike, on any device.
Coefficient = float | Tensor


def nonnegative(name: str, value: object) -> float:
    """``value`` as a float.

    Raises:
        InvalidArgumentError: it is not a finite number >= 0.
    """
    if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise InvalidArgumentError(f"{name} must be a finite number >= 0, got {value!r}")
    return float(value)


def minus_scaled(a: Tensor, c: Coefficient, b: Tensor) -> Tensor:
    """a - c b, in one operation."""
    if isinstance(c, Tensor):
        return torch.addcmul(a, c, b, value=-1)
    return torch.sub(a, b, alpha=c) if c else a


def as_tensor(c: Coefficient) -> Tensor:
    """The coefficient as a 0-d tensor."""
    return c if isinstance(c, Tensor) else torch.tensor(c, dtype=torch.float64)


def show(c: float | None) -> str:
    """For ``extra_repr``: the number, or that it is learned."""
    return "learned" if c is None else f"{c:g}"
