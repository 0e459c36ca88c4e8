"""Plan: a Solver as the Julia half takes it, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...adjoints import Abilities, Auto, Continuous
from ...arguments import not_negative, number, times, unknown_options, whole
from ...errors import UnsupportedError, unknown_name, warn
from ...problem import Problem
from ...solution import Retcode
from ...solver import Solver
from ..tolerance import tolerance
from .methods import ALIASES, Method, find

CONTINUOUS = ("gauss", "interpolating", "quadrature", "backsolve")
ADJOINTS = ("direct", *CONTINUOUS)
# options of torchdiffeq and of the torch backend that mean nothing here, and change no result
_NO_MEANING = {"graph_memory", "batch_dim", "dtype", "form", "interp"}
_KNOWN = {
    *("dense", "checkpoint", "first_step", "min_step", "max_step", "max_num_steps"),
    *("step_size", "step_t", "jump_t", "checkpoints", "jacobian", "initialization"),
}
# what cannot be left out without another result
REFUSED = {
    "norm": "norms of your own",
    "per_sample": "own step sizes for every sample",
    "perturb": "perturbed step boundaries",
    "grid_constructor": "grids of your own (use step_t for times on which steps end)",
}


@dataclass(frozen=True)
class Plan:
    """How to solve, independent of any right-hand side but for its size.

    Attributes:
        adjoint: "direct" or one of CONTINUOUS.
        stops: times on which steps have to end; jumps: discontinuities.
        lands: steps end on the requested times too.
        checkpoints: how many states an adjoint keeps instead of all steps; None: all steps.
    """

    method: Method
    adjoint: str
    adjoint_method: Method
    rtol: float | Tensor
    atol: float | Tensor
    adjoint_rtol: float
    adjoint_atol: float
    relative_atol: bool
    dt: float | None
    adaptive: bool
    dtmin: float
    dtmax: float
    max_steps: int
    stops: tuple[float, ...]
    lands: bool
    jumps: tuple[float, ...]
    jacobian: bool
    initialization: str
    checkpoints: int | None

    @property
    def grid(self) -> bool:
        """One step between two requested times, as torchdiffeq's fixed-step methods."""
        return not self.adaptive and self.dt is None

    @classmethod
    def build(cls, problem: Problem, solver: Solver) -> Plan:
        """Check names and options.

        Raises:
            InvalidArgumentError: unknown names, values out of range.
            UnsupportedError: what the Julia backend has not, with what has it.
        """
        options = dict(solver.options or {})
        for name in sorted(REFUSED.keys() & options.keys()):
            if options[name] not in (None, False):
                raise UnsupportedError(
                    f"options[{name!r}]: the Julia backend has no {REFUSED[name]}; use "
                    "backend='torch'"
                )
        if options.get("interp") == "linear":
            raise UnsupportedError(
                "options={'interp': 'linear'}: the Julia backend interpolates by the method's own "
                "polynomials; use backend='torch'"
            )
        unknown = unknown_options(options, _KNOWN | _NO_MEANING | REFUSED.keys())
        method = find(solver.method)
        if solver.method in ALIASES and not method.fixed and options.pop("step_size", None):
            unknown = [*unknown, f"step_size (with {method.name!r} it fixes the step)"]
        if unknown:
            warn(
                f"the Julia backend does not use the option(s) {', '.join(unknown)}; it uses "
                f"{', '.join(sorted(_KNOWN))}"
            )
        dt = _positive("step_size", options.get("step_size", solver.dt))
        fixed = method.fixed or options.get("step_size") is not None
        if fixed and method.own_steps:
            raise UnsupportedError(
                f"method {solver.method!r} is accurate with steps of its own choice only: leave "
                "options['step_size'] out, or use 'Tsit5', 'Rodas5P', 'ABM43'"
            )
        if not fixed:
            dt = _positive("first_step", options.get("first_step", dt))
        adjoint, adjoint_method = _adjoint(problem, solver, method)
        gradient = solver.gradient
        if problem.mass is not None and method.kind not in ("implicit", "bdf"):
            raise UnsupportedError(
                f"method {solver.method!r} takes no mass matrix; use method='Rodas5P', 'FBDF' or "
                "'RadauIIA5'"
            )
        if problem.mass is not None and not options.get("jacobian", True):
            raise UnsupportedError(
                "options={'jacobian': False}: without a Jacobian that is told the time, gradients "
                "of a system with a mass matrix come out wrong in silence; leave the option out"
            )
        if method.nystrom and not problem.second_order:
            raise UnsupportedError(
                f"method {solver.method!r} solves h'' = f(t, h, h') and needs a state (h, h') "
                "whose first half has the second as its derivative: HBNODE, SONODE, or "
                "NesterovNODE in its second-order form"
            )
        checkpoints = options.get("checkpoints")
        if checkpoints is not None:
            checkpoints = whole("checkpoints", checkpoints, 1)
        if isinstance(gradient, Continuous):
            checkpoints = gradient.checkpoints
        if checkpoints is not None and adjoint in ("gauss", "interpolating"):
            _check_checkpoints(problem, solver.method, method, adjoint, fixed)
        initialization = options.get("initialization", "check")
        if initialization not in ("check", "brown"):
            raise unknown_name("initialization", initialization, ("check", "brown"))
        structure, like = problem.structure, problem.y0
        rtol = tolerance("rtol", solver.rtol, structure, like)
        atol = tolerance("atol", solver.atol, structure, like)
        return cls(
            method=method,
            adjoint=adjoint,
            adjoint_method=adjoint_method,
            rtol=rtol,
            atol=atol,
            adjoint_rtol=_number("adjoint_rtol", getattr(gradient, "rtol", None), rtol),
            adjoint_atol=_number("adjoint_atol", getattr(gradient, "atol", None), atol),
            relative_atol=getattr(gradient, "atol", None) is None,
            dt=dt,
            adaptive=not fixed,
            dtmin=not_negative("min_step", options.get("min_step") or 0.0),
            dtmax=_positive("max_step", options.get("max_step")) or 0.0,
            max_steps=whole("max_num_steps", options.get("max_num_steps") or solver.max_steps, 1),
            stops=times("step_t", options.get("step_t")),
            lands=method.kind in ("hermite", "lowstorage"),
            jumps=times("jump_t", options.get("jump_t")),
            jacobian=bool(options.get("jacobian", True)),
            initialization=initialization,
            checkpoints=checkpoints,
        )


def _adjoint(problem: Problem, solver: Solver, method: Method) -> tuple[str, Method]:
    """The adjoint of a solver, and the method of its backward solve."""
    abilities = Abilities(
        solver.method,
        "julia",
        replay=method.replayable and problem.mass is None,
        interpolant=method.kind != "hermite",
        mass=problem.mass is not None,
    )
    adjoint = solver.gradient
    adjoint.check(abilities)
    if isinstance(adjoint, Auto):
        adjoint = adjoint.resolved(abilities)
    if not isinstance(adjoint, Continuous):
        return adjoint.name, method
    given = [*(adjoint.options or ()), *(() if adjoint.norm is None else ("norm",))]
    if given:
        raise UnsupportedError(
            f"the Julia backend takes no adjoint_options, got {', '.join(sorted(given))}; use "
            "backend='torch'"
        )
    if adjoint.method is None:
        return adjoint.name, _backward(method)
    chosen = _chosen(problem, adjoint.method, adjoint.name)
    adaptive = not method.fixed and solver.option("step_size") is None
    if adaptive and not chosen.estimates:
        raise UnsupportedError(
            f"adjoint_method={adjoint.method!r} has no error estimate; use one that has, or a "
            "solve with fixed steps"
        )
    return adjoint.name, chosen


def _chosen(problem: Problem, name: str, adjoint: str) -> Method:
    """The method of the backward solve that was asked for, where it can serve."""
    method, why = find(name), None
    if method.kind == "nystrom":
        why = "solves h'' = f(t, h, h'), which an adjoint equation is not; use 'Tsit5'"
    elif problem.mass is not None and method.kind not in ("implicit", "bdf"):
        why = "takes no mass matrix; use 'Rodas5P'"
    elif method.kind == "hermite" and adjoint in ("gauss", "quadrature"):
        why = (
            f"has no interpolant of its order, which the quadrature of adjoint {adjoint!r} reads; "
            "use 'Tsit5', or adjoint='interpolating'"
        )
    elif method.kind == "bdf" and adjoint == "gauss":
        why = (
            "has too few nodes for the quadrature of adjoint 'gauss'; use 'Rodas5P', or "
            "adjoint='interpolating'"
        )
    if why is not None:
        raise UnsupportedError(f"adjoint_method={name!r} {why}")
    return method


def _backward(method: Method) -> Method:
    """The method of the backward solve: that of the forward one where it serves."""
    # Gauss's nodes follow the order that is declared, which is 1 for the BDFs
    if method.kind == "bdf":
        return find("Rodas5P")
    # λ is interpolated at the quadrature's nodes, which costs Verner's methods extra stages; a
    # Nyström method does not fit the adjoint system
    if method.kind in ("lazy", "hermite", "nystrom", "lowstorage", "stabilized", "multistep"):
        return find("Tsit5")
    return find("AutoTsit5") if method.kind == "default" else method


def _check_checkpoints(
    problem: Problem, name: str, method: Method, adjoint: str, fixed: bool
) -> None:
    """Raise where SciMLSensitivity cannot solve again from checkpoint to checkpoint."""
    why = None
    if problem.mass is not None:
        why = "a system with a mass matrix"
    elif fixed:
        why = "steps of fixed size"
    elif method.nystrom or (adjoint == "gauss" and method.implicit):
        why = f"adjoint {adjoint!r} and method {name!r}"
    if why is not None:
        raise UnsupportedError(
            f"options['checkpoints'] cannot be had with {why}: leave it out, or use "
            "adjoint='backsolve'"
            + (" or 'interpolating'" if adjoint == "gauss" and not method.nystrom else "")
        )


def advice(retcode: Retcode, plan: Plan, backward: bool = False) -> str:
    """What to try after a solve, or the backward one, that ended so; fitting the method."""
    method = plan.adjoint_method if backward else plan.method
    if retcode is not Retcode.MAX_ITERS or not method.implicit:
        return retcode.advice
    if not backward:
        return "Raise max_steps, loosen rtol/atol, or shorten the time span."
    other = "use adjoint='gauss', " if plan.adjoint != "gauss" else ""
    if plan.method.kind == "bdf":
        return (
            "Between its steps the trajectory of a BDF method is not smooth, which costs the "
            f"backward solve many: {other}solve with 'Rodas5P', or loosen adjoint_rtol and "
            "adjoint_atol."
        )
    return f"Raise max_steps, {other}or loosen adjoint_rtol and adjoint_atol."


def _number(name: str, value: Any, default: float | Tensor) -> float:
    """A tolerance of an adjoint, which is a number here: the smallest where it was a tensor."""
    value = default if value is None else value
    if isinstance(value, (tuple, list)):
        value = torch.cat([torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in value])
    return not_negative(name, torch.as_tensor(value).min())


def _positive(name: str, value: Any) -> float | None:
    """A number > 0, which may be infinite; None where it was not given."""
    if value is None:
        return None
    return number(name, value, "be positive", lambda x: x > 0)
