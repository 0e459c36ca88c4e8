"""The Lasso, min_x F(x) = |y - D x|^2 / 2 + lambda |x|_1, and its solution by FISTA."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .trainer import TrainingError

CHECKED_EVERY, MOST_STEPS = 50, 100_000


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """ST(x, threshold): every element moved towards 0 by ``threshold``, at most to it."""
    return x - x.clamp(-threshold, threshold)


def objective(x: Tensor, y: Tensor, dictionary: Tensor, penalty: float) -> Tensor:
    """F(x) of every sample: x (B, n), y (B, m), dictionary (m, n) -> (B,)."""
    residual = y - x @ dictionary.T
    return residual.square().sum(1) / 2 + penalty * x.abs().sum(1)


def duality_gap(x: Tensor, y: Tensor, dictionary: Tensor, penalty: float) -> Tensor:
    """A bound of F(x) - min F, (B,).

    The dual is max |y|^2 / 2 - |y - theta|^2 / 2 where |D^T theta|_inf <= lambda; theta is the
    residual, scaled until it may.
    """
    residual = y - x @ dictionary.T
    largest = (residual @ dictionary).abs().amax(1, keepdim=True)
    theta = residual * (penalty / largest).clamp(max=1)
    dual = (y.square().sum(1) - (y - theta).square().sum(1)) / 2
    return objective(x, y, dictionary, penalty) - dual


def lipschitz(dictionary: Tensor) -> float:
    """Of the gradient of the smooth part: the largest eigenvalue of D^T D."""
    return float(torch.linalg.matrix_norm(dictionary, 2)) ** 2


def fista(y: Tensor, dictionary: Tensor, penalty: float, gap: float = 1e-9) -> Tensor:
    """x with F(x) - min F <= ``gap`` for every sample, (B, n) in float64.

    Beck and Teboulle 2009, with O'Donoghue and Candes' adaptive restart of 2015.

    Arguments:
        y: (B, m), and dictionary: (m, n), in any dtype.

    Raises:
        InvalidArgumentError: ``penalty`` is not positive.
        TrainingError: the gap is not reached.
    """
    if not penalty > 0:
        raise InvalidArgumentError(f"penalty must be positive, got {penalty}")
    y, dictionary = y.double(), dictionary.double()
    step = 1 / lipschitz(dictionary)
    x = ahead = y.new_zeros(len(y), dictionary.shape[1])
    t = y.new_ones(len(y), 1)
    for k in range(1, MOST_STEPS + 1):
        downhill = ahead + step * (y - ahead @ dictionary.T) @ dictionary
        before, x = x, soft_threshold(downhill, step * penalty)
        # where the momentum points uphill, it begins anew
        t[((ahead - x) * (x - before)).sum(1) > 0] = 1
        t_before, t = t, (1 + (1 + 4 * t * t).sqrt()) / 2
        ahead = x + (t_before - 1) / t * (x - before)
        if k % CHECKED_EVERY == 0 and duality_gap(x, y, dictionary, penalty).max() <= gap:
            return x
    raise TrainingError(f"FISTA did not reach a duality gap of {gap:g} in {MOST_STEPS} steps")
