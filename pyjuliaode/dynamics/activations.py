"""Activations on velocities and factors: value, derivative, inverse, and where they saturate."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, unknown_name

ActivationLike = str | nn.Module | Callable[[Tensor], Tensor]

NAMES = ("hardtanh", "identity", "tanh")


class Activation(nn.Module):
    """An elementwise function σ with what the initial states need of it.

    ``saturation`` is a number beyond which σ is constant, None where there is none (or none is
    known): there the factor σ(k(t)) of the generalised Nesterov model is finite at t = 0.
    ``most`` is a bound of |σ|.
    """

    saturation: float | None = None
    most: float = math.inf

    def derivative(self, x: Tensor) -> Tensor:
        """σ'(x)."""
        raise NotImplementedError

    def elasticity(self, x: Tensor) -> Tensor | float:
        """x σ'(x)/σ(x) for x > 0, also where σ(x) is too small to be told from 0."""
        limits = torch.finfo(x.dtype)
        x = x.clamp(limits.tiny, limits.max)
        return x * self.derivative(x) / self(x)

    def inverse(self, y: Tensor) -> Tensor:
        """The x with σ(x) = y.

        Raises:
            InvalidArgumentError: there is none, or none is known.
        """
        raise NotImplementedError


class Identity(Activation):
    """σ(x) = x."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def derivative(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def elasticity(self, x: Tensor) -> float:
        return 1.0

    def inverse(self, y: Tensor) -> Tensor:
        return y


class Tanh(Activation):
    """σ(x) = tanh(x)."""

    most: ClassVar[float] = 1.0
    saturation: ClassVar[float] = 20.0  # 1 - tanh(20) is below the rounding of float64

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def derivative(self, x: Tensor) -> Tensor:
        return 1 - torch.tanh(x).square()

    def inverse(self, y: Tensor) -> Tensor:
        if bool((y.abs() >= 1).any()):
            raise _out_of_range("tanh", "-1 < value < 1", y)
        return torch.atanh(y)


class HardTanh(Activation):
    """σ(x) = x between -bound and bound, constant beyond."""

    def __init__(self, bound: float):
        super().__init__()
        if not bound > 0:
            raise InvalidArgumentError(f"the bound of hardtanh must be > 0, got {bound!r}")
        self.bound = self.saturation = self.most = float(bound)

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-self.bound, self.bound)

    def derivative(self, x: Tensor) -> Tensor:
        return (x.abs() < self.bound).to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        if bool((y.abs() > self.bound).any()):
            raise _out_of_range(f"hardtanh({self.bound:g})", f"|value| <= {self.bound:g}", y)
        return y

    def extra_repr(self) -> str:
        return f"bound={self.bound:g}"


class Custom(Activation):
    """Any elementwise callable, with its inverse where that is needed."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        inverse: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.function = function
        self.inverse_function = inverse

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def derivative(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False):
            x = x.clone() if x.is_inference() else x  # which no graph may keep
            return torch.func.grad(lambda x: self.function(x).sum())(x)

    def inverse(self, y: Tensor) -> Tensor:
        if self.inverse_function is not None:
            return self.inverse_function(y)
        zero = torch.zeros_like(y)
        if bool(y.any()) or bool(self.function(zero).any()):
            raise InvalidArgumentError(
                "the initial momentum is the inverse of the activation, and a callable's inverse "
                "is not known: pass inverse=, or activation_velocity='tanh', 'hardtanh(5)' or "
                "'identity'"
            )
        return zero


def make_activation(
    spec: ActivationLike, bound: float, inverse: Callable[[Tensor], Tensor] | None = None
) -> Activation:
    """The activation of a name ("tanh", "hardtanh", "hardtanh(5)", "identity") or a callable.

    Raises:
        InvalidArgumentError: an unknown name, a bound that is not positive, or not callable.
    """
    if isinstance(spec, str):
        return _named(spec, bound)
    if isinstance(spec, Activation):
        return spec
    if not callable(spec):
        raise InvalidArgumentError(
            f"activation must be a name ({', '.join(NAMES)}) or a callable, got {spec!r}"
        )
    if _is(spec, nn.Tanh) or spec is torch.tanh:
        return Tanh()
    if _is(spec, nn.Hardtanh) and spec.min_val == -spec.max_val:
        return HardTanh(spec.max_val)
    return Identity() if _is(spec, nn.Identity) else Custom(spec, inverse)


def _is(spec: Callable[[Tensor], Tensor], kind: type[nn.Module]) -> bool:
    """That module of torch's itself: no subclass, no forward of its own, no hooks."""
    if type(spec) is not kind or "forward" in vars(spec):
        return False
    return not (spec._forward_hooks or spec._forward_pre_hooks)


def _named(name: str, bound: float) -> Activation:
    if name == "tanh":
        return Tanh()
    if name == "identity":
        return Identity()
    match = re.fullmatch(r"hardtanh(?:\((\d+\.?\d*|\.\d+)\))?", name)
    if match is None:
        raise unknown_name("activation", name, NAMES)
    return HardTanh(float(match[1]) if match[1] else bound)


def _out_of_range(name: str, wanted: str, y: Tensor) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"no initial momentum: {name} takes only values {wanted}, and the initial velocity asks "
        f"for {float(y.detach().abs().max()):.4g}. Scale h0 or dh0 down, start at t0 = 0 if the "
        "factor saturates, or pass a wider activation_velocity ('hardtanh(20)', 'identity')"
    )
