"""The tables of the PAN paper: one system, by PAN, by SciPy and by this package's other methods."""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import plotting
from .._install import install_command
from ..api import solve
from ..errors import SolverError, UnsupportedError
from ..progress import progress_bar
from ..solver import Solver
from .base import Defaults, Study
from .config import RunConfig
from .folder import RunFolder

if TYPE_CHECKING:
    import numpy as np

SCIPY = ("RK45", "DOP853", "Radau", "BDF", "LSODA")
OWN = ("dopri5", "tsit5", "dopri8", "pan")
# SciPy's smallest relative tolerance: with it the absolute one alone counts, as in the paper
SMALLEST_RTOL = 2.3e-14
WARM_UPS = 1


class PanTable(Study):
    """Error at the end against evaluations, one after another and all together.

    ``tol`` is the tightest tolerance; the loosest is 1e-4. Rows "pan N = ..." have a number of
    coefficients and of points, and a length of the intervals, that are fixed as in the paper;
    in row "pan" they follow the tolerance. Errors are 2-norms at the end, against a Taylor series
    in 40-digit arithmetic.
    """

    defaults = Defaults(tol=1e-12, tols=(1e-14, 1e-4))
    y0: tuple[float, ...]
    end: float
    fixed: tuple[Mapping[str, Any], ...]
    title: str

    @abstractmethod
    def field(self, t: Tensor | None, y: Tensor) -> Tensor:
        """The right-hand side."""

    @abstractmethod
    def reference(self) -> list[float]:
        """y(end), to all digits of float64."""

    def compute(self, config: RunConfig, progress: bool) -> dict[str, Any]:
        tolerances = [tol for tol in (10.0**-k for k in range(4, 15)) if tol >= 0.99 * config.tol]
        runs = [(name, tol, {}) for name in (*SCIPY, *OWN) for tol in tolerances]
        runs += [("pan", tol, options) for options in self.fixed for tol in tolerances]
        rows = []
        with progress_bar(1 + len(runs), "solve", shown=progress, description="reference") as bar:
            wanted = torch.tensor(self.reference(), dtype=torch.float64)
            bar.update()
            for name, tol, options in runs:
                bar.set_description(name)
                rows.append(self._row(name, tol, options, wanted))
                bar.update()
        best = {
            row["solver"]: row for row in sorted(rows, key=lambda row: -row["tol"]) if row["error"]
        }
        return {"rows": rows, "reference": wanted.tolist(), "final": best}

    def draw(self, results: Mapping[str, Any], folder: RunFolder) -> None:
        figure = plotting.evaluations(results["rows"], self.title)
        folder.write(f"{self.name}.png", lambda path: plotting.save(figure, path))

    def _row(
        self, name: str, tol: float, options: Mapping[str, Any], wanted: Tensor
    ) -> dict[str, Any]:
        run = self._scipy if name in SCIPY else self._own
        label = f"pan N = {options['num_coeffs']}" if options else name
        row = {"solver": label if name not in SCIPY else f"SciPy {name}", "tol": tol}
        try:
            for _ in range(WARM_UPS):
                run(name, tol, options)
            began = time.perf_counter()
            y, sequential, total = run(name, tol, options)
        except (SolverError, RuntimeError) as error:
            nothing = dict.fromkeys(("error", "sequential", "total", "seconds"))
            return {**row, **nothing, "reason": str(error)}
        seconds = time.perf_counter() - began
        error = float((y - wanted).norm())
        return {
            **row,
            "error": error,
            "sequential": sequential,
            "total": total,
            "seconds": seconds,
            "reason": "",
        }

    @torch.no_grad()
    def _own(self, name: str, tol: float, options: Mapping[str, Any]) -> tuple[Tensor, int, int]:
        options = {"dense": False, **options}
        solver = Solver(name, tol, tol, backend="torch", max_steps=1_000_000, options=options)
        y0 = torch.tensor(self.y0, dtype=torch.float64)
        with warnings.catch_warnings():  # of what the paper fixes: its error is in the table
            warnings.filterwarnings("ignore", "the interval of length")
            solution = solve(self.field, y0, [0.0, self.end], solver)
        stats = solution.stats
        return solution.y[-1], stats.sequential_forward, stats.nfe_forward

    def _scipy(self, name: str, tol: float, _: Mapping[str, Any]) -> tuple[Tensor, int, int]:
        try:
            from scipy.integrate import solve_ivp
        except ImportError as error:
            raise UnsupportedError(f"needs scipy: {install_command('experiments')}") from error

        def rhs(_: float, y: np.ndarray) -> np.ndarray:
            return self.field(None, torch.from_numpy(y)).numpy()

        found = solve_ivp(rhs, (0.0, self.end), self.y0, method=name, rtol=SMALLEST_RTOL, atol=tol)
        if found.status != 0:
            raise RuntimeError(found.message)
        return torch.from_numpy(found.y[:, -1].copy()), found.nfev, found.nfev
