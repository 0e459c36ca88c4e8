"""SONODE and the heavy-ball models HBNODE and GHBNODE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .activations import ActivationLike, make_activation
from .base import feature_dim
from .coefficients import Coefficient, as_tensor, minus_scaled, nonnegative, show
from .field import Field
from .second_order import SecondOrderDynamics, Velocity


class SONODE(SecondOrderDynamics):
    """Second-order neural ODE: h' = v, v' = f(t, [h, v]).

    State (2, *h.shape): h and v. The field sees h and v concatenated in dimension ``dim`` (width
    2n) and returns the shape of h (width n). Learned: the field, and the initial velocity where
    that is a module or parameter. Source: Norcliffe et al., arXiv 2006.07220.

    Arguments:
        field: the network, f([h, v]) or f(t, [h, v]).
        dim: the dimension of features or channels; the only one where h is one-dimensional.
        initial_velocity: v at the first time, see :class:`SecondOrderDynamics`.
        time_dependent: see :class:`Dynamics`.

    Raises:
        InvalidArgumentError: see :class:`Dynamics`; h lacks the dimension.
    """

    def __init__(
        self,
        field: Field,
        dim: int = 1,
        *,
        initial_velocity: Velocity = None,
        time_dependent: bool | None = None,
    ):
        super().__init__(field, initial_velocity, time_dependent)
        self.dim = dim

    position_first = True  # h' is the second component: what Nyström methods need

    def forward(self, t: Tensor, state: Tensor, *args: Any) -> Tensor:
        h, v = state.unbind(0)
        both = torch.cat((h, v), feature_dim(h, self.dim))
        return torch.stack((v, self.evaluate(t, both, *args, like=h)))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, {super().extra_repr()}"


class HBNODE(SecondOrderDynamics):
    """Heavy-ball neural ODE: h' = m, m' = -γ m + f(t, h), with γ = ε sigmoid(ω).

    State (2, *h.shape): h and the momentum m. Learned: the field, ω (starts at -3, γ = 0.0474)
    unless ``gamma`` is given, and the initial velocity where that is a module or parameter.
    Source: Xia et al., arXiv 2110.04840. Their code runs the same system with the signs of
    f and m turned.

    Arguments:
        field: the network, f(h) or f(t, h), of the shape of h.
        gamma: a fixed damping γ >= 0; None learns it.
        epsilon: the bound of the learned γ.
        initial_velocity: the momentum m at the first time, see :class:`SecondOrderDynamics`;
            ``dh0`` of :meth:`initial_state` overrides it.
        time_dependent: see :class:`Dynamics`.

    Raises:
        InvalidArgumentError: ``gamma`` or ``epsilon`` is negative; see also :class:`Dynamics`.
    """

    def __init__(
        self,
        field: Field,
        gamma: float | None = None,
        *,
        epsilon: float = 1.0,
        initial_velocity: Velocity = None,
        time_dependent: bool | None = None,
    ):
        super().__init__(field, initial_velocity, time_dependent)
        self.fixed_gamma = None if gamma is None else nonnegative("gamma", gamma)
        self.epsilon = nonnegative("epsilon", epsilon)
        self.omega = nn.Parameter(torch.tensor(-3.0)) if gamma is None else None

    position_first = True

    def damping(self) -> Coefficient:
        """γ: a number where it is fixed, a 0-d tensor where it is learned."""
        if self.fixed_gamma is not None:
            return self.fixed_gamma
        gamma = torch.sigmoid(self.omega)
        return gamma if self.epsilon == 1.0 else self.epsilon * gamma

    @property
    def gamma(self) -> Tensor:
        """The damping γ, a 0-d tensor."""
        return as_tensor(self.damping())

    def forward(self, t: Tensor, state: Tensor, *args: Any) -> Tensor:
        h, m = state.unbind(0)
        return torch.stack((m, minus_scaled(self.evaluate(t, h, *args), self.damping(), m)))

    def extra_repr(self) -> str:
        return f"gamma={show(self.fixed_gamma)}, epsilon={self.epsilon:g}, {super().extra_repr()}"


class GHBNODE(HBNODE):
    """Generalised heavy-ball neural ODE: h' = σ(m), m' = -γ m + f(t, h) - ξ h.

    State (2, *h.shape): h and the momentum m. Learned: what :class:`HBNODE` learns, and χ in
    ξ = softplus(χ) (starts at 0, ξ = ln 2) unless ``xi`` is given.
    Source: Xia et al., arXiv 2110.04840, eq. 15.

    Arguments:
        field, gamma, epsilon, time_dependent: see :class:`HBNODE`.
        xi: a fixed strength ξ >= 0 of the term in h; None learns it.
        activation: σ: "tanh", "hardtanh" (or "hardtanh(5)"), "identity", or a callable.
        bound: the bound of "hardtanh".
        initial_velocity: the momentum m (not h') at the first time, so that h'(t0) = σ(m0); the
            same holds for ``dh0`` of :meth:`initial_state`.

    Raises:
        InvalidArgumentError: ``xi`` is negative, an unknown activation; see also :class:`HBNODE`.
    """

    def __init__(
        self,
        field: Field,
        gamma: float | None = None,
        xi: float | None = None,
        activation: ActivationLike = "tanh",
        *,
        bound: float = 5.0,
        epsilon: float = 1.0,
        initial_velocity: Velocity = None,
        time_dependent: bool | None = None,
    ):
        super().__init__(
            field,
            gamma,
            epsilon=epsilon,
            initial_velocity=initial_velocity,
            time_dependent=time_dependent,
        )
        self.activation = make_activation(activation, bound)
        self.fixed_xi = None if xi is None else nonnegative("xi", xi)
        self.chi = nn.Parameter(torch.tensor(0.0)) if xi is None else None

    @property
    def xi(self) -> Tensor:
        """The strength ξ of the term in h, a 0-d tensor."""
        return as_tensor(self.pull())

    def pull(self) -> Coefficient:
        """ξ: a number where it is fixed, a 0-d tensor where it is learned."""
        return softplus(self.chi) if self.fixed_xi is None else self.fixed_xi

    def forward(self, t: Tensor, state: Tensor, *args: Any) -> Tensor:
        h, m = state.unbind(0)
        force = minus_scaled(self.evaluate(t, h, *args), self.pull(), h)
        return torch.stack((self.activation(m), minus_scaled(force, self.damping(), m)))

    position_first = False

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        return self.activation(state[1])

    def extra_repr(self) -> str:
        return f"xi={show(self.fixed_xi)}, {super().extra_repr()}"
