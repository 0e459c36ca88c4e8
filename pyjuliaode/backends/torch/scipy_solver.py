"""method="scipy_solver": SciPy's solvers, on the host, for stiff problems and as a witness.

There is no autograd graph through NumPy: gradients come from the continuous adjoints, whose
equations SciPy solves too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._install import install_command
from ...errors import InvalidArgumentError, UnsupportedError, unknown_name
from ...rhs import RHS, Time
from ...solution import Retcode, SolveStats
from .callbacks import Callbacks
from .control import StepFailure, no_event

# (order, highest degree of the interpolants)
_SOLVERS = {
    "RK45": (5, 4),
    "RK23": (3, 3),
    "DOP853": (8, 7),
    "Radau": (5, 3),
    "BDF": (5, 5),
    "LSODA": (12, 12),
}
_FARTHEST = 1e100  # where the search for an event ends


def order_of(options: Mapping[str, Any]) -> int:
    """The order, at most, of the solver that the options name."""
    return _SOLVERS[options.get("solver", "RK45")][0]


class ScipyStep:
    """A step of SciPy's with SciPy's interpolant of it, a function of the time on the host.

    The interpolants of BDF and LSODA miss y0 by what the tolerance allows. ``slopes`` are those at
    its ends, where the solver keeps them; ``field`` evaluates one.
    """

    def __init__(
        self,
        t0: float,
        t1: float,
        y0: Tensor,
        y1: Tensor,
        piece: Callable[[Any], Any],
        degree: int,
        slopes: tuple[Any, Any],
        field: Callable[[float, Tensor], Tensor],
    ):
        self.t0, self.t1, self.h, self.y0, self.y1 = t0, t1, t1 - t0, y0, y1
        self._piece, self._degree, self._slopes, self._field = piece, degree, slopes, field

    @property
    def start(self) -> float:
        return self.t0

    @property
    def first(self) -> Tensor:
        """The slope at y0, evaluated where the solver does not keep it."""
        f0 = self._slopes[0]
        if f0 is not None:
            return tensor_of(f0, self.y0)
        with torch.no_grad():
            return self._field(self.t0, self.y0)

    @property
    def last(self) -> Tensor | None:
        """The slope at y1, where the solver keeps it."""
        f1 = self._slopes[1]
        return None if f1 is None else tensor_of(f1, self.y0)

    def interpolate(self, t: Time) -> Tensor:
        return tensor_of(self._piece(float(t)), self.y0)

    def states(self, times: Sequence[float]) -> list[Tensor]:
        """The states at several times within the step."""
        return list(tensor_of(self._piece(list(times)), self.y0).unbind(1)) if times else []

    def landing(self, t: float) -> Tensor:
        return self.interpolate(t)

    afresh = landing  # SciPy's steps cannot be taken to another time

    def polynomial(self) -> Tensor:
        """Coefficients (N, degree) of y(θ) = y0 + Σ_j q_j θ^(j+1), through y0, y1 and states."""
        powers = torch.arange(1, self._degree + 1, dtype=torch.float64, device="cpu")
        theta = 0.5 - 0.5 * torch.cos(torch.pi * powers / self._degree)
        times = [self.t0 + self.h * x for x in theta[:-1].tolist()]
        rise = torch.stack([*self.states(times), self.y1]).cpu() - self.y0.cpu()
        wide = rise.to(torch.promote_types(rise.dtype, torch.float64))
        q = torch.linalg.solve((theta[:, None] ** powers).to(wide.dtype), wide)
        return q.t().to(self.y0)


def tensor_of(values: Any, like: Tensor) -> Tensor:
    """An array of SciPy's, which it may use again, as a tensor."""
    return torch.from_numpy(values.copy()).to(like)


class ScipyStream:
    """Steps of one of SciPy's solvers."""

    def __init__(
        self,
        rhs: RHS,
        stats: SolveStats,
        rtol: float | Tensor,
        atol: float | Tensor,
        options: Mapping[str, Any],
        max_steps: int,
        callbacks: Callbacks | None = None,
    ):
        try:
            import scipy.integrate
        except ImportError as error:
            raise UnsupportedError(
                f"method='scipy_solver' needs SciPy: {install_command('experiments')}"
            ) from error
        if isinstance(rtol, Tensor):
            raise InvalidArgumentError("scipy_solver takes one number as rtol, got a tensor")
        self.rhs, self.stats, self.max_steps, self.callbacks = rhs, stats, max_steps, callbacks
        self.name = options.get("solver", "RK45")
        if self.name not in _SOLVERS:
            raise unknown_name("solver of SciPy", self.name, tuple(_SOLVERS))
        self.solver = getattr(scipy.integrate, self.name)
        names = ("min_step", "max_step", "first_step")
        self.options = {k: options[k] for k in names if options.get(k) is not None}
        self.options["rtol"] = rtol
        self.options["atol"] = atol.cpu().numpy() if isinstance(atol, Tensor) else atol
        self.counted_from = 0  # steps that max_steps does not count

    def begin_interval(self) -> None:
        """Count max_steps from here on."""
        self.counted_from = self.stats.n_accepted

    def steps(
        self, y: Tensor, t0: float, t1: float, f0: Tensor | None = None
    ) -> Iterator[ScipyStep]:
        """Yield accepted steps from t0 to t1; ``f0`` is not used.

        Raises:
            StepFailure: there are none, SciPy says why; or more than ``max_steps``.
            UnsupportedError: a complex state, which this solver does not take.
        """
        if t0 == t1:
            return
        y = y.detach()
        solver = self._begin(y, t0, t1)
        while solver.status == "running":
            self._check_count(float(solver.t), math.isinf(t1))
            before = _slope_of(solver)
            self._advance(solver)
            y1 = tensor_of(solver.y, y)
            self._check_end(solver, y1)
            step = ScipyStep(
                *(float(solver.t_old), float(solver.t), y, y1, solver.dense_output()),
                _SOLVERS[self.name][1],
                (before, _slope_of(solver)),
                self.rhs,
            )
            self.stats.n_accepted += 1
            if self.callbacks is not None:
                self.callbacks.report(True, step.t0, y, step.h)
            yield step
            y = y1

    @torch.no_grad()
    def _begin(self, y: Tensor, t0: float, t1: float) -> Any:
        """SciPy's solver at the start of a span."""
        if y.is_complex() and self.name in ("Radau", "LSODA"):
            raise UnsupportedError(
                f"SciPy's {self.name} solves real states; use options={{'solver': 'BDF'}}"
            )
        if not bool(y.isfinite().all()):
            raise StepFailure(Retcode.UNSTABLE, t0, "y0 is not finite (NaN or Inf)", "")
        options = dict(self.options)
        if "first_step" in options:
            options["first_step"] = min(options["first_step"], abs(t1 - t0))
        t1 = max(min(t1, _FARTHEST), -_FARTHEST)
        return self.solver(self._field(y), t0, y.numpy(force=True), t1, **options)

    def _field(self, like: Tensor) -> Callable[[float, Any], Any]:
        """The field on arrays, as SciPy calls it."""
        rhs, started = self.rhs, False

        def field(t: float, state: Any) -> Any:
            nonlocal started
            slope = rhs(float(t), tensor_of(state, like))
            if not started and not bool(slope.isfinite().all()):  # for which SciPy has no end
                raise StepFailure(Retcode.UNSTABLE, float(t), "the field at y0 is not finite")
            started = True
            return slope.numpy(force=True)

        return field

    @torch.no_grad()
    def _advance(self, solver: Any) -> None:
        """One step; raise :class:`StepFailure` where there is none."""
        try:
            message = solver.step()
        except ValueError as error:
            if "infs or NaNs" not in str(error):  # of the matrices of implicit methods
                raise
            raise StepFailure(
                Retcode.UNSTABLE, float(solver.t), "the field or its Jacobian is not finite"
            ) from error
        if solver.status == "failed":
            raise StepFailure(Retcode.DT_LESS_THAN_MIN, float(solver.t), f"SciPy: {message}")

    def _check_end(self, solver: Any, y1: Tensor) -> None:
        """Raise where a step that counts as a success is none."""
        if self.name == "LSODA" and not bool(y1.isfinite().all()):
            raise StepFailure(Retcode.UNSTABLE, float(solver.t_old), "the next state is not finite")

    def _check_count(self, t: float, endless: bool) -> None:
        """Raise where the steps are spent."""
        if self.stats.n_accepted - self.counted_from >= self.max_steps:
            without = " without an event" if endless else ""
            raise StepFailure(Retcode.MAX_ITERS, t, f"{self.max_steps} steps were taken{without}")
        if endless and abs(t) >= 0.01 * _FARTHEST:
            raise no_event(t)


def _slope_of(solver: Any) -> Any:
    """The field at the solver's state, where the solver keeps it."""
    found = getattr(solver, "f", None)
    return None if found is None else found.copy()
