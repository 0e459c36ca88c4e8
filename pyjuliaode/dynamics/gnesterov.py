"""GNesterovNODE: the generalised Nesterov model, with activations against blow-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..errors import InvalidArgumentError, unknown_name
from . import published
from .activations import ActivationLike, make_activation
from .base import Time, as_number, as_time
from .coefficients import Coefficient, as_tensor, minus_scaled, nonnegative, show
from .field import Field
from .mass_matrix import MassMatrixForm
from .nesterov import VARIANTS
from .nesterov_factor import check_friction, check_positive_start, factor, rate
from .second_order import SecondOrderDynamics, Velocity


class GNesterovNODE(SecondOrderDynamics):
    """Generalised Nesterov neural ODE: h = κ(t) x, x' = σ(m), m' = -m - σ(f(t, h)) - ξ h.

    κ(t) = σ(k(t)) with k(t) = t^(-r/2) e^(t/2). State (x, m), of shape (2, *h.shape), from
    x0 = h0/κ(t0) and σ(m0) = (h0' - κ'(t0) x0)/κ(t0). Tolerances for x are for h as well, as
    κ <= 1; where the σ for k does not promise that ("identity", "hardtanh(5)", a callable) the
    state is (h, m), and h' = (κ'/κ) h + κ σ(m). t0 = 0 is allowed where σ saturates: there
    κ is the saturated value and κ' = 0. Source: Nguyen et al., Nesterov neural ODEs, NeurIPS
    2022, eq. 15. Learned: the field, χ in ξ = softplus(χ) (starts at 0, ξ = ln 2) unless ``xi``
    is given, and the initial velocity where that is a module or parameter.

    variant="published" is what the paper's code integrates, which is not eq. 15: state (p, q)
    from (h0, h0'), μ = (1/k)' p + q/k, p' = σ(μ), q' = sign σ(f(t, p)) - μ - ξ p, h = κ(t) p.
    Its code leaves the first time unmapped; :meth:`readout` maps every time. Tolerances are for
    (p, q), as there.

    Arguments:
        field: the network, f(h) or f(t, h), of the shape of h.
        r: the friction constant, >= 3.
        xi: a fixed strength ξ >= 0 of the term in h; None learns it.
        activation: σ: "tanh", "hardtanh" (or "hardtanh(5)"), "identity", or a callable.
        activation_velocity, activation_field, activation_factor: σ for x', for f and for k;
            each is ``activation`` where it is None.
        bound: the bound of "hardtanh".
        inverse: the inverse of a callable σ for x', where the initial momentum is not zero.
        variant: "paper" or "published".
        sign: +1 (default) or -1, with variant="published": the runs of its paper use both.
        initial_velocity: h'(t0), see :class:`SecondOrderDynamics`.
        time_dependent: see :class:`Dynamics`.

    Raises:
        InvalidArgumentError: r < 3, ``xi`` is negative, an unknown activation or variant; from
            :meth:`initial_state`: no momentum has the initial velocity, or κ has no value at t0.
            See also :class:`Dynamics`.
    """

    def __init__(
        self,
        field: Field,
        r: float = 3.0,
        xi: float | None = None,
        activation: ActivationLike = "tanh",
        *,
        activation_velocity: ActivationLike | None = None,
        activation_field: ActivationLike | None = None,
        activation_factor: ActivationLike | None = None,
        bound: float = 5.0,
        inverse: Callable[[Tensor], Tensor] | None = None,
        variant: str = "paper",
        sign: int | None = None,
        initial_velocity: Velocity = None,
        time_dependent: bool | None = None,
    ):
        super().__init__(field, initial_velocity, time_dependent)
        if variant not in VARIANTS:
            raise unknown_name("variant", variant, VARIANTS)
        self.r = check_friction(r)
        self.variant = variant
        self.sign = published.check_sign(variant, sign)
        self.fixed_xi = None if xi is None else nonnegative("xi", xi)
        self.chi = nn.Parameter(torch.tensor(0.0)) if xi is None else None
        wanted = (activation_velocity, activation_field, activation_factor)
        made = [make_activation(activation if a is None else a, bound, inverse) for a in wanted]
        self.activation_velocity, self.activation_field, self.activation_factor = made
        limit = self.activation_factor.saturation
        # k(t) >= t^(-r/2) reaches the limit before t falls to this: below it κ is constant.
        self._t_saturated = None if limit is None else limit ** (-2 / self.r)
        self._holds_h = variant == "paper" and self.activation_factor.most > 1

    def pull(self) -> Coefficient:
        """ξ: a number where it is fixed, a 0-d tensor where it is learned."""
        return softplus(self.chi) if self.fixed_xi is None else self.fixed_xi

    @property
    def xi(self) -> Tensor:
        """The strength ξ of the term in h, a 0-d tensor."""
        return as_tensor(self.pull())

    def constraint_factor(self, t: Time) -> Tensor:
        """κ(t) in the constraint h = κ(t) x, for the system as a DAE.

        Raises:
            InvalidArgumentError: variant="published" has no constraint.
        """
        if self.variant == "published":
            raise InvalidArgumentError('only variant="paper" has a constraint')
        return self._kappa(as_time(t))

    def _safe(self, t: Tensor) -> Tensor:
        """A time with the same κ, away from 0: neither values nor gradients become NaN."""
        return t if self._t_saturated is None else t.clamp(min=self._t_saturated)

    def _kappa(self, t: Tensor) -> Tensor:
        return self.activation_factor(factor(self._safe(t), self.r))

    def _kappa_slope(self, t: Tensor) -> Tensor:
        """κ'(t) = σ'(k) k'."""
        t = self._safe(t)
        k = factor(t, self.r)
        return self.activation_factor.derivative(k) * k * rate(t, self.r)

    def _kappa_and_rate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """κ(t) and κ'(t)/κ(t), that also where both are too small to be told from 0."""
        t = self._safe(t)
        k = factor(t, self.r)
        return self.activation_factor(k), self.activation_factor.elasticity(k) * rate(t, self.r)

    def initial_state(self, h0: Tensor, dh0: Tensor | None = None, t0: Time = 0.0) -> Tensor:
        if self.variant == "published":
            check_positive_start(t0, 'variant="published"', published.HINT)
            return super().initial_state(h0, dh0, t0)
        velocity = self.start(h0, dh0)
        if as_number(t0) < 0 or self._t_saturated is None:
            check_positive_start(t0, type(self).__name__, "take t0 = 1, as the papers' runs do")
        t = as_time(t0)
        if self._holds_h:
            (kappa, growth), first = self._kappa_and_rate(t), h0
        else:
            kappa, growth = self._kappa(t), self._kappa_slope(t)
            first = h0 / kappa
        rest = -growth * first
        speed = (rest if velocity is None else velocity + rest) / kappa
        return torch.stack((first, self.activation_velocity.inverse(speed)))

    def forward(self, t: Tensor, state: Tensor, *args: Any) -> Tensor:
        first, second = state.unbind(0)
        if self._holds_h:
            slope, m_slope = self.constrained_slope(t, first, second, first, *args)
            kappa, growth = self._kappa_and_rate(t)
            return torch.stack((torch.addcmul(growth * first, kappa, slope), m_slope))
        if self.variant == "published":
            h, m = first, published.momentum(t, first, second, self.r)
        else:
            h, m = self._kappa(t) * first, second
        return torch.stack(self.constrained_slope(t, first, m, h, *args))

    def constrained_slope(
        self, t: Tensor, x: Tensor, m: Tensor, h: Tensor, *args: Any
    ) -> tuple[Tensor, Tensor]:
        """(x', m') of eq. 15 with the field evaluated at h."""
        f = self.activation_field(self.evaluate(t, h, *args))
        force = torch.sub(f if self.sign > 0 else -f, m)
        return self.activation_velocity(m), minus_scaled(force, self.pull(), h)

    def to_constrained(self, t: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(x, m) of the components of the state."""
        return state[0] / self._kappa(t) if self._holds_h else state[0], state[1]

    def from_constrained(self, t: Tensor, x: Tensor, m: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The components of the state."""
        return h if self._holds_h else x, m

    def as_dae(self) -> MassMatrixForm:
        """The same system with h kept as an algebraic variable.

        Raises:
            InvalidArgumentError: variant="published" has no constraint.
        """
        self.constraint_factor(1.0)
        return MassMatrixForm(self)

    def readout(self, t: Time, state: Tensor) -> Tensor:
        return state[0] if self._holds_h else self._kappa(as_time(t)) * state[0]

    def velocity(self, t: Time, state: Tensor) -> Tensor:
        t = as_time(t)
        first, second = state.unbind(0)
        if self._holds_h:
            kappa, growth = self._kappa_and_rate(t)
        else:
            kappa, growth = self._kappa(t), self._kappa_slope(t)
        if self.variant == "published":
            return published.velocity(t, first, second, self.r, kappa)
        return growth * first + kappa * self.activation_velocity(second)

    def extra_repr(self) -> str:
        xi = show(self.fixed_xi)
        return f"r={self.r:g}, xi={xi}, variant={self.variant!r}, {super().extra_repr()}"
