"""Rosenbrock and Beale as flows: heavy-ball paper, figure 2; Nesterov paper, figure 1.

The right-hand sides are those of the models, with the gradient of the function for the network:
NODE is gradient flow, HBNODE heavy ball, NesterovNODE Nesterov's equation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import plotting
from ..api import solve
from ..dynamics import HBNODE, NODE, NesterovNODE
from . import models
from .base import Defaults, Study
from .config import RunConfig
from .folder import RunFolder
from .settings import number

N_TIMES = 401


@dataclass(frozen=True)
class Problem:
    """A function of the plane with the settings of the heavy-ball paper, appendix E.6.

    Attributes:
        value: (B, 2) -> (B,).
        gradient: (B, 2) -> (B, 2).
        minimum: where it is smallest.
        gamma: damping of the heavy ball.
        horizon: the end of the paper's time span, from the start (0, 0).
        window: of the contours: x low, x high, y low, y high.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    minimum: tuple[float, float]
    gamma: float
    horizon: float
    window: tuple[float, float, float, float]


def _rosenbrock(z: Tensor) -> Tensor:
    x, y = z.unbind(-1)
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _rosenbrock_gradient(z: Tensor) -> Tensor:
    x, y = z.unbind(-1)
    return torch.stack([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)], dim=-1)


_BEALE = ((1.5, 1), (2.25, 2), (2.625, 3))


def _beale(z: Tensor) -> Tensor:
    x, y = z.unbind(-1)
    return sum((c - x + x * y**k) ** 2 for c, k in _BEALE)


def _beale_gradient(z: Tensor) -> Tensor:
    x, y = z.unbind(-1)
    residuals = [(c - x + x * y**k, k) for c, k in _BEALE]
    dx = sum(2 * r * (y**k - 1) for r, k in residuals)
    dy = sum(2 * r * k * x * y ** (k - 1) for r, k in residuals)
    return torch.stack([dx, dy], dim=-1)


PROBLEMS = (
    Problem(
        "Rosenbrock",
        _rosenbrock,
        _rosenbrock_gradient,
        (1.0, 1.0),
        0.9,
        1.0,
        (-0.3, 1.5, -0.4, 1.5),
    ),
    Problem("Beale", _beale, _beale_gradient, (3.0, 0.5), 0.7, 2.0, (-0.5, 5.0, -0.5, 1.2)),
)


class _Gradient(nn.Module):
    """sign * grad F as a field."""

    def __init__(self, gradient: Callable[[Tensor], Tensor], sign: float):
        super().__init__()
        self.gradient, self.sign = gradient, sign

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return self.sign * self.gradient(h)


def flows(problem: Problem) -> dict[str, nn.Module]:
    """x' = -grad F;  x'' + gamma x' + grad F = 0;  x'' + (3/t) x' + grad F = 0."""
    downhill, uphill = _Gradient(problem.gradient, -1.0), _Gradient(problem.gradient, 1.0)
    return {
        "gradient flow": NODE(downhill),
        "heavy ball": HBNODE(downhill, gamma=problem.gamma),
        "Nesterov": NesterovNODE(uphill, form="second_order"),
    }


class OptimizersExperiment(Study):
    """How fast three flows from (0, 0) reach the minimum, in float64.

    With the settings that the heavy-ball paper writes down, heavy ball is not nearer to the
    minimum than gradient flow at the end of the span, on either function: ``horizon_factor``
    follows the flows beyond it (the figure marks the paper's end).
    """

    name = "optimizers"
    summary = "Rosenbrock and Beale as flows (heavy-ball fig. 2, Nesterov fig. 1)"
    defaults = Defaults(tol=1e-9, settings={"horizon_factor": number(5.0, 1.0, 1e3)})

    def compute(self, config: RunConfig, progress: bool) -> dict[str, Any]:
        problems = [self._problem(problem, config) for problem in PROBLEMS]
        final = {
            f"{problem['name']}, {name}": flow["at_horizon"]
            for problem in problems
            for name, flow in problem["flows"].items()
        }
        return {"problems": problems, "final": final}

    def draw(self, results: Mapping[str, Any], folder: RunFolder) -> None:
        figure = plotting.optimizer_paths(results["problems"])
        folder.write("optimizers.png", lambda path: plotting.save(figure, path))

    def _problem(self, problem: Problem, config: RunConfig) -> dict[str, Any]:
        x_low, x_high, y_low, y_high = problem.window
        x = torch.linspace(x_low, x_high, 121, dtype=torch.float64)
        y = torch.linspace(y_low, y_high, 121, dtype=torch.float64)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        return {
            "name": problem.name,
            "minimum": list(problem.minimum),
            "horizon": problem.horizon,
            "gamma": problem.gamma,
            "contour": [x.tolist(), y.tolist(), problem.value(grid).tolist()],
            "flows": {
                name: self._flow(problem, dynamics, config)
                for name, dynamics in flows(problem).items()
            },
        }

    @torch.no_grad()
    def _flow(self, problem: Problem, dynamics: nn.Module, config: RunConfig) -> dict[str, Any]:
        end = problem.horizon * config.settings["horizon_factor"]
        inner = torch.linspace(0.0, problem.horizon, N_TIMES, dtype=torch.float64)
        outer = torch.linspace(problem.horizon, end, N_TIMES, dtype=torch.float64)[1:]
        times = torch.cat([inner, outer]) if end > problem.horizon else inner
        start = torch.zeros(1, 2, dtype=torch.float64)
        state = dynamics.initial_state(start, t0=0.0)
        solution = solve(dynamics, state, times, models.solver(config))
        path = torch.stack(
            [dynamics.readout(t, y) for t, y in zip(solution.t, solution.y, strict=True)]
        ).squeeze(1)
        distance = (path - torch.tensor(problem.minimum, dtype=torch.float64)).norm(dim=1)
        at = N_TIMES - 1
        return {
            "t": times.tolist(),
            "path": path.tolist(),
            "distance": distance.tolist(),
            "nfe": solution.stats.nfe_forward,
            "at_horizon": {
                "x": path[at, 0].item(),
                "y": path[at, 1].item(),
                "distance": distance[at].item(),
                "closest": distance[: at + 1].min().item(),
                "F": problem.value(path[at]).item(),
            },
        }


EXPERIMENT = OptimizersExperiment()
