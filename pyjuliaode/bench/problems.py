"""What ``pyjuliaode bench`` solves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..dynamics import HBNODE, Dynamics, GNesterovNODE
from ..errors import unknown_name


@dataclass(frozen=True)
class Problem:
    """An initial value problem with the loss (y(t[1:]) * weight).sum().

    Attributes:
        name: short name, for files and tables.
        title: one line that says what it is.
        func: the right-hand side, func(t, y).
        y0: initial state.
        t: output times, float64, shape (T,).
        weight: cotangent of y(t[1:]), shape (T - 1, *y0.shape).
        tol: rtol of the comparison at equal tolerance.
        tolerances: those of the comparison at equal error; none: it is left out.
        atol_factor: atol over rtol.
        stiff: it needs implicit methods.
        grid: steps of the rk4 solution that is the reference.
        tight: tolerance of the dopri8 solution that confirms it.
    """

    name: str
    title: str
    func: nn.Module
    y0: Tensor
    t: Tensor
    weight: Tensor
    tol: float
    tolerances: tuple[float, ...] = ()
    atol_factor: float = 1.0
    stiff: bool = False
    grid: int = 400
    tight: float = 1e-12

    @property
    def params(self) -> tuple[Tensor, ...]:
        return tuple(self.func.parameters())

    @property
    def span(self) -> float:
        return float(self.t[-1] - self.t[0])

    def in_float64(self) -> Problem:
        """The same problem in float64, with its own copy of the parameters."""
        func = copy.deepcopy(self.func).double()
        return replace(self, func=func, y0=self.y0.double(), weight=self.weight.double())


# ------------------------------------------------------------------------------- right-hand sides


class Autonomous(nn.Module):
    """A network f(y) as func(t, y)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


class OfTheCube(Autonomous):
    """A network f(y**3), as in the demonstration of torchdiffeq."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y**3)


class Reactions(nn.Module):
    """Robertson's three reactions; the logarithms of the rates are the parameters. State (3,)."""

    def __init__(self) -> None:
        super().__init__()
        rates = torch.tensor([0.04, 3e7, 1e4], dtype=torch.float64)
        self.log_rates = nn.Parameter(rates.log())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        k1, k2, k3 = self.log_rates.exp().unbind()
        a, b, c = y.unbind()
        slow, fast, back = k1 * a, k2 * b * b, k3 * b * c
        return torch.stack((back - slow, slow - back - fast, fast))


# --------------------------------------------------------------------------------------- problems


def spiral() -> Problem:
    """The cubic spiral of torchdiffeq's demonstration by its network 2-50-2, 10 outputs.

    The network is fitted to the true right-hand side, y**3 A, by least squares of its last layer.
    """
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2)).double()
    side = torch.linspace(-2, 2, 41, dtype=torch.float64)
    cubes = torch.cartesian_prod(side, side) ** 3
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
    with torch.no_grad():
        net[0].weight.normal_(0.0, 0.1, generator=draw)
        net[0].bias.normal_(0.0, 1.0, generator=draw)
        features = torch.cat([net[1](net[0](cubes)), torch.ones(len(cubes), 1).double()], dim=1)
        last = torch.linalg.lstsq(features, cubes @ matrix).solution
        net[2].weight.copy_(last[:-1].T)
        net[2].bias.copy_(last[-1])
    y0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    return Problem(
        "spiral",
        "cubic spiral, field 2-50-2 tanh of y^3, 10 outputs, float64",
        OfTheCube(net),
        y0,
        torch.linspace(0, 10, 11, dtype=torch.float64),
        torch.randn(10, *y0.shape, dtype=torch.float64, generator=draw),
        1e-7,
        _powers(3, 9),
        grid=8_000,
    )


def heavy_ball(batch: int = 120) -> Problem:
    """A small network: the cost of the solver itself weighs most here."""
    return _second_order("hbnode", HBNODE, 0.0, batch)


def nesterov(batch: int = 120) -> Problem:
    """The same network in a system whose right-hand side has more terms, and depends on time."""
    return _second_order("gnesterov", GNesterovNODE, 1.0, batch)


def _second_order(name: str, model: type[Dynamics], t0: float, batch: int) -> Problem:
    torch.manual_seed(0)
    field = nn.Sequential(nn.Linear(2, 14), nn.ELU(), nn.Linear(14, 14), nn.ELU(), nn.Linear(14, 2))
    func = model(field).double()
    h0 = torch.randn(batch, 2, dtype=torch.float64).clamp(-3, 3)  # GNesterovNODE starts no further
    y0 = func.initial_state(h0, t0=t0).detach()
    return Problem(
        f"{name}-{batch}",
        f"{model.__name__}, field 2-14-14-2 ELU, batch {batch}, float64",
        func,
        y0,
        torch.tensor([t0, t0 + 1], dtype=torch.float64),
        torch.randn(1, *y0.shape, dtype=torch.float64),
        1e-7,
        _powers(3, 9) if batch == 120 else (),
    )


def wide(batch: int = 256) -> Problem:
    """A network whose own cost weighs most."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 64))
    title = f"field 64-256-64 tanh, batch {batch}, float32"
    return _first_order("wide", title, net, (batch, 64), 1e-5, _powers(3, 6))


def convolution(batch: int = 16) -> Problem:
    """A field as the papers have it for images, on a state of 8 planes of 28 x 28.

    With tanh: through the papers' ReLU a gradient jumps, and no two solvers agree beyond 1e-3.
    """
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(8, 32, 1),
        nn.Tanh(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(32, 8, 1),
    )
    title = f"field conv 1x1, 3x3, 1x1, 8-32-32-8 tanh, on 8 x 28 x 28, batch {batch}, float32"
    shape = (batch, 8, 28, 28)
    problem = _first_order("convolution", title, net, shape, 1e-5, _powers(3, 6))
    return replace(problem, grid=40, tight=1e-9)


def _first_order(
    name: str,
    title: str,
    net: nn.Module,
    shape: tuple[int, ...],
    tol: float,
    tolerances: tuple[float, ...],
) -> Problem:
    """Autonomous in float32 over [0, 1], from random numbers that are those of float64."""
    y0 = torch.randn(shape, dtype=torch.float64).float()
    weight = torch.randn(1, *shape, dtype=torch.float64).float()
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return Problem(name, title, Autonomous(net), y0, t, weight, tol, tolerances)


def robertson() -> Problem:
    """Robertson's stiff reactions up to t = 40; the second species is of the size of 1e-5."""
    return Problem(
        "robertson",
        "Robertson's reactions, 3 species, 3 log-rates, t to 40, stiff, float64",
        Reactions(),
        torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
        torch.tensor([0.0, 40.0], dtype=torch.float64),
        torch.tensor([[1.0, -0.5, 0.3]], dtype=torch.float64),
        1e-6,
        _powers(4, 8),
        atol_factor=1e-4,
        stiff=True,
    )


def second_order(batch: int, dim: int, width: int, tol: float) -> Problem:
    """HBNODE with a field dim-width-dim, tanh, float64: what the growth of costs is measured on."""
    torch.manual_seed(0)
    func = HBNODE(nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, dim))).double()
    y0 = func.initial_state(torch.randn(batch, dim, dtype=torch.float64)).detach()
    title = f"HBNODE, field {dim}-{width}-{dim} tanh, batch {batch}, float64"
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    weight = torch.randn(1, *y0.shape, dtype=torch.float64)
    return Problem("growth", title, func, y0, t, weight, tol)


def _powers(first: int, last: int) -> tuple[float, ...]:
    return tuple(float(f"1e-{k}") for k in range(first, last + 1))


MAKERS: dict[str, Callable[[], Problem]] = {
    "spiral": spiral,
    **{f"hbnode-{n}": partial(heavy_ball, n) for n in (1, 120, 4096)},
    **{f"gnesterov-{n}": partial(nesterov, n) for n in (1, 120, 4096)},
    "wide": wide,
    "convolution": convolution,
    "robertson": robertson,
}


def check_names(names: Sequence[str]) -> list[str]:
    """The names in the order of the report, each once; none are all.

    Raises:
        InvalidArgumentError: an unknown name; says which there are.
    """
    for name in names:
        if name not in MAKERS:
            raise unknown_name("problem", name, MAKERS)
    return [name for name in MAKERS if not names or name in names]
