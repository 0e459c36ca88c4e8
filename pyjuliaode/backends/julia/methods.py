"""The Julia backend's methods: the table that julia/methods.txt holds for both halves."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ...errors import UnsupportedError, unknown_name

# Explicit Runge-Kutta methods: their steps can be replayed, their tableaus read.
EXPLICIT = ("explicit", "lazy", "hermite", "lowstorage")
IMPLICIT = ("implicit", "bdf", "auto", "default")
_STIFF = ("implicit", "bdf")

# torchdiffeq's names, and whether they stand for a fixed step.
ALIASES = {
    "dopri5": ("DP5", False),
    "tsit5": ("Tsit5", False),
    "bosh3": ("BS3", False),
    "dopri8": ("DP8", False),
    "adaptive_heun": ("Heun", False),
    "euler": ("Euler", True),
    "midpoint": ("Midpoint", True),
    "heun2": ("Heun", True),
    "rk4": ("RK4", True),
}
# Names of torchdiffeq without an equal, and the nearest there is.
_WITHOUT_EQUAL = {
    "fehlberg2": "BS3",
    "heun3": "BS3",
    "explicit_adams": "VCAB5 or AB4",
    "implicit_adams": "VCABM or ABM43",
    "scipy_solver": "Tsit5",
}


def julia_source() -> Path:
    """The folder of the Julia package: in the wheel, or beside the Python package."""
    package = Path(__file__).resolve().parents[2]
    shipped = package / "_julia"
    return shipped if shipped.is_dir() else package.parent / "julia"


@dataclass(frozen=True)
class Method:
    """A method by its Julia name, as ``algorithm`` of the Julia half takes it.

    Attributes:
        name: "Tsit5", or "AutoTsit5(Rodas5P)".
        kind: see julia/methods.txt.
        fixed: steps are of fixed size, for want of an error estimate or because torchdiffeq's
            method of that name fixes them.
        own_steps: steps of fixed size cost it its order.
    """

    name: str
    kind: str
    fixed: bool = False
    own_steps: bool = False

    @property
    def estimates(self) -> bool:
        """Whether the method knows its error, whatever its name makes of that."""
        own = table().get(self.name)
        return own is None or not own.fixed

    @property
    def replayable(self) -> bool:
        return self.kind in EXPLICIT

    @property
    def implicit(self) -> bool:
        return self.kind in IMPLICIT

    @property
    def nystrom(self) -> bool:
        """Of h'' = f(t, h, h') alone."""
        return self.kind == "nystrom"


@cache
def table() -> dict[str, Method]:
    """The methods by Julia name."""
    found = {}
    for package, kind, listed in _lines():
        if package != "withheld":
            for marked in listed.split():
                name = marked.rstrip("=*")
                found[name] = Method(name, kind, marked.endswith("="), marked.endswith("*"))
    return found


@cache
def withheld() -> dict[str, str]:
    """Why a method that Julia has is not offered."""
    return {
        name: reason
        for package, reason, listed in _lines()
        if package == "withheld"
        for name in listed.split()
    }


def _lines() -> list[list[str]]:
    text = (julia_source() / "methods.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [[part.strip() for part in line.split("|")] for line in lines]


def names() -> tuple[str, ...]:
    """All names that :func:`find` knows."""
    return (*ALIASES, *table())


@cache
def find(name: str) -> Method:
    """The method of a name: Julia's, torchdiffeq's, or "AutoTsit5(Rodas5P)".

    Raises:
        UnsupportedError: a method of torchdiffeq that Julia has not, with the nearest.
        InvalidArgumentError: unknown, with similar names.
    """
    if name in ALIASES:
        julia, fixed = ALIASES[name]
        return replace(table()[julia], fixed=fixed)
    if name in _WITHOUT_EQUAL:
        raise UnsupportedError(
            f"the Julia backend has no {name!r}; use method={_WITHOUT_EQUAL[name]!r}, or "
            "backend='torch'"
        )
    nested = re.fullmatch(r"(\w+)\((\w+)(?:\(\))?\)", name)
    outer, inner = (nested[1], nested[2]) if nested else (name, None)
    if outer in withheld():
        raise UnsupportedError(
            f"method {outer!r} is withheld: {withheld()[outer]}, in the version that was run; use "
            "'Tsit5', 'Vern7', or for stiff systems 'Rodas5P'"
        )
    if outer not in table():
        raise unknown_name("method", name, names())
    method = table()[outer]
    if inner is None:
        return method
    if method.kind != "auto" or inner not in table() or table()[inner].kind not in _STIFF:
        raise unknown_name(
            "method",
            name,
            [
                f"{a}({b})"
                for a, m in table().items()
                if m.kind == "auto"
                for b in ("Rosenbrock23", "Rodas5P", "KenCarp4", "FBDF")
            ],
        )
    return replace(method, name=f"{outer}({inner})")
