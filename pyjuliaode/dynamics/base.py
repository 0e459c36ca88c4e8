"""Dynamics: a module that turns a field into the right-hand side of a first-order system."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, add_note, warn
from ..signature import itself
from .field import Field, takes_time, wrong_output

Time = float | Tensor


_MADE = "_pyjuliaode_state"  # an attribute of the tensors that initial_state returns


def marked(state: Tensor) -> Tensor:
    """The tensor, known to be a state from now on."""
    setattr(state, _MADE, True)
    return state


def _marked(initial_state: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An ``initial_state`` whose tensor is known to be a state."""

    @wraps(initial_state)
    def marking(self: Dynamics, *args: Any, **kwargs: Any) -> Tensor:
        return marked(initial_state(self, *args, **kwargs))

    return marking


class Dynamics(nn.Module):
    """Base class of the models: state' = dynamics(t, state), h = dynamics.readout(t, state).

    The state stacks ``K`` components of the shape of the hidden feature h in a leading dimension,
    (K, *h.shape). h may be a vector (D,), a batch (B, D), images (B, C, H, W) or any other shape.
    Times are 0-d tensors, or of shape (B, 1, ..., 1), one time for every sample; ``readout``,
    ``velocity`` and the initial time also take Python numbers.

    A subclass defines :meth:`initial_state` and :meth:`forward`, and calls the field through
    :meth:`evaluate`.

    Arguments:
        field: the network, an nn.Module or callable, f(h) or f(t, h). Which of the two is read
            once from its signature: two required positional arguments are (t, h), and of three or
            more the first is t if it is called so. The ``args`` of a solve follow behind.
        time_dependent: True for f(t, h), False for f(h); overrides the signature.

    Raises:
        InvalidArgumentError: the field is not callable or its signature is ambiguous; later, the
            field returns a wrong shape.
    """

    K: ClassVar[int] = 1
    order: ClassVar[int] = 1

    def __init__(self, field: Field, time_dependent: bool | None = None):
        super().__init__()
        if isinstance(itself(field), Dynamics):
            kind, own = type(itself(field)).__name__, type(self).__name__
            raise InvalidArgumentError(
                f"the field of {own} is itself a dynamics, {kind}: pass it as it is, as in "
                f"NeuralODE({kind}(...)), or make a {own} of its field"
            )
        if time_dependent is None or not callable(field):
            time_dependent = takes_time(field)
        self.field = field
        self.time_dependent = time_dependent

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "initial_state" in vars(cls):
            cls.initial_state = _marked(cls.initial_state)  # type: ignore[method-assign]

    @property
    def n_components(self) -> int:
        """How many components of the shape of h the state stacks."""
        return self.K

    def evaluate(self, t: Tensor, h: Tensor, *args: Any, like: Tensor | None = None) -> Tensor:
        """The field at (t, h, *args), of the shape of ``like`` (default: of h)."""
        try:
            out = self.field(t, h, *args) if self.time_dependent else self.field(h, *args)
        except Exception as error:
            name, time = type(self).__name__, "t and " if self.time_dependent else ""
            shown = f"an input of shape {tuple(h.shape)} {h.dtype}"
            add_note(error, f"({name} called its field with {time}{shown})")
            raise
        wanted = h if like is None else like
        if not isinstance(out, Tensor) or out.shape != wanted.shape:
            raise wrong_output(out, h, wanted)
        return out

    def initial_state(self, h0: Tensor, dh0: Tensor | None = None, t0: Time = 0.0) -> Tensor:
        """The state (K, *h.shape) at the first time ``t0``.

        Arguments:
            h0: the hidden feature at t0.
            dh0: its time derivative at t0, for models of second order.
            t0: first time of the span.

        Raises:
            InvalidArgumentError: a value does not fit the model or the shape of h0.
        """
        raise NotImplementedError

    def forward(self, t: Tensor, state: Tensor, *args: Any) -> Tensor:
        """d(state)/dt, of the shape of ``state``; ``args`` go to the field."""
        raise NotImplementedError

    def check_state(self, y0: object) -> None:
        """Raise where ``y0`` cannot be a state of this model; warn where it may well be none.

        Raises:
            InvalidArgumentError: no tensor, or not K components in dimension 0.
        """
        name, k = type(self).__name__, self.n_components
        if not isinstance(y0, Tensor):
            raise InvalidArgumentError(
                f"the state of {name} is one tensor of shape ({k}, *h.shape), y0 is "
                f"{type(y0).__name__}: make it with initial_state(h0), or use NeuralODE"
            )
        if y0.ndim == 0 or y0.shape[0] != k:
            raise InvalidArgumentError(
                f"the state of {name} has shape ({k}, *h.shape), y0 has {tuple(y0.shape)}: make it "
                f"with initial_state(h0), or let NeuralODE({name}(field), t)(h0) do so"
            )
        if y0.ndim == 2 and k > 1 and not hasattr(y0, _MADE):
            warn(
                f"y0 of shape {tuple(y0.shape)} is taken as the {k} components of one vector, "
                f"which {name} stacks in dimension 0, not as a batch of {k}: make states with "
                "initial_state(h0)"
            )

    def readout(self, t: Time, state: Tensor) -> Tensor:
        """The hidden feature h at one time."""
        return state[0]

    def velocity(self, t: Time, state: Tensor, *args: Any) -> Tensor:
        """dh/dt at one time; where the state does not hold it, one evaluation of the field."""
        # The field sees times as a solver gives them: in the state's dtype, on its device.
        t = as_time(t).to(dtype=state.dtype.to_real(), device=state.device)
        return self(t, state, *args)[0]


def as_time(t: Time) -> Tensor:
    """A tensor as it is; a number as a 0-d float64 tensor, which promotes no other tensor."""
    return t if isinstance(t, Tensor) else torch.tensor(float(t), dtype=torch.float64)


def as_number(t: Time) -> float:
    """The value of a time, for checks: of a tensor without its gradient."""
    return float(t.detach() if isinstance(t, Tensor) else t)


def check_h0(h0: Tensor) -> None:
    """Raise where h0 is not a tensor of floating point (or complex) numbers."""
    if not isinstance(h0, Tensor) or not (h0.is_floating_point() or h0.is_complex()):
        got = h0.dtype if isinstance(h0, Tensor) else type(h0).__name__
        raise InvalidArgumentError(f"h0 must be a floating point tensor, got {got}")


def feature_dim(h: Tensor, dim: int) -> int:
    """``dim``, or -1 where h has one dimension only.

    Raises:
        InvalidArgumentError: h has no such dimension.
    """
    if h.dim() == 1:
        return -1
    if not -h.dim() <= dim < h.dim():
        raise InvalidArgumentError(f"h of shape {tuple(h.shape)} has no dimension {dim}")
    return dim
