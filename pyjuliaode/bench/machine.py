"""What the numbers belong to."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from ..api import backends
from .competitors import PACKAGES

_LIBRARIES = ("pyjuliaode", "torch", "numpy", "scipy", "juliacall", "jax")


def machine(threads: int) -> dict[str, Any]:
    """Processor, cores, threads, system, date, and the versions of what is installed."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version()} | _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in dict.fromkeys((*_LIBRARIES, *PACKAGES)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | backends()["julia"]["versions"]  # which are empty unless Julia has started


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())
