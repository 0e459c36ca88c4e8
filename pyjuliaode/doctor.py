"""doctor: what is installed, what is missing, and what to run next."""

from __future__ import annotations

import platform
from importlib import metadata, util

import torch

from ._install import install_command
from .api import backends, warmup
from .backends.julia.environment import described
from .errors import PyJuliaODEError

_OPTIONAL = {
    "scipy": ("method='scipy_solver'", "experiments"),
    "matplotlib": ("figures", "experiments"),
    "sklearn": ("the digits experiment", "experiments"),
    "torchdiffeq": ("comparison in `pyjuliaode bench`", "bench"),
}


def doctor(start: bool = False) -> str:
    """A report for people: versions, devices, backends, what is missing, what to run next.

    Arguments:
        start: start Julia and solve a problem with a gradient, and say how long that took.
            Without it nothing is started.
    """
    lines = [
        f"pyjuliaode {_version()}",
        f"Python     {platform.python_version()} on {platform.platform()}",
        f"torch      {torch.__version__}, {torch.get_num_threads()} thread(s), "
        + (f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "no CUDA device"),
        "",
        "backends",
    ]
    for name, report in backends().items():
        lines.append(f"  {name:<6} {'ready' if report['ready'] else report['missing']}")
    lines += ["", "Julia", *(f"  {name:<22} {value}" for name, value in described().items())]
    if start:
        lines += ["", "Julia, started", *_started()]
    lines += ["", "optional packages"]
    for module, (use, extra) in _OPTIONAL.items():
        missing = f"not found: for {use}; {install_command(extra)}"
        lines.append(f"  {module:<12} {missing if util.find_spec(module) is None else 'found'}")
    return "\n".join(lines)


def _started() -> list[str]:
    try:
        seconds = warmup()
    except PyJuliaODEError as error:
        return [f"  failed: {error}"]
    versions = backends()["julia"]["versions"]
    lines = [f"  {name:<22} {value}" for name, value in versions.items()]
    return lines + [f"  {name:<22} {value:.1f} s" for name, value in seconds.items()]


def _version() -> str:
    try:
        return metadata.version("pyjuliaode")
    except metadata.PackageNotFoundError:
        return "not installed: running from its source tree"
