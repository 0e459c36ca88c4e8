"""First-order models: NODE, and ANODE that augments the feature with zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .base import Dynamics, Time, check_h0, feature_dim
from .field import Field


class NODE(Dynamics):
    """Neural ODE: h' = f(t, h).

    State (1, *h.shape), or h itself where its first dimension is not 1: so NODE(field) is also a
    func(t, y) of solve and odeint for a field f(h). Learned: the field alone. Source: Chen et al.,
    arXiv 1806.07366, eq. 2.

    Arguments:
        field: the network, f(h) or f(t, h), of the shape of h.
        time_dependent: see :class:`Dynamics`.

    Raises:
        InvalidArgumentError: an initial velocity is given; see also :class:`Dynamics`.
    """

    def initial_state(self, h0: Tensor, dh0: Tensor | None = None, t0: Time = 0.0) -> Tensor:
        check_h0(h0)
        if dh0 is not None:
            raise InvalidArgumentError(
                f"{type(self).__name__} is of first order and takes no initial velocity; "
                "leave dh0 out, or use a model of second order"
            )
        return h0.unsqueeze(0)

    def check_state(self, y0: object) -> None:
        if not isinstance(y0, Tensor) or type(self).initial_state is not NODE.initial_state:
            super().check_state(y0)

    def forward(self, t: Tensor, state: Tensor, *args: Any) -> Tensor:
        if state.ndim == 0 or state.shape[0] != 1:
            return self.evaluate(t, state, *args)
        return self.evaluate(t, state[0], *args).unsqueeze(0)

    def extra_repr(self) -> str:
        return f"time_dependent={self.time_dependent}"


class ANODE(NODE):
    """Augmented neural ODE: h' = f(t, h) on h padded with zeros.

    State (1, *h.shape) with ``augment`` more entries in dimension ``dim`` than h0 has; the
    read-out is the whole augmented h. Learned: the field alone.
    Source: Dupont et al., arXiv 1904.01681.

    Arguments:
        field: the network on the augmented h.
        augment: number of zeros (vectors) or of zero channels (images) appended.
        dim: the dimension that is padded: features of (B, D), channels of (B, C, H, W). The only
            one where h0 is one-dimensional.
        time_dependent: see :class:`Dynamics`.

    Raises:
        InvalidArgumentError: ``augment`` is not a positive integer, h0 lacks the dimension; see
            also :class:`NODE`.
    """

    def __init__(
        self, field: Field, augment: int = 1, dim: int = 1, time_dependent: bool | None = None
    ):
        super().__init__(field, time_dependent)
        if not isinstance(augment, int) or augment < 1:
            raise InvalidArgumentError(f"augment must be an integer >= 1, got {augment!r}")
        self.augment = augment
        self.dim = dim

    def initial_state(self, h0: Tensor, dh0: Tensor | None = None, t0: Time = 0.0) -> Tensor:
        check_h0(h0)
        dim = feature_dim(h0, self.dim)
        shape = list(h0.shape)
        shape[dim] = self.augment
        return super().initial_state(torch.cat((h0, h0.new_zeros(shape)), dim), dh0, t0)

    def extra_repr(self) -> str:
        return f"augment={self.augment}, dim={self.dim}, {super().extra_repr()}"
