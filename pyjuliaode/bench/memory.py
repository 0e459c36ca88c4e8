"""Peak memory of a gradient, each in a process of its own: against steps, and over the problems."""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

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
    asked = json.dumps({"who": asdict(who), "steps": steps, "threads": threads, "name": name})
    command = [sys.executable, "-m", "pyjuliaode.bench", "--memory-child", asked]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        return {"mib": None, "error": said[-1]}
    return json.loads(done.stdout)


def child(asked: str) -> dict[str, Any]:
    """In the child: how far one gradient raises the process's peak above its start."""
    config = json.loads(asked)
    torch.set_num_threads(config["threads"])
    who, steps, name = Competitor(**config["who"]), config["steps"], config["name"]
    problem = wide(batch=64) if name is None else MAKERS[name]()
    if name is None:
        small, whole = ((1e-5, 1 / n) for n in (2, steps))
    else:
        small, whole = (1e4 * problem.tol, None), (problem.tol, None)
    gradient(problem, solver(problem, who, *small))()  # what loads and allocates once
    gc.collect()
    before = _reset_peak()
    gradient(problem, solver(problem, who, *whole))()
    return {"mib": (_peak() - before) / 2**20}


def _reset_peak() -> int:
    """Start the peak anew where the system can; bytes that it starts from."""
    # Not Linux, or not allowed: then the peak so far is what the next one is compared with.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _peak()


def _peak() -> int:
    """Peak resident memory of this process, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        import resource  # not on Windows

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
