"""Gradient descent of the studies whose networks solve no ODE."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from ..errors import InvalidArgumentError
from .config import RunConfig


def descend(
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    iterations: int,
    bar: tqdm,
    clip: float = 0.0,
    rate: Callable[[float], float] = lambda progress: 1.0,
) -> list[float]:
    """The loss before every step; ends after the first that is not finite.

    Arguments:
        clip: largest norm of the gradient; 0 for any.
        rate: what is left of the optimizer's learning rate after a share of the iterations.
    """
    losses = []
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = LambdaLR(optimizer, lambda step: rate(step / max(iterations, 1)))
    for _ in range(iterations):
        optimizer.zero_grad()
        value = loss()
        losses.append(value.item())
        if not torch.isfinite(value):
            break
        value.backward()
        if clip > 0:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        schedule.step()
        bar.update()
    return losses


def require_positive(config: RunConfig, *names: str) -> None:
    """Raise InvalidArgumentError for the first of these settings that is not positive."""
    for name in names:
        if not config.settings[name] > 0:
            given = config.settings[name]
            raise InvalidArgumentError(f"setting {name!r} must be positive, got {given!r}")
