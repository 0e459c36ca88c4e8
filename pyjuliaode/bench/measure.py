"""What is measured of a problem: seconds, errors and evaluations of every competitor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..rhs import RHS
from . import jax_solver
from .clock import Task, interleaved
from .competitors import OWN, Competitor, gradients, solvers
from .problems import Problem
from .reference import Reference
from .torch_solvers import Solve, solver

Step = Callable[[str], None]  # told what begins now


@dataclass(frozen=True)
class Entry:
    """A competitor's forward solve or gradient, ready for the clock.

    Attributes:
        what: "forward" or "gradient".
        task: what is timed.
        tensors: the tensors of what the task returned: the states, or dL/dy0 and dL/dparameters.
        compile_seconds: what was compiled before, where something was.
    """

    what: str
    who: Competitor
    task: Task
    tensors: Callable[[Any], Sequence[Tensor]]
    compile_seconds: float | None = None

    @property
    def label(self) -> str:
        return self.who.label(self.what)

    @property
    def key(self) -> str:
        return f"{self.what}: {self.label}"


@dataclass
class Row:
    """One competitor at one tolerance; seconds of the whole forward solve or the whole gradient.

    Attributes:
        what: "forward" or "gradient".
        package, label: of the competitor.
        tol: its relative tolerance.
        error: relative, of the states or of the gradient; None where it was not measured.
        nfe_forward: evaluations of the forward solve.
        nfe_backward: vector-Jacobian products; None where they cannot be counted.
        calls_forward, calls_backward: how many of these were made one after another; one call of
            method "pan" evaluates at many times.
        own_cost: bare seconds of these evaluations in torch, where they are torch's and one by one.
        compile_seconds: what was compiled before.
    """

    what: str
    package: str
    label: str
    tol: float
    seconds: float
    error: float | None
    nfe_forward: int
    nfe_backward: int | None = None
    calls_forward: int | None = None
    calls_backward: int | None = None
    own_cost: float | None = None
    compile_seconds: float | None = None

    @property
    def overhead(self) -> float | None:
        """Seconds over the bare cost of the evaluations that were made."""
        return None if self.own_cost is None else self.seconds / self.own_cost


@dataclass
class Refusal:
    """A competitor that does not do a problem, and why."""

    what: str
    package: str
    label: str
    reason: str


# --------------------------------------------------------------------------------- what is timed


def prepare(what: str, problem: Problem, who: Competitor, tol: float) -> Entry:
    """The entry of a competitor; whatever is done once is done here."""
    if who.package == "diffrax":
        compiled = jax_solver.prepare(problem, who, what, tol)
        return Entry(what, who, compiled.run, compiled.tensors, compiled.seconds)
    solve = solver(problem, who, tol)
    if what == "forward":
        return Entry(what, who, forward(problem, solve), lambda y: [y])
    return Entry(what, who, gradient(problem, solve), list)


def forward(problem: Problem, solve: Solve) -> Task:
    """The states at t[1:], without gradients."""

    def task() -> Tensor:
        with torch.no_grad():
            return solve(problem.y0)[0]

    return task


def gradient(problem: Problem, solve: Solve) -> Task:
    """The gradient of the loss with respect to the initial state and the parameters."""

    def task() -> tuple[Tensor, ...]:
        y0 = problem.y0.detach().clone().requires_grad_()
        loss = (solve(y0)[0] * problem.weight).sum()
        return torch.autograd.grad(loss, (y0, *problem.params))

    return task


def bare_costs(problem: Problem) -> dict[str, Task]:
    """One evaluation of the right-hand side, and its vector-Jacobian products, without a solver."""
    t0 = problem.t[0].to(problem.y0.dtype)
    y, weight = problem.y0.detach().requires_grad_(), problem.weight[0]

    def evaluation() -> Tensor:
        with torch.no_grad():
            return problem.func(t0, problem.y0)

    def vjp(inputs: Sequence[Tensor]) -> Task:
        return lambda: torch.autograd.grad(problem.func(t0, y), inputs, weight)

    return {
        "evaluation": evaluation,
        "vjp state": vjp([y]),
        "vjp params": vjp(problem.params),
        "vjp state+params": vjp([y, *problem.params]),
    }


# ----------------------------------------------------------------------------------- evaluations


def count_evaluations(
    problem: Problem, who: Competitor, tol: float, backward: bool = True
) -> dict[str, int | None]:
    """Evaluations of the forward solve, and vector-Jacobian products of the backward one, by the
    names of :class:`Row`.

    Products are None without ``backward``, and of compiled code, where nothing counts them.
    """
    if who.package == "diffrax":
        return _one_by_one(jax_solver.count_evaluations(problem, who, tol), None)
    y0 = problem.y0.detach().clone().requires_grad_(backward)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    # of this package the statistics count; a hook would be a reason not to be native
    hooks = [] if who.package in OWN else [problem.func.register_forward_pre_hook(count)]
    try:
        with torch.set_grad_enabled(backward):
            y, stats = solver(problem, who, tol)(y0)
        in_forward = calls
        if backward:
            torch.autograd.grad((y * problem.weight).sum(), (y0, *problem.params))
    finally:
        for hook in hooks:
            hook.remove()
    if stats is not None:
        return {
            "nfe_forward": stats.nfe_forward,
            "nfe_backward": stats.nfe_backward if backward else None,
            "calls_forward": stats.sequential_forward,
            "calls_backward": stats.sequential_backward if backward else None,
        }
    if not backward:
        return _one_by_one(in_forward, None)
    return _one_by_one(in_forward, in_forward if who.keeps_graph else calls - in_forward)


def _one_by_one(forward: int, backward: int | None) -> dict[str, int | None]:
    """The counts of a package that evaluates once in a call."""
    nfe = {"nfe_forward": forward, "nfe_backward": backward}
    return {**nfe, "calls_forward": forward, "calls_backward": backward}


def count_products(task: Task) -> Counter[str]:
    """Vector-Jacobian products by kind that the adjoints of this package take in torch."""
    counts: Counter[str] = Counter()
    plain = RHS.vjp

    def counted(self: RHS, *args: Any, state: bool = True, params: bool = True) -> Any:
        kinds = [name for name, wanted in (("state", state), ("params", params)) if wanted]
        counts["vjp " + "+".join(kinds)] += 1
        return plain(self, *args, state=state, params=params)

    RHS.vjp = counted
    try:
        task()
    finally:
        RHS.vjp = plain
    return counts


def own_cost(row: Row, entry: Entry, bare: Mapping[str, float]) -> float | None:
    """Bare seconds of the evaluations of a row; None where they were not torch's own."""
    if entry.who.package in ("compiled", "pan", "native", "diffrax"):
        return None
    # Where the graph is kept, a product includes its evaluation; else that came before it.
    keeps_graph = row.what == "gradient" and entry.who.keeps_graph
    seconds = 0.0 if keeps_graph else row.nfe_forward * bare["evaluation"]
    if row.what == "forward":
        return seconds
    counts = count_products(entry.task) if entry.who.package in OWN else None
    if not counts:
        return seconds + (row.nfe_backward or 0) * bare["vjp state+params"]
    return seconds + sum(n * bare[kind] for kind, n in counts.items())


# ------------------------------------------------------------------------------------ comparison


@dataclass
class Admitted:
    """The entries that did a problem once, their rows without seconds, and the refusals."""

    entries: list[Entry] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def admit(
    problem: Problem,
    chosen: Iterable[tuple[str, Competitor]],
    tol: float,
    truth: Reference | None = None,
) -> Admitted:
    """Let every competitor do the problem once, and see what comes of it.

    Who raises, or returns a number that is not finite, is asked nothing more.
    """
    found = Admitted()
    for what, who in chosen:
        try:
            entry = prepare(what, problem, who, tol)
            tensors = entry.tensors(entry.task())
            if not all(bool(x.isfinite().all()) for x in tensors):
                raise ArithmeticError("it returned a number that is not finite")
            error = None if truth is None else truth.error(what, tensors)
            nfe = count_evaluations(problem, who, tol, backward=what == "gradient")
        except Exception as error:  # whatever a package raises is its answer
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            found.refusals.append(Refusal(what, who.package, who.label(what), reason))
            continue
        found.entries.append(entry)
        compiled = entry.compile_seconds
        row = Row(what, who.package, entry.label, tol, 0.0, error, **nfe, compile_seconds=compiled)
        found.rows.append(row)
    return found


def everyone(problem: Problem, packages: Sequence[str]) -> list[tuple[str, Competitor]]:
    """All forward solves and gradients of a problem."""
    forwards = [("forward", who) for who in solvers(problem, packages)]
    return forwards + [("gradient", who) for who in gradients(problem, packages)]


def compare(
    problem: Problem, packages: Sequence[str], repeats: int, truth: Reference
) -> tuple[dict[str, float], Admitted]:
    """Bare costs, and every competitor at the problem's own tolerance, all measured in turns."""
    found = admit(problem, everyone(problem, packages), problem.tol, truth)
    bare = bare_costs(problem)
    seconds = interleaved(bare | {e.key: e.task for e in found.entries}, repeats)
    costs = {name: seconds[name] for name in bare}
    for row, entry in zip(found.rows, found.entries, strict=True):
        row.seconds = seconds[entry.key]
        row.own_cost = own_cost(row, entry, costs)
    return costs, found


def sweep(
    problem: Problem,
    chosen: Sequence[tuple[str, Competitor]],
    tolerances: Iterable[float],
    repeats: int,
    truth: Reference,
    step: Step,
) -> list[Row]:
    """Those who do the problem at all, over tolerances; who fails at one has no row there."""
    rows: list[Row] = []
    for tol in tolerances:
        step(f"{problem.name} at {tol:g}")
        rows += timed_rows(admit(problem, chosen, tol, truth), repeats)
    return rows


def timed_rows(found: Admitted, repeats: int) -> list[Row]:
    """The rows, with seconds."""
    seconds = interleaved({e.key: e.task for e in found.entries}, repeats)
    for row, entry in zip(found.rows, found.entries, strict=True):
        row.seconds = seconds[entry.key]
    return found.rows
