"""How the cost of a solve and of a gradient grows: one quantity is swept, the others stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .competitors import Competitor, gradients, solvers
from .measure import admit, timed_rows
from .problems import Problem, second_order

BASE = {"batch": 64, "dim": 16, "width": 64, "tol": 1e-6}
SWEEPS: dict[str, tuple[float, ...]] = {
    "batch": (1, 4, 16, 64, 256, 1024, 4096),
    "dim": (2, 4, 8, 16, 32, 64, 128, 256),
    "width": (8, 16, 32, 64, 128, 256, 512),
    "tol": tuple(float(f"1e-{k}") for k in range(3, 11)),
}


def points(quick: bool) -> list[tuple[str, float]]:
    """(quantity, value) of every point, each sweep in its own order."""
    return [(name, x) for name, values in SWEEPS.items() for x in values[:: 3 if quick else 1]]


def problem_at(name: str, value: float) -> Problem:
    """The base problem with one quantity changed."""
    return second_order(**{**BASE, name: value})


def first_of_each(problem: Problem, packages: Sequence[str]) -> list[tuple[str, Competitor]]:
    """One method and one gradient of every package: dopri5, through its own steps."""
    found = {}
    for who in solvers(problem, packages):
        found.setdefault(("forward", who.package), who)
    for who in gradients(problem, packages):
        found.setdefault(("gradient", who.package), who)
    return [(what, who) for (what, _), who in found.items()]


def point(name: str, value: float, packages: Sequence[str], repeats: int) -> dict[str, Any]:
    """What every package takes at one point, as plain data; errors are not measured here."""
    problem = problem_at(name, value)
    found = admit(problem, first_of_each(problem, packages), problem.tol)
    return {
        "quantity": name,
        "value": value,
        "title": problem.title,
        "parameters": sum(p.numel() for p in problem.params),
        "rows": [asdict(row) for row in timed_rows(found, repeats)],
        "refused": [asdict(refusal) for refusal in found.refusals],
    }
