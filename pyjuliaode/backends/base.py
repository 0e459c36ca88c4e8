"""The Backend protocol, the registry, and what each backend can do."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import BackendUnavailableError, InvalidArgumentError, unknown_name
from ..problem import Problem, State
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


@dataclass
class Event:
    """What ended a solve.

    Attributes:
        t: its time; y: the flat state there.
        element: which element of event_fn left its side.
        before: a time before it, as near as can be told; t itself where none is known.
        since: the start of the step that it lies in; None where that is not known.
        jump: by how much event_fn jumps there; 0 where it passes through zero, or has a pole.
    """

    t: float
    y: Tensor
    element: int
    before: float
    since: float | None = None
    jump: float = 0.0


@dataclass
class Result:
    """What a backend returns for a problem.

    Attributes:
        y: states (T', *shape) at the requested times that were reached, in the user's structure and
            in autograd; and, last, at the time of the event where one ended the solve.
        event: what ended it, or None.
    """

    y: State
    stats: SolveStats
    retcode: Retcode = Retcode.SUCCESS
    message: str = ""
    step_t: list[float] = field(default_factory=list)
    dense: Callable[..., Any] | None = None
    event: Event | None = None


class Backend(Protocol):
    """Executes problems."""

    name: str

    def missing(self) -> str | None:
        """None where the backend can be used now, else what is missing and what to run.

        Starts and downloads nothing.
        """

    def capabilities(self) -> Capabilities: ...

    def versions(self) -> dict[str, str]:
        """Versions of what it runs on, as far as known without starting anything."""

    def start(self) -> None:
        """Get ready now rather than at the first solve."""

    def refuses(
        self,
        problem: Problem,
        solver: Solver,
        event_fn: Callable[..., Tensor] | None = None,
    ) -> str | None:
        """Why this problem cannot be solved here, or None. Starts nothing."""

    def solve(
        self,
        problem: Problem,
        solver: Solver,
        event_fn: Callable[..., Tensor] | None = None,
    ) -> Result:
        """Solve; with ``event_fn`` up to its first event, if there is one within the times."""
        ...


_registry: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Make a backend known by its name."""
    _registry[backend.name] = backend


def registered() -> dict[str, Backend]:
    """All backends by name, in the order in which "auto" prefers the last."""
    return dict(_registry)


def choose(name: str) -> Backend:
    """The backend of a name; "auto" is Julia where its environment is ready, else torch.

    The environment variable PYJULIAODE_BACKEND names what "auto" is instead.

    Raises:
        InvalidArgumentError: unknown name.
        BackendUnavailableError: the backend is not installed; says what to run.
    """
    if name == "auto":
        name = os.environ.get("PYJULIAODE_BACKEND") or "auto"
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


def backend_for(
    problem: Problem,
    solver: Solver,
    event_fn: Callable[..., Tensor] | None = None,
) -> Backend:
    """The backend that solves a problem: the solver's; for "auto" torch where Julia refuses it, or
    where compiled steps were asked for, which are torch's.

    Raises:
        InvalidArgumentError, BackendUnavailableError: see :func:`choose`; also where "auto" is
            torch for want of Julia and only Julia has the method.
    """
    backend, torch = choose(solver.backend), _registry["torch"]
    if solver.backend != "auto":
        return backend
    julia = _registry.get("julia")
    in_torch = solver.method in torch.capabilities().methods
    if solver.option("compile") and in_torch:
        return torch
    if backend is julia and julia is not None:
        refused = julia.refuses(problem, solver, event_fn)
        if refused is None or not in_torch:
            return julia  # which says itself why it refuses
        return torch
    only_julia = not in_torch or problem.mass is not None
    if julia is not None and only_julia and solver.method in julia.capabilities().methods:
        same = (m for m in torch.capabilities().methods if m.lower() == solver.method.lower())
        raise BackendUnavailableError(
            f"method {solver.method!r} is the Julia backend's, which cannot be used here: "
            f"{julia.missing() or 'PYJULIAODE_BACKEND names another'}"
            + "".join(f"; the torch backend has {m!r}" for m in same if problem.mass is None)
        )
    return backend


def event_value(value: Any) -> Tensor:
    """What event_fn returned, as a flat tensor of numbers; True and False are 1 and -1.

    Raises:
        InvalidArgumentError: it is no real tensor.
    """
    if not isinstance(value, Tensor) or value.is_complex():
        raise InvalidArgumentError(
            f"event_fn must return a real tensor, got {type(value).__name__}"
        )
    if value.dtype == torch.bool:
        value = torch.where(value, 1.0, -1.0)
    return value.reshape(-1)
