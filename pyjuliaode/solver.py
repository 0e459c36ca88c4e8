"""Solver: what to solve with, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .adjoints import Adjoint, adjoint_of
from .arguments import check_tolerance, keywords, options_of, positive, shown, whole
from .errors import InvalidArgumentError, unknown_name

NATIVE = ("auto", "always", "never")
# the options of all methods and backends, see Solver
OPTIONS = frozenset(
    {
        *("norm", "first_step", "min_step", "max_step", "safety", "ifactor", "dfactor", "step_t"),
        *("jump_t", "perturb", "step_size", "grid_constructor", "interp", "max_order", "max_iters"),
        *("solver", "max_num_steps", "dtype", "dense", "checkpoint", "graph_memory", "per_sample"),
        *("batch_dim", "compile", "num_coeffs", "num_points", "max_coeffs", "coarse_steps"),
        *("chunk_size", "checkpoints", "jacobian", "form", "initialization"),
    }
)


class Options(dict[str, Any]):
    """The options of a Solver, which do not change: what was made of them would not."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise InvalidArgumentError(
            "the options of a Solver do not change: make another one, dataclasses.replace(solver, "
            "options={**solver.options, ...})"
        )

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = clear = setdefault = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return Options, (dict(self),)


@dataclass(frozen=True)
class Solver:
    """A numerical method with its tolerances, adjoint and backend.

    Arguments:
        method: name of the method, for example "tsit5", "dopri5", "rk4"; what exists depends on
            the backend (:func:`pyjuliaode.backends`).
        rtol, atol: relative and absolute tolerance of adaptive methods (numbers, tensors of the
            state's shape, or tuples of these for a tuple state).
        adjoint: how gradients are found: an object of :mod:`pyjuliaode.adjoints`, or its name:
            "auto", "direct" (discrete: exact gradient of the steps that were taken), "gauss",
            "interpolating", "backsolve", "quadrature" (Julia). "auto" is "direct"; in torch it
            keeps the autograd graph while that is small and replays the accepted steps otherwise.
            In Julia "direct" always replays, and "auto" is "gauss" for methods that are not
            explicit Runge-Kutta.
        backend: "auto", "torch" or "julia". "auto" is Julia where its environment is ready and
            the problem is one that Julia takes, else torch; the environment variable
            PYJULIAODE_BACKEND names another meaning.
        dt: first step of adaptive methods, the step of fixed ones (default: one step between
            two requested times).
        max_steps: the most attempted steps before the solve ends with retcode MaxIters.
        adjoint_rtol, adjoint_atol: tolerances of a continuous adjoint; default: those of the solve.
        options: method-specific options, as in torchdiffeq: ``norm``, ``first_step``,
            ``min_step``, ``max_step``, ``safety``, ``ifactor``, ``dfactor``, ``step_t``,
            ``jump_t``, ``perturb``, ``step_size``, ``grid_constructor``, ``interp``,
            ``max_order``, ``max_iters``, ``solver``; and of this package: ``dense`` (for
            ``sol(t)``: "steps", the default of ``solve``, keeps the states at the steps and takes
            a fresh step to the time asked for; True keeps polynomials, which are quicker to
            evaluate and larger; False keeps nothing), ``checkpoint`` (True: "direct" replays the
            accepted steps; False: it keeps the graph), ``graph_memory`` (bytes, default 2**30:
            where "auto" changes from one to the other), ``per_sample`` and ``batch_dim`` (own step
            sizes for every sample), ``compile`` (True: whole Runge-Kutta steps, and the products
            through them that a gradient needs, are compiled to C++ by torch's inductor. Pays for
            small networks and for many solves of one shape of state; costs seconds for every new
            shape, and needs a C++ compiler. ``func`` must be a module that is a fixed sequence of
            operations; on the CPU, in float32 or float64; "direct" then replays. What cannot be
            compiled raises UnsupportedError). Method "pan" takes ``num_coeffs`` and ``num_points``
            (of every interval; default: as the tolerances ask), ``max_coeffs`` (default 48),
            ``step_size`` (length of the intervals; default: as the tolerances ask),
            ``first_step``, ``max_step``, ``max_iters`` (50, of an interval), ``coarse_steps``
            (0, of Euler's method, to begin with), ``chunk_size`` (most states of one call of the
            forward solve; default: those of all nodes) and ``step_t``, ``jump_t``; with both
            ``num_coeffs`` and ``step_size`` nothing follows the tolerances, and a warning says
            where they are not met. The Julia backend takes ``first_step``, ``min_step``,
            ``max_step``, ``step_size``, ``step_t``, ``jump_t``, ``dense`` and of its own
            ``checkpoints`` (states that a continuous adjoint keeps instead of all steps),
            ``jacobian`` (False: finite differences instead of torch's), ``form="mass_matrix"`` (of
            a Nesterov model) and ``initialization`` ("check", or "brown": solve for the algebraic
            part of y0).

        native: whether the Julia backend runs the field in Julia, without calls into Python:
            "auto" where the module is made of operations that it knows (linear maps, elementwise
            functions, views, ...) and is small enough for that to pay, "always" (an error says why
            not), "never".

    Raises:
        InvalidArgumentError: a value out of range, an unknown adjoint or mode.
    """

    method: str = "tsit5"
    rtol: Any = 1e-6
    atol: Any = 1e-6
    adjoint: str | Adjoint = "auto"
    backend: str = "auto"
    dt: float | None = None
    max_steps: int = 10_000
    adjoint_rtol: Any = None
    adjoint_atol: Any = None
    options: Mapping[str, Any] | None = None
    native: str = "auto"

    def __post_init__(self) -> None:
        if self.native not in NATIVE:
            raise unknown_name("native", self.native, NATIVE)
        for name in ("method", "backend"):
            if not isinstance(value := getattr(self, name), str):
                raise InvalidArgumentError(f"{name} must be a name, got {shown(value)}")
        for name in ("rtol", "atol", "adjoint_rtol", "adjoint_atol"):
            value = getattr(self, name)
            if value is not None or not name.startswith("adjoint"):
                check_tolerance(name, value)
        if self.dt is not None:
            positive("dt", self.dt)
        whole("max_steps", self.max_steps, 1)
        options = options_of("options", self.options)
        if options is not None and not isinstance(options, Options):
            object.__setattr__(self, "options", Options(options))
        _ = self.gradient  # which raises for what is no adjoint

    @property
    def gradient(self) -> Adjoint:
        """The adjoint, with what the other fields and the options say of it."""
        return adjoint_of(self.adjoint, self.adjoint_rtol, self.adjoint_atol, self.options)

    @classmethod
    def of(cls, value: Solver | str | None) -> Solver:
        """A solver as it is, that of a method's name, or the default for None.

        Raises:
            InvalidArgumentError: it is something else.
        """
        if isinstance(value, Solver):
            return value
        if value is None or isinstance(value, str):
            return cls() if value is None else cls(value)
        raise InvalidArgumentError(
            f"solver must be a Solver or the name of a method, got {shown(value)}; for example "
            "pyjuliaode.Solver('dopri5', rtol=1e-6, atol=1e-6)"
        )

    def option(self, name: str, default: Any = None) -> Any:
        """The option ``name``, or ``default`` where it was not given."""
        return default if self.options is None else self.options.get(name, default)


_FIELDS = frozenset(field.name for field in fields(Solver))
SOLVER_NAMES = _FIELDS | OPTIONS


def solver_keyword(name: str) -> str | None:
    """How what belongs to a Solver is written, for one who wrote it elsewhere."""
    if name in ("tol", "tolerance", "eps"):
        return "pass rtol=... and atol=... of a Solver, Solver('dopri5', rtol=1e-6, atol=1e-6)"
    if name in _FIELDS:
        value = {"method": "'dopri5'", "backend": "'torch'", "adjoint": "'gauss'"}.get(name, "...")
        return f"pass a Solver that has it, solver=Solver({name}={value})"
    if name in OPTIONS:
        return f"pass a Solver that has it, solver=Solver(options={{{name!r}: ...}})"
    return None


def _own_keyword(name: str) -> str | None:
    if name in ("tol", "tolerance", "eps"):
        return "pass rtol=... and atol=..., relative and absolute"
    return f"it is an option, options={{{name!r}: ...}}" if name in OPTIONS else None


# the dataclass's own, which would raise a bare TypeError
Solver.__init__ = keywords(_own_keyword, OPTIONS)(Solver.__init__)  # type: ignore[method-assign]
