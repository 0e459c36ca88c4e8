"""NeuralODE: a continuous-depth layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .api import solve
from .dynamics import NODE, Dynamics
from .errors import InvalidArgumentError
from .solution import SolveStats
from .solver import Solver


class NeuralODE(nn.Module):
    """Initial state -> solve -> read-out.

    Arguments:
        dynamics: a dynamics (NODE, HBNODE, ...); any other module is taken as the field of a NODE.
        t: the time span, or all requested times, monotone; two times return the state
            at the last, more return all. An nn.Parameter is learned.
        solver: :class:`Solver`; default ``Solver()``.

    Calling it with h0 of shape (B, ...) returns h at the last time, (B, ...), or with more than
    two times (T, B, ...). ``stats`` holds the :class:`SolveStats` of the last call; its backward
    numbers are filled in by ``backward()``.

    Raises:
        InvalidArgumentError: fewer than two times, or a time span that the dynamics refuses.
    """

    def __init__(
        self,
        dynamics: nn.Module,
        t: Sequence[float] | Tensor = (0.0, 1.0),
        solver: Solver | None = None,
    ):
        super().__init__()
        self.dynamics = dynamics if isinstance(dynamics, Dynamics) else NODE(dynamics)
        self.solver = Solver() if solver is None else solver
        times = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
        if times.ndim != 1 or times.numel() < 2:
            raise InvalidArgumentError(f"t must hold at least two times, got {t!r}")
        if isinstance(times, nn.Parameter):
            self.t = times
        elif times.requires_grad:
            raise InvalidArgumentError(
                "t carries a gradient: pass it to the call, or make it an nn.Parameter to learn it"
            )
        else:
            self.register_buffer("t", times.to(torch.float64), persistent=False)
        self.stats: SolveStats | None = None
        self._derived: tuple[Solver | None, Solver] = (None, self.solver)

    def forward(
        self, h0: Tensor, t: Tensor | Sequence[float] | None = None, dh0: Tensor | None = None
    ) -> Tensor:
        """h0 (B, ...) -> h, at other times ``t`` or from an initial velocity ``dh0`` if given."""
        times = self.t if t is None else t
        if not isinstance(times, Tensor):
            times = torch.tensor(times, dtype=torch.float64, device=h0.device)
        host = times.detach().tolist()
        t0 = times[0] if times.requires_grad else host[0]
        state = self.dynamics.initial_state(h0, dh0, t0=t0)
        solution = solve(self.dynamics, state, times, self._solver())
        self.stats = solution.stats
        if len(host) == 2:
            return self._readout(times[-1], solution.y[-1])
        rows = [self._readout(x, y) for x, y in zip(times, solution.y, strict=True)]
        return torch.stack(rows)

    def _readout(self, t: Tensor, state: Tensor) -> Tensor:
        return self.dynamics.readout(t.to(state.abs().dtype), state)

    def _solver(self) -> Solver:
        """The solver as a layer needs it: no dense output; dimension 1 of the state the batch."""
        if self._derived[0] is not self.solver:
            options = {"dense": False, "batch_dim": 1, **(self.solver.options or {})}
            self._derived = (self.solver, replace(self.solver, options=options))
        return self._derived[1]

    def extra_repr(self) -> str:
        s = self.solver
        span = f"t=[{float(self.t[0]):g}, {float(self.t[-1]):g}]"
        return f"{span}, method={s.method!r}, rtol={s.rtol}, atol={s.atol}, adjoint={s.adjoint!r}"
