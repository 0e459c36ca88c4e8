"""crosscheck: run every competitor, hold it to the reference, and say whether all agree."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from ..backends import registered
from ..errors import (
    BackendUnavailableError,
    InvalidArgumentError,
    SolverError,
    UnsupportedError,
    unknown_name,
)
from ..problem import State
from ..progress import progress_bar
from . import verdict as judging
from .case import Case, Loss, Outcome
from .competitors import Competitor, Own, check_method, own, refusal
from .reference import NAME, TOL, Reference, confirm, solve_reference
from .result import DISAGREES, FAILED, NOT_RUN, OK, CrossCheck, Row, label
from .verdict import BOUND, Judged, Scale, Verdict
from .witnesses import WITNESSES, witnesses

METHODS, ADJOINTS = ("dopri5", "tsit5"), ("direct", "gauss")
TOLERANCES = {torch.float32: (1e-3, 1e-4, 1e-5), torch.float64: (1e-4, 1e-6, 1e-8)}
WARM_UPS = 2  # Julia compiles in its second run too: that reuses what the first one made
TIGHTEST = 100 * TOL  # below, the reference's own error counts


def crosscheck(
    func: Callable[[Tensor, State], State],
    y0: State,
    t: Tensor | Sequence[float],
    against: Sequence[str] | None = None,
    *,
    methods: Sequence[str] = METHODS,
    adjoints: Sequence[str] = ADJOINTS,
    rtol: float | None = None,
    atol: float | None = None,
    tols: Sequence[float] | None = None,
    params: Sequence[Tensor] | None = None,
    loss: Loss | None = None,
    bound: float | None = None,
    title: str = "",
    progress: bool = False,
) -> CrossCheck:
    """The same problem by several backends, methods and adjoints, and by other packages.

    States at the output times and the gradient of a loss are held to a reference, dopri8 of the
    torch backend at tolerance 1e-12 in float64, which SciPy's DOP853 has to confirm where SciPy
    is installed. A competitor that is not here, or that refuses the problem, is a row that was
    not run; one that ends with an error is a disagreement.

    Arguments:
        func: ``func(t, y) -> dy/dt``, or a :class:`NeuralODE`, whose dynamics are checked.
            For a float32 state the reference uses a float64 copy of the module.
        y0: initial state, real: a tensor, or a tuple of tensors; of a NeuralODE its input h0.
        t: output times, shape (T,), monotone. Disagreements are located at these: with two, only
            the end is compared.
        against: names of the backends ("torch", "julia"; at least one) and of the packages
            outside ("scipy", "torchdiffeq", "torchode") that solve it; default: all. "julia"
            calls the field in Python, and "julia native" beside it runs a tensor state's field
            in Julia (``Solver.native``). SciPy always computes in float64.
        methods: adaptive methods, each by every backend that has it.
        adjoints: as in :class:`Solver`; each with every method.
        rtol, atol: one pair of tolerances; not together with ``tols``.
        tols: values for rtol = atol, each at least 1e-10; default 1e-4, 1e-6, 1e-8 (float32: 1e-3,
            1e-4, 1e-5).
        params: tensors whose gradients are compared; default: the parameters of ``func``.
        loss: scalar of the states (T, *y0.shape); default: their sum with fixed random weights.
        bound: the largest deviation allowed, in units of atol + rtol |y| for states, of the
            tolerance for relative errors of gradients. Default 100; and where derivatives of the
            field jump (ReLU, ELU), 100 times the square root of the tolerance.
        title: of the problem, for table and figure.
        progress: say on standard error how far it is.

    Returns:
        CrossCheck: ``rows``, ``verdict``, ``table()``, ``plot()``, ``save(folder)``,
            ``raise_if_disagrees()``.

    Raises:
        InvalidArgumentError: an argument does not fit, or func has no float64 form.
        UnsupportedError: no reference can be found: complex states, mass matrices, stiff problems.
        Exception: what func raises while the reference is solved.
    """
    pairs = _tolerances(rtol, atol, tols)
    names = _against(against)
    chosen = _competitors(methods, adjoints, names)
    if bound is not None and not 0 < bound < math.inf:
        raise InvalidArgumentError(f"bound must be positive and finite, got {bound!r}")
    case = Case.build(func, y0, t, params, loss)
    pairs = pairs or [(tol, tol) for tol in TOLERANCES[case.dtype]]
    exact = case.in_float64()
    if case.structure.is_tuple:
        chosen = [c for c in chosen if not c.native]
    with progress_bar(2 + len(chosen) * len(pairs), "run", shown=progress) as bar:
        bar.set_description("reference")
        tight = solve_reference(exact)
        bar.update()
        bar.set_description("its witness")
        reference = confirm(exact, tight, "scipy" in names)
        bar.update()
        root = bound is None and not judging.smooth(tight)
        eps = judging.machine_epsilon(case.dtype)
        scale = Scale(BOUND if bound is None else float(bound), root, eps)
        rows, judged = [], []
        for competitor in chosen:
            name = label(competitor.backend, competitor.native)
            bar.set_description(f"{name} {competitor.method} {competitor.adjoint}")
            given = exact if competitor.in_float64 else case
            for row, run in _rows(competitor, given, pairs, tight, scale, bar.update):
                rows.append(row)
                judged += [] if run is None else [run]
    return CrossCheck(
        rows=rows,
        verdict=_verdict(rows, judged, reference, case, scale, pairs),
        reference=_described(reference),
        problem=_problem(case, title),
        environment=_environment(case),
    )


# ------------------------------------------------------------------------------- the arguments


def _tolerances(
    rtol: float | None, atol: float | None, tols: Sequence[float] | None
) -> list[tuple[float, float]]:
    """(rtol, atol) from loose to tight; empty for the defaults."""
    if tols is not None and (rtol is not None or atol is not None):
        raise InvalidArgumentError("give tols, or rtol and atol, not both")
    if tols is not None:
        pairs = [(float(tol), float(tol)) for tol in sorted(set(tols), reverse=True)]
        if not pairs:
            raise InvalidArgumentError("tols is empty")
    elif rtol is not None or atol is not None:
        pairs = [(float(atol if rtol is None else rtol), float(rtol if atol is None else atol))]
    else:
        return []
    for pair in pairs:
        if not all(TIGHTEST <= tol < 1 for tol in pair):
            raise InvalidArgumentError(
                f"tolerances must be at least {TIGHTEST:g} and less than 1, got {pair}: the "
                f"reference is solved at {TOL:g}, and says nothing of tighter ones"
            )
    return pairs


def _against(names: Sequence[str] | None) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        InvalidArgumentError: an unknown name, no name, or no backend; says what there is.
    """
    known = (*registered(), *WITNESSES)
    if names is None:
        return known
    has = f"backends {', '.join(registered())}; packages {', '.join(WITNESSES)}"
    if isinstance(names, str) or not isinstance(names, Collection) or not len(names):
        raise InvalidArgumentError(
            f"against must be a non-empty list of names, got {names!r}; there are {has}"
        )
    for name in names:
        if name not in known:
            raise unknown_name("name in against:", name, known)
    if not any(name in registered() for name in names):
        raise InvalidArgumentError(
            f"against names no backend, so that there is nothing to check: {names!r}; there are "
            f"{has}"
        )
    return tuple(dict.fromkeys(names))


def _competitors(
    methods: Sequence[str], adjoints: Sequence[str], names: Sequence[str]
) -> list[Competitor]:
    for name, values in (("methods", methods), ("adjoints", adjoints)):
        if isinstance(values, str) or not values:
            raise InvalidArgumentError(f"{name} must be a non-empty list of names, got {values!r}")
    methods, adjoints = tuple(dict.fromkeys(methods)), tuple(dict.fromkeys(adjoints))
    backends = tuple(name for name in names if name in registered())
    mine: list[Competitor] = [
        own(backend, method, adjoint, native)
        for backend in backends
        for native in ((False, True) if backend == "julia" else (False,))
        for method in methods
        for adjoint in adjoints
    ]
    for method in methods:
        check_method(method, backends)
    return mine + witnesses(names, methods)


# ----------------------------------------------------------------------------------- the runs


def _rows(
    competitor: Competitor,
    case: Case,
    pairs: Sequence[tuple[float, float]],
    truth: Outcome,
    scale: Scale,
    done: Callable[[], Any],
) -> list[tuple[Row, Judged | None]]:
    """A competitor over all tolerances; the first run repeated, so that it can warm up."""
    row = partial(
        Row, competitor.backend, competitor.method, competitor.adjoint, native=competitor.native
    )
    reason = competitor.missing()
    if reason is None and isinstance(competitor, Own):
        reason = refusal(competitor)
    found: list[tuple[Row, Judged | None]] = []
    warm = False
    for rtol, atol in pairs:
        if reason is not None:
            found.append((row(rtol, atol, NOT_RUN, reason), None))
        else:
            try:
                for _ in range(0 if warm else WARM_UPS):
                    competitor.run(case, rtol, atol)
                outcome, warm = competitor.run(case, rtol, atol), True
            except (UnsupportedError, BackendUnavailableError) as error:
                reason = str(error)
                found.append((row(rtol, atol, NOT_RUN, reason), None))
            except Exception as error:  # of whatever kind: the row and the verdict report it
                text = f"{type(error).__name__}: {error}"
                retcode = str(error.retcode) if isinstance(error, SolverError) else ""
                found.append((row(rtol, atol, FAILED, text, retcode=retcode), None))
            else:
                found.append(_judge(row, rtol, atol, case, outcome, truth, scale))
        done()
    return found


def _judge(
    blank: Callable[..., Row],
    rtol: float,
    atol: float,
    case: Case,
    outcome: Outcome,
    truth: Outcome,
    scale: Scale,
) -> tuple[Row, Judged]:
    difference = outcome.states - truth.states
    unit = scale.of_states(truth.states, rtol, atol)
    state = judging.deviation(difference, unit, case.t, scale.bound)
    plain = judging.deviation(difference, torch.ones(()), case.t, math.inf)
    errors = [judging.relative(a, b) for a, b in zip(outcome.gradient, truth.gradient, strict=True)]
    worst = max((e for e in errors if e is not None), default=None)
    gradient = None if worst is None else worst / scale.of_gradient(rtol, atol)
    near = state.units <= scale.bound and (gradient is None or gradient <= scale.bound)
    row = blank(
        rtol,
        atol,
        OK if near else DISAGREES,
        state_error=plain.units,
        state_time=plain.time,
        state_units=state.units,
        gradient_y0=errors[0],
        gradient_params=errors[1],
        gradient_units=gradient,
        nfe_forward=outcome.nfe_forward,
        nfe_backward=outcome.nfe_backward,
        alongside_forward=outcome.alongside_forward,
        alongside_backward=outcome.alongside_backward,
        n_accepted=outcome.n_accepted,
        n_rejected=outcome.n_rejected,
        seconds_forward=outcome.seconds_forward,
        seconds_backward=outcome.seconds_backward,
        retcode=outcome.retcode,
    )
    return row, Judged(row.who, rtol, atol, outcome.states, state, gradient)


# --------------------------------------------------------------------------------- the verdict


def _verdict(
    rows: Sequence[Row],
    judged: Sequence[Judged],
    reference: Reference,
    case: Case,
    scale: Scale,
    pairs: Sequence[tuple[float, float]],
) -> Verdict:
    confirmed, doubt = judging.examine(reference, case.t, scale, *pairs[-1])
    against = [] if doubt is None else [doubt]
    against += judging.disagreements(judged, scale)
    failed = [row for row in rows if row.status == FAILED]
    against += [judging.failure(f"{row.who} at {row.rtol:g}", row.reason) for row in failed]
    apart = judging.furthest(judged, reference.outcome.states, case.t, scale)
    unit = "root of the tolerance" if scale.root else "tolerance"
    n_not_run = sum(row.status == NOT_RUN for row in rows)
    agrees = not against and bool(judged)
    sentences = [_first_sentence(judged, against, scale)]
    tolerances = ", ".join(f"{r:g}" if r == a else f"({r:g}, {a:g})" for r, a in pairs)
    sentences.append(
        f"Tolerances: {tolerances}; bound: {scale.bound:g} units, one unit being "
        + ("the square root of " if scale.root else "")
        + "atol + rtol |y| for states, the tolerance for relative errors of gradients."
    )
    if scale.root:
        sentences[-1] = (
            f"Tolerances: {tolerances}; bound: {scale.bound:g} units. Derivatives of the field "
            "jump, where errors fall more slowly than the tolerance: one unit is its square root."
        )
    if apart is not None:
        sentences.append(
            f"Furthest apart: {apart.first} and {apart.second}, {apart.units:.2g} units at "
            f"t = {apart.time:g}."
        )
    sentences.append(f"The {NAME}: {confirmed}.")
    if n_not_run:
        sentences.append(f"{n_not_run} of {len(rows)} runs could not be made.")
    return Verdict(
        agrees=agrees,
        sentence=" ".join(sentences),
        bound=scale.bound,
        unit=unit,
        tolerances=[list(pair) for pair in pairs],
        disagreements=against,
        furthest=apart,
        n_compared=len(judged),
        n_failed=len(failed),
        n_not_run=n_not_run,
        confirmed=confirmed,
    )


def _first_sentence(judged: Sequence[Judged], against: Sequence[Any], scale: Scale) -> str:
    if against:
        more = f" ({len(against) - 1} more.)" if len(against) > 1 else ""
        return f"{' '.join(against[0].sentence.split())}.{more}"
    if not judged:
        return "Nothing was compared: no competitor could run."
    state, gradient = judging.largest(judged)
    text = f"{len(judged)} runs agree with the reference: states within {state:.2g} units"
    return f"{text}." if gradient is None else f"{text}, gradients within {gradient:.2g}."


def _described(reference: Reference) -> dict[str, Any]:
    outcome = reference.outcome
    return {
        "name": NAME,
        "smooth": judging.smooth(outcome),
        "nfe_forward": outcome.nfe_forward,
        "n_accepted": outcome.n_accepted,
        "n_rejected": outcome.n_rejected,
        "seconds_forward": outcome.seconds_forward,
        "seconds_backward": outcome.seconds_backward,
    }


def _problem(case: Case, title: str) -> dict[str, Any]:
    return {
        "title": title or type(case.func).__name__,
        "dtype": str(case.dtype).removeprefix("torch."),
        "states": case.structure.total,
        "params": sum(p.numel() for p in case.params),
        "t": case.t.tolist(),
    }


def _environment(case: Case) -> dict[str, Any]:
    from ..experiments.environment import describe

    found = describe(str(case.device))
    for name in WITNESSES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found["versions"][name] = metadata.version(name)
    return found
