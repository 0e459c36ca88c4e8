"""method="scipy_solver": scipy.integrate.solve_ivp on the host, for stiff problems and as witness.

There is no autograd graph through NumPy: gradients come from the backsolve adjoint, which SciPy
solves too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..._install import install_command
from ...errors import InvalidArgumentError, UnsupportedError, unknown_name
from ...rhs import RHS, Time
from ...solution import Retcode, SolveStats
from .control import StepFailure

_SOLVERS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")


class ScipyStep:
    """The whole span as one step, with SciPy's dense output in it."""

    def __init__(self, t0: float, t1: float, y0: Tensor, y1: Tensor, sol: Any):
        self.t0, self.t1, self.h, self.y0, self.y1, self._sol = t0, t1, t1 - t0, y0, y1, sol

    @property
    def start(self) -> float:
        return self.t0

    def interpolate(self, t: Time) -> Tensor:
        return torch.as_tensor(self._sol(float(t)), device=self.y0.device).to(self.y0.dtype)


class ScipyStream:
    """Integrates a span by one call of solve_ivp."""

    def __init__(
        self,
        rhs: RHS,
        stats: SolveStats,
        rtol: float | Tensor,
        atol: float | Tensor,
        options: Mapping[str, Any],
    ):
        try:
            from scipy.integrate import solve_ivp
        except ImportError as error:
            raise UnsupportedError(
                f"method='scipy_solver' needs SciPy: {install_command('experiments')}"
            ) from error
        self.solve_ivp = solve_ivp
        if isinstance(rtol, Tensor):
            raise InvalidArgumentError("scipy_solver takes one number as rtol, got a tensor")
        self.rhs, self.stats, self.rtol = rhs, stats, rtol
        self.atol = atol.cpu().numpy() if isinstance(atol, Tensor) else atol
        self.solver = options.get("solver", "RK45")
        if self.solver not in _SOLVERS:
            raise unknown_name("solver of SciPy", self.solver, _SOLVERS)
        names = ("min_step", "max_step", "first_step")
        self.limits = {k: options[k] for k in names if options.get(k) is not None}

    def steps(
        self, y: Tensor, t0: float, t1: float, f0: Tensor | None = None
    ) -> Iterator[ScipyStep]:
        """Yield the span from t0 to t1 as one step; ``f0`` is not used."""

        def fun(t: float, state: Any) -> Any:
            value = torch.as_tensor(state, device=y.device).to(y.dtype)
            with torch.no_grad():
                return self.rhs(float(t), value).cpu().numpy()

        sol = self.solve_ivp(
            fun,
            (t0, t1),
            y.detach().cpu().numpy(),
            method=self.solver,
            dense_output=True,
            rtol=self.rtol,
            atol=self.atol,
            **self.limits,
        )
        self.stats.n_accepted += len(sol.t) - 1
        if sol.status != 0:
            raise StepFailure(Retcode.DT_LESS_THAN_MIN, float(sol.t[-1]), f"SciPy: {sol.message}")
        y1 = torch.as_tensor(sol.y[:, -1].copy(), device=y.device).to(y.dtype)
        yield ScipyStep(t0, t1, y, y1, sol.sol)
