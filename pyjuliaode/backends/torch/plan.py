"""Plan: a method's name and options, checked and turned into a stream of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...adjoints import Abilities
from ...arguments import as_float, positive, shown, times, unknown_options, whole, within
from ...errors import InvalidArgumentError, UnsupportedError, add_note, unknown_name, warn
from ...rhs import RHS
from ...signature import check_takes
from ...solution import SolveStats
from ..runge_kutta import BufferedStepper, GraphStepper, Sides, Stepper
from ..tableau import Tableau
from .adaptive import AdaptiveRK
from .callbacks import ACCEPT, REJECT, STEP, Callbacks
from .control import Control, Norm, rms
from .fixed import Adams, FixedRK
from .pan import PanStream
from .scipy_solver import ScipyStream, order_of
from .tableaus import ADAPTIVE, FIXED

ADAMS = ("explicit_adams", "implicit_adams")
SCIPY = "scipy_solver"
PAN = "pan"
METHODS = (*ADAPTIVE, *FIXED, *ADAMS, SCIPY, PAN)

_SHARED = {
    *("norm", "perturb", "dense", "checkpoint", "graph_memory", "dtype", "max_num_steps"),
    *("per_sample", "batch_dim", "compile"),
}
_KNOWN = {
    "adaptive": {
        *("first_step", "min_step", "max_step", "safety", "ifactor", "dfactor"),
        *("step_t", "jump_t"),
    },
    "fixed": {"step_size", "grid_constructor", "interp", "step_t", "jump_t"},
    "adams": {
        *("step_size", "grid_constructor", "interp", "step_t", "jump_t"),
        *("max_order", "max_iters"),
    },
    "scipy": {"solver", "min_step", "max_step", "first_step"},
    "pan": {
        *("num_coeffs", "num_points", "max_coeffs", "max_iters", "coarse_steps", "chunk_size"),
        *("step_size", "first_step", "max_step", "step_t", "jump_t"),
    },
}


@dataclass(frozen=True)
class Plan:
    """How to step: method, tolerances and checked options, independent of any right-hand side."""

    method: str
    kind: str
    tableau: Tableau | None
    rtol: float | Tensor
    atol: float | Tensor
    norm: Norm
    max_steps: int
    dt: float | None
    options: Mapping[str, Any]

    @classmethod
    def build(
        cls,
        method: str,
        rtol: float | Tensor,
        atol: float | Tensor,
        norm: Norm = rms,
        max_steps: int = 10_000,
        dt: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Check the names of method and options.

        Raises:
            InvalidArgumentError: unknown method, with the nearest names; a value out of range.
        """
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
        kind = "adaptive" if method in ADAPTIVE else "fixed" if method in FIXED else "adams"
        kind = {SCIPY: "scipy", PAN: "pan"}.get(method, kind)
        options = dict(options or {})
        used = _SHARED | _KNOWN[kind]
        if unknown := unknown_options(options, used):
            warn(
                f"method {method!r} does not use the option(s) {', '.join(unknown)}; it uses "
                f"{', '.join(sorted(used))}"
            )
        options = {k: v for k, v in options.items() if v is not None and k in used}
        if "step_size" in options and "grid_constructor" in options:
            raise InvalidArgumentError("give step_size or grid_constructor, not both")
        if "step_size" in options:
            dt = positive("step_size", options["step_size"])
        elif dt is not None:
            dt = positive("dt", dt)
        interp = options.get("interp", "cubic")
        if interp not in ("linear", "cubic"):
            raise unknown_name("interp", interp, ("linear", "cubic"))
        _check_numbers(options)
        _check_kinds(options)
        if kind == "pan":
            _check_counts(options)
        max_steps = options.get("max_num_steps", max_steps)
        tableau = ADAPTIVE.get(method) or FIXED.get(method)
        return cls(method, kind, tableau, rtol, atol, norm, max_steps, dt, options)

    @property
    def chooses_steps(self) -> bool:
        return self.kind in ("adaptive", "scipy", "pan")

    @property
    def callbacks(self) -> tuple[str, ...]:
        """The callbacks that the method calls."""
        known = {"adaptive": (STEP, ACCEPT, REJECT), "scipy": (STEP, ACCEPT), "pan": ()}
        return known.get(self.kind, (STEP,))

    @property
    def order(self) -> int:
        """Order of the steps, at most."""
        if self.kind == "scipy":
            return order_of(self.options)
        return 4 if self.tableau is None else self.tableau.order

    @property
    def has_interpolant(self) -> bool:
        """The trajectory between the steps is a polynomial of the method's order."""
        if self.kind == "adams":
            return int(self.options.get("max_order", 4)) <= 4
        if self.kind in ("pan", "scipy"):
            return True
        return self.tableau.interpolant is not None

    @property
    def lands(self) -> bool:
        """The steps end on the requested times: without an interpolant, and where it would be less
        accurate than the steps, and takes evaluations of its own."""
        return not self.has_interpolant or bool(self.tableau and self.tableau.extra)

    @property
    def abilities(self) -> Abilities:
        """What gradients need to know."""
        return Abilities(
            self.method,
            "torch",
            graph=self.kind != "scipy",
            replay=self.tableau is not None,
            interpolant=self.has_interpolant,
            nodes=self.kind == "pan",
        )

    @property
    def linear(self) -> bool:
        return self.options.get("interp") == "linear"

    def sides(self, dtype: torch.dtype) -> Sides:
        jumps = times("jump_t", self.options.get("jump_t"))
        return Sides(dtype, frozenset(jumps), bool(self.options.get("perturb", False)))

    @property
    def _step_t(self) -> tuple[float, ...]:
        return times("step_t", self.options.get("step_t"))

    def control(self) -> Control:
        o = self.options
        given = {k: o[k] for k in ("safety", "ifactor", "dfactor") if k in o}
        limits = {k: o[k] for k in ("min_step", "max_step") if k in o}
        return Control(
            self.tableau.order,
            self.rtol,
            self.atol,
            self.norm,
            max_steps=self.max_steps,
            first_step=o.get("first_step", self.dt),
            **limits,
            **given,
        )

    def stream(
        self,
        rhs: RHS,
        like: Tensor,
        stats: SolveStats,
        graph: bool,
        clock: Mapping[float, Tensor] | None = None,
        callbacks: Callbacks | None = None,
        stops: Sequence[float] = (),
        compiled: Callable[[RHS, Plan], Stepper] | None = None,
    ) -> AdaptiveRK | FixedRK | Adams | ScipyStream | PanStream:
        """The object whose ``steps`` yields accepted steps: ``steps(y, t0, t1, f0)`` where the
        method chooses them (ending on every time of ``stops``), ``steps(y, grid, f0)`` where it is
        told. ``compiled`` makes the stepper of a solve without a graph, where it is given."""
        clock = dict(clock or {})
        if self.kind == "adams":
            order = {k: self.options[k] for k in ("max_order", "max_iters") if k in self.options}
            implicit = self.method == "implicit_adams"
            # the history stays where it is when a requested time moves: only the start is mobile
            clock = dict(list(clock.items())[:1])
            return Adams(
                *(rhs, stats, implicit, self.rtol, self.atol, clock),
                sides=self.sides(rhs.time_dtype),
                callbacks=callbacks,
                marks=self._step_t,
                **order,
            )
        if self.kind == "scipy":
            return ScipyStream(
                *(rhs, stats, self.rtol, self.atol, self.options, self.max_steps), callbacks
            )
        if self.kind == "pan":
            if like.is_complex():
                raise UnsupportedError(
                    "method 'pan' solves real states: torch.view_as_real makes a real one of y0"
                )
            return PanStream(
                *(rhs, stats, self.rtol, self.atol, self.norm, self.max_steps),
                {**self.options, "step_size": self.dt},
                self.sides(rhs.time_dtype),
                [*stops, *self._step_t],
            )
        if graph:
            stepper: Stepper = GraphStepper(rhs, self.tableau, clock)
        elif compiled is not None:
            stepper = compiled(rhs, self)
        else:
            stepper = BufferedStepper(rhs, self.tableau, like)
        sides = self.sides(rhs.time_dtype)
        if self.kind == "fixed":
            return FixedRK(rhs, stepper, stats, sides, callbacks, self._step_t)
        stops = [*stops, *self._step_t]
        return AdaptiveRK(rhs, stepper, self.control(), stats, sides, callbacks, stops)


# name: (smallest, largest) of the numbers among the options; only min_step may be the smallest
_RANGES = {
    "first_step": (0.0, math.inf),
    "min_step": (0.0, math.inf),
    "max_step": (0.0, math.inf),
    "safety": (0.0, 1.0),
    "ifactor": (1.0, math.inf),
    "dfactor": (0.0, 1.0),
    "graph_memory": (0.0, math.inf),
}
# name: (smallest, largest) of the whole numbers
_WHOLE = {
    "max_num_steps": (1, math.inf),
    "max_order": (1, 12),
    "max_iters": (1, math.inf),
    "batch_dim": (0, math.inf),
}
_FLAGS = ("perturb", "per_sample", "compile", "checkpoint")
_FUNCTIONS = {"norm": ("y",), "grid_constructor": ("func", "y0", "t")}  # with their arguments


def _check_numbers(options: dict[str, Any]) -> None:
    """Bring numbers into floats and ints; raise for those out of range."""
    for name, (low, high) in _RANGES.items():
        if name in options:
            options[name] = within(name, options[name], low, high, closed=name == "min_step")
    for name, (least, most) in _WHOLE.items():
        if name in options:
            options[name] = whole(name, options[name], least, most)


def _check_kinds(options: Mapping[str, Any]) -> None:
    """Raise for switches that are no booleans and functions that are none."""
    for name in _FLAGS:
        if not isinstance(options.get(name, False), bool):
            raise InvalidArgumentError(f"{name} must be True or False, got {shown(options[name])}")
    for name, wanted in _FUNCTIONS.items():
        if not callable(options.get(name, callable)):
            raise InvalidArgumentError(f"{name} must be a function, got {shown(options[name])}")
        if name in options:
            check_takes(name, options[name], *wanted)
    for name in ("jump_t", "step_t"):
        times(name, options.get(name))


# name: smallest of the whole numbers that method "pan" takes
_COUNTS = {
    **{"num_coeffs": 6, "max_coeffs": 6, "num_points": 6, "max_iters": 2, "coarse_steps": 0},
    "chunk_size": 1,
}


def _check_counts(options: dict[str, Any]) -> None:
    """Raise for numbers of coefficients, points and iterations out of range."""
    for name, least in _COUNTS.items():
        if name in options:
            options[name] = whole(name, options[name], least)
    n, points = options.get("num_coeffs"), options.get("num_points")
    if points is not None and n is None:
        raise InvalidArgumentError("num_points goes with num_coeffs: give both, or neither")
    if points is not None and points < n - 1:
        raise InvalidArgumentError(
            f"num_points must be at least num_coeffs - 1, {n - 1}, got {points}"
        )


def user_norm(norm: Callable[[Any], Any] | None, unpack: Callable[[Tensor], Any]) -> Norm:
    """The user's norm of the state (in the user's structure), or root mean square."""
    if norm is None:
        return rms

    def measured(x: Tensor) -> float:
        try:
            value = norm(unpack(x))
        except Exception as error:
            add_note(error, f"(norm was called with a state of {x.numel()} numbers, {x.dtype})")
            raise
        return _norm_value(value, x)

    return measured


def _norm_value(value: Any, x: Tensor) -> float:
    found = as_float(value.detach() if isinstance(value, Tensor) else value)
    wrong = found is None or found < 0.0 or (math.isnan(found) and bool(x.isfinite().all()))
    if wrong:
        raise InvalidArgumentError(f"norm must return one number >= 0, got {shown(value)}")
    return found
