"""Peak memory of a gradient, each in a process of its own: against steps, and over the problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..memory import in_fresh_process, peak_rise
from .competitors import OWN, Competitor, gradients
from .measure import gradient
from .problems import MAKERS, Problem, wide
from .torch_solvers import solver

STEPS = (10, 50, 200, 1000)
PACKAGES = (*OWN, "torchdiffeq", "torchode")  # diffrax allocates in another way


def by_steps(packages: Sequence[str]) -> list[Competitor]:
    """Every adjoint of the packages that take rk4 in fixed steps."""
    chosen = [p for p in PACKAGES if p in packages and p not in ("compiled", "pan", "torchode")]
    return gradients(wide(batch=1), chosen, "rk4")


def by_problem(problem: Problem, packages: Sequence[str]) -> list[Competitor]:
    """Every adjoint of every package, by its first method."""
    return gradients(problem, [p for p in PACKAGES if p in packages])


def peak(
    who: Competitor, threads: int, steps: int | None = None, name: str | None = None
) -> dict[str, Any]:
    """{"mib": ...} above the process's start, or {"mib": None, "error": ...}.

    Of so many ``steps`` of field 64-256-64, batch 64, or of the problem ``name`` at its tolerance.
    """
    found = in_fresh_process(child, who=asdict(who), threads=threads, steps=steps, name=name)
    return {"mib": None} | found


def child(
    who: dict[str, str | None], threads: int, steps: int | None, name: str | None
) -> dict[str, float]:
    """In the child: how far one gradient raises the process's peak above its start."""
    torch.set_num_threads(threads)
    competitor = Competitor(**who)
    problem = wide(batch=64) if name is None else MAKERS[name]()
    if name is None:
        small, whole = ((1e-5, 1 / n) for n in (2, steps))
    else:
        small, whole = (1e4 * problem.tol, None), (problem.tol, None)
    gradient(problem, solver(problem, competitor, *small))()  # what loads and allocates once
    return {"mib": peak_rise(gradient(problem, solver(problem, competitor, *whole)))}
