"""Who is compared: packages, their methods, and the ways they find gradients."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

from .._install import install_command
from ..api import backends
from ..errors import InvalidArgumentError, unknown_name
from .problems import Problem

# What ``--competitors`` takes, with the names in tables. "julia" calls the field in Python,
# "native" runs it in Julia; "compiled" is torch with compiled steps, "pan" its method that is
# parallel in time.
PACKAGES = {
    "torch": "pyjuliaode torch",
    "compiled": "pyjuliaode torch compiled",
    "pan": "pyjuliaode pan",
    "julia": "pyjuliaode julia",
    "native": "pyjuliaode julia native",
    "torchdiffeq": "torchdiffeq",
    "torchode": "torchode",
    "diffrax": "diffrax",
}
OWN = ("torch", "compiled", "pan", "julia", "native")
IN_JULIA = ("julia", "native")
BASE = "torchdiffeq"  # what ratios are taken to

# The first method of a package, and its first gradient, stand for it in the overview.
_METHODS = {package: ("dopri5", "tsit5") for package in PACKAGES} | {
    "pan": ("pan",),
    "torchdiffeq": ("dopri5",),
}
_STIFF_METHODS = {
    "torch": ("BDF", "Radau"),
    "pan": ("pan",),
    "julia": ("Rodas5P", "FBDF"),
    "native": ("Rodas5P", "FBDF"),
    "torchdiffeq": ("BDF", "Radau"),
    "diffrax": ("Kvaerno5",),  # torchode has no implicit method, and SciPy's are not compiled
}
SCIPY_METHODS = ("BDF", "Radau")
_ADJOINTS = {
    "torch": ("direct", "direct checkpointed", "interpolating", "gauss", "backsolve"),
    "compiled": ("direct checkpointed", "gauss"),
    "pan": ("direct", "gauss"),
    "julia": ("direct", "gauss", "interpolating"),
    "native": ("direct", "gauss"),
    "torchdiffeq": ("odeint", "odeint_adjoint"),
    "torchode": ("autodiff",),
    "diffrax": ("recursive checkpoint",),
}
_STIFF_ADJOINTS = {  # through SciPy there is no graph, and of SciPy's steps no replay
    **_ADJOINTS,
    "torch": ("gauss", "backsolve"),
    "compiled": (),
    "julia": ("gauss",),
    "native": ("gauss",),
    "torchdiffeq": ("odeint_adjoint",),
}


@dataclass(frozen=True)
class Competitor:
    """A way to solve a problem: a package, a method, and how gradients are found.

    Attributes:
        package: one of ``PACKAGES``.
        method: name of the method; of torch and torchdiffeq also one of SciPy's.
        adjoint: by the name of the package; "direct" of torch keeps the autograd graph, "direct
            checkpointed" replays the steps.
    """

    package: str
    method: str = "dopri5"
    adjoint: str = "direct"

    @property
    def solver(self) -> str:
        """Package and method, as tables call them."""
        if self.package == "pan":  # which is the method's name too
            return PACKAGES[self.package]
        scipy = " (SciPy)" if self.method in SCIPY_METHODS else ""
        return f"{PACKAGES[self.package]} {self.method}{scipy}"

    def label(self, what: str) -> str:
        """For a row of ``what``: "forward" or "gradient"."""
        return self.solver if what == "forward" else f"{self.solver} {self.adjoint}"

    @property
    def keeps_graph(self) -> bool:
        """Whether the backward pass walks the graph of the forward evaluations."""
        return (self.package, self.adjoint) in (
            ("torch", "direct"),
            ("torchdiffeq", "odeint"),
            ("torchode", "autodiff"),
        )


def solvers(problem: Problem, packages: Sequence[str]) -> list[Competitor]:
    """Those whose forward solves are compared."""
    methods = _STIFF_METHODS if problem.stiff else _METHODS
    plain = {package: adjoints[0] for package, adjoints in _adjoints(problem).items() if adjoints}
    if problem.stiff:
        plain["torchdiffeq"] = "odeint"
    return [Competitor(p, m, plain[p]) for p in packages for m in methods.get(p, ())]


def gradients(
    problem: Problem, packages: Sequence[str], method: str | None = None
) -> list[Competitor]:
    """Those whose gradients are compared; a ``method`` stands for the first of each package."""
    methods = _STIFF_METHODS if problem.stiff else {p: m[:1] for p, m in _METHODS.items()}
    if method is not None:
        methods = {package: (method,) for package in methods}
    adjoints = _adjoints(problem)
    return [Competitor(p, m, a) for p in packages for m in methods.get(p, ()) for a in adjoints[p]]


def _adjoints(problem: Problem) -> dict[str, tuple[str, ...]]:
    return _STIFF_ADJOINTS if problem.stiff else _ADJOINTS


def missing(package: str) -> str | None:
    """Why a package cannot be measured here, or None. Starts and downloads nothing."""
    if package in IN_JULIA:
        if os.environ.get("PYJULIAODE_BACKEND") not in (None, "", "auto", "julia"):
            return "PYJULIAODE_BACKEND names another backend"
        return backends()["julia"]["missing"]
    if package not in OWN and importlib.util.find_spec(package) is None:
        return f"{package} is not installed: {install_command('bench')}"
    return None


def choose(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The packages to measure, and why each of the others is left out.

    Arguments:
        names: those asked for; none: all that are here.

    Raises:
        InvalidArgumentError: an unknown name, or one asked for that is not here.
    """
    for name in names:
        if name not in PACKAGES:
            raise unknown_name("competitor", name, PACKAGES)
        if (reason := missing(name)) is not None:
            raise InvalidArgumentError(f"competitor {name!r} cannot run: {reason}")
    reasons = {name: "was not asked for" if names else missing(name) for name in PACKAGES}
    left_out = {name: why for name, why in reasons.items() if why and name not in names}
    return [name for name in PACKAGES if name not in left_out], left_out
