"""Loud refusals of what cannot be differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .errors import UnsupportedError


class _Refuse(torch.autograd.Function):
    """Passes gradients on; differentiating them once more raises."""

    @staticmethod
    def forward(ctx: Any, message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.message = message
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise UnsupportedError(ctx.message)


class _Differentiable(torch.autograd.Function):
    """Passes gradients on; they can be differentiated so many times."""

    @staticmethod
    def forward(ctx: Any, message: str, times: int, x: Tensor, root: Tensor) -> Tensor:
        ctx.message, ctx.times = message, times
        ctx.save_for_backward(root)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if ctx.times == 0:
            raise UnsupportedError(ctx.message)
        if not torch.is_grad_enabled():
            return None, None, grad, None
        (root,) = ctx.saved_tensors
        # zero, but of a graph: what is differentiated once more passes here again
        zero = _Differentiable.apply(ctx.message, ctx.times - 1, torch.zeros_like(root), root)
        return None, None, _Differentiable.apply(ctx.message, ctx.times - 1, grad, root), zero


def differentiable(x: Tensor, times: int, message: str) -> Tensor:
    """``x``, of which derivatives beyond those of order ``times`` raise."""
    if not x.requires_grad or torch._C._are_functorch_transforms_active():
        return x
    return _Differentiable.apply(message, times, x, x)


DIRECT = "solve with adjoint='direct' and options={'checkpoint': False}"


def once_only(
    by: str,
    grads: Sequence[Tensor | None],
    roots: Sequence[Tensor],
    remedy: str = DIRECT,
) -> list[Tensor | None]:
    """Gradients that raise when they are differentiated again with respect to ``roots``."""
    message = f"a gradient by {by} cannot be differentiated again (double backward); {remedy}"
    present = [g for g in grads if g is not None]
    if not present:
        return list(grads)
    with torch.enable_grad():
        guarded = iter(_Refuse.apply(message, len(present), *present, *roots))
    return [None if g is None else next(guarded) for g in grads]


def transforms_active() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def batched(x: Tensor) -> bool:
    """Whether torch.func.vmap is at work on ``x``, whose values cannot be read then."""
    functorch = torch._C._functorch
    while torch._C._are_functorch_transforms_active():
        if functorch.is_batchedtensor(x):
            return True
        if not functorch.is_functorch_wrapped_tensor(x):
            return False
        x = functorch.get_unwrapped(x)
    return False


def refuse_transforms(what: str, remedy: str | None = None) -> None:
    """Raise where a torch.func transform, or forward mode, is at work, which a gradient of our own
    cannot follow.
    """
    if transforms_active():
        remedy = remedy or (
            "use adjoint='direct' with options={'checkpoint': False} (grad, jvp), or a batch "
            "dimension instead of vmap"
        )
        raise UnsupportedError(
            f"torch.func transforms and forward-mode derivatives do not pass through {what}; "
            f"{remedy}"
        )
