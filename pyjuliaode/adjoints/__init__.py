"""How gradients are found: the adjoints that a Solver takes, and what they have in common."""

from .base import (
    Abilities,
    Adjoint,
    Auto,
    Backsolve,
    Continuous,
    Direct,
    Gauss,
    Interpolating,
    Quadrature,
    adjoint_of,
)

__all__ = [
    "Abilities",
    "Adjoint",
    "Auto",
    "Backsolve",
    "Continuous",
    "Direct",
    "Gauss",
    "Interpolating",
    "Quadrature",
    "adjoint_of",
]
