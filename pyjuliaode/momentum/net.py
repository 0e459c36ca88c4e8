"""MomentumNet: a residual network with momentum."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import opaque
from ..errors import InvalidArgumentError, unknown_name
from ..problem import parameters_of
from ..refusal import refuse_transforms
from . import reversible
from .calls import residual, value
from .exact import ExactState, Ratio

MODES = ("backprop", "reversible")


class MomentumNet(nn.Module):
    """v <- gamma v + (1 - gamma) f_k(x), x <- x + v, for k = 0, 1, ... (Sander et al. 2021, eq. 4).

    gamma = 0 is the residual network x <- x + f_k(x); with one function for all layers the network
    is a discretisation of eps x'' + x' = f(x), eps = 1 / (1 - gamma).

    ``mode="backprop"`` keeps activations for the backward pass, as any network.
    ``mode="reversible"`` keeps none: the layers are undone, bit for bit, by exact arithmetic, and
    their functions called again; memory does not depend on the depth, but for log2(1/gamma) bits of
    every element of x a layer. Both give the same gradients up to rounding. In this mode random
    numbers of torch are drawn again as they were, running statistics are updated once, autocast
    is entered again; every function must give the same value for the same x, which is checked; and
    gradients cannot be differentiated again. gamma is taken as a fraction: 0.9 is 9/10, others are
    met to 2^-36 or so. Rows of x, which its first two dimensions index (of two, the first), have
    units of their own, 2^-50 of their largest number or less (float32: 2^-34); one that is not
    finite is NaN from there on, and leaves the others as they are. Threads may share a network.

    Arguments:
        functions: modules f(x, *args, **kwargs) -> a tensor of the shape of x; the same one may
            occur many times (tied weights).
        gamma: momentum, 0 <= gamma <= 1; 0 < gamma in mode "reversible".
        init_speed: 0, or a module for the first v = init_speed(x).
        mode: "backprop" or "reversible"; may be changed later.
        residual: whether the functions return f(x); if False they return x + f(x), their skip
            connection inside, and x is subtracted.

    Raises:
        InvalidArgumentError: an argument that is none of these.
    """

    def __init__(
        self,
        functions: Iterable[nn.Module],
        gamma: float = 0.9,
        init_speed: float | nn.Module = 0,
        mode: str = "backprop",
        residual: bool = True,
    ):
        super().__init__()
        functions = list(functions)
        for k, f in enumerate(functions):
            if not isinstance(f, nn.Module):
                raise InvalidArgumentError(
                    f"functions[{k}] must be a torch.nn.Module, got {type(f).__name__}"
                )
        if not functions:
            raise InvalidArgumentError("functions must hold at least one module, got none")
        if not isinstance(init_speed, nn.Module) and init_speed != 0:
            raise InvalidArgumentError(f"init_speed must be 0 or a module, got {init_speed!r}")
        self.functions = nn.ModuleList(functions)
        self.init_speed = init_speed if isinstance(init_speed, nn.Module) else None
        self.gamma, self.residual = _momentum(gamma), bool(residual)
        self.mode = mode

    @property
    def mode(self) -> str:
        """ "backprop" or "reversible"."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        if mode == "reversible" and self.gamma == 0:
            raise InvalidArgumentError(
                "gamma must be positive in mode 'reversible', got 0: a residual network forgets "
                "its speed, and cannot be undone; use mode='backprop'"
            )
        if mode == "reversible":
            Ratio.of(self.gamma)  # raises where there is none
        self._mode = mode

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.functions)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x after the last layer, of the shape of x; see :meth:`flow`."""
        return self.flow(x, *args, **kwargs)[0]

    def flow(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(x, v) after the last layer, each of the shape of x.

        Arguments:
            x: a real floating-point tensor of any shape.
            args, kwargs: passed to every function; gradients flow to the tensors among them.

        Raises:
            InvalidArgumentError: x, or what a function returned, is not fitting; in mode
                "reversible", a function has forward hooks, changes a buffer, or uses tensors that
                require gradients and are neither its parameters nor arguments.
            UnsupportedError: in mode "reversible", under torch.func or forward-mode
                differentiation.
            SolverError: in mode "reversible", no row of x is finite; from backward(): a function
                gave another value when it was called again, or has changed; says what has.
        """
        v = self._start(x)
        if self.mode == "backprop" or not self._differentiates(x, v, args, kwargs):
            return self._plain(x, v, args, kwargs)
        refuse_transforms("a MomentumNet in mode 'reversible'", reversible.BACKPROP)
        return self._reversible(x, v, args, kwargs)

    @opaque(
        "a reversible network reads numbers from its state in every layer, so it is not traced. "
        "Leave out fullgraph=True, or use mode='backprop'"
    )
    def _reversible(self, x: Tensor, v: Tensor, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        return reversible.run(self._task(args, kwargs), x, v)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The first (x, v), found again from the last by undoing all layers exactly.

        As the backward pass of mode "reversible" does it; the result is x and v to the last bit.

        Raises:
            SolverError: a function gave another value when it was called again.
        """
        if self.gamma == 0:
            raise InvalidArgumentError("gamma is 0: a residual network cannot be undone")
        task = self._task(args, kwargs)
        v = self._start(x)
        state = reversible.forward(task, x, v, task.tensors)
        reversible.undone(task, state, task.tensors, lambda *_: None)
        # the digits of x and v below those of the state, which no layer has seen
        rounded = ExactState(x, v, self.gamma)
        return state.value() + (x - rounded.value()), state.speed() + (v - rounded.speed())

    def extra_repr(self) -> str:
        return f"depth={self.depth}, gamma={self.gamma:g}, mode={self.mode!r}"

    def _task(self, args: Any, kwargs: Any) -> reversible.Task:
        return reversible.Task(list(self.functions), self.gamma, not self.residual, args, kwargs)

    def _start(self, x: Tensor) -> Tensor:
        """The first v."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise InvalidArgumentError(f"x must be a real floating-point tensor, got {what}")
        if self.init_speed is None:
            return torch.zeros_like(x)
        v = self.init_speed(x)
        if not isinstance(v, Tensor) or v.shape != x.shape:
            what = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
            raise InvalidArgumentError(
                f"init_speed must return a tensor of the shape of x, {tuple(x.shape)}, got {what}"
            )
        return v.to(x.dtype)

    def _differentiates(self, x: Tensor, v: Tensor, args: Any, kwargs: Any) -> bool:
        if not torch.is_grad_enabled():
            return False
        given = [a for a in chain(args, kwargs.values()) if isinstance(a, Tensor)]
        params = chain.from_iterable(map(parameters_of, self.functions))
        everything = chain((x, v), given, params)
        return any(tensor.requires_grad for tensor in everything)

    def _plain(self, x: Tensor, v: Tensor, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        gamma = self.gamma
        if gamma == 0 and not self.residual:
            return self._ordinary(x, args, kwargs)
        for k, function in enumerate(self.functions):
            f = residual(function, k, not self.residual, x, args, kwargs)
            v = torch.add(gamma * v, f, alpha=1 - gamma)
            x = x + v
        return x, v

    def _ordinary(self, x: Tensor, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        """Without momentum: what the functions give by themselves, to the last bit.

        x + (function(x) - x) would be rounded.
        """
        for k, function in enumerate(self.functions):
            before, x = x, value(function, k, x, args, kwargs)
        return x, x - before


def _momentum(gamma: float) -> float:
    try:
        value = float(gamma)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise InvalidArgumentError(f"gamma must be a number within 0 and 1, got {gamma!r}")
    return value
