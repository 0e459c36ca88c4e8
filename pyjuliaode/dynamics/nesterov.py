"""NesterovNODE: Nesterov's accelerated gradient flow with a network as the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, unknown_name
from .base import Time, as_time
from .field import Field
from .mass_matrix import MassMatrixForm
from .nesterov_factor import check_friction, factor, inverse_factor
from .nesterov_forms import FactorForm, Form, PublishedForm, SecondOrderForm
from .published import check_sign
from .second_order import SecondOrderDynamics, Velocity

FORMS = ("dae", "second_order")
VARIANTS = ("paper", "published")


class NesterovNODE(SecondOrderDynamics):
    """Nesterov neural ODE: h'' + (r/t) h' + f = 0, with k(t) = t^(-r/2) e^(t/2).

    Source: Nguyen et al., Nesterov neural ODEs, NeurIPS 2022.

    - form="dae" (eq. 14): h = k(t) x, x' = m, m' = -m - f(t, h). The state is (h, u), u = k m,
      from u0 = h0' - (k'/k)(t0) h0, so that tolerances are for h and not for x = h/k: the same
      system is h' = (k'/k) h + u, u' = (k'/k - 1) u - k f, with k'/k = 1/2 - r/(2t).
      f is learned as a whole, so that the network is not the gradient of the ODE above. Needs
      t0 > 0; the papers take 1. ``exact=True`` puts the network g in its place in eq. 12,
      f = [1/4 + (2r - r²)/(4t²)] h/k + g(t, h)/k: then it is the ODE above.
    - form="second_order": state (h, h'), with f the gradient itself. May start at t0 = 0 with
      h'(0) = 0, where h''(0) = -f/(1+r). Backwards in time t = 0 is singular: the adjoint
      "backsolve" cannot reach it, the others can.
    - variant="published": what the paper's code integrates, which is not eq. 14: state (p, q)
      from (h0, h0'), μ = (1/k)' p + q/k, p' = μ, q' = sign f(t, p) - μ, h = k(t) p.
      Needs t0 > 0. Its code leaves the first time unmapped; :meth:`readout` maps every time.
      Tolerances are for (p, q), as there.

    State (2, *h.shape). Learned: the field, and the initial velocity where that is a module or
    parameter.

    Arguments:
        field: the network, f(h) or f(t, h), of the shape of h.
        r: the friction constant, >= 3.
        form: "dae" or "second_order".
        exact: with form="dae", the network is the gradient; with form="second_order" it always is.
        variant: "paper" or "published".
        sign: +1 (default) or -1, with variant="published": the runs of its paper use both.
        initial_velocity: h'(t0), see :class:`SecondOrderDynamics`.
        time_dependent: see :class:`Dynamics`.

    Raises:
        InvalidArgumentError: r < 3, an unknown form or variant, a combination that does not
            exist; from :meth:`initial_state`: a first time that the form does not allow, or a
            velocity at t0 = 0. See also :class:`Dynamics`.
    """

    def __init__(
        self,
        field: Field,
        r: float = 3.0,
        form: str = "dae",
        *,
        exact: bool = False,
        variant: str = "paper",
        sign: int | None = None,
        initial_velocity: Velocity = None,
        time_dependent: bool | None = None,
    ):
        super().__init__(field, initial_velocity, time_dependent)
        self.r = check_friction(r)
        if form not in FORMS:
            raise unknown_name("form", form, FORMS)
        if variant not in VARIANTS:
            raise unknown_name("variant", variant, VARIANTS)
        if variant == "published" and (form != "dae" or exact):
            raise InvalidArgumentError(
                'variant="published" is one fixed system: leave form and exact at their defaults'
            )
        self.form = form
        self.exact = exact
        self.variant = variant
        self._form = self._make_form(check_sign(variant, sign))

    def _make_form(self, sign: float) -> Form:
        if self.variant == "published":
            return PublishedForm(self.r, sign)
        if self.form == "second_order":
            return SecondOrderForm(self.r)
        return FactorForm(self.r, self.exact)

    def constraint_factor(self, t: Time) -> Tensor:
        """k(t) in the constraint h = k(t) x, for the system as a DAE.

        Raises:
            InvalidArgumentError: this form has no constraint.
        """
        if not isinstance(self._form, FactorForm):
            raise InvalidArgumentError('only form="dae" with variant="paper" has a constraint')
        return factor(as_time(t), self.r)

    @property
    def position_first(self) -> bool:
        """Whether h' is the second component, as Nyström methods need it."""
        return self.form == "second_order"

    def constrained_slope(
        self, t: Tensor, x: Tensor, m: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(x', m') of eq. 14 with the field evaluated at h."""
        f = self.evaluate(t, h)
        if self.exact:
            f = self._form.bracket(t, h, f) * inverse_factor(t, self.r)
        return m, torch.add(m, f).neg()

    def to_constrained(self, t: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(x, m) of the components of the state."""
        inverse = inverse_factor(t, self.r)
        return inverse * state[0], inverse * state[1]

    def from_constrained(self, t: Tensor, x: Tensor, m: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The components of the state."""
        return h, factor(t, self.r) * m

    def as_dae(self) -> MassMatrixForm:
        """The same system with h kept as an algebraic variable.

        Raises:
            InvalidArgumentError: this form has no constraint.
        """
        self.constraint_factor(1.0)
        return MassMatrixForm(self)

    def initial_state(self, h0: Tensor, dh0: Tensor | None = None, t0: Time = 0.0) -> Tensor:
        return torch.stack(self._form.start(h0, self.start(h0, dh0), t0))

    def forward(self, t: Tensor, state: Tensor, *args: Any) -> Tensor:
        f = self.evaluate(t, self._form.feature(t, state[0]), *args)
        return self._form.slope(t, state, f)

    def readout(self, t: Time, state: Tensor) -> Tensor:
        return self._form.readout(as_time(t), state[0])

    def velocity(self, t: Time, state: Tensor) -> Tensor:
        return self._form.velocity(as_time(t), state[0], state[1])

    def extra_repr(self) -> str:
        exact = f", exact={self.exact}" if self.form == "dae" else ""
        return (
            f"r={self.r:g}, form={self.form!r}{exact}, variant={self.variant!r}, "
            f"{super().extra_repr()}"
        )
