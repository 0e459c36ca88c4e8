"""Where evaluating at many times at once pays: time against batch and width."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import plotting
from ..api import solve
from ..errors import SolverError
from ..progress import progress_bar
from ..solver import Solver
from .base import Defaults, Study
from .config import RunConfig
from .folder import RunFolder
from .settings import WIDTH, number, whole

METHODS = ("dopri5", "dopri8", "pan")
BATCHES, WIDTHS = (1, 16, 256), (16, 128, 1024)
TOLERANCES = tuple(10.0**-k for k in range(4, 13))
T = (0.0, 2.0)
REPEATS, ENOUGH = 5, 2.0  # runs of a solve, and seconds after which there are no more


class PanScalingExperiment(Study):
    """Forward solves of fc tanh fc on 8 numbers, t in [0, 2], float64, first weight times ``gain``.

    For every batch and width the cheapest run over the tolerances whose relative error at the
    end is at most ``error``, against dopri8 at 1e-13.
    """

    name = "pan-scaling"
    summary = "time of PAN and of Runge-Kutta methods at equal error, by batch and width"
    defaults = Defaults(
        tol=1e-12,
        tols=(1e-13, 1e-4),
        settings={
            "error": number(1e-9, 1e-12, 1.0),
            "gain": number(3.0, 0.0, 1e3, above=True),
            "dim": whole(8, 1, WIDTH),
        },
    )

    def work(self, config: RunConfig) -> int:
        return max(BATCHES) * max(WIDTHS) * config.settings["dim"]

    def compute(self, config: RunConfig, progress: bool) -> dict[str, Any]:
        total = len(BATCHES) * len(WIDTHS) * len(METHODS)
        rows = []
        with progress_bar(total, "point", shown=progress) as bar, torch.no_grad():
            for width in WIDTHS:
                for batch in BATCHES:
                    func, y0 = self._problem(width, batch, config)
                    exact = self._solved(func, y0, "dopri8", 1e-13)[0]
                    for method in METHODS:
                        bar.set_description(f"{method}, batch {batch}, width {width}")
                        found = self._cheapest(func, y0, method, exact, config)
                        rows.append({"method": method, "batch": batch, "width": width, **found})
                        bar.update()
        final = {f"{r['method']}, {r['batch']} x {r['width']}": r["seconds"] for r in rows}
        return {"rows": rows, "threads": torch.get_num_threads(), "final": final}

    def draw(self, results: Mapping[str, Any], folder: RunFolder) -> None:
        figure = plotting.scaling(results["rows"], "at equal error, fc tanh fc")
        folder.write("pan-scaling.png", lambda path: plotting.save(figure, path))

    @staticmethod
    def _problem(width: int, batch: int, config: RunConfig) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(config.seed)
        dim, gain = config.settings["dim"], config.settings["gain"]
        net = nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, dim)).double()
        net[0].weight.mul_(gain)
        y0 = torch.randn(batch, dim, dtype=torch.float64)
        return _Autonomous(net).to(config.device), y0.to(config.device)

    @staticmethod
    def _solved(func: nn.Module, y0: Tensor, method: str, tol: float) -> tuple[Tensor, Any]:
        options = {"dense": False}
        solver = Solver(method, tol, tol, backend="torch", max_steps=100_000, options=options)
        solution = solve(func, y0, T, solver)
        return solution.y[-1], solution.stats

    def _cheapest(
        self, func: nn.Module, y0: Tensor, method: str, exact: Tensor, config: RunConfig
    ) -> dict[str, Any]:
        for tol in TOLERANCES:  # the loosest that does is the cheapest
            if tol < 0.99 * config.tol:
                break
            try:
                y, stats = self._solved(func, y0, method, tol)
            except SolverError:
                continue
            error = float((y - exact).norm() / exact.norm())
            if error <= config.settings["error"]:
                return {
                    "tol": tol,
                    "error": error,
                    "sequential": stats.sequential_forward,
                    "total": stats.nfe_forward,
                    "seconds": self._seconds(func, y0, method, tol),
                }
        return dict.fromkeys(("tol", "error", "sequential", "total", "seconds"))

    def _seconds(self, func: nn.Module, y0: Tensor, method: str, tol: float) -> float:
        """Median of some runs."""
        samples: list[float] = []
        while len(samples) < REPEATS and sum(samples) < ENOUGH:
            began = time.perf_counter()
            float(self._solved(func, y0, method, tol)[0].sum())  # waits for the device
            samples.append(time.perf_counter() - began)
        return statistics.median(samples)


class _Autonomous(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return self.net(h)


EXPERIMENT = PanScalingExperiment()
