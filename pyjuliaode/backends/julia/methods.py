"""The Julia backend's methods: the table that julia/methods.txt holds for both halves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...errors import UnsupportedError, unknown_name

# Explicit Runge-Kutta methods: their steps can be replayed, their tableaus read.
EXPLICIT = ("explicit", "lazy", "lowstorage")
IMPLICIT = ("implicit", "auto", "default")

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
        fixed: the step is fixed because torchdiffeq's method of that name fixes it.
    """

    name: str
    kind: str
    fixed: bool = False

    @property
    def replayable(self) -> bool:
        return self.kind in EXPLICIT

    @property
    def implicit(self) -> bool:
        return self.kind in IMPLICIT


@cache
def table() -> dict[str, str]:
    """Kinds by Julia name."""
    kinds = {}
    for line in (julia_source() / "methods.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            _, kind, names = (part.strip() for part in line.split("|"))
            kinds.update(dict.fromkeys(names.split(), kind))
    return kinds


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
        return Method(julia, table()[julia], fixed)
    if name in _WITHOUT_EQUAL:
        raise UnsupportedError(
            f"the Julia backend has no {name!r}; use method={_WITHOUT_EQUAL[name]!r}, or "
            "backend='torch'"
        )
    nested = re.fullmatch(r"(\w+)\((\w+)(?:\(\))?\)", name)
    outer, inner = (nested[1], nested[2]) if nested else (name, None)
    if outer not in table():
        raise unknown_name("method", name, names())
    kind = table()[outer]
    if inner is not None and (kind != "auto" or table().get(inner) != "implicit"):
        raise unknown_name(
            "method",
            name,
            [
                f"{a}({b})"
                for a, k in table().items()
                if k == "auto"
                for b in ("Rosenbrock23", "Rodas5P", "KenCarp4", "FBDF")
            ],
        )
    return Method(outer if inner is None else f"{outer}({inner})", kind)
