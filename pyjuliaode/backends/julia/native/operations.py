"""Operations of torch, by what a Builder has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .builder import Builder, Untranslatable
from .tape import ADD, DIV, MUL

aten = torch.ops.aten

# these only move numbers
MOVES = {
    getattr(getattr(aten, name), overload)
    for name, overloads in {
        "view": ("default",),
        "_unsafe_view": ("default",),
        "reshape": ("default",),
        "flatten": ("using_ints",),
        "unflatten": ("int",),
        "select": ("int",),
        "slice": ("Tensor",),
        "narrow": ("default",),
        "unbind": ("int",),
        "split": ("Tensor", "sizes"),
        "split_with_sizes": ("default",),
        "chunk": ("default",),
        "unsqueeze": ("default",),
        "squeeze": ("default", "dim", "dims"),
        "expand": ("default",),
        "expand_as": ("default",),
        "broadcast_to": ("default",),
        "permute": ("default",),
        "transpose": ("int",),
        "movedim": ("int", "intlist"),
        "t": ("default",),
        "numpy_T": ("default",),
        "mT": ("default",),
        "cat": ("default",),
        "concat": ("default",),
        "stack": ("default",),
        "repeat": ("default",),
        "flip": ("default",),
        "roll": ("default",),
        "view_as": ("default",),
        "reshape_as": ("default",),
    }.items()
    for overload in overloads
    if hasattr(getattr(aten, name), overload)
}
# and these change none, as long as the dtype is the same
SAME = {
    aten.clone.default,
    aten.detach.default,
    aten.detach_.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten._to_copy.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
}


def _unary(name: str) -> Callable[..., Tensor]:
    return lambda build, x: build.unary(name, x)


def _add(build: Builder, x: Any, y: Any, *, alpha: float = 1.0) -> Tensor:
    x, y = build.number(x), build.number(y)
    if isinstance(y, float):
        return build.unary("affine", x, 1.0, alpha * y)
    if isinstance(x, float):
        return build.unary("affine", y, alpha, x)
    return build.binary(ADD, x, y, alpha)


def _sub(build: Builder, x: Any, y: Any, *, alpha: float = 1.0) -> Tensor:
    return _add(build, x, y, alpha=-alpha)


def _rsub(build: Builder, x: Any, y: Any, alpha: float = 1.0) -> Tensor:
    y = build.number(y)
    if isinstance(y, float):
        return build.unary("affine", x, -alpha, y)
    return build.binary(ADD, y, x, -alpha)


def _mul(build: Builder, x: Any, y: Any) -> Tensor:
    x, y = build.number(x), build.number(y)
    if isinstance(y, float):
        return build.unary("affine", x, y, 0.0)
    if isinstance(x, float):
        return build.unary("affine", y, x, 0.0)
    if x is y or (x.shape == y.shape and torch.equal(x, y)):
        return build.unary("power", x, 2.0)
    return build.binary(MUL, x, y)


def _div(build: Builder, x: Any, y: Any) -> Tensor:
    x, y = build.number(x), build.number(y)
    if isinstance(y, float):
        return build.unary("affine", x, 1.0 / y, 0.0)
    return build.binary(DIV, x, y)


def _addcmul(build: Builder, x: Tensor, y: Tensor, z: Tensor, *, value: float = 1.0) -> Tensor:
    return build.binary(ADD, x, _mul(build, y, z), value)


def _addmm(build: Builder, bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return build.linear(x, weight.t(), bias)


def _matmul(build: Builder, x: Tensor, weight: Tensor) -> Tensor:
    if weight.ndim != 2 or bool((weight >= 0).any()):
        raise Untranslatable("a product of two tensors is native with a matrix of parameters only")
    return build.linear(x, weight.t())


def _convolution(
    build: Builder,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """conv1d and conv2d, of a batch or of one image."""
    axes = weight.ndim - 2
    if x.ndim == axes + 1:
        parts = (weight, bias, stride, padding, dilation, groups)
        return _convolution(build, x[None], *parts)[0]
    if set(_of_axes(stride, axes)) != {1}:
        raise Untranslatable("a convolution with a stride has no native form")
    dilation = _of_axes(dilation, axes)
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if padding == "same":
        pads = [(r // 2, r - r // 2) for r in reach]
    else:
        pads = [(p, p) for p in _of_axes(0 if padding == "valid" else padding, axes)]
    if axes == 1:  # a row
        x, weight = x[:, :, None], weight[:, :, None]
        dilation, pads = [1, *dilation], [(0, 0), *pads]
    biases = [None] * groups if bias is None else bias.chunk(groups)
    found = [
        build.convolution(part, w, b, pads, dilation)
        for part, w, b in zip(x.chunk(groups, 1), weight.chunk(groups), biases, strict=True)
    ]
    out = torch.cat(found, 1)
    return out[:, :, 0] if axes == 1 else out


def _of_axes(value: Any, axes: int) -> list[int]:
    """One number for every axis."""
    listed = list(value) if isinstance(value, list | tuple) else [value]
    return listed * axes if len(listed) == 1 else listed


def _sum(
    build: Builder, x: Tensor, axes: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    return _reduced(build, x, axes, keepdim, dtype, mean=False)


def _mean(
    build: Builder, x: Tensor, axes: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    return _reduced(build, x, axes, keepdim, dtype, mean=True)


def _reduced(build: Builder, x: Tensor, axes: Any, keepdim: bool, dtype: Any, mean: bool) -> Tensor:
    if dtype not in (None, build.dtype):
        raise Untranslatable("a sum changes the dtype")
    axes = [axes] if isinstance(axes, int) else list(axes or range(x.ndim))
    found = build.sum(x, axes, 1.0 / _size(x, axes) if mean else 1.0)
    return found if keepdim else found.squeeze(axes)


def _size(x: Tensor, axes: Sequence[int]) -> int:
    return math.prod(x.shape[axis] for axis in axes)


def _normalised(build: Builder, x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps)"""
    scale = 1.0 / _size(x, axes)
    centred = _sub(build, x, build.sum(x, axes, scale))
    variance = build.sum(build.unary("power", centred, 2.0), axes, scale)
    return _mul(build, centred, _inverse_root(build, variance, eps))


def _inverse_root(build: Builder, variance: Tensor, eps: float) -> Tensor:
    return build.unary("power", build.unary("affine", variance, 1.0, eps), -0.5)


def _scaled(build: Builder, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else _mul(build, x, weight)
    return x if bias is None else _add(build, x, bias)


def _layer_norm(
    build: Builder,
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    found = _normalised(build, x, range(x.ndim - len(shape), x.ndim), eps)
    return _scaled(build, found, weight, bias)


def _group_norm(
    build: Builder,
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    found = _normalised(build, x.reshape(x.shape[0], groups, -1), [2], eps).view(x.shape)
    return _scaled(build, found, *(_by_channel(p, x) for p in (weight, bias)))


def _batch_norm(
    build: Builder,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Tensor:
    if training or mean is None or variance is None:
        raise Untranslatable("batch normalisation by the batch mixes its samples; call eval()")
    root = _inverse_root(build, variance, eps)
    found = _mul(build, _sub(build, x, _by_channel(mean, x)), _by_channel(root, x))
    return _scaled(build, found, *(_by_channel(p, x) for p in (weight, bias)))


def _by_channel(values: Tensor | None, x: Tensor) -> Tensor | None:
    """One for each channel, to be spread over (B, C, ...)."""
    return None if values is None else values.view(-1, *[1] * (x.ndim - 2))


def _power(build: Builder, x: Tensor, exponent: float) -> Tensor:
    return build.unary("power", x, exponent)


def _clamp(build: Builder, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low, high = (-torch.inf if low is None else low), (torch.inf if high is None else high)
    return build.unary("clamp", x, low, high)


def _elu(
    build: Builder, x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> Tensor:
    if scale != 1.0 or input_scale != 1.0:
        raise Untranslatable("operation aten.elu with scales (SELU, CELU) has no native form")
    return build.unary("elu", x, alpha)


def _dropout(build: Builder, x: Tensor, p: float, train: bool) -> Tensor:
    if train and p > 0:
        raise Untranslatable("dropout is random; call eval() first")
    return x


def _softplus(build: Builder, x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    return build.unary("softplus", x, beta, threshold)


def _gelu(build: Builder, x: Tensor, *, approximate: str = "none") -> Tensor:
    return build.unary("gelu_tanh" if approximate == "tanh" else "gelu", x)


def _filled(value: float) -> Callable[..., Tensor]:
    def fill(build: Builder, like: Any, *_: Any, **__: Any) -> Tensor:
        shape = like.shape if isinstance(like, Tensor) else tuple(like)
        return build.constant(value).expand(shape)

    return fill


def _full(build: Builder, like: Any, value: Any, **_: Any) -> Tensor:
    shape = like.shape if isinstance(like, Tensor) else tuple(like)
    return build.constant(float(value)).expand(shape)


COMPUTES: dict[Any, Callable[..., Tensor]] = {
    aten.linear.default: lambda build, x, w, b=None: build.linear(x, w, b),
    aten.addmm.default: _addmm,
    aten.mm.default: _matmul,
    aten.matmul.default: _matmul,
    aten.conv1d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.batch_norm.default: _batch_norm,
    aten.add.Tensor: _add,
    aten.add.Scalar: _add,
    aten.sub.Tensor: _sub,
    aten.sub.Scalar: _sub,
    aten.rsub.Scalar: _rsub,
    aten.rsub.Tensor: _rsub,
    aten.mul.Tensor: _mul,
    aten.mul.Scalar: _mul,
    aten.div.Tensor: _div,
    aten.div.Scalar: _div,
    aten.addcmul.default: _addcmul,
    aten.pow.Tensor_Scalar: _power,
    aten.square.default: lambda build, x: build.unary("power", x, 2.0),
    aten.neg.default: lambda build, x: build.unary("affine", x, -1.0, 0.0),
    aten.clamp.default: _clamp,
    aten.clamp_min.default: lambda build, x, low: _clamp(build, x, low),
    aten.clamp_max.default: lambda build, x, high: _clamp(build, x, None, high),
    aten.hardtanh.default: lambda build, x, low=-1.0, high=1.0: _clamp(build, x, low, high),
    aten.relu.default: lambda build, x: build.unary("leaky_relu", x, 0.0),
    aten.leaky_relu.default: lambda build, x, slope=0.01: build.unary("leaky_relu", x, slope),
    aten.elu.default: _elu,
    aten.dropout.default: _dropout,
    aten.softplus.default: _softplus,
    aten.gelu.default: _gelu,
    aten.reciprocal.default: _unary("inv"),
    aten.ones_like.default: _filled(1.0),
    aten.zeros_like.default: _filled(0.0),
    aten.ones.default: _filled(1.0),
    aten.zeros.default: _filled(0.0),
    aten.full.default: _full,
    aten.full_like.default: _full,
    aten.scalar_tensor.default: lambda build, value, **_: build.constant(float(value)),
    **{
        getattr(aten, name).default: _unary(name)
        for name in ("tanh", "sigmoid", "silu", "exp", "log", "sqrt", "sin", "cos", "abs")
    },
}
