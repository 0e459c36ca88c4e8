"""How far runs lie from the reference and from each other, and whether that is too far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from .case import Outcome
from .reference import NAME, WITNESS, Reference

# The local error is held to the tolerance, the global one only follows it. Of 19 torch and outside
# solvers at 1e-3 to 1e-9 on tanh fields, states were at most 13 tolerances from the reference and
# gradients 22; 100 leaves room for longer spans. (A wrong sign is 1e4 and more at 1e-6.)
BOUND = 100.0
# Where derivatives of the field jump, solvers of any order lose it, and gradients most: of ELU
# fields they were at most 1.6e4 tolerances off, of ReLU fields 2e6. In units of the square root of
# the tolerance that is at most 0.5 and 76; so there it is the root that the bound multiplies.
# Rejected over accepted steps of the reference tell: at most 0.05 for tanh, SiLU and softplus, at
# least 0.7 for ELU and ReLU, over all seven models.
ROUGH = 0.3


@dataclass(frozen=True)
class Scale:
    """The unit that deviations are measured in, and how many of them are allowed.

    Attributes:
        bound: the largest allowed deviation in units.
        root: the unit is the square root of the tolerance.
        eps: of the dtype checked; no relative tolerance counts as less.
    """

    bound: float
    root: bool
    eps: float

    def tolerances(self, rtol: float, atol: float) -> tuple[float, float]:
        rtol = max(rtol, self.eps)
        return (math.sqrt(rtol), math.sqrt(atol)) if self.root else (rtol, atol)

    def of_states(self, states: Tensor, rtol: float, atol: float) -> Tensor:
        """atol + rtol |y|, of the shape of ``states``."""
        rtol, atol = self.tolerances(rtol, atol)
        return atol + rtol * states.abs()

    def of_gradient(self, rtol: float, atol: float) -> float:
        """The unit of relative errors of a gradient."""
        return max(self.tolerances(rtol, atol))


def smooth(outcome: Outcome) -> bool:
    """Whether the field has the derivatives that a method of order 8 relies on."""
    return (outcome.n_rejected or 0) <= ROUGH * max(outcome.n_accepted or 0, 1)


@dataclass(frozen=True)
class Deviation:
    """The largest of deviations over the output times.

    Attributes:
        units: in units of a :class:`Scale`.
        time: where it is largest.
        since: the first output time at which it passes the bound; None where it does not.
    """

    units: float
    time: float
    since: float | None


def deviation(difference: Tensor, unit: Tensor, times: Tensor, bound: float) -> Deviation:
    """Of (T, N) differences, the worst component at each of the times; NaN is infinitely far."""
    worst = (difference.abs() / unit).nan_to_num(nan=math.inf).amax(dim=1)
    at = int(worst.argmax())
    beyond = (worst > bound).nonzero().flatten().tolist()
    since = times[beyond[0]].item() if beyond else None
    return Deviation(worst[at].item(), times[at].item(), since)


def relative(found: Tensor, truth: Tensor) -> float | None:
    """Relative error in the 2-norm (absolute where the truth is 0); None of empty vectors."""
    if not truth.numel():
        return None
    error, size = (found - truth).norm().item(), truth.norm().item()
    error = error / size if size else error
    return math.inf if math.isnan(error) else error


@dataclass(frozen=True)
class Disagreement:
    """Two that should agree and do not.

    Attributes:
        first, second: who; the second is the reference, except where that is in doubt.
        what: "state", "gradient", or "failure" of the first.
        units, allowed: the deviation and the bound, in units of tolerance; None of a failure.
        time, since: where the states are furthest apart, and the first output time beyond the
            bound; None of gradients and failures.
        sentence: all this in words.
    """

    first: str
    second: str
    what: str
    units: float | None
    allowed: float | None
    time: float | None
    since: float | None
    sentence: str


@dataclass(frozen=True)
class Apart:
    """The two runs of one tolerance whose states are furthest apart, in units."""

    first: str
    second: str
    units: float
    time: float


@dataclass(frozen=True)
class Verdict:
    """Whether all that ran agrees.

    Attributes:
        agrees: nothing disagrees or failed, and at least one run was compared.
        sentence: the verdict in words, with the tolerances and the bound.
        bound: the largest allowed deviation, in units.
        unit: "tolerance", or "root of the tolerance" on a field that is not smooth.
        tolerances: (rtol, atol) of the runs.
        disagreements: the worst first.
        furthest: the two runs furthest apart; None with fewer than two.
        n_compared, n_failed, n_not_run: numbers of runs.
        confirmed: how the reference was confirmed, or why not.
    """

    agrees: bool
    sentence: str
    bound: float
    unit: str
    tolerances: list[list[float]]
    disagreements: list[Disagreement]
    furthest: Apart | None
    n_compared: int
    n_failed: int
    n_not_run: int
    confirmed: str


@dataclass(frozen=True)
class Judged:
    """A run that was compared: who, with what tolerances, its states (T, N), its deviations."""

    who: str
    rtol: float
    atol: float
    states: Tensor
    state: Deviation
    gradient: float | None

    @property
    def at(self) -> str:
        same = self.rtol == self.atol
        return f"at {self.rtol:g}" if same else f"at rtol {self.rtol:g}, atol {self.atol:g}"


def furthest(runs: Sequence[Judged], truth: Tensor, times: Tensor, scale: Scale) -> Apart | None:
    """Over all pairs of runs with the same tolerances."""
    found: Apart | None = None
    for one, other in combinations(runs, 2):
        if (one.rtol, one.atol) != (other.rtol, other.atol):
            continue
        unit = scale.of_states(truth, one.rtol, one.atol)
        far = deviation(one.states - other.states, unit, times, scale.bound)
        if found is None or far.units > found.units:
            found = Apart(f"{one.who} {one.at}", f"{other.who} {other.at}", far.units, far.time)
    return found


def disagreements(runs: Sequence[Judged], scale: Scale) -> list[Disagreement]:
    """Of runs and the reference: states first, each the worst first."""
    states = sorted(runs, key=lambda run: -run.state.units)
    found = [_of_state(run, scale) for run in states if not run.state.units <= scale.bound]
    graded = sorted((r for r in runs if r.gradient is not None), key=lambda run: -run.gradient)
    return found + [_of_gradient(r, scale) for r in graded if not r.gradient <= scale.bound]


def _of_state(run: Judged, scale: Scale) -> Disagreement:
    far = run.state
    sentence = (
        f"{run.who} {run.at} and the {NAME} disagree in the state, from t = {far.since:g} on and "
        f"most at t = {far.time:g}: {far.units:.3g} units, allowed {scale.bound:g}"
    )
    return Disagreement(
        f"{run.who} {run.at}", NAME, "state", far.units, scale.bound, far.time, far.since, sentence
    )


def _of_gradient(run: Judged, scale: Scale) -> Disagreement:
    sentence = (
        f"{run.who} {run.at} and the {NAME} disagree in the gradient: {run.gradient:.3g} units, "
        f"allowed {scale.bound:g}"
    )
    return Disagreement(
        f"{run.who} {run.at}", NAME, "gradient", run.gradient, scale.bound, None, None, sentence
    )


def failure(who: str, reason: str) -> Disagreement:
    """Of a run that ended with an error."""
    return Disagreement(who, NAME, "failure", None, None, None, None, f"{who} failed: {reason}")


def examine(
    reference: Reference, times: Tensor, scale: Scale, rtol: float, atol: float
) -> tuple[str, Disagreement | None]:
    """How the reference was confirmed, and what speaks against it.

    It must agree with its witness to one unit of the tightest tolerance that is checked, a
    hundredth of what the runs are allowed by default.
    """
    if reference.failed:
        return "not confirmed", failure(WITNESS, reference.reason)
    if reference.witness is None:
        return f"not confirmed: {reference.reason}", None
    mine, other = reference.outcome, reference.witness
    unit = scale.of_states(mine.states, rtol, atol)
    difference = other.states - mine.states
    far = deviation(difference, unit, times, 1.0)
    off = max(relative(a, b) or 0.0 for a, b in zip(other.gradient, mine.gradient, strict=True))
    text = (
        f"confirmed by {WITNESS} to {difference.abs().max().item():.1e} (state) and {off:.1e} "
        "(gradient, relative)"
    )
    against = "so that it is not known which of the two is right"
    if not far.units <= 1:
        sentence = (
            f"the {NAME} and {WITNESS} disagree in the state, from t = {far.since:g} on and most "
            f"at t = {far.time:g}: {far.units:.3g} units, allowed 1; {against}"
        )
        found = Disagreement(NAME, WITNESS, "state", far.units, 1.0, far.time, far.since, sentence)
        return "in doubt", found
    units = off / scale.of_gradient(rtol, atol)
    if not units <= 1:
        sentence = (
            f"the {NAME} and {WITNESS} disagree in the gradient: {units:.3g} units, allowed 1; "
            f"{against}"
        )
        return "in doubt", Disagreement(NAME, WITNESS, "gradient", units, 1.0, None, None, sentence)
    return text, None


def largest(runs: Sequence[Judged]) -> tuple[float, float | None]:
    """The largest deviations of states and gradients, in units."""
    gradients = [run.gradient for run in runs if run.gradient is not None]
    return max(run.state.units for run in runs), max(gradients, default=None)


def machine_epsilon(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps
