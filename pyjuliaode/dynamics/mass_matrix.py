"""The Nesterov models as semi-explicit differential-algebraic systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from .base import Dynamics, Time, as_time, marked


class Constrained(Protocol):
    """What a dynamics with the constraint h = κ(t) x offers."""

    def constraint_factor(self, t: Time) -> Tensor: ...

    def constrained_slope(
        self, t: Tensor, x: Tensor, m: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(x', m') with the field evaluated at h."""

    def to_constrained(self, t: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(x, m) of the components of the state."""

    def from_constrained(self, t: Tensor, x: Tensor, m: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The components of the state."""


class MassMatrixForm(Dynamics):
    """State (x, m, h) with mass matrix diag(1, 1, 0) and last row 0 = h - κ(t) x.

    The same trajectories as the dynamics it is made from, where h is eliminated; it is solved by
    implicit methods, at a higher price. Needs a backend with mass matrices.
    """

    K: ClassVar[int] = 3
    order: ClassVar[int] = 2

    def __init__(self, dynamics: Dynamics):
        super().__init__(dynamics.field, dynamics.time_dependent)
        self.field = None  # it is the dynamics' own
        self.dynamics = dynamics

    def mass_of(self, state: Tensor) -> Tensor:
        """The diagonal of the mass matrix, of the dimensions of the state."""
        ones = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
        return ones.view(3, *[1] * (state.ndim - 1))

    def lift(self, t: Time, state: Tensor) -> Tensor:
        """(x, m, h) of a state of the dynamics at the time t."""
        at = as_time(t).to(state)
        x, m = self.dynamics.to_constrained(at, state.unbind(0))
        return marked(torch.stack((x, m, self.dynamics.readout(at, state))))

    def lower(self, t: Time, state: Tensor, dim: int = 0) -> Tensor:
        """The state of the dynamics at t, or at all t, for (x, m, h) in dimension ``dim``."""
        at = as_time(t).to(state)
        at = at.view(*at.shape, *[1] * (state.ndim - 1 - at.ndim))
        return torch.stack(self.dynamics.from_constrained(at, *state.unbind(dim)), dim)

    def initial_state(self, h0: Tensor, dh0: Tensor | None = None, t0: Time = 0.0) -> Tensor:
        return self.lift(t0, self.dynamics.initial_state(h0, dh0, t0))

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        x, m, h = state.unbind(0)
        slopes = self.dynamics.constrained_slope(t, x, m, h)
        return torch.stack((*slopes, h - self.dynamics.constraint_factor(t) * x))

    def readout(self, t: Time, state: Tensor) -> Tensor:
        return state[2]

    def velocity(self, t: Time, state: Tensor) -> Tensor:
        return self.dynamics.velocity(t, self.lower(t, state))

    def extra_repr(self) -> str:
        return ""
