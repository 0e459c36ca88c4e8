"""The reference: a solve far tighter than what is checked, confirmed from outside."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..errors import SolverError, UnsupportedError
from .case import Case, Outcome
from .competitors import Own
from .witnesses import SciPy

# dopri8 in float64 reaches errors of 1e-13 at 1e-12 on smooth fields; below, rounding takes over.
METHOD, TOL = "dopri8", 1e-12
NAME = f"reference (torch {METHOD} at {TOL:g}, float64)"


@dataclass(frozen=True)
class Reference:
    """States and gradient to measure errors against.

    Attributes:
        outcome: the tight solve.
        witness: the same by another package, or None.
        reason: why there is no witness, or the error that it ended with.
        failed: the witness was there and ended with an error.
    """

    outcome: Outcome
    witness: Outcome | None
    reason: str = ""
    failed: bool = False


WITNESS = f"scipy DOP853 at {TOL:g}"


def solve_reference(exact: Case) -> Outcome:
    """The tight solve of a case in float64, with the gradient of its steps.

    Raises:
        UnsupportedError: the problem cannot be solved so tightly by an explicit method.
    """
    # replayed, for the graph of so many steps is large; of a plain function only that can be used
    replay = bool(exact.params) or isinstance(exact.func, nn.Module)
    try:
        return Own("torch", METHOD, "direct", {"checkpoint": replay}).run(exact, TOL, TOL)
    except SolverError as error:
        raise UnsupportedError(
            f"there is no reference: {METHOD} at tolerance {TOL:g} in float64 ended early "
            f"({error}). A problem that is this stiff or this rough cannot be cross-checked; "
            "shorten the time span"
        ) from error


def confirm(exact: Case, outcome: Outcome, wanted: bool) -> Reference:
    """``outcome`` with the same by SciPy beside it, where that is ``wanted`` and installed."""
    scipy = SciPy()
    reason = scipy.missing() if wanted else "scipy was not asked for"
    if reason is not None:
        return Reference(outcome, None, reason)
    try:
        return Reference(outcome, scipy.run(exact, TOL, TOL))
    except Exception as error:  # whatever it is, the verdict reports it
        return Reference(outcome, None, f"{type(error).__name__}: {error}", failed=True)
