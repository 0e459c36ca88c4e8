"""Exceptions of pyjuliaode. Every one carries a sentence that says what to try."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .solution import Retcode, Solution


class PyJuliaODEError(Exception):
    """Base class of everything that pyjuliaode raises on its own account."""


class InvalidArgumentError(PyJuliaODEError, ValueError):
    """An argument does not fit; raised before anything is solved or written."""


class UnsupportedError(PyJuliaODEError, NotImplementedError):
    """The combination asked for does not exist here; the message names one that does."""


class BackendUnavailableError(PyJuliaODEError, RuntimeError):
    """The backend asked for is not installed; the message says what to run."""


class BackendError(PyJuliaODEError, RuntimeError):
    """The backend's engine failed for a reason of its own; the message is the engine's."""


class SolverError(PyJuliaODEError, RuntimeError):
    """The solver stopped before the last requested time.

    Attributes:
        retcode: the cause, a :class:`pyjuliaode.Retcode`.
        solution: the partial :class:`pyjuliaode.Solution`, up to the time reached.
    """

    def __init__(self, message: str, retcode: Retcode, solution: Solution | None = None):
        super().__init__(message)
        self.retcode = retcode
        self.solution = solution

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.retcode, None)


class GradientWarning(UserWarning):
    """A gradient that the user may expect is not going to be computed."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that points at the line of the caller outside this package."""
    level, frame = 1, sys._getframe()
    inside = (f"{__package__}.", "torch.")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> InvalidArgumentError:
    """The error for a wrong name: the nearest valid ones first, then all of them."""
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name).lower(), valid, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return InvalidArgumentError(f"unknown {kind} {name!r}.{hint} Valid: {', '.join(valid)}.")
