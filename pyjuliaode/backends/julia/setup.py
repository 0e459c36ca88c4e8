"""Set Julia up for pyjuliaode: through juliapkg, on request only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import BackendUnavailableError, InvalidArgumentError
from . import environment
from .environment import JULIA, MARKER, OWN, PACKAGES
from .methods import julia_source

Say = Callable[[str], None]

# Loads what a first gradient needs, which also compiles what is not compiled yet.
_CHECK = (
    "import PyJuliaODE, DLPack, PythonCall; PyJuliaODE.load_adjoints(); "
    "print(PyJuliaODE.versions())"
)


def setup(say: Say = print) -> str:
    """Download Julia where there is none, resolve the packages, precompile them.

    Julia's own progress goes to the terminal. An environment that is named by
    PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT is only precompiled and checked.

    Returns:
        The versions that were found, a line each.

    Raises:
        BackendUnavailableError: what could not be done, with what to do.
    """
    if absent := environment.without_juliacall():
        raise BackendUnavailableError(absent)
    exe = os.environ.get("PYTHON_JULIACALL_EXE")
    project = os.environ.get("PYTHON_JULIACALL_PROJECT")
    if exe and project:
        say(f"1/2 the environment {project} is yours: nothing is added to it")
    else:
        exe, project = _resolve(say)
    environment.forget()
    say("2/2 precompiling the packages (minutes at the first time)")
    found = _check(exe, project)
    if not (os.environ.get("PYTHON_JULIACALL_EXE")):
        _mark(Path(project))
    environment.forget()
    if lacking := environment.missing():
        raise BackendUnavailableError(lacking)
    return found


def _resolve(say: Say) -> tuple[str, str]:
    import juliapkg

    say("1/2 Julia and its packages, through juliapkg")
    juliapkg.require_julia(JULIA)
    for name, (uuid, version) in PACKAGES.items():
        juliapkg.add(name, uuid, version=version)
    juliapkg.add(OWN[0], OWN[1], dev=True, path=str(julia_source()))
    try:
        juliapkg.resolve()
    except Exception as error:
        raise BackendUnavailableError(
            f"juliapkg could not resolve the environment ({type(error).__name__}; Julia's message "
            "is above). It needs the network once; without one, build an environment elsewhere "
            "and name it by PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT"
        ) from error
    return juliapkg.executable(), juliapkg.project()


def _check(exe: str, project: str) -> str:
    done = _julia(exe, project, "-e", _CHECK, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise BackendUnavailableError(
            f"Julia could not load the packages (its message is above); tried: {exe} "
            f"--project={project}"
        )
    return done.stdout.strip()


def _julia(exe: str, project: str, *arguments: str, **kwargs: Any) -> subprocess.CompletedProcess:
    """Run Julia in the environment, for this Python."""
    env = {**os.environ, "JULIA_PYTHONCALL_EXE": sys.executable, "JULIA_CONDAPKG_BACKEND": "Null"}
    command = [exe, f"--project={project}", "--startup-file=no", *arguments]
    return subprocess.run(command, env=env, **kwargs)


def _mark(project: Path) -> None:
    """Record what was set up, so that it can be told from afar."""
    marker = project / MARKER
    partial = marker.with_suffix(".part")
    partial.write_text(json.dumps({"requirements": environment.requirements()}), encoding="utf-8")
    partial.replace(marker)


def build_sysimage(path: Path, say: Say = print) -> Path:
    """Bake the packages into a system image that starts in a fraction of the time.

    PythonCall is not in it: it cannot be baked. Use it with PYTHON_JULIACALL_SYSIMAGE=path.

    Raises:
        InvalidArgumentError: the folder of ``path`` does not exist.
        BackendUnavailableError: PackageCompiler is not in the environment, or it failed.
    """
    path = path.resolve()
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"path: the folder {str(path.parent)!r} does not exist")
    if lacking := environment.missing():
        raise BackendUnavailableError(lacking)
    exe, project = _place()
    script = julia_source() / "sysimage.jl"
    partial = path.with_name(path.name + ".part" + path.suffix)
    say(f"building {path} (ten minutes and more)")
    try:
        done = _julia(exe, project, str(script), str(partial))
        if done.returncode != 0:
            raise BackendUnavailableError(
                "PackageCompiler failed (its message is above). Where it is missing: "
                f"{exe} --project={project} -e 'using Pkg; Pkg.add(\"PackageCompiler\")'; it also "
                "needs a C compiler"
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _place() -> tuple[str, str]:
    """Julia's program and the environment that are used here."""
    exe = os.environ.get("PYTHON_JULIACALL_EXE")
    project = os.environ.get("PYTHON_JULIACALL_PROJECT")
    if exe and project:
        return exe, project
    import juliapkg

    return juliapkg.executable(), juliapkg.project()
