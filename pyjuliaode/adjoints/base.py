"""Adjoints: how the gradient of a solve is found, as values that a Solver takes.

What an adjoint needs of a method, and cannot do, is said here, once, for both backends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..arguments import check_tolerance, options_of, shown, whole, within
from ..errors import InvalidArgumentError, UnsupportedError, unknown_name


@dataclass(frozen=True)
class Abilities:
    """What a method of a backend can do, as far as gradients need it.

    Attributes:
        method, backend: their names.
        graph: its steps can be autograd operations.
        replay: its accepted steps can be taken again, one by one.
        interpolant: the trajectory between the steps is known to the method's order.
        nodes: it approximates the trajectory at nodes of intervals, all at once (PAN).
        mass: the system has a mass matrix.
    """

    method: str
    backend: str
    graph: bool = False
    replay: bool = False
    interpolant: bool = False
    nodes: bool = False
    mass: bool = False


@dataclass(frozen=True)
class Adjoint:
    """How dL/dy0, dL/dt and dL/dparams are found from dL/dy."""

    name: ClassVar[str] = ""

    def check(self, method: Abilities) -> None:
        """Raise UnsupportedError where the method, or the backend, does not allow it."""


@dataclass(frozen=True)
class Direct(Adjoint):
    """The discrete adjoint: the exact gradient of the steps that were taken.

    Arguments:
        checkpoint: True replays the accepted steps in ``backward()``, one at a time: memory is one
            state for a step. False keeps the autograd graph of all steps, which alone can be
            differentiated again. None: the graph in torch, a replay in Julia.
        graph_memory: bytes of graph beyond which the steps are replayed after all.
    """

    name: ClassVar[str] = "direct"
    checkpoint: bool | None = None
    graph_memory: float | None = None

    def __post_init__(self) -> None:
        if self.checkpoint not in (None, True, False):
            raise InvalidArgumentError(
                f"checkpoint must be True, False or None, got {shown(self.checkpoint)}"
            )
        if self.graph_memory is not None:
            within("graph_memory", self.graph_memory, 0.0, float("inf"))

    def check(self, method: Abilities) -> None:
        if method.nodes:
            return  # by the equations of its intervals, see Implicit
        if method.backend == "julia":
            if not method.replay:
                raise UnsupportedError(
                    "adjoint 'direct' replays the steps of explicit Runge-Kutta methods, which "
                    f"{method.method!r} is not; use adjoint='gauss' (or 'auto')"
                )
            if self.checkpoint is False:
                raise UnsupportedError(
                    "the Julia backend keeps no autograd graph through its steps; leave "
                    "checkpoint out, or use backend='torch'"
                )
            return
        if not method.graph:
            raise UnsupportedError(
                f"method {method.method!r} has no adjoint 'direct': no graph comes through NumPy; "
                "use adjoint='gauss' (or 'auto')"
            )
        if self.checkpoint and not method.replay:
            raise UnsupportedError(
                f"method {method.method!r} keeps a history and cannot be replayed step by step; "
                "use checkpoint=False or a Runge-Kutta method"
            )


@dataclass(frozen=True)
class Auto(Direct):
    """:class:`Direct` where the steps can be had back, else :class:`Gauss`."""

    name: ClassVar[str] = "auto"
    graph_memory: float | None = 2.0**30

    def check(self, method: Abilities) -> None:
        self.resolved(method).check(method)

    def resolved(self, method: Abilities) -> Adjoint:
        """What "auto" is for a method."""
        replay = method.replay and not method.mass
        if replay or method.nodes or (method.graph and method.backend == "torch"):
            return Direct(self.checkpoint, self.graph_memory)
        return Gauss() if method.interpolant else Backsolve()


@dataclass(frozen=True)
class Continuous(Adjoint):
    """An adjoint that solves the adjoint equations back in time (Pontryagin).

    λ' = -λᵀ ∂f/∂y, dL/dθ = ∫ λᵀ ∂f/∂θ dt; λ jumps by ∂L/∂y(t_i) at every requested time (Chen et
    al. 2018, eq. 3 to 5).

    Arguments:
        rtol, atol: tolerances of the backward solve; default: those of the solve, the absolute one
            relative to the size of the incoming gradient, so that scaling a loss scales its
            gradient and nothing else.
        method: of the backward solve; default: that of the solve, where it serves.
        norm: of the adjoint state: "seminorm" (the parameters are left out of it), or a function
            of the tuple (t, y, adj_y, *adj_params), for "backsolve".
        options: further options of the backward solve, as of a Solver; default: the solve's.
        checkpoints: states that the Julia backend keeps instead of all steps.
    """

    rtol: Any = None
    atol: Any = None
    method: str | None = None
    norm: str | Callable[..., Any] | None = None
    options: Mapping[str, Any] | None = None
    checkpoints: int | None = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            if getattr(self, name) is not None:
                check_tolerance(f"adjoint_{name}", getattr(self, name))
        if self.method is not None and not isinstance(self.method, str):
            raise InvalidArgumentError(
                f"adjoint_method must be the name of a method, got {shown(self.method)}"
            )
        if isinstance(self.norm, str) and self.norm != "seminorm":
            raise unknown_name("adjoint norm", self.norm, ("seminorm",))
        if not (self.norm is None or isinstance(self.norm, str) or callable(self.norm)):
            raise InvalidArgumentError(
                f"an adjoint's norm must be 'seminorm' or a function, got {shown(self.norm)}"
            )
        options_of("adjoint_options", self.options)
        if self.checkpoints is not None:
            whole("checkpoints", self.checkpoints, 1)

    def check(self, method: Abilities) -> None:
        if self.norm is not None and callable(self.norm) and self.name != "backsolve":
            raise InvalidArgumentError(
                "an adjoint norm over (t, y, adj_y, *params) belongs to adjoint='backsolve'"
            )
        if self.name != "backsolve" and not method.interpolant:
            raise UnsupportedError(
                f"method {method.method!r} has no interpolant of its order, which adjoint "
                f"{self.name!r} needs; use adjoint='direct'"
                + (" or 'backsolve', or method='dopri5'" if method.backend == "torch" else "")
            )
        if method.nodes and (self.name != "gauss" or self.method not in (None, method.method)):
            by = "" if self.method in (None, method.method) else f" by {self.method!r}"
            raise UnsupportedError(
                f"method {method.method!r} has the adjoints 'direct' and 'gauss', solved by "
                f"itself, not {self.name!r}{by}"
            )
        if self.method == "pan" and not method.nodes:
            raise UnsupportedError(
                f"adjoint {self.name!r} by 'pan' is of a solve by 'pan', not {method.method!r}"
            )
        if method.mass and self.name in ("interpolating", "backsolve"):
            raise UnsupportedError(
                f"adjoint {self.name!r} of a system with a mass matrix needs Jacobians of "
                "(N + P)^2 numbers; use adjoint='gauss' or 'quadrature'"
            )


@dataclass(frozen=True)
class Gauss(Continuous):
    """λ alone is solved for; dL/dθ is a Gauss-Legendre quadrature over its steps, whose error is
    kept below the tolerance: parameters are neither carried by the method nor seen by its norm.

    Arguments:
        watch: called as ``watch(t, weight, y, adj_y)`` at every node of that quadrature, going back
            in time: t and the positive weight are numbers, so that Σ weight g(t, y, adj_y) is
            ∫ g dt; y and adj_y = dL/dy(t) have the structure and shapes of the state. The torch
            backend's; nothing is paid without it.
    """

    name: ClassVar[str] = "gauss"
    watch: Callable[..., None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.watch is None or callable(self.watch)):
            raise InvalidArgumentError(
                "watch must be a function of (t, weight, y, adj_y), got " + shown(self.watch)
            )

    def check(self, method: Abilities) -> None:
        super().check(method)
        if self.watch is not None and method.backend != "torch":
            raise UnsupportedError(
                "watch is of the torch backend's adjoint 'gauss': use backend='torch'"
            )


@dataclass(frozen=True)
class Interpolating(Continuous):
    """(λ, dL/dθ) is solved for; y comes from the dense output of the forward solve."""

    name: ClassVar[str] = "interpolating"


@dataclass(frozen=True)
class Backsolve(Continuous):
    """(y, λ, dL/dθ) is solved back together, y again from its value at every requested time.

    Unstable where the system contracts; y is compared with the values that it should return to.
    """

    name: ClassVar[str] = "backsolve"


@dataclass(frozen=True)
class Quadrature(Continuous):
    """λ is solved for and kept; dL/dθ is one adaptive quadrature (the Julia backend's)."""

    name: ClassVar[str] = "quadrature"

    def check(self, method: Abilities) -> None:
        if method.backend != "julia":
            raise UnsupportedError(
                "adjoint 'quadrature' does not exist in the torch backend; 'gauss' computes the "
                "same integral, and backend='julia' has it where Julia is set up"
            )
        super().check(method)


KINDS: dict[str, type[Adjoint]] = {
    kind.name: kind for kind in (Auto, Direct, Backsolve, Interpolating, Gauss, Quadrature)
}


def adjoint_of(
    spelling: str | Adjoint,
    rtol: Any = None,
    atol: Any = None,
    options: Mapping[str, Any] | None = None,
) -> Adjoint:
    """The adjoint that a Solver means.

    Arguments:
        spelling: the object itself, or its name.
        rtol, atol: of a Solver's ``adjoint_rtol`` and ``adjoint_atol``.
        options: of a Solver, of which ``checkpoint``, ``graph_memory`` and ``checkpoints`` belong
            to the adjoint.

    Raises:
        InvalidArgumentError: an unknown name; the same thing said twice.
    """
    options = options or {}
    known = {
        "checkpoint": options.get("checkpoint"),
        "graph_memory": options.get("graph_memory"),
        "checkpoints": options.get("checkpoints"),
        "rtol": rtol,
        "atol": atol,
    }
    known = {name: value for name, value in known.items() if value is not None}
    if not isinstance(spelling, Adjoint):
        if not isinstance(spelling, str) or spelling not in KINDS:
            raise unknown_name("adjoint", spelling, KINDS)
        kind = KINDS[spelling]
        return kind(**{k: v for k, v in known.items() if k in kind.__dataclass_fields__})
    twice = [k for k, v in known.items() if getattr(spelling, k, None) not in (None, v)]
    if twice:
        raise InvalidArgumentError(
            f"{twice[0]} is said by the adjoint {spelling!r} and by the Solver: leave one out"
        )
    fields = spelling.__dataclass_fields__
    missing = {k: v for k, v in known.items() if k in fields and getattr(spelling, k) is None}
    return type(spelling)(**{**vars(spelling), **missing}) if missing else spelling
