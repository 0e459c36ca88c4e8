"""Case: what every competitor is given, and what it gives back."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, UnsupportedError
from ..layer import NeuralODE
from ..problem import Problem, State, Structure

Loss = Callable[[State], Tensor]


@dataclass(frozen=True)
class Case:
    """An initial value problem with a loss on its trajectory.

    Attributes:
        func: the right-hand side, func(t, y).
        y0: initial state, a tensor or a tuple of tensors, without a graph.
        t: output times, shape (T,), strictly monotone, float64 on the CPU.
        params: tensors whose gradients are compared.
        loss: a scalar of the states at ``t``, shape (T, *y0.shape) (or a tuple of such).
        structure: how the state lies in one flat vector of N numbers.
    """

    func: Callable[[Tensor, State], State]
    y0: State
    t: Tensor
    params: tuple[Tensor, ...]
    loss: Loss
    structure: Structure

    @classmethod
    def build(
        cls,
        func: Callable[[Tensor, State], State],
        y0: State,
        t: Tensor | Sequence[float],
        params: Sequence[Tensor] | None,
        loss: Loss | None,
    ) -> Case:
        """Validate the arguments of :func:`crosscheck`.

        Raises:
            InvalidArgumentError, UnsupportedError: see :func:`crosscheck`.
        """
        if isinstance(func, NeuralODE):
            func = func.dynamics
            with torch.no_grad():
                y0 = func.initial_state(y0, t0=float(t[0]))
        problem = Problem.build(func, y0, t, params)
        if problem.repeats is not None:
            raise InvalidArgumentError("t must not repeat a time here: every output is compared")
        if problem.mass is not None:
            raise UnsupportedError(
                "crosscheck compares ordinary differential equations, and func has a mass matrix: "
                "check the system with its algebraic variables eliminated"
            )
        if problem.y0.is_complex():
            raise UnsupportedError(
                "crosscheck compares real states: torch.view_as_real makes a real one of y0"
            )
        flat, structure = problem.y0.detach().clone(), problem.structure
        times = torch.tensor(problem.times, dtype=torch.float64)
        loss = weighted_sum(structure, len(times)) if loss is None else loss
        return cls(func, structure.unpack(flat), times, problem.params, loss, structure)

    @property
    def dtype(self) -> torch.dtype:
        return self._parts[0].dtype

    @property
    def device(self) -> torch.device:
        return self._parts[0].device

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.y0 if self.structure.is_tuple else (self.y0,)

    def start(self) -> State:
        """The initial state as a new leaf of autograd."""
        parts = tuple(part.clone().requires_grad_() for part in self._parts)
        return parts if self.structure.is_tuple else parts[0]

    def flat(self, states: State) -> Tensor:
        """States (T, *y0.shape), or a tuple of such, as (T, N)."""
        parts = states if self.structure.is_tuple else (states,)
        return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)

    def gradient(self, states: State, y0: State) -> Gradient:
        """The loss's gradient with respect to the initial state and the parameters."""
        inputs = (*(y0 if self.structure.is_tuple else (y0,)), *self.params)
        loss = self.loss(states)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InvalidArgumentError("loss must return a tensor with one element")
        found = torch.autograd.grad(loss.reshape(()), inputs, allow_unused=True)
        grads = [
            torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)
        ]
        n = len(inputs) - len(self.params)
        return Gradient(_vector(grads[:n]), _vector(grads[n:]))

    def in_float64(self) -> Case:
        """The same problem in float64; of a module with a copy of its own.

        Raises:
            InvalidArgumentError: func cannot be copied, or computes in another precision.
        """
        if self.dtype == torch.float64:
            return self
        func, params = _double(self.func, self.params)
        parts = tuple(part.double() for part in self._parts)
        y0 = parts if self.structure.is_tuple else parts[0]
        exact = replace(self, func=func, y0=y0, params=params)
        exact._try_out()
        return exact

    def _try_out(self) -> None:
        try:
            with torch.no_grad():
                out = self.func(self.t[0].to(self.device), self.y0)
        except RuntimeError as error:  # torch's complaint about mixed dtypes
            reason = str(error).splitlines()[0]
        else:
            parts = out if isinstance(out, (tuple, list)) else (out,)
            wrong = {str(part.dtype) for part in parts} - {"torch.float64"}
            if not wrong:
                return
            reason = f"it returned {', '.join(wrong)}"
        raise InvalidArgumentError(
            f"the reference is solved in float64, in which func cannot be evaluated ({reason}): "
            "pass an nn.Module whose tensors are parameters or buffers, or a float64 model and y0"
        )


class Gradient(NamedTuple):
    """Gradients as flat float64 vectors on the CPU: (N,) and (P,), P = 0 without parameters."""

    y0: Tensor
    params: Tensor


@dataclass(frozen=True)
class Outcome:
    """What a competitor found and what it cost.

    Attributes:
        states: at the output times, shape (T, N), float64 on the CPU.
        gradient: None where the competitor finds none.
        nfe_forward, nfe_backward: evaluations, and vector-Jacobian products.
        alongside_forward, alongside_backward: how many of these were made in one call with another.
        n_accepted, n_rejected: steps of the forward solve; None where the package hides them.
        seconds_forward, seconds_backward: wall-clock time.
        retcode: how the solve ended.
    """

    states: Tensor
    gradient: Gradient | None
    nfe_forward: int
    nfe_backward: int | None
    seconds_forward: float
    seconds_backward: float | None
    n_accepted: int | None = None
    n_rejected: int | None = None
    alongside_forward: int = 0
    alongside_backward: int = 0
    retcode: str = "Success"


def weighted_sum(structure: Structure, n_times: int) -> Loss:
    """The default loss: all states times fixed random weights, so that every output counts."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n_times, structure.total, generator=generator, dtype=torch.float64)

    def loss(states: State) -> Tensor:
        parts = states if structure.is_tuple else (states,)
        flat = torch.cat([part.reshape(n_times, -1) for part in parts], dim=1)
        return (flat.double() * weight.to(flat.device)).sum()

    return loss


def clock(device: torch.device) -> float:
    """Seconds, after all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _vector(tensors: Iterable[Tensor]) -> Tensor:
    flat = [x.detach().reshape(-1).double().cpu() for x in tensors]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)


def _double(func: Any, params: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...]]:
    """A float64 copy of a module, and its parameters in the order of ``params``.

    A function has no copy; where it promotes to float64 by itself, it is its own.
    """
    if not isinstance(func, nn.Module):
        return func, params
    memo: dict[int, Any] = {}
    try:
        # .double() converts in place, so that the memo still leads to the copy's parameters
        twin = copy.deepcopy(func, memo).double()
    except Exception as error:  # whatever an attribute's __deepcopy__ raises
        raise InvalidArgumentError(
            f"the reference needs a float64 copy of func, and copy.deepcopy of "
            f"{type(func).__name__} fails ({error}): pass a float64 model and y0"
        ) from error
    missing = [p for p in params if id(p) not in memo]
    if missing:
        raise InvalidArgumentError(
            f"{len(missing)} of params belong(s) to no submodule of func, so that its float64 "
            "copy does not have them: register them in func, or pass a float64 model and y0"
        )
    return twin, tuple(memo[id(p)] for p in params)
