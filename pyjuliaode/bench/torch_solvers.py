"""The packages that work on torch tensors, each behind one function of the initial state."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..api import solve
from ..solution import SolveStats
from ..solver import Solver
from .competitors import IN_JULIA, OWN, SCIPY_METHODS, Competitor
from .problems import Problem

MAX_STEPS = 1_000_000
# y0 -> states at the problem's t[1:], shape (T - 1, *y0.shape), and the statistics where there are
Solve = Callable[[Tensor], tuple[Tensor, SolveStats | None]]


def solver(problem: Problem, who: Competitor, tol: float, dt: float | None = None) -> Solve:
    """The solve of a problem by a competitor; what can be made before the clock runs is made."""
    if who.package in OWN:
        return _own(problem, who, tol, dt)
    return {"torchdiffeq": _torchdiffeq, "torchode": _torchode}[who.package](problem, who, tol, dt)


def _own(problem: Problem, who: Competitor, tol: float, dt: float | None) -> Solve:
    in_julia = who.package in IN_JULIA
    adjoint, _, replay = who.adjoint.partition(" ")
    options: dict[str, Any] = {"dense": False} if in_julia else {}
    if who.method in SCIPY_METHODS:
        options["solver"] = who.method
    elif who.package == "compiled":
        options["compile"] = True
    elif adjoint == "direct" and who.package == "torch":
        options["checkpoint"] = bool(replay)
    chosen = Solver(
        method="scipy_solver" if "solver" in options else who.method,
        rtol=tol,
        atol=tol * problem.atol_factor,
        adjoint=adjoint,
        backend="julia" if in_julia else "torch",
        dt=dt,
        max_steps=MAX_STEPS,
        options=options,
        native="always" if who.package == "native" else "never",
    )

    def run(y0: Tensor) -> tuple[Tensor, SolveStats]:
        solution = solve(problem.func, y0, problem.t, chosen)
        return solution.y[1:], solution.stats

    return run


def _torchdiffeq(problem: Problem, who: Competitor, tol: float, dt: float | None) -> Solve:
    import torchdiffeq

    odeint = getattr(torchdiffeq, who.adjoint)
    method, options = who.method, {} if dt is None else {"step_size": dt}
    if method in SCIPY_METHODS:
        # its own first_step and min_step, which it would pass on, are none of SciPy's methods'
        method, options = "scipy_solver", {"solver": method}
    choices = {"method": method, "options": options or None}
    choices |= {"rtol": tol, "atol": tol * problem.atol_factor}

    def run(y0: Tensor) -> tuple[Tensor, None]:
        return odeint(problem.func, y0, problem.t, **choices)[1:], None

    return run


def _torchode(problem: Problem, who: Competitor, tol: float, dt: float | None) -> Solve:
    """The whole state is one sample, so that there is one step size, as everywhere else."""
    with warnings.catch_warnings():  # of decorators that new versions of torch deprecate
        warnings.simplefilter("ignore")
        import torchode
        from torchode.interface import METHODS

    shape = problem.y0.shape

    def flat_func(t: Tensor, y: Tensor) -> Tensor:
        return problem.func(t[0], y.view(shape)).reshape(1, -1)

    term = torchode.ODETerm(flat_func)
    control = torchode.IntegralController(tol * problem.atol_factor, tol, term=term)
    method = METHODS[who.method](term=term)
    # the products of the step size control are not part of the gradient that is compared
    adjoint = torchode.AutoDiffAdjoint(
        method, control, max_steps=MAX_STEPS, backprop_through_step_size_control=False
    )
    t = problem.t.to(problem.y0.dtype)[None]

    def run(y0: Tensor) -> tuple[Tensor, None]:
        at = torchode.InitialValueProblem(y0.reshape(1, -1), t_eval=t)
        found = adjoint.solve(at)
        if found.status.any():
            status = torchode.Status(int(found.status.max())).name
            raise RuntimeError(f"torchode ended with status {status}")
        return found.ys[0, 1:].view(-1, *shape), None

    return run
