"""Peak memory of a gradient against the number of steps, each in a process of its own."""

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
from .problems import wide
from .torch_solvers import solver

STEPS = (10, 50, 200, 1000)
PACKAGES = (*OWN, "torchdiffeq")  # those that take rk4 in fixed steps


def children(packages: Sequence[str]) -> list[Competitor]:
    """Every adjoint of the packages, by rk4."""
    return gradients(wide(batch=1), [p for p in PACKAGES if p in packages], "rk4")


def peak(who: Competitor, steps: int, threads: int) -> dict[str, Any]:
    """{"mib": ...} above the process's start, or {"mib": None, "error": ...}."""
    asked = json.dumps({"who": asdict(who), "steps": steps, "threads": threads})
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
    problem, who = wide(batch=64), Competitor(**config["who"])
    gradient(problem, solver(problem, who, 1e-5, dt=1 / 2))()  # what loads and allocates once
    gc.collect()
    before = _reset_peak()
    gradient(problem, solver(problem, who, 1e-5, dt=1 / config["steps"]))()
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
