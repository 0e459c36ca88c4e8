"""Problem: what every backend receives. All validation happens here, once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ._torch import unknown_when_run
from .args import Args
from .arguments import as_float, in_order, shown
from .errors import InvalidArgumentError, UnsupportedError
from .signature import check_func, itself

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
        if lead:  # a result: what comes of split() cannot be changed in place
            ends = accumulate(self.sizes)
            parts = [flat[..., end - n : end] for n, end in zip(self.sizes, ends, strict=True)]
        else:
            parts = flat.split(self.sizes, dim=-1)
        return tuple(p.reshape(lead + s) for p, s in zip(parts, self.shapes, strict=True))

    def copied(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The parts (T, *shape) of flat rows (T, N), each in memory of its own."""
        parts = self.unpack(rows, (rows.shape[0],))
        return tuple(part.clone() for part in (parts if self.is_tuple else (parts,)))

    def packed(self, parts: Sequence[Tensor]) -> Tensor:
        """Flat rows (T, N) of parts (T, *shape)."""
        flat = [part.reshape(part.shape[0], -1) for part in parts]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)

    def fit(self, out: State, like: Tensor, drop_in: bool) -> Callable[[State], State] | None:
        """What makes outputs such as ``out`` those of the state's dtype and shapes; None: they are.

        Half precision, which comes of autocast inside a field, is widened. What torchdiffeq takes
        beyond that is taken where ``drop_in``: any real dtype, and shapes that it makes those of
        the state, see :meth:`_taken_there`.

        Raises:
            InvalidArgumentError: the field's output does not fit the state; names both.
        """
        if self.is_tuple != isinstance(out, (tuple, list)):
            wanted = "a tuple of tensors" if self.is_tuple else "a tensor"
            raise InvalidArgumentError(
                f"the field must return {wanted}, like y0; it returned {type(out).__name__}"
            )
        parts = tuple(out) if self.is_tuple else (out,)
        for part in parts:
            if not isinstance(part, Tensor):
                what = "a tuple of tensors" if self.is_tuple else "a tensor"
                raise InvalidArgumentError(
                    f"the field must return {what}, like y0; it returned {type(part).__name__}"
                    + (" among them" if self.is_tuple else "")
                )
        shapes = tuple(tuple(p.shape) for p in parts)
        if shapes != self.shapes and not (drop_in and self._taken_there(shapes)):
            raise InvalidArgumentError(
                f"the field must return the shape of its state: wanted {_show(self.shapes)}, "
                f"got {_show(shapes)}"
            )
        for part in parts:
            if part.device != like.device or not _widens(part.dtype, like.dtype, drop_in):
                raise InvalidArgumentError(
                    f"the field must keep dtype and device of y0: wanted {like.dtype} on "
                    f"{like.device}, got {part.dtype} on {part.device}"
                )
        if shapes == self.shapes and all(p.dtype == like.dtype for p in parts):
            return None
        return partial(self._fitted, dtype=like.dtype)

    def _taken_there(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        """Of a tuple, whose parts torchdiffeq lays out in a row: as many numbers in each; of one
        tensor, to which it adds what came: one number, for all elements. A dimension of size 1
        would broadcast too, and is a layer's mistake more often."""
        if self.is_tuple or self.total == 1:
            return [math.prod(s) for s in shapes] == self.sizes
        return math.prod(shapes[0]) == 1 and len(shapes[0]) <= len(self.shapes[0])

    def _fitted(self, out: State, dtype: torch.dtype) -> State:
        if not self.is_tuple:
            shape, out = self.shapes[0], out.to(dtype)
            return out.reshape(shape) if self.total == 1 else out.expand(shape)
        return tuple(p.to(dtype).reshape(s) for p, s in zip(out, self.shapes, strict=True))


HALF = (torch.float16, torch.bfloat16)


def _widens(given: torch.dtype, wanted: torch.dtype, drop_in: bool) -> bool:
    """Whether numbers of one dtype are taken for those of another."""
    if given == wanted:
        return True
    if given.is_complex:
        return drop_in and wanted.is_complex
    return drop_in or (given in HALF and wanted not in HALF)


def _show(shapes: Sequence[tuple[int, ...]]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else str(list(shapes))


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
        repeats: where the user asked for times repeatedly, the times as asked for, and the row of
            each; else None.
        second_order: the first half of y has the second half as its derivative.
        args: further arguments of ``func``, which is called func(t, y, *args).
        drop_in: asked through torchdiffeq's functions, whose ways then hold: what a field may
            return, what a solve that fails raises, NaN of methods without error control.
    """

    func: Callable[[Tensor, State], State]
    y0: Tensor
    t: Tensor
    times: list[float]
    structure: Structure
    explicit_params: tuple[Tensor, ...] | None = None
    mass: Tensor | None = None
    second_order: bool = False
    repeats: tuple[Tensor, tuple[int, ...]] | None = None
    drop_in: bool = False
    args: Args = field(default_factory=Args)

    @cached_property
    def params(self) -> tuple[Tensor, ...]:
        """The parameters: those of the module, or those that the user named; each once."""
        if self.explicit_params is not None:
            return self.explicit_params
        found = parameters_of(self.func) if isinstance(self.func, nn.Module) else ()
        return tuple(p for p in found if p.requires_grad)

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors but y0 and t that get a gradient: parameters, and those among ``args``."""
        known = {id(p) for p in self.params}
        return (*self.params, *(x for x in self.args.tensors if id(x) not in known))

    @property
    def wants_gradient(self) -> bool:
        """Whether a gradient is known to be wanted, where gradients are enabled."""
        return torch.is_grad_enabled() and (self.wants_gradient_of_start or bool(self.tensors))

    @property
    def wants_gradient_of_start(self) -> bool:
        """Whether y0 or the times require a gradient."""
        return self.y0.requires_grad or self.t.requires_grad

    @property
    def time_dtype(self) -> torch.dtype:
        """Real dtype in which times are handed to ``func``: that of the state."""
        return self.y0.dtype.to_real() if self.y0.is_complex() else self.y0.dtype

    def up_to(self, t_end: float) -> Problem:
        """The same until an earlier time, which is then the last that is requested."""
        direction = 1.0 if self.times[-1] > self.times[0] else -1.0
        n = sum(direction * (t_end - t) > 0 for t in self.times)
        t = self.t[:n].to(torch.float64)
        return replace(
            self,
            t=torch.cat([t, t.new_tensor([t_end])]),
            times=[*self.times[:n], t_end],
            repeats=None,
        )

    @classmethod
    def build(
        cls,
        func: Callable[[Tensor, State], State],
        y0: State,
        t: Tensor | Sequence[float],
        params: Sequence[Tensor] | None = None,
        single_time: bool = False,
        drop_in: bool = False,
        args: Any = (),
    ) -> Problem:
        """Validate the user's arguments and bring them into the one form that backends take.

        Raises:
            InvalidArgumentError: naming the argument, what came and what is wanted.
        """
        if not callable(func):
            raise InvalidArgumentError(
                f"func must be callable as func(t, y), got {type(func).__name__}"
            )
        args = Args.of(args)
        check_func(func, len(args.values))
        y0 = _check_state(y0, drop_in)
        # asked of the type: a module that lacks it searches its parameters and buffers at length
        model = itself(func)
        kind = type(model)
        if hasattr(kind, "check_state"):
            model.check_state(y0)
        structure = Structure(y0)
        flat = structure.pack(y0)
        t, times = _check_times(t, flat.device, single_time)
        named = None
        if params is not None:
            named = _check_params("adjoint_params" if drop_in else "params", params)
        _check_monotone(times, single_time)
        t, times, repeats = _without_repeats(t, times)
        mass = None
        if hasattr(kind, "mass_of"):
            mass = _check_mass(model.mass_of(y0), structure, flat)
        second_order = hasattr(kind, "position_first") and model.position_first
        return cls(
            *(func, flat, t, times, structure, named, mass, second_order, repeats, drop_in, args)
        )


def parameters_of(module: nn.Module) -> Iterator[Tensor]:
    """The parameters of a module; those of a copy that DataParallel made are no Parameters."""
    if not getattr(module, "_is_replica", False):
        yield from module.parameters()
        return
    for part in module.modules():
        yield from (x for x in vars(part).values() if isinstance(x, Tensor) and x.requires_grad)


def _numbers(t: Tensor) -> list[float]:
    _refuse_unknown(t)
    try:
        return t.detach().tolist()
    except RuntimeError:  # within torch.func's transforms, before torch 2.5
        return [float(x) for x in t.detach()]


def _refuse_unknown(t: Tensor) -> None:
    if unknown_when_run(t):
        raise UnsupportedError(
            "t is a tensor whose numbers are not known while a model is exported or traced (an "
            "input, or learned), and steps are laid out by them: pass t as a list of numbers"
        )


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


def _check_params(name: str, params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if isinstance(params, (Tensor, nn.Module, str)) or not isinstance(params, Iterable):
        raise InvalidArgumentError(
            f"{name} must be a sequence of tensors, for example tuple(module.parameters()) or "
            f"(tensor,), got {type(params).__name__}"
        )
    params = tuple(params)
    for p in params:
        if not isinstance(p, Tensor):
            raise InvalidArgumentError(
                f"{name} must hold tensors, got an element of type {type(p).__name__}"
            )
    once = {id(p): p for p in params if p.requires_grad}
    return tuple(once.values())


def _check_state(y0: State, drop_in: bool) -> State:
    if isinstance(y0, Tensor):
        parts: tuple[Any, ...] = (y0,)
    elif isinstance(y0, (tuple, list)) and y0:
        parts = y0 = tuple(y0)
    else:
        raise InvalidArgumentError(
            f"y0 must be a tensor or a non-empty tuple of tensors, got {type(y0).__name__}"
        )
    for i, part in enumerate(parts):
        _check_part("y0" if isinstance(y0, Tensor) else f"y0[{i}]", part)
    if drop_in and len({part.dtype for part in parts}) > 1:  # as torch.cat has it
        common = parts[0].dtype
        for part in parts:
            common = torch.promote_types(common, part.dtype)
        parts = y0 = tuple(part.to(common) for part in parts)
    first = parts[0]
    for i, part in enumerate(parts):
        name = "y0" if isinstance(y0, Tensor) else f"y0[{i}]"
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


def _check_part(name: str, part: Any) -> None:
    """Raise where a part of the state is no tensor of numbers in memory."""
    if not isinstance(part, Tensor):
        raise InvalidArgumentError(f"{name} must be a tensor, got {type(part).__name__}")
    kind = None
    if part.layout != torch.strided:
        kind, remedy = f"of layout {part.layout}", "use to_dense()"
    elif part.is_nested:
        kind, remedy = "a nested tensor", "use to_padded_tensor()"
    elif part.is_quantized:
        kind, remedy = "quantized", "use dequantize()"
    elif part.device.type == "meta":
        kind, remedy = "on the meta device, which holds no numbers", "use a real one"
    if kind is not None:
        raise InvalidArgumentError(f"{name} must be a dense tensor, but it is {kind}; {remedy}")


def check_times(t: Tensor | Sequence[float]) -> Tensor:
    """Requested times as a tensor: as it is, or of numbers on the host, in float64.

    Raises:
        InvalidArgumentError: fewer than two, not finite, or not monotone.
    """
    device = t.device if isinstance(t, Tensor) else torch.device("cpu")
    t, times = _check_times(t, device, False)
    _check_monotone(times, False)
    return t


def _check_times(
    t: Tensor | Sequence[float], device: torch.device, single_time: bool
) -> tuple[Tensor, list[float]]:
    """The times as a tensor and as numbers."""
    if not isinstance(t, Tensor):
        t, times = _listed(t, device)
    else:
        if t.ndim != 1:
            raise InvalidArgumentError(f"t must have one dimension, got shape {tuple(t.shape)}")
        if not t.is_floating_point():
            raise InvalidArgumentError(
                f"t must be of a real floating dtype, got {t.dtype}; use t.to(torch.float64)"
            )
        if t.device != device and t.device.type != "cpu":
            raise InvalidArgumentError(f"t is on {t.device} but y0 is on {device}")
        times = _numbers(t)
    least = 1 if single_time else 2
    if len(times) < least:
        raise InvalidArgumentError(f"t must hold at least {least} times, got {len(times)}")
    return t, times


def _listed(t: Any, device: torch.device) -> tuple[Tensor, list[float]]:
    """A sequence of numbers as a tensor, through which those that are tensors get gradients."""
    parts = list(t) if in_order(t) else [None]
    for x in parts:
        if isinstance(x, Tensor):
            _refuse_unknown(x)
    times = [as_float(x.detach() if isinstance(x, Tensor) else x) for x in parts]
    if None in times:
        raise InvalidArgumentError(
            f"t must be a 1-d tensor or a sequence of numbers, got {shown(t)}"
        )
    found = torch.tensor(times, dtype=torch.float64, device=device)
    if not any(isinstance(x, Tensor) for x in parts):
        return found, times
    rows = [
        x.to(found).reshape(()) if isinstance(x, Tensor) else row
        for x, row in zip(parts, found, strict=True)
    ]
    return torch.stack(rows), times


def _without_repeats(
    t: Tensor, times: list[float]
) -> tuple[Tensor, list[float], tuple[Tensor, tuple[int, ...]] | None]:
    """Times without repetitions; where there were any, those asked for and the row of each."""
    first = [i == 0 or x != times[i - 1] for i, x in enumerate(times)]
    if all(first):
        return t, times, None
    kept = [i for i, new in enumerate(first) if new]
    rows = tuple(row - 1 for row in accumulate(first))
    return t[kept], [times[i] for i in kept], (t, rows)


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
