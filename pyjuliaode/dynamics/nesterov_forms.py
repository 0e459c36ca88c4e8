"""The ways to write the Nesterov ODE h'' + (r/t) h' + f = 0 as a first-order system.

Each form maps (h0, h'(t0)) to a state, gives d(state)/dt from the value of the field, and maps a
state back to h and h'. A velocity that is None is zero.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from . import published
from .base import Time, as_number, as_time
from .nesterov_factor import check_positive_start, factor, rate


class Form(Protocol):
    """What NesterovNODE needs of a form; all tensors but the state have the shape of h."""

    def start(self, h0: Tensor, dh0: Tensor | None, t0: Time) -> tuple[Tensor, Tensor]: ...

    def feature(self, t: Tensor, first: Tensor) -> Tensor:
        """h, where the field is evaluated."""

    def slope(self, t: Tensor, state: Tensor, f: Tensor) -> Tensor: ...

    def readout(self, t: Tensor, first: Tensor) -> Tensor: ...

    def velocity(self, t: Tensor, first: Tensor, second: Tensor) -> Tensor: ...


class SecondOrderForm:
    """State (h, h'): v' = -(r/t) v - f, and its limit v' = -f/(1+r) at t = 0."""

    def __init__(self, r: float):
        self.r = r

    def start(self, h0: Tensor, dh0: Tensor | None, t0: Time) -> tuple[Tensor, Tensor]:
        now = as_number(t0)
        if now < 0:
            raise InvalidArgumentError(f"the Nesterov ODE needs a first time t0 >= 0, got {now:g}")
        if dh0 is None:
            return h0, torch.zeros_like(h0)
        if now == 0 and bool(dh0.any()):
            raise InvalidArgumentError(
                "the Nesterov ODE is singular at t = 0 unless h'(0) = 0: leave the initial "
                "velocity out, or take a first time t0 > 0"
            )
        return h0, dh0

    def feature(self, t: Tensor, first: Tensor) -> Tensor:
        return first

    def slope(self, t: Tensor, state: Tensor, f: Tensor) -> Tensor:
        v = state[1]
        # A branch in Python would wait for the device. Both values are computed, so t is replaced
        # by 1 where it is 0: an infinite one would make the gradient NaN.
        zero = t == 0
        friction = torch.where(zero, 0.0, -self.r / torch.where(zero, 1.0, t))
        weight = torch.where(zero, 1.0 / (1.0 + self.r), torch.ones_like(t))
        return torch.stack((v, torch.addcmul(friction * v, weight, f, value=-1)))

    def readout(self, t: Tensor, first: Tensor) -> Tensor:
        return first

    def velocity(self, t: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return second


class FactorForm:
    """Eq. 14, h = k(t) x, x' = m, m' = -m - f, in the state (h, u), u = k m.

    With the rate ρ = k'/k it is h' = ρ h + u, u' = (ρ - 1) u - k f. A solver that were given
    (x, m) would hold x to its tolerance, and h to k times that, k being 1e15 or 1e-15 at times.

    ``exact`` makes the field the g of h'' + (r/t) h' + g = 0: f is the bracket of eq. 12, and k f
    is [1/4 + (2r - r²)/(4t²)] h + g, in which no k is left to overflow.
    """

    def __init__(self, r: float, exact: bool):
        self.r = r
        self.exact = exact

    def start(self, h0: Tensor, dh0: Tensor | None, t0: Time) -> tuple[Tensor, Tensor]:
        check_positive_start(
            t0, 'form="dae"', 'pass form="second_order", or take t0 = 1 as the papers do'
        )
        u0 = -rate(as_time(t0), self.r) * h0
        return h0, u0 if dh0 is None else u0 + dh0

    def feature(self, t: Tensor, first: Tensor) -> Tensor:
        return first

    def slope(self, t: Tensor, state: Tensor, f: Tensor) -> Tensor:
        # ρ (h, u) + (u, -u - k f)
        h, u = state.unbind(0)
        if self.exact:
            pull = u + self.bracket(t, h, f)
        else:
            pull = torch.addcmul(u, factor(t, self.r), f)
        return torch.addcmul(torch.stack((u, pull.neg())), rate(t, self.r), state)

    def bracket(self, t: Tensor, h: Tensor, g: Tensor) -> Tensor:
        """k times the bracket of eq. 12."""
        return torch.addcmul(g, 0.25 + 0.25 * self.r * (2 - self.r) / (t * t), h)

    def readout(self, t: Tensor, first: Tensor) -> Tensor:
        return first

    def velocity(self, t: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.addcmul(second, rate(t, self.r), first)


class PublishedForm:
    """The published code's system, state (p, q): p' = μ, q' = ±f - μ; see published.py."""

    def __init__(self, r: float, sign: float):
        self.r = r
        self.sign = sign

    def start(self, h0: Tensor, dh0: Tensor | None, t0: Time) -> tuple[Tensor, Tensor]:
        check_positive_start(t0, 'variant="published"', published.HINT)
        return h0, torch.zeros_like(h0) if dh0 is None else dh0

    def feature(self, t: Tensor, first: Tensor) -> Tensor:
        return first

    def slope(self, t: Tensor, state: Tensor, f: Tensor) -> Tensor:
        mu = published.momentum(t, *state.unbind(0), self.r)
        return torch.stack((mu, torch.sub(f if self.sign > 0 else -f, mu)))

    def readout(self, t: Tensor, first: Tensor) -> Tensor:
        return factor(t, self.r) * first

    def velocity(self, t: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return published.velocity(t, first, second, self.r, factor(t, self.r))
