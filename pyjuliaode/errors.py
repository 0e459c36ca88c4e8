"""Exceptions of pyjuliaode. Every one carries a sentence that says what to try."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from contextlib import ContextDecorator
from types import TracebackType
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


class DropInError(SolverError, AssertionError):
    """A :class:`SolverError` of torchdiffeq's functions, whose users catch AssertionError.

    Its message begins with torchdiffeq's own words.
    """


def solver_error(
    message: str, retcode: Retcode, solution: Solution | None = None, drop_in: bool = False
) -> SolverError:
    """The error for a solve that failed; of torchdiffeq's kind where ``drop_in``."""
    if not drop_in:
        return SolverError(message, retcode, solution)
    words = _THEIRS.get(str(retcode))
    return DropInError(f"{words}: {message}" if words else message, retcode, solution)


_THEIRS = {
    "MaxIters": "max_num_steps exceeded",
    "DtLessThanMin": "underflow in dt",
    "Unstable": "underflow in dt",  # what NaN comes to there
    "DtNaN": "underflow in dt",
}


class GradientWarning(UserWarning):
    """A gradient that the user may expect is not going to be computed."""


class AccuracyWarning(UserWarning):
    """A result may be less accurate than its tolerances say."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that points at the line of the caller outside this package."""
    level, frame = 1, sys._getframe()
    inside = (f"{__package__}.", "torch.", "contextlib")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


class StopIterationPasses(ContextDecorator):
    """Around what calls the user's functions within generators, which make a RuntimeError of a
    StopIteration (PEP 479): it comes out as itself.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # with a note it is the user's own, of a generator within the field
        made = isinstance(error, RuntimeError) and not getattr(error, "__notes__", None)
        if made and isinstance(error.__cause__, StopIteration):
            raise error.__cause__


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> InvalidArgumentError:
    """The error for a wrong name: the nearest valid ones first, then all of them."""
    valid = sorted(valid)
    return InvalidArgumentError(
        f"unknown {kind} {name!r}.{nearest(name, valid)} Valid: {', '.join(valid)}."
    )


def nearest(name: object, valid: Iterable[str]) -> str:
    """' Did you mean 'x' or 'y'?', with its blank; empty where nothing is near."""
    near = difflib.get_close_matches(str(name).lower(), sorted(valid), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def add_note(error: BaseException, note: str) -> None:
    """One more line to what an exception says (``add_note``, which Python 3.10 lacks)."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    elif len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{note}",)
