"""Problem: what every backend receives. All validation happens here, once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InvalidArgumentError, UnsupportedError

State = Any  # a tensor, or a tuple of tensors


class Structure:
    """How the user's state (a tensor or a tuple of tensors) lies in one flat vector."""

    __slots__ = ("is_tuple", "shapes", "sizes", "total")

    def __init__(self, value: State):
        self.is_tuple = not isinstance(value, Tensor)
        parts = value if self.is_tuple else (value,)
        self.shapes = tuple(tuple(part.shape) for part in parts)  # view() reads torch.Size slowly
        self.sizes = [part.numel() for part in parts]
        self.total = sum(self.sizes)

    def pack(self, value: State) -> Tensor:
        """The flat vector (N,) of a state."""
        if self.is_tuple:
            return torch.cat([part.reshape(-1) for part in value])
        return value.reshape(-1)

    def unpack(self, flat: Tensor, lead: tuple[int, ...] = ()) -> State:
        """The state of a flat vector (*lead, N)."""
        if not self.is_tuple:
            return flat.view(lead + self.shapes[0])
        parts = flat.split(self.sizes, dim=-1)
        return tuple(p.reshape(lead + s) for p, s in zip(parts, self.shapes, strict=True))

    def check_output(self, out: State, flat: Tensor) -> None:
        """Raise where the field's output does not fit the state, naming both."""
        if self.is_tuple != (not isinstance(out, Tensor)):
            wanted = "a tuple of tensors" if self.is_tuple else "a tensor"
            raise InvalidArgumentError(
                f"the field must return {wanted}, like y0; it returned {type(out).__name__}"
            )
        parts = tuple(out) if self.is_tuple else (out,)
        shapes = tuple(p.shape for p in parts)
        if shapes != self.shapes:
            raise InvalidArgumentError(
                f"the field must return the shape of its state: wanted {_show(self.shapes)}, "
                f"got {_show(shapes)}"
            )
        for part in parts:
            if part.dtype != flat.dtype or part.device != flat.device:
                raise InvalidArgumentError(
                    f"the field must keep dtype and device of y0: wanted {flat.dtype} on "
                    f"{flat.device}, got {part.dtype} on {part.device}"
                )


def _show(shapes: Sequence[torch.Size]) -> str:
    shown = [tuple(s) for s in shapes]
    return str(shown[0]) if len(shown) == 1 else str(shown)


@dataclass
class Problem:
    """dy/dt = func(t, y), y(t[0]) = y0, wanted at the times t.

    Attributes:
        func: the user's callable on the user's state: ``func(t, y) -> dy/dt``.
        y0: the flat initial state, shape (N,).
        t: the requested times, shape (T,), strictly monotone.
        times: the same as Python floats.
        structure: how the flat state maps to the user's.
        explicit_params: the tensors that the user named for a continuous adjoint, or None.
        mass: diagonal (N,) of the mass matrix in mass * dy/dt = func(t, y), or None for ones.
        repeats: where the user asked for times repeatedly, the row of each; else None.
        second_order: the first half of y has the second half as its derivative.
    """

    func: Callable[[Tensor, State], State]
    y0: Tensor
    t: Tensor
    times: list[float]
    structure: Structure
    explicit_params: tuple[Tensor, ...] | None = None
    mass: Tensor | None = None
    second_order: bool = False
    repeats: tuple[int, ...] | None = None

    @cached_property
    def params(self) -> tuple[Tensor, ...]:
        """Tensors for which a continuous adjoint computes gradients."""
        if self.explicit_params is not None:
            return self.explicit_params
        found = self.func.parameters() if isinstance(self.func, nn.Module) else ()
        return tuple(p for p in found if p.requires_grad)

    @property
    def time_dtype(self) -> torch.dtype:
        """Real dtype in which times are handed to ``func``: that of the state."""
        return self.y0.dtype.to_real() if self.y0.is_complex() else self.y0.dtype

    @classmethod
    def build(
        cls,
        func: Callable[[Tensor, State], State],
        y0: State,
        t: Tensor | Sequence[float],
        params: Sequence[Tensor] | None = None,
        single_time: bool = False,
    ) -> Problem:
        """Validate the user's arguments and bring them into the one form that backends take.

        Raises:
            InvalidArgumentError: naming the argument, what came and what is wanted.
            UnsupportedError: half-precision states.
        """
        if not callable(func):
            raise InvalidArgumentError(
                f"func must be callable as func(t, y), got {type(func).__name__}"
            )
        y0 = _check_state(y0)
        structure = Structure(y0)
        flat = structure.pack(y0)
        t = _check_times(t, flat, single_time)
        named = None if params is None else _check_params(params)
        times = _numbers(t)
        _check_monotone(times, single_time)
        t, times, repeats = _without_repeats(t, times)
        # asked of the type: a module that lacks it searches its parameters and buffers at length
        kind = type(func)
        mass = None
        if hasattr(kind, "mass_of"):
            mass = _check_mass(func.mass_of(y0), structure, flat)
        second_order = hasattr(kind, "position_first") and func.position_first
        return cls(func, flat, t, times, structure, named, mass, second_order, repeats)


def _numbers(t: Tensor) -> list[float]:
    try:
        return t.detach().tolist()
    except RuntimeError:  # within torch.func's transforms, before torch 2.5
        return [float(x) for x in t.detach()]


def _check_mass(mass: State, structure: Structure, like: Tensor) -> Tensor:
    """The diagonal of the mass matrix on the flat state."""
    parts = (mass,) if isinstance(mass, Tensor) else tuple(mass)
    if len(parts) != len(structure.shapes):
        raise InvalidArgumentError(
            f"mass has {len(parts)} part(s), the state {len(structure.shapes)}"
        )
    flat = []
    for part, shape in zip(parts, structure.shapes, strict=True):
        try:
            flat.append(part.to(like).expand(shape).reshape(-1))
        except RuntimeError:
            raise InvalidArgumentError(
                f"mass has shape {tuple(part.shape)}, which does not fit the state's {shape}"
            ) from None
    found = torch.cat(flat).detach()
    if not bool(found.isfinite().all()):
        raise InvalidArgumentError("mass must be finite")
    return found


def _check_params(params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    params = tuple(params)
    for p in params:
        if not isinstance(p, Tensor):
            raise InvalidArgumentError(
                f"adjoint_params must be tensors, got an element of type {type(p).__name__}"
            )
    return tuple(p for p in params if p.requires_grad)


def _check_state(y0: State) -> State:
    if isinstance(y0, Tensor):
        parts: tuple[Any, ...] = (y0,)
    elif isinstance(y0, (tuple, list)) and y0:
        parts = y0 = tuple(y0)
    else:
        raise InvalidArgumentError(
            f"y0 must be a tensor or a non-empty tuple of tensors, got {type(y0).__name__}"
        )
    first = parts[0]
    for i, part in enumerate(parts):
        name = "y0" if isinstance(y0, Tensor) else f"y0[{i}]"
        if not isinstance(part, Tensor):
            raise InvalidArgumentError(f"{name} must be a tensor, got {type(part).__name__}")
        if part.dtype in (torch.float16, torch.bfloat16):
            raise UnsupportedError(
                f"{name} is {part.dtype}: a step size cannot be controlled in half precision. Keep "
                "the state in float32 and use torch.autocast inside the field."
            )
        if not (part.is_floating_point() or part.is_complex()):
            raise InvalidArgumentError(
                f"{name} must be floating point or complex, got {part.dtype}; use {name}.float()"
            )
        if part.dtype != first.dtype or part.device != first.device:
            raise InvalidArgumentError(
                f"all parts of y0 must share dtype and device: y0[0] is {first.dtype} on "
                f"{first.device}, {name} is {part.dtype} on {part.device}"
            )
    return y0


def _check_times(t: Tensor | Sequence[float], flat: Tensor, single_time: bool) -> Tensor:
    if not isinstance(t, Tensor):
        try:
            t = torch.tensor([float(x) for x in t], dtype=torch.float64, device=flat.device)
        except (TypeError, ValueError):
            raise InvalidArgumentError(
                f"t must be a 1-d tensor or a sequence of numbers, got {t!r}"
            ) from None
    if t.ndim != 1:
        raise InvalidArgumentError(f"t must have one dimension, got shape {tuple(t.shape)}")
    if t.is_complex() or not t.is_floating_point():
        raise InvalidArgumentError(f"t must be of a real floating dtype, got {t.dtype}")
    least = 1 if single_time else 2
    if t.numel() < least:
        raise InvalidArgumentError(f"t must hold at least {least} times, got {t.numel()}")
    if t.device != flat.device and t.device.type != "cpu":
        raise InvalidArgumentError(f"t is on {t.device} but y0 is on {flat.device}")
    return t


def _without_repeats(
    t: Tensor, times: list[float]
) -> tuple[Tensor, list[float], tuple[int, ...] | None]:
    """Times without repetitions, and the row of every one asked for where there were any."""
    kept = [i for i, x in enumerate(times) if i == 0 or x != times[i - 1]]
    if len(kept) == len(times):
        return t, times, None
    rows = tuple(sum(k <= i for k in kept) - 1 for i in range(len(times)))
    return t[kept], [times[i] for i in kept], rows


def _check_monotone(times: list[float], single_time: bool) -> None:
    if not all(math.isfinite(x) for x in times):
        raise InvalidArgumentError(f"t must be finite, got {times}")
    if len(times) == 1:
        return
    sign = 1 if times[-1] > times[0] else -1
    for i in range(len(times) - 1):
        if times[0] == times[-1] or sign * (times[i + 1] - times[i]) < 0:
            raise InvalidArgumentError(
                "t must be increasing or decreasing, with at least two different times, but "
                f"t[{i}] = {times[i]:g} and t[{i + 1}] = {times[i + 1]:g}"
            )
