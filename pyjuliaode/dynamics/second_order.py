"""What the models of second order share: two components and an initial velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError
from .base import Dynamics, Time, check_h0
from .field import Field

# Learned (a module called on h0, a parameter) or fixed (a tensor, a number); None is zero.
Velocity = nn.Module | Callable[[Tensor], Tensor] | Tensor | float | None


class SecondOrderDynamics(Dynamics):
    """Base class of the models of second order; their state is (2, *h.shape).

    Arguments:
        field: see :class:`Dynamics`.
        initial_velocity: the second component at the first time, where ``initial_state`` gets no
            ``dh0``: a module or callable on h0, a parameter or tensor that broadcasts to h0, a
            number, or None for zero.
        time_dependent: see :class:`Dynamics`.
    """

    K: ClassVar[int] = 2
    order: ClassVar[int] = 2
    initial_velocity: Any

    def __init__(
        self,
        field: Field,
        initial_velocity: Velocity = None,
        time_dependent: bool | None = None,
    ):
        super().__init__(field, time_dependent)
        if isinstance(initial_velocity, Tensor) and not isinstance(initial_velocity, nn.Parameter):
            self.register_buffer("initial_velocity", initial_velocity)
        else:
            self.initial_velocity = initial_velocity

    def start(self, h0: Tensor, dh0: Tensor | float | None) -> Tensor | None:
        """The velocity at the first time, of the shape of h0; None is zero.

        Raises:
            InvalidArgumentError: h0 is not floating point, or the velocity does not fit it.
        """
        check_h0(h0)
        value = self.initial_velocity if dh0 is None else dh0
        if value is None:
            return None
        if callable(value):  # a network has to match exactly: broadcasting would hide a mistake
            value = value(h0)
            if value.shape != h0.shape:
                raise _wrong_velocity(value, h0)
            return value
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value, device=h0.device)
        try:
            return value.to(h0.dtype).expand(h0.shape)
        except RuntimeError:
            raise _wrong_velocity(value, h0) from None

    def initial_state(self, h0: Tensor, dh0: Tensor | None = None, t0: Time = 0.0) -> Tensor:
        velocity = self.start(h0, dh0)
        return torch.stack((h0, torch.zeros_like(h0) if velocity is None else velocity))

    def velocity(self, t: Time, state: Tensor) -> Tensor:
        return state[1]

    def extra_repr(self) -> str:
        value = self.initial_velocity
        if isinstance(value, nn.Module):  # shown as a child already
            return f"time_dependent={self.time_dependent}"
        if isinstance(value, Tensor):
            value = f"{type(value).__name__}{tuple(value.shape)}"
        return f"initial_velocity={value}, time_dependent={self.time_dependent}"


def _wrong_velocity(value: Tensor, h0: Tensor) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the initial velocity has shape {tuple(value.shape)}, which does not fit h0 of shape "
        f"{tuple(h0.shape)}"
    )
