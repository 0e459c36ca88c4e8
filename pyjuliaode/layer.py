"""NeuralODE: a continuous-depth layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ._torch import NOT_TRACED, opaque
from .api import solve
from .arguments import keywords
from .dynamics import NODE, Dynamics
from .errors import InvalidArgumentError, UnsupportedError
from .problem import HALF, check_times
from .signature import itself
from .solution import SolveStats
from .solver import SOLVER_NAMES, Solver, solver_keyword


class NeuralODE(nn.Module):
    """Initial state -> solve -> read-out.

    Arguments:
        dynamics: a dynamics (NODE, HBNODE, ...); any other module is taken as the field of a NODE.
        t: the time span, or all requested times, monotone; two times return the state
            at the last, more return all. An nn.Parameter is learned.
        solver: :class:`Solver`, or the name of a method; default ``Solver()``.

    Calling it with h0 of shape (B, ...) returns h at the last time, (B, ...), or with more than
    two times (T, B, ...), in the memory format of h0. ``stats`` holds the :class:`SolveStats` of
    the last call; its backward numbers are filled in by ``backward()``.

    Under ``torch.autocast`` the field runs as autocast has it, and the state is solved in float32
    (or float64), also where h0 comes in half precision from an earlier layer: h is float32 then.
    ``torch.compile`` of a model calls the layer as it is, one graph break; compile the field for
    more. ``torch.export`` (strict=False) follows it with a solver of fixed steps.

    Raises:
        InvalidArgumentError: fewer than two times, or a time span that the dynamics refuses.
    """

    @keywords(solver_keyword, SOLVER_NAMES)
    def __init__(
        self,
        dynamics: nn.Module,
        t: Sequence[float] | Tensor = (0.0, 1.0),
        solver: Solver | str | None = None,
    ):
        super().__init__()
        self.dynamics = _as_dynamics(dynamics)
        self.solver = Solver.of(solver)
        times = check_times(t)
        if times.requires_grad and not isinstance(times, nn.Parameter):
            raise InvalidArgumentError(
                "t carries a gradient: pass it to the call, or make it an nn.Parameter to learn it"
            )
        # no buffer where they are not learned: a device would have to be asked for it, and an
        # ensemble would stack it
        kept = isinstance(times, nn.Parameter)
        self.t = times if kept else times.detach().to("cpu", torch.float64)
        self.stats: SolveStats | None = None
        self._derived: tuple[Solver | None, Solver] = (None, self.solver)

    @opaque(NOT_TRACED)
    def forward(
        self,
        h0: Tensor,
        t: Tensor | Sequence[float] | None = None,
        dh0: Tensor | None = None,
        args: Sequence[Any] = (),
    ) -> Tensor:
        """h0 (B, ...) -> h, at other times ``t`` or from an initial velocity ``dh0`` if given.

        ``args`` are further arguments of the field, f(h, *args) or f(t, h, *args), with a gradient
        to every tensor among them: conditions, controls, what a hyper-network made.
        """
        times = self._times(t)
        state = self.dynamics.initial_state(_widened(h0), _widened(dh0), t0=times[0])
        solution = solve(self.dynamics, state, times, self._solver(), args=args)
        self.stats = solution.stats
        if len(times) == 2:
            found = self._readout(times[-1], solution.y[-1])
        else:
            rows = zip(times, solution.y, strict=True)
            found = torch.stack([self._readout(x, y) for x, y in rows])
        return _laid_out_as(h0, found)

    def _times(self, t: Tensor | Sequence[float] | None) -> Tensor | list[float]:
        """The requested times: numbers, or a tensor where a gradient is asked for."""
        times = self.t if t is None else check_times(t)
        return times if times.requires_grad else times.tolist()

    def _readout(self, t: Tensor | float, state: Tensor) -> Tensor:
        at = t.to(state.dtype.to_real()) if isinstance(t, Tensor) else t
        return self.dynamics.readout(at, state)

    def __prepare_scriptable__(self) -> None:
        raise UnsupportedError(
            "torch.jit.script cannot compile a NeuralODE: the solver is plain Python. Use "
            "torch.export with a solver of fixed steps, Solver('rk4', dt=0.1, backend='torch'), or "
            "script the field alone, NeuralODE(HBNODE(torch.jit.script(field)))"
        )

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


def _as_dynamics(dynamics: nn.Module) -> nn.Module:
    """A dynamics as it is, compiled too; any other module as the field of a NODE."""
    model = itself(dynamics)
    if not isinstance(model, Dynamics):
        return NODE(dynamics)
    if not hasattr(dynamics, "initial_state"):
        kind, wrapper = type(model).__name__, type(dynamics).__name__
        raise InvalidArgumentError(
            f"dynamics is a {kind} in a {wrapper}, which hides its state: wrap the layer instead, "
            f"{wrapper}(NeuralODE({kind}(...)))"
        )
    return dynamics


def _widened(h: Tensor | None) -> Tensor | None:
    """Half precision, as layers under autocast return it, in float32: steps are not rounded."""
    if isinstance(h, Tensor) and h.dtype in HALF and torch.is_autocast_enabled(h.device.type):
        return h.float()
    return h


def _laid_out_as(h0: Tensor, h: Tensor) -> Tensor:
    """``h`` in the memory format of images that ``h0`` has."""
    if h0.ndim != 4 or h.ndim != 4 or h0.is_contiguous():
        return h
    last = h0.is_contiguous(memory_format=torch.channels_last)
    return h.contiguous(memory_format=torch.channels_last) if last else h
