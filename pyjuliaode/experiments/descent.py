"""Gradient descent of the studies whose networks solve no ODE."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..progress import Bar


def descend(
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    iterations: int,
    bar: Bar,
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
