"""The front door: solve, and torchdiffeq's odeint, odeint_adjoint, odeint_event, odeint_dense."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ._torch import NOT_TRACED, opaque
from .adjoints import Adjoint, Continuous, adjoint_of
from .arguments import keywords, number, options_of, shown
from .backends import backend_for, choose, registered
from .errors import InvalidArgumentError, UnsupportedError, unknown_name
from .event import refuse_traced, solve_event, to_solution
from .problem import Problem, State, check_times
from .signature import itself
from .solution import Solution
from .solver import OPTIONS, SOLVER_NAMES, Solver, solver_keyword

Field = Callable[[Tensor, State], State]


def _drop_in_keyword(name: str) -> str | None:
    """How what torchdiffeq's functions do not have is written, for one who passed it to them."""
    if name in ("tol", "tolerance", "eps"):
        return "pass rtol=... and atol=..., relative and absolute"
    if name == "solver":
        return "pass method='dopri5', or call pyjuliaode.solve(func, y0, t, solver)"
    if name.startswith("adjoint"):
        return "it is odeint_adjoint's"
    return f"it is an option, options={{{name!r}: ...}}" if name in OPTIONS else None


@opaque(NOT_TRACED)
@keywords(solver_keyword, SOLVER_NAMES)
def solve(
    func: Field,
    y0: State,
    t: Tensor | Sequence[float],
    solver: Solver | str | None = None,
    *,
    event_fn: Callable[[Tensor, State], Tensor] | None = None,
    args: Sequence[Any] = (),
    params: Sequence[Tensor] | None = None,
    throw: bool = True,
) -> Solution:
    """Solve dy/dt = func(t, y, *args), y(t[0]) = y0.

    Arguments:
        func: ``func(t, y) -> dy/dt``, a module (also a dynamics) or any callable. ``t`` is a 0-d
            tensor in the real dtype of the state.
        y0: initial state: a tensor of any shape, or a tuple of tensors of one dtype and device.
        t: times, shape (T,), T >= 2, increasing or decreasing; a time may be repeated.
        solver: :class:`Solver`, or the name of a method; default ``Solver()``.
        event_fn: ends the solve at the first sign change of any element of ``event_fn(t, y)``;
            the solution's last time is then that of the event, differentiable.
        args: further arguments of ``func``: tensors, anything else, and lists, tuples and dicts of
            such. Every tensor among them gets its gradient, by every adjoint and backend. This is
            how to condition a field: a backward solve calls it with the same ones again.
        params: tensors for which a continuous adjoint computes gradients; default: those of
            ``func.parameters()`` that require one.
        throw: raise :class:`SolverError` where the solve fails (it carries the partial solution);
            False returns it with its retcode.

    Returns:
        Solution: ``y`` has shape (T, *y0.shape) and carries the autograd graph; ``sol(t)`` is the
        state at any time between, for Runge-Kutta methods.

    Raises:
        InvalidArgumentError, UnsupportedError, BackendUnavailableError: before anything is solved.
        SolverError: the solve failed, and ``throw`` is True.
    """
    solver = Solver.of(solver)
    if solver.option("form") is not None:
        return _solve_as_dae(func, y0, t, solver, event_fn, args, params, throw)
    problem = Problem.build(func, y0, t, params, args=args)
    if event_fn is not None:
        return solve_event(problem, solver, event_fn, throw)
    result = backend_for(problem, solver).solve(problem, solver)
    return to_solution(problem, result, throw)


def _solve_as_dae(
    func: Field,
    y0: State,
    t: Tensor | Sequence[float],
    solver: Solver,
    event_fn: Callable[[Tensor, State], Tensor] | None,
    args: Sequence[Any],
    params: Sequence[Tensor] | None,
    throw: bool,
) -> Solution:
    """options={"form": "mass_matrix"}: solve (x, m, h) and return the state, as without it."""
    form = solver.option("form")
    if form != "mass_matrix":
        raise unknown_name("form", form, ("mass_matrix",))
    if not hasattr(func, "as_dae"):
        raise InvalidArgumentError(
            "options={'form': 'mass_matrix'} needs a dynamics with a constraint (NesterovNODE, "
            f"GNesterovNODE), got {type(func).__name__}; see SemiExplicitDAE for your own"
        )
    if event_fn is not None:
        raise UnsupportedError("events of a mass-matrix form: solve func.as_dae() instead")
    if args:
        raise UnsupportedError("args of a mass-matrix form: solve it without options['form']")
    options = {k: v for k, v in (solver.options or {}).items() if k != "form"}
    itself(func).check_state(y0)
    dae, t = func.as_dae(), check_times(t)
    solver = replace(solver, options=options)
    solution = solve(dae, dae.lift(t[0], y0), t, solver, params=params, throw=throw)
    solution.y = dae.lower(solution.t, solution.y, 1)
    if (dense := solution.dense) is not None:
        solution.dense = lambda at: dae.lower(at, full := dense(at), full.ndim - y0.ndim)
    return solution


@opaque(NOT_TRACED)
@keywords(_drop_in_keyword, OPTIONS)
def odeint(
    func: Field,
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[[Tensor, State], Tensor] | None = None,
    backend: str = "auto",
    args: Sequence[Any] = (),
) -> Any:
    """torchdiffeq's odeint: solve dy/dt = func(t, y) and differentiate through the steps.

    Arguments:
        func: ``func(t, y) -> dy/dt``; a tuple state is passed and returned as a tuple.
        y0: initial state, a tensor of any shape or a tuple of tensors.
        t: times, shape (T,), monotone either way; one time returns y0.
        rtol, atol: numbers, tensors of the state's shape, or a tuple for a tuple state.
        method: default "dopri5"; see :func:`pyjuliaode.backends` for the others.
        options: as in torchdiffeq; see :class:`Solver`.
        event_fn: with it, t[1] only gives the direction and the result is
            ``(event_t, solution)`` with the states at t[0] and at the event.
        backend: "auto", "torch" or "julia".
        args: further arguments of ``func``, which is called func(t, y, *args); see :func:`solve`.

    Returns:
        States at ``t``, shape (T, *y0.shape), or a tuple of such.

    Raises:
        InvalidArgumentError, UnsupportedError: before anything is solved.
        SolverError: the solve failed; it is an AssertionError too, as torchdiffeq's.
    """
    solver = _drop_in_solver(rtol, atol, method, options, backend)
    return _odeint(func, y0, t, solver, event_fn, None, args)


@opaque(NOT_TRACED)
@keywords(_drop_in_keyword, OPTIONS)
def odeint_adjoint(
    func: nn.Module,
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[[Tensor, State], Tensor] | None = None,
    backend: str = "auto",
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
    args: Sequence[Any] = (),
) -> Any:
    """torchdiffeq's odeint_adjoint: gradients by a backward solve instead of a stored graph.

    The adjoint is "gauss" (states from the dense output of the forward solve, parameter gradients
    by quadrature); of the Adams methods it is "backsolve".
    ``adjoint_options={"adjoint": "backsolve"}`` names another; a callable ``norm`` in
    ``adjoint_options`` implies backsolve, on whose state it is defined. ``adjoint_options``
    default to ``options`` without ``norm``.

    Raises:
        InvalidArgumentError: func is no module and ``adjoint_params`` is not given; also where
            ``adjoint_method`` differs, ``options`` are given and ``adjoint_options`` are not.
    """
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise InvalidArgumentError(
            "func must be a torch.nn.Module so that its parameters are known, got "
            f"{type(func).__name__}; or pass adjoint_params (an empty tuple where there are none)"
        )
    adjoint_method = None if adjoint_method is None else _method_of(adjoint_method)
    if adjoint_method not in (None, method) and options is not None and adjoint_options is None:
        raise InvalidArgumentError(
            "adjoint_method differs from method and options are given: say with adjoint_options "
            "what the adjoint method takes"
        )
    solver = _drop_in_solver(rtol, atol, method, options, backend)
    if adjoint_method is not None and not isinstance(adjoint_method, str):
        raise InvalidArgumentError(
            f"adjoint_method must be the name of a method, got {shown(adjoint_method)}"
        )
    adjoint_options = options_of("adjoint_options", adjoint_options)
    solver = replace(
        solver,
        adjoint=_adjoint_of(solver, adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options),
    )
    return _odeint(func, y0, t, solver, event_fn, adjoint_params, args)


def _adjoint_of(
    solver: Solver, rtol: Any, atol: Any, method: str | None, options: Mapping[str, Any] | None
) -> Adjoint:
    """The adjoint that the arguments of odeint_adjoint name."""
    options = dict(options or {})
    spelling = options.pop("adjoint", None)
    norm = options.pop("norm", None)
    if spelling is None:
        spelling = "backsolve" if callable(norm) else _default_adjoint(solver)
    adjoint = adjoint_of(spelling, rtol, atol, solver.options)
    if not isinstance(adjoint, Continuous):
        return adjoint
    said = {"method": method, "norm": norm, "options": options or None}
    return replace(adjoint, **{name: value for name, value in said.items() if value is not None})


def _default_adjoint(solver: Solver) -> str:
    """ "gauss" where the method has an interpolant of its order."""
    no_interpolant = solver.method.endswith("_adams") and solver.option("max_order", 4) > 4
    return "backsolve" if no_interpolant else "gauss"


def _drop_in_solver(
    rtol: Any, atol: Any, method: str | None, options: Mapping[str, Any] | None, backend: str
) -> Solver:
    """A Solver with torchdiffeq's defaults: dopri5, a graph through the steps."""
    method = _method_of(method)
    options = options_of("options", options)
    # torchdiffeq keeps the graph of the steps; its methods alone have one to keep
    known = method in registered()["torch"].capabilities().methods
    free = method == "scipy_solver" or not known or _asks_for_replay(options)
    adjoint = "auto" if free else "direct"
    return Solver(
        method,
        rtol,
        atol,
        adjoint=adjoint,
        backend=backend,
        max_steps=_MOST_STEPS,
        options={"dense": False, **(options or {})},
    )


def _method_of(name: Any) -> Any:
    """torchdiffeq's default for None, and its older names."""
    if name is None:
        return "dopri5"
    return "implicit_adams" if name == "fixed_adams" else name


# torchdiffeq has no limit, and no end where a problem is stiff; both are of an interval between
# two requested times, and of an event's search that has no end
_MOST_STEPS, _MOST_TO_EVENT = 100_000, 10_000
_MOST_INTERVALS = 250  # of method "pan", whose intervals cost forty times what a step does


def _asks_for_replay(options: Mapping[str, Any] | None) -> bool:
    return options is not None and "graph_memory" in options


def _odeint(
    func: Field,
    y0: State,
    t: Tensor,
    solver: Solver,
    event_fn: Callable[[Tensor, State], Tensor] | None,
    params: Sequence[Tensor] | None,
    args: Sequence[Any],
) -> Any:
    if event_fn is None:
        problem = Problem.build(func, y0, t, params, single_time=True, drop_in=True, args=args)
        result = backend_for(problem, solver).solve(problem, solver)
        return to_solution(problem, result, throw=True).y
    problem = Problem.build(func, y0, t, params, drop_in=True, args=args)
    if solver.option("max_num_steps") is None:
        most = _MOST_INTERVALS if solver.method == "pan" else _MOST_TO_EVENT
        solver = replace(solver, max_steps=most)
    if len(problem.times) != 2:
        raise InvalidArgumentError(
            f"with event_fn t must hold 2 times (start and direction), got {len(problem.times)}"
        )
    problem.times[1] = math.copysign(math.inf, problem.times[1] - problem.times[0])
    solution = solve_event(problem, solver, event_fn, throw=True)
    dtype = t.dtype if isinstance(t, Tensor) else torch.float64
    return solution.event_t.to(dtype), solution.y


@opaque(NOT_TRACED)
@keywords(_drop_in_keyword)
def odeint_event(
    func: Field,
    y0: State,
    t0: Tensor | float,
    *,
    event_fn: Callable[[Tensor, State], Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """torchdiffeq's odeint_event: solve from t0 until event_fn(t, y) changes sign.

    Returns ``(event_t, solution)``: a 0-d tensor, and the states at t0 and at the event, shape
    (2, *y0.shape); both differentiable, also with respect to parameters of ``event_fn``.

    To go on from the event, start from the state that is returned: an element of event_fn that is
    within rounding of zero there is on no side until it has left, so that the same event is not
    found again. Work is bounded as in `solve`: an event that never comes is an error that says
    which time was reached.
    """
    if isinstance(y0, Tensor) or (isinstance(y0, tuple) and y0):
        refuse_traced(y0)
    if not isinstance(t0, Tensor):
        t0 = torch.tensor(number("t0", t0, "be finite", math.isfinite), dtype=torch.float64)
    if t0.numel() != 1:
        raise InvalidArgumentError(f"t0 must be one time, got {shown(t0)}")
    start = t0.reshape(())
    ahead = start.detach() + (-1.0 if reverse_time else 1.0)
    t = torch.stack([start, ahead])
    return odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)


@opaque(NOT_TRACED)
@keywords(_drop_in_keyword, OPTIONS)
def odeint_dense(
    func: Field,
    y0: State,
    t0: Tensor | float,
    t1: Tensor | float,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    backend: str = "auto",
    args: Sequence[Any] = (),
) -> Solution:
    """Solve from t0 to t1 and return a callable: ``dense(t)`` is the state at any time between."""
    options = {**(options_of("options", options) or {}), "dense": True}
    solver = _drop_in_solver(rtol, atol, method, options, backend)
    span = [number(name, t, "be finite", math.isfinite) for name, t in (("t0", t0), ("t1", t1))]
    with torch.no_grad():
        return solve(func, y0, span, solver, args=args)


def warmup(adjoint: str = "gauss", method: str = "tsit5") -> dict[str, float]:
    """Start Julia, and compile what a first solve and gradient need; in the main thread.

    Everything that this does is otherwise done by the first solve. A method's code for another
    precision, or for another adjoint, is still compiled when it is first used.

    Returns:
        Seconds of each part: "start", "solve", "gradient".

    Raises:
        BackendUnavailableError: Julia is not set up; says what to run.
    """
    julia = choose("julia")
    before = time.perf_counter()
    julia.start()
    seconds = {"start": time.perf_counter() - before}
    field = nn.Linear(2, 2).to(torch.float64)
    y0, t = torch.zeros(3, 2, dtype=torch.float64), [0.0, 1.0]
    solver = Solver(method, adjoint=adjoint, backend="julia", options={"dense": False})
    before = time.perf_counter()
    with torch.no_grad():
        solve(lambda t, y: field(y), y0, t, solver)
    seconds["solve"] = time.perf_counter() - before
    before = time.perf_counter()
    with torch.enable_grad():
        y = solve(lambda t, y: field(y), y0, t, solver, params=tuple(field.parameters())).y
        y[-1].sum().backward()
    seconds["gradient"] = time.perf_counter() - before
    return seconds


def backends() -> dict[str, dict[str, Any]]:
    """The backends by name: whether each is ready, what is missing, and what it can do."""
    report = {}
    for name, backend in registered().items():
        missing = backend.missing()
        report[name] = {
            "ready": missing is None,
            "missing": missing,
            "capabilities": backend.capabilities(),
            "versions": backend.versions(),
        }
    return report
