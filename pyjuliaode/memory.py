"""Peak memory of a piece of work, in a process of its own."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Of glibc: blocks above 64 KiB go back to the system as they are freed. Otherwise holes between
# blocks, and what the allocator keeps for later, are counted too: half as much again, or nothing.
NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}


def in_fresh_process(
    function: Callable[..., dict[str, Any]],
    environment: Mapping[str, str] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """What ``function(**arguments)`` returns in a process that has done nothing else.

    Arguments:
        function: of a module, so that the process can import it; it returns plain data.
        environment: variables of the process beside those of this one; with ``NOTHING_KEPT`` a
            peak is that of what is alive, and everything takes longer.
        arguments: plain data, as JSON holds it.

    Returns:
        Its result, or {"error": the last line that the process has said} where it failed.
    """
    asked = (function.__module__, function.__name__, json.dumps(arguments))
    command = [sys.executable, "-m", __name__, *asked]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        return {"error": said[-1]}
    return json.loads(done.stdout)


def peak_rise(work: Callable[[], Any]) -> float:
    """How far ``work()`` raises the peak of this process above what it holds now, in MiB.

    The peak of a process never falls where the system cannot start it anew: measure the larger
    of two works last, or each in its own process.
    """
    gc.collect()
    before = _reset_peak()
    work()
    return (_peak() - before) / 2**20


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


def _serve(module: str, name: str, arguments: str) -> None:
    """In the fresh process: what :func:`in_fresh_process` asks for."""
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(arguments))))


if __name__ == "__main__":
    _serve(*sys.argv[1:])
