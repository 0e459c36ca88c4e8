"""torch.autocast around a solve: it reaches the field and nothing else.

The arithmetic of the steps must not be rounded to half precision, and products in backward()
must see the field as the forward solve saw it; so autocast is off in the solver and entered anew,
as it was when the solve began, around every call of the field.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from .problem import HALF


class AutocastField(nn.Module):
    """A field called under a remembered autocast state; its output in the dtype of the state,
    where autocast made another of it: what else does not fit is left to be refused."""

    def __init__(self, func: Callable[..., Any], device: str):
        super().__init__()
        self.func = func
        self.device, self.dtype = device, torch.get_autocast_dtype(device)

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        with torch.autocast(self.device, dtype=self.dtype):
            out = self.func(t, y, *args)
        wanted = (y if isinstance(y, Tensor) else y[0]).dtype
        if isinstance(out, (tuple, list)):
            return tuple(_undone(part, wanted) for part in out)
        return _undone(out, wanted)


def _undone(out: Any, wanted: torch.dtype) -> Any:
    """An output as it were without autocast, which makes half precision, and of that float32."""
    if not isinstance(out, Tensor):
        return out
    made = out.dtype in HALF or (out.dtype == torch.float32 and wanted in HALF)
    return out.to(wanted) if made else out


def autocast_off(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A ``backward`` of an autograd function whose own arithmetic no autocast rounds."""

    @wraps(backward)
    def outside(ctx: Any, *grads: Tensor) -> Any:
        device = grads[0].device.type
        if not torch.is_autocast_enabled(device):
            return backward(ctx, *grads)
        with torch.autocast(device, enabled=False):
            return backward(ctx, *grads)

    return outside


def unwrapped(func: Callable[..., Any]) -> Callable[..., Any]:
    """The user's own function."""
    return func.func if isinstance(func, AutocastField) else func
