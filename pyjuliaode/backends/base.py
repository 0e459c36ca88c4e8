"""The Backend protocol, the registry, and what each backend can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..errors import BackendUnavailableError, unknown_name
from ..problem import Problem
from ..solution import Retcode, SolveStats
from ..solver import Solver


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do, as names."""

    methods: tuple[str, ...]
    adjoints: tuple[str, ...]
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    structures: tuple[str, ...] = ("ode",)
    events: bool = False


@dataclass(frozen=True)
class AdjointRequest:
    """Settings of the backward solve that a :class:`Solver` does not carry (odeint_adjoint)."""

    method: str | None = None
    options: Mapping[str, Any] | None = None


@dataclass
class Result:
    """What a backend returns for a problem.

    Attributes:
        y: flat states (T', N) at the requested times that were reached, in autograd.
        event: (time, flat state) where an event ended the solve.
    """

    y: Tensor
    stats: SolveStats
    retcode: Retcode = Retcode.SUCCESS
    message: str = ""
    step_t: list[float] = field(default_factory=list)
    dense: Callable[..., Any] | None = None
    event: tuple[float, Tensor] | None = None


class Backend(Protocol):
    """Executes problems."""

    name: str

    def missing(self) -> str | None:
        """None where the backend can be used now, else what is missing and what to run.

        Starts and downloads nothing.
        """

    def capabilities(self) -> Capabilities: ...

    def solve(
        self,
        problem: Problem,
        solver: Solver,
        adjoint: AdjointRequest,
        event_fn: Callable[..., Tensor] | None = None,
    ) -> Result: ...


_registry: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Make a backend known by its name."""
    _registry[backend.name] = backend


def registered() -> dict[str, Backend]:
    """All backends by name, in the order in which "auto" prefers the last."""
    return dict(_registry)


def choose(name: str) -> Backend:
    """The backend of a name; "auto" is Julia where its environment is ready, else torch.

    Raises:
        InvalidArgumentError: unknown name.
        BackendUnavailableError: the backend is not installed; says what to run.
    """
    if name == "auto":
        julia = _registry.get("julia")
        return julia if julia is not None and julia.missing() is None else _registry["torch"]
    if name not in _registry:
        raise unknown_name("backend", name, ("auto", *_registry))
    backend = _registry[name]
    missing = backend.missing()
    if missing is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot be used here: {missing}")
    return backend
