"""What Julia environment there is, looked up without starting or downloading anything."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from ..._install import install_command
from .methods import julia_source

SETUP = "run `pyjuliaode setup-julia` (it downloads Julia and its packages, once)"

# Versions that were run. Older ones ignore a user's vector-Jacobian products in silence.
TESTED = {
    "julia": ((1, 10), (1, 11)),
    "PythonCall": ((0, 9, 34), (0, 9, 35)),
    "SciMLSensitivity": ((7, 112), (7, 113)),
}
# What the environment must hold, with the versions that juliapkg is asked for.
PACKAGES = {
    "SciMLSensitivity": ("1ed8b502-d754-442c-8d5d-10ac956f44a1", "~7.112"),
    "DLPack": ("53c2dc0f-f7d5-43fd-8906-6c0220547083", "0.3"),
}
OWN = ("PyJuliaODE", "d33d248e-de4c-4632-b4eb-0bd7ed9db77f")
JULIA = "~1.10.3"
MARKER = "pyjuliaode.json"

_VARIABLES = (
    "PYTHON_JULIACALL_EXE",
    "PYTHON_JULIACALL_PROJECT",
    "PYTHON_JULIAPKG_PROJECT",
    "PYTHON_JULIAPKG_EXE",
    "JULIA_DEPOT_PATH",
)


def missing() -> str | None:
    """None where Julia can be started and has the packages, else what is missing, what to run."""
    return _missing("juliacall" in sys.modules, *(os.environ.get(v) for v in _VARIABLES))


def forget() -> None:
    """Look again at the next question: something was installed."""
    _missing.cache_clear()


@lru_cache(maxsize=16)
def _missing(
    loaded: bool, exe: str | None, project: str | None, *_juliapkg: str | None
) -> str | None:
    if loaded:
        return None
    if absent := without_juliacall():
        return absent
    if bool(exe) != bool(project):
        one, other = ("EXE", "PROJECT") if exe else ("PROJECT", "EXE")
        return (
            f"PYTHON_JULIACALL_{one} is set but PYTHON_JULIACALL_{other} is not: set both to use "
            f"an environment of your own, or neither and {SETUP}"
        )
    if exe and project:
        return _missing_in_own_environment(exe, Path(project))
    return _missing_in_juliapkg()


def without_juliacall() -> str | None:
    """Says where juliacall is not installed, or not in a version that was run."""
    if importlib.util.find_spec("juliacall") is None:
        return f"juliacall is not installed: {install_command('julia')}, then {SETUP}"
    version = metadata.version("juliacall")
    low, high = TESTED["PythonCall"]
    if low <= numbers(version) < high:
        return None
    wanted = ".".join(map(str, low))
    return f"juliacall {version} is installed, {wanted} is wanted: pip install juliacall=={wanted}"


def numbers(version: str) -> tuple[int, ...]:
    """(1, 10, 8) of "1.10.8"."""
    return tuple(int(x) for x in re.findall(r"\d+", version.split("+")[0].split("-")[0]))


def _missing_in_own_environment(exe: str, project: Path) -> str | None:
    if shutil.which(exe) is None:
        return f"PYTHON_JULIACALL_EXE is {exe!r}, which is no program"
    folder = project if project.is_dir() else project.parent
    manifest = folder / "Manifest.toml"
    if not manifest.is_file():
        return f"PYTHON_JULIACALL_PROJECT is {str(project)!r}, which has no Manifest.toml"
    found = set(re.findall(r"^\[\[deps\.(\w+)\]\]", manifest.read_text(encoding="utf-8"), re.M))
    lacking = [n for n in ("PythonCall", *PACKAGES, OWN[0]) if n not in found]
    if not lacking:
        return None
    adds = [f'"{n}"' for n in lacking if n != OWN[0]]
    steps = [f"Pkg.add([{', '.join(adds)}])"] if adds else []
    if OWN[0] in lacking:
        steps.append(f"Pkg.develop(path={json.dumps(str(julia_source()))})")
    return (
        f"the Julia environment {str(folder)!r} lacks {', '.join(lacking)}: "
        f"{exe} --project={folder} -e 'using Pkg; {'; '.join(steps)}'"
    )


def _missing_in_juliapkg() -> str | None:
    project = juliapkg_project()
    if project is None:
        return f"juliapkg is not installed: {install_command('julia')}, then {SETUP}"
    marker = project / MARKER
    if not marker.is_file():
        return f"Julia is not set up for pyjuliaode: {SETUP}"
    try:
        same = json.loads(marker.read_text(encoding="utf-8")).get("requirements") == requirements()
    except ValueError:
        same = False
    return None if same else f"Julia was set up for another version of pyjuliaode: {SETUP}"


def juliapkg_project() -> Path | None:
    """The folder that juliapkg uses here: its variable, else inside the Python environment."""
    if importlib.util.find_spec("juliapkg") is None:
        return None
    named = os.environ.get("PYTHON_JULIAPKG_PROJECT")
    if named:
        return Path(named)
    if sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ:
        prefix = sys.prefix if sys.prefix != sys.base_prefix else os.environ["CONDA_PREFIX"]
        return Path(prefix) / "julia_env"
    depots = os.environ.get("JULIA_DEPOT_PATH", "").split(os.pathsep)
    depot = Path(depots[0]) if depots[0] else Path.home() / ".julia"
    return depot / "environments" / "pyjuliapkg"


def requirements() -> str:
    """A digest of everything that the environment has to satisfy."""
    source = julia_source()
    text = (source / "Project.toml").read_text(encoding="utf-8")
    parts = [str(source), text, JULIA, json.dumps(PACKAGES, sort_keys=True)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def described() -> dict[str, str]:
    """What a look at the files tells of the environment: where it is, and versions in it."""
    exe, named = (os.environ.get(f"PYTHON_JULIACALL_{x}") for x in ("EXE", "PROJECT"))
    project = Path(named) if named else juliapkg_project()
    found = {"program": exe or "juliapkg's", "environment": str(project or "none")}
    if importlib.util.find_spec("juliacall") is not None:
        found["juliacall"] = metadata.version("juliacall")
    manifest = None if project is None else project / "Manifest.toml"
    if manifest is not None and manifest.is_file():
        text = manifest.read_text(encoding="utf-8")
        if julia := re.search(r'^julia_version = "(.*)"', text, re.M):
            found["Julia"] = julia[1]
        for name in (OWN[0], "PythonCall", *PACKAGES, "SciMLBase", "OrdinaryDiffEqCore"):
            entry = re.search(rf"^\[\[deps\.{name}\]\](.*?)(?=^\[\[|\Z)", text, re.M | re.S)
            version = entry and re.search(r'^\s*version = "(.*)"', entry[1], re.M)
            found[name] = version[1] if version else "in another form" if entry else "missing"
    return found
