"""The competitors of this package: a backend, a method and an adjoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..api import backends, solve
from ..backends.julia.methods import find
from ..backends.torch.plan import Plan
from ..errors import InvalidArgumentError, PyJuliaODEError, UnsupportedError
from ..solver import Solver
from .case import Case, Outcome, clock

MAX_STEPS = 100_000


class Competitor(Protocol):
    """Something that solves a case and finds its gradient.

    Attributes:
        backend: a backend of this package, or the name of another package.
        method, adjoint: by the names of that package.
        in_float64: it computes in float64, and is given the float64 copy of the case.
        native: it runs the field in Julia, without calls into Python.
    """

    backend: str
    method: str
    adjoint: str
    in_float64: bool
    native: bool

    def missing(self) -> str | None:
        """Why it cannot run here, or None. Starts and downloads nothing."""

    def run(self, case: Case, rtol: float, atol: float) -> Outcome:
        """Solve and differentiate."""


@dataclass(frozen=True)
class Own:
    """A solver of this package."""

    backend: str
    method: str
    adjoint: str
    options: Mapping[str, Any] | None = None
    in_float64: bool = False
    native: bool = False

    def missing(self) -> str | None:
        return backends()[self.backend]["missing"]

    def run(self, case: Case, rtol: float, atol: float) -> Outcome:
        options = {"dense": False, **(self.options or {})}
        solver = Solver(
            self.method,
            rtol,
            atol,
            adjoint=self.adjoint,
            backend=self.backend,
            max_steps=MAX_STEPS,
            options=options,
            native="always" if self.native else "never",
        )
        y0 = case.start()
        began = clock(case.device)
        solution = solve(case.func, y0, case.t, solver, params=case.params)
        solved = clock(case.device)
        gradient = case.gradient(solution.y, y0)
        done = clock(case.device)
        stats = solution.stats
        return Outcome(
            states=case.flat(solution.y).detach().double().cpu(),
            gradient=gradient,
            nfe_forward=stats.nfe_forward,
            nfe_backward=stats.nfe_backward,
            seconds_forward=solved - began,
            seconds_backward=done - solved,
            n_accepted=stats.n_accepted,
            n_rejected=stats.n_rejected,
            alongside_forward=stats.alongside_forward,
            alongside_backward=stats.alongside_backward,
            retcode=str(solution.retcode),
        )


def own(backend: str, method: str, adjoint: str, native: bool) -> Own:
    """A solver of this package by its names.

    Raises:
        InvalidArgumentError: an unknown adjoint.
    """
    Solver(adjoint=adjoint)  # which checks the name
    return Own(backend, method, adjoint, native=native)


def check_method(method: str, chosen: tuple[str, ...]) -> None:
    """Raise for a method that no chosen backend has, and for one that takes fixed steps.

    Raises:
        InvalidArgumentError: says what there is instead.
    """
    refusals = []
    for backend in chosen:
        try:
            adaptive = _chooses_steps(backend, method)
        except PyJuliaODEError as error:
            refusals.append(error)
            continue
        if not adaptive:
            raise InvalidArgumentError(
                f"method {method!r} takes fixed steps, and so has no tolerance that crosscheck "
                "could hold it to; choose an adaptive one, for example 'tsit5'"
            )
    if len(refusals) == len(chosen):
        raise InvalidArgumentError(str(refusals[0])) from refusals[0]


def _chooses_steps(backend: str, method: str) -> bool:
    if backend == "julia":
        return not find(method).fixed
    return Plan.build(method, 1e-6, 1e-6).chooses_steps


def refusal(competitor: Own) -> str | None:
    """Why the backend does not have the method, or None."""
    try:
        _chooses_steps(competitor.backend, competitor.method)
    except UnsupportedError as error:  # which names the nearest it has
        return str(error)
    except InvalidArgumentError:
        return f"the {competitor.backend} backend has no method {competitor.method!r}"
    return None
