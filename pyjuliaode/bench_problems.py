"""What ``pyjuliaode bench`` solves, and with what: the problems, and the solvers compared."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from .api import backends, solve
from .dynamics import HBNODE
from .solution import SolveStats
from .solver import Solver

MAX_STEPS = 1_000_000


@dataclass(frozen=True)
class Problem:
    """An initial value problem over [0, 1] with the loss (y(1) * weight).sum().

    Attributes:
        name: short name, for files and tables.
        title: one line that says what it is.
        func: the right-hand side, func(t, y).
        y0: initial state.
        weight: cotangent of y(1), of y0's shape.
        tol: rtol and atol of the comparison at equal tolerance.
        tolerances: those of the comparison at equal error; none: it is left out.
    """

    name: str
    title: str
    func: nn.Module
    y0: Tensor
    weight: Tensor
    tol: float
    tolerances: tuple[float, ...]

    @property
    def t(self) -> Tensor:
        return torch.tensor([0.0, 1.0], dtype=torch.float64)

    @property
    def params(self) -> tuple[Tensor, ...]:
        return tuple(self.func.parameters())

    def in_float64(self) -> Problem:
        """The same problem in float64, with its own copy of the parameters."""
        func = _MAKERS[self.name](torch.float64).func
        func.load_state_dict(self.func.state_dict())
        return replace(self, func=func, y0=self.y0.double(), weight=self.weight.double())


class Autonomous(nn.Module):
    """A network f(y) as func(t, y)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


def heavy_ball(dtype: torch.dtype = torch.float64, batch: int = 120) -> Problem:
    """A small network: the cost of the solver itself weighs most here."""
    torch.manual_seed(0)
    field = nn.Sequential(nn.Linear(2, 14), nn.ELU(), nn.Linear(14, 14), nn.ELU(), nn.Linear(14, 2))
    func = HBNODE(field).to(dtype)
    y0 = func.initial_state(torch.randn(batch, 2, dtype=torch.float64).to(dtype)).detach()
    weight = torch.randn(y0.shape, dtype=torch.float64).to(dtype)
    title = f"HBNODE, field 2-14-14-2 ELU, batch {batch}, float64"
    if batch == 120:
        return Problem("hbnode", title, func, y0, weight, 1e-7, _powers(3, 9))
    return Problem(f"hbnode-{batch}", title, func, y0, weight, 1e-7, ())


def wide(dtype: torch.dtype = torch.float32, batch: int = 256) -> Problem:
    """A network whose own cost weighs most."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 64)).to(dtype)
    y0 = torch.randn(batch, 64, dtype=torch.float64).to(dtype)
    weight = torch.randn(y0.shape, dtype=torch.float64).to(dtype)
    title = f"field 64-256-64 tanh, batch {batch}, float32"
    return Problem("wide", title, Autonomous(net), y0, weight, 1e-5, _powers(3, 6))


def _powers(first: int, last: int) -> tuple[float, ...]:
    return tuple(float(f"1e-{k}") for k in range(first, last + 1))


_MAKERS: dict[str, Callable[..., Problem]] = {
    "hbnode": heavy_ball,
    "wide": wide,
    "hbnode-1": partial(heavy_ball, batch=1),
    "hbnode-4096": partial(heavy_ball, batch=4096),
}


def problems() -> list[Problem]:
    return [make() for make in _MAKERS.values()]


@dataclass(frozen=True)
class Competitor:
    """A way to solve a problem: a package, a method, and how gradients are found.

    Attributes:
        package: "pyjuliaode" (its torch backend), "pyjuliaode-julia" or "torchdiffeq".
        method: name of the method.
        adjoint: of pyjuliaode an adjoint; of torchdiffeq "odeint" or "odeint_adjoint".
        checkpoint: of pyjuliaode's "direct": replay the steps (True) or keep the graph (False).
        native: of pyjuliaode-julia: the field runs in Julia rather than through callbacks.
    """

    package: str
    method: str = "dopri5"
    adjoint: str = "direct"
    checkpoint: bool = False
    native: bool = False

    @property
    def name(self) -> str:
        """Of the package, with its mode."""
        return f"{self.package} native" if self.native else self.package

    @property
    def label(self) -> str:
        replay = " checkpointed" if self.checkpoint else ""
        return f"{self.name} {self.method} {self.adjoint}{replay}"

    @property
    def keeps_graph(self) -> bool:
        """Whether the backward pass walks the graph of the forward evaluations."""
        direct = self.adjoint == "direct" and not self.checkpoint and not self.in_julia
        return self.adjoint == "odeint" or direct

    def solve(
        self, problem: Problem, y0: Tensor, tol: float, dt: float | None = None
    ) -> tuple[Tensor, SolveStats | None]:
        """The state at the end, and the statistics where the package has them."""
        if self.package == "torchdiffeq":
            return self._solve_torchdiffeq(problem, y0, tol, dt), None
        solver = Solver(
            method=self.method,
            rtol=tol,
            atol=tol,
            adjoint=self.adjoint,
            backend="julia" if self.in_julia else "torch",
            dt=dt,
            max_steps=MAX_STEPS,
            options=self._options(),
            native="always" if self.native else "never",
        )
        solution = solve(problem.func, y0, problem.t, solver)
        return solution.y[-1], solution.stats

    @property
    def in_julia(self) -> bool:
        return self.package == "pyjuliaode-julia"

    def _options(self) -> dict[str, bool]:
        if self.in_julia:
            return {"dense": False}
        return {"checkpoint": self.checkpoint} if self.adjoint == "direct" else {}

    def _solve_torchdiffeq(
        self, problem: Problem, y0: Tensor, tol: float, dt: float | None
    ) -> Tensor:
        import torchdiffeq

        odeint = getattr(torchdiffeq, self.adjoint)
        options = None if dt is None else {"step_size": dt}
        tols = {"rtol": tol, "atol": tol}
        y = odeint(problem.func, y0, problem.t, method=self.method, options=options, **tols)
        return y[-1]


def has_torchdiffeq() -> bool:
    return importlib.util.find_spec("torchdiffeq") is not None


def has_julia() -> bool:
    """Whether Julia is set up, and "auto" is not said to be another backend."""
    if os.environ.get("PYJULIAODE_BACKEND") not in (None, "", "auto", "julia"):
        return False
    return backends()["julia"]["ready"]


def forward_competitors() -> list[Competitor]:
    ours = [Competitor("pyjuliaode", method) for method in ("dopri5", "tsit5")]
    if has_julia():
        ours += [
            Competitor("pyjuliaode-julia", method, native=native)
            for native in (False, True)
            for method in ("dopri5", "tsit5")
        ]
    return ours + ([Competitor("torchdiffeq", adjoint="odeint")] if has_torchdiffeq() else [])


def gradient_competitors(method: str = "dopri5") -> list[Competitor]:
    ours = [
        Competitor("pyjuliaode", method, "direct"),
        Competitor("pyjuliaode", method, "direct", checkpoint=True),
        Competitor("pyjuliaode", method, "interpolating"),
        Competitor("pyjuliaode", method, "gauss"),
        Competitor("pyjuliaode", method, "backsolve"),
    ]
    if has_julia():
        ours += [
            Competitor("pyjuliaode-julia", method, adjoint)
            for adjoint in ("direct", "gauss", "interpolating")
        ]
        ours += [
            Competitor("pyjuliaode-julia", method, adjoint, native=True)
            for adjoint in ("direct", "gauss")
        ]
    if not has_torchdiffeq():
        return ours
    theirs = [Competitor("torchdiffeq", method, a) for a in ("odeint", "odeint_adjoint")]
    return ours + theirs
