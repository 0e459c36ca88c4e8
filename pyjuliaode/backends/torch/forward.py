"""Run a plan forward: collect the states at the requested times from the stream of steps."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..._torch import traced
from ...adjoints.checks import Witness
from ...autocast import unwrapped
from ...errors import InvalidArgumentError
from ...problem import Problem, State
from ...refusal import transforms_active
from ...rhs import RHS
from ...solution import Retcode, SolveStats
from ..base import Event
from ..runge_kutta import Stepper, state_at
from .callbacks import Callbacks
from .control import SampleErrors, StepFailure, rms
from .dense import DenseOutput, RestepOutput, StepsOutput
from .events import EventFinder
from .fixed import endless_grid, fixed_grid
from .pan.dense import PanOutput
from .plan import Plan

MANY = 16  # requested times within a step, that are worth one call
EVENT_POINTS = 8  # times within a step at which an event is looked for


@dataclass
class Trace:
    """What a forward run leaves.

    Attributes:
        rows: flat states at the requested times that were reached, the first being y0: a list,
            or stacked to (T', N).
        step_t: the accepted step boundaries, the first being t[0].
        step_y: flat states at the step boundaries but the last, where recorded.
        end: that at the last.
        dense: dense output, where recorded.
        failure: why the run ended early, or None.
        event: what ended the run, or None; its state is then the last of the rows.
        witnesses: the field at the begin and at the end, where asked for.
        y: the states at the requested times in the user's shapes, where an adjoint differentiates
            them; None: the rows carry what graph there is.
    """

    rows: list[Tensor] | Tensor
    step_t: list[float]
    step_y: list[Tensor] = field(default_factory=list)
    end: Tensor | None = None
    dense: DenseOutput | None = None
    failure: StepFailure | None = None
    event: Event | None = None
    witnesses: list[Witness] = field(default_factory=list)
    y: State | None = None


def grid_of(plan: Plan, problem: Problem) -> Iterable[float]:
    """Step boundaries of a fixed-step plan; without end where the span has none."""
    start, end = problem.times[0], problem.times[-1]
    if math.isinf(end):
        if plan.dt is None:
            raise InvalidArgumentError(
                f"method {plan.method!r} needs options['step_size'] to search for an event"
            )
        dt = math.copysign(plan.dt, end)
        return endless_grid(start, dt, plan.max_steps, problem.time_dtype)
    y0 = problem.structure.unpack(problem.y0)
    constructor = plan.options.get("grid_constructor")
    return fixed_grid(problem.func, y0, problem.t, problem.times, plan.dt, constructor)


def run(
    plan: Plan,
    problem: Problem,
    rhs: RHS,
    y0: Tensor,
    f0: Tensor | None,
    stats: SolveStats,
    *,
    graph: bool,
    clock: Mapping[float, Tensor] | None = None,
    dense: bool = False,
    record: bool = False,
    land: bool = False,
    witness: bool = False,
    event_fn: Callable[..., Tensor] | None = None,
    watch: Callable[[], None] | None = None,
    compiled: Callable[..., Stepper] | None = None,
) -> Trace:
    """Integrate over ``problem.times``; ``f0`` is the slope at y0 where it is already known.

    ``land`` makes the steps end on the requested times, as those of some methods always do (see
    :attr:`Plan.lands`): then the derivative with respect to a requested time is that of a step, not
    of the interpolant, which is one order worse. ``witness`` keeps what a backward pass compares
    the field with. ``watch`` is called after every accepted step and may raise to stop the run.
    ``compiled`` makes the stepper, see :meth:`Plan.stream`.
    """
    times = problem.times
    direction = 1.0 if times[-1] >= times[0] else -1.0
    y0 = y0.clone()  # the user's, who may write into it: in the field, or while the result is kept
    trace = Trace([y0], [times[0]], dense=_dense_output(plan, rhs, times[0], direction, dense))
    stops = times if land or plan.lands else ()
    callbacks = Callbacks.of(
        unwrapped(problem.func), rhs.time, problem.structure.unpack, plan.callbacks
    )
    stream = plan.stream(rhs, y0, stats, graph, clock, callbacks, stops, compiled)
    samples = None
    if plan.kind == "adaptive" and plan.norm is rms and compiled is None:
        dim = int(plan.options.get("batch_dim", 0))
        samples = stream.samples = SampleErrors.of(problem.structure.shapes, dim)
    if plan.chooses_steps:
        steps = stream.steps(y0, times[0], times[-1], f0)
    else:
        steps = stream.steps(y0, grid_of(plan, problem), f0)
    # without an interpolant a state within a step costs a step
    points = EVENT_POINTS if plan.has_interpolant else 1
    event = None if event_fn is None else EventFinder(rhs, event_fn, times[0], y0, points)
    clock = clock or {}
    pending = 1  # index of the next requested time
    try:
        for step in steps:
            found = None if event is None else event.find(step)
            reached = step.t1 if found is None else found[0]
            if found is not None:
                trace.event = Event(reached, step.landing(reached), *found[1:])
            before, pending = (
                pending,
                _collect(trace, step, times, pending, reached, direction, plan, clock),
            )
            if pending > before and problem.drop_in and plan.kind in ("adaptive", "scipy"):
                stream.begin_interval()
            if record:
                trace.step_y.append(step.y0.detach())
            if witness and len(trace.step_t) == 1:
                trace.witnesses.append(_begin(step, plan, rhs))
            trace.step_t.append(reached)
            if trace.dense is not None:
                trace.dense.append(step)
            if watch is not None:
                watch()
            if trace.event is not None:
                _end_at(trace, trace.event, times)
                break
    except StepFailure as failure:
        trace.failure = failure
    if witness and trace.failure is None and len(trace.step_t) > 1:
        trace.witnesses.append(_end(step, plan, rhs))
    if samples is not None:
        samples.report(stats.n_accepted)
    if record and len(trace.step_t) > 1:
        trace.end = (step.y1 if trace.event is None else trace.event.y).detach()
    unchecked = transforms_active() or traced(y0)
    unchecked = unchecked or (_finite(trace.rows[-1]) if plan.chooses_steps else problem.drop_in)
    if trace.failure is None and not unchecked:
        _check_finite(trace, times)
    return trace


def _end_at(trace: Trace, event: Event, times: list[float]) -> None:
    """The event's state as the last row, in place of a requested time that coincides with it."""
    if len(trace.rows) > 1 and times[len(trace.rows) - 1] == event.t:
        trace.rows.pop()
    trace.rows.append(event.y)
    if trace.dense is not None:
        trace.dense.end_at(event.t, event.y)


def _begin(step: Any, plan: Plan, rhs: RHS) -> Witness:
    at = plan.sides(rhs.time_dtype).after(step.t0, step.t1, {})
    return at, step.y0.detach(), step.first.detach().clone()


def _end(step: Any, plan: Plan, rhs: RHS) -> Witness:
    """The slope at the end of the last step, else at its begin: what the method has evaluated."""
    if step.last is None:
        return _begin(step, plan, rhs)
    before = plan.sides(rhs.time_dtype).before(step.t0, step.t1, {})
    at = step.t1 if before is None else before
    return at, step.y1.detach(), step.last.detach().clone()


def _dense_output(
    plan: Plan, rhs: RHS, t0: float, direction: float, wanted: bool
) -> DenseOutput | None:
    if not wanted:
        return None
    if plan.kind == "pan":
        return PanOutput(t0, direction)
    if plan.kind == "scipy":
        return StepsOutput(t0, direction)
    if plan.has_interpolant:
        return DenseOutput(t0, direction)
    if plan.tableau is None:
        return None
    return RestepOutput(t0, direction, rhs, plan)


def _collect(
    trace: Trace,
    step: Any,
    times: list[float],
    pending: int,
    reached: float,
    direction: float,
    plan: Plan,
    clock: Mapping[float, Tensor],
) -> int:
    """Append the states at the requested times within the step, up to ``reached``."""
    if plan.kind == "pan":  # a polynomial for many times costs hardly more than for one
        pending += _append_many(trace, step, times, pending, reached, direction)
    while pending < len(times) and direction * (reached - times[pending]) >= 0:
        t = times[pending]
        at = clock.get(t, t)
        if at is not t and plan.kind == "adams":
            trace.rows.append(step.interpolate(t, at))
        else:
            trace.rows.append(state_at(step, t, at, plan.linear))
        pending += 1
    return pending


def _append_many(
    trace: Trace, step: Any, times: list[float], pending: int, reached: float, direction: float
) -> int:
    """Append the states at all times before the end of the step, where there are many."""
    end = min(reached, step.t1, key=lambda t: direction * t)
    last = bisect_left(times, direction * end, lo=pending, key=lambda t: direction * t)
    if last - pending < MANY:
        return 0
    trace.rows += step.states(times[pending:last])
    return last - pending


@torch.no_grad()
def _finite(y: Tensor) -> bool:
    """Whether a state is: then so are those before it, of which it is a sum."""
    return not bool((y - y).any())


@torch.no_grad()
def _check_finite(trace: Trace, times: list[float]) -> None:
    """A non-finite state, an overflow that no error estimate shows, ends the run before it."""
    finite = torch.stack(trace.rows).isfinite().all(dim=1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        trace.rows = trace.rows[: max(first, 1)]
        trace.failure = StepFailure(
            Retcode.UNSTABLE, times[max(first - 1, 0)], "the state is not finite beyond the output"
        )
