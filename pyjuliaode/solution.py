"""What a solve returns: trajectory, statistics, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from torch import Tensor

from ._torch import NOT_TRACED, opaque
from .errors import SolverError, UnsupportedError


class Retcode(str, Enum):
    """How a solve ended (the names are SciML's)."""

    SUCCESS = "Success"
    TERMINATED = "Terminated"
    MAX_ITERS = "MaxIters"
    DT_LESS_THAN_MIN = "DtLessThanMin"
    UNSTABLE = "Unstable"
    DT_NAN = "DtNaN"
    INITIAL_FAILURE = "InitialFailure"
    CONVERGENCE_FAILURE = "ConvergenceFailure"
    FAILURE = "Failure"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def of(cls, name: str) -> Retcode:
        """The retcode of SciML's name; those without a member here are failures."""
        try:
            return cls(name)
        except ValueError:
            return cls.FAILURE

    @property
    def successful(self) -> bool:
        return self in (Retcode.SUCCESS, Retcode.TERMINATED)

    @property
    def advice(self) -> str:
        """What to try after this ending."""
        return _ADVICE[self]


_ADVICE = {
    Retcode.SUCCESS: "",
    Retcode.TERMINATED: "",
    Retcode.MAX_ITERS: (
        "Raise max_steps (options['max_num_steps'] in odeint), loosen rtol/atol, shorten the time "
        "span, or regularise the field; a stiff problem needs an implicit method (Rodas5P of the "
        "Julia backend, or scipy_solver with options={'solver': 'BDF'}), and a func that gives "
        "another value each time it is called, as with dropout, needs fixed steps."
    ),
    Retcode.DT_LESS_THAN_MIN: (
        "The solution blows up, or the problem is stiff or not smooth here, or rtol/atol are below "
        "what the dtype resolves: loosen them, use float64, declare discontinuities with "
        "options['jump_t'], or use an implicit method."
    ),
    Retcode.UNSTABLE: (
        "The state became NaN or Inf there. If the field returned such numbers, lower the learning "
        "rate or clip gradients, bound the field, or shorten the time span; if its output is "
        "finite, it was the method that failed: take another one, or other tolerances."
    ),
    Retcode.DT_NAN: (
        "The step size became NaN there: look for NaN or Inf in the field's output and in y0; if "
        "both are finite, take another method, or other tolerances."
    ),
    Retcode.INITIAL_FAILURE: (
        "No consistent initial state was found: let y0 satisfy the algebraic equations, or pass "
        "options={'initialization': 'brown'} to have its algebraic part solved for."
    ),
    Retcode.CONVERGENCE_FAILURE: (
        "Newton's iteration did not converge: loosen rtol/atol, use another implicit method, or "
        "look at the field there for jumps."
    ),
    Retcode.FAILURE: "Try other tolerances or another method.",
}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(repr=False)
class SolveStats:
    """What a solve cost.

    Attributes:
        nfe_forward: evaluations of the dynamics during the solve.
        nfe_backward: vector-Jacobian products during ``backward()`` (each is one backward
            evaluation); 0 until ``backward()`` has run.
        alongside_forward, alongside_backward: how many of these were made in one call with another
            (method "pan", which evaluates at many times at once).
        n_jacobians: Jacobians of the dynamics that an implicit method took, forward and backward.
        n_accepted, n_rejected: steps of the forward solve.
        method, adjoint, backend: what ran.
        native: the field ran in Julia, without calls into Python.
        compiled: the steps were compiled (options={"compile": True} of the torch backend).
        retcode: how it ended.
        seconds: wall-clock time of the forward solve.
        seconds_backward: wall-clock time of ``backward()`` through the solve; None before it has
            run, and where it cannot be told from the rest ("direct" with the autograd graph of its
            steps).
    """

    nfe_forward: int = 0
    nfe_backward: int = 0
    alongside_forward: int = 0
    alongside_backward: int = 0
    n_jacobians: int = 0
    n_accepted: int = 0
    n_rejected: int = 0
    method: str = ""
    adjoint: str = ""
    backend: str = ""
    native: bool = False
    compiled: bool = False
    retcode: Retcode = Retcode.SUCCESS
    seconds: float = 0.0
    seconds_backward: float | None = None

    def __repr__(self) -> str:
        """What is not at its default; the attributes are all there."""
        shown = (
            f"{f.name}={_short(getattr(self, f.name))}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        )
        return f"SolveStats({', '.join(shown)})"

    @property
    def sequential_forward(self) -> int:
        """Calls of the dynamics, one after another, during the solve."""
        return self.nfe_forward - self.alongside_forward

    @property
    def sequential_backward(self) -> int:
        """Products, one after another, during ``backward()``."""
        return self.nfe_backward - self.alongside_backward


@dataclass
class Solution:
    """A solved trajectory.

    Attributes:
        t: times, shape (T,); with ``retcode`` other than Success only those reached.
        y: states at ``t``, shape (T, *y0.shape), or a tuple of such for a tuple state.
        stats: :class:`SolveStats`.
        retcode: how it ended.
        message: what happened, with the time reached, and what to try; empty on success.
        step_t: accepted step times, a list of floats, where the method records them.
        event_t: time of the event, a 0-d tensor, when an event ended the solve.
    """

    t: Tensor
    y: Tensor | tuple[Tensor, ...]
    stats: SolveStats
    retcode: Retcode = Retcode.SUCCESS
    message: str = ""
    step_t: list[float] = field(default_factory=list)
    event_t: Tensor | None = None
    dense: Callable[[Tensor | float], Tensor | tuple[Tensor, ...]] | None = field(
        default=None, repr=False
    )

    @opaque(NOT_TRACED)
    def __call__(self, t: Tensor | float) -> Tensor | tuple[Tensor, ...]:
        """Dense output: the state at any time within the span.

        ``t`` is a number, a sequence of numbers, or a tensor of shape () or (S,); the result has
        shape (*t.shape, *y0.shape). The values carry no autograd graph: ask for times in ``t``
        where gradients are needed.

        Raises:
            UnsupportedError: the solve kept no dense output.
            InvalidArgumentError: a time outside the span that was solved.
        """
        if self.dense is None:
            raise UnsupportedError(
                f"method {self.stats.method!r} kept no dense output; solve with a Runge-Kutta "
                "method and without options={'dense': False}, or ask for the times in t"
            )
        return self.dense(t)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy or a pickle: without a dense output that lives in Julia."""
        portable = getattr(self.dense, "portable", True)
        return vars(self) if portable else {**vars(self), "dense": None}

    def raise_if_failed(self) -> Solution:
        """Return self, or raise :class:`SolverError` that carries this partial solution."""
        if not self.retcode.successful:
            raise SolverError(self.message, self.retcode, self)
        return self
