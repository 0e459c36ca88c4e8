"""Forward solves: from a plan to rows, and to what an adjoint or dense output keeps."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...adjoints.checks import Witness
from ...errors import InvalidArgumentError
from ...problem import Problem
from ...solution import Retcode, SolveStats
from ..limits import number_of_steps
from .native.field import NativeField
from .plan import Plan, advice
from .requests import Report, Request, address, doubles
from .runtime import Runtime
from .workspace import Workspace, acquire, give_back


class Kept:
    """A solution that Julia keeps, with the workspace that its right-hand side is bound to.

    Released when nobody holds it any more, at the next call of the thread that owns Julia.
    """

    def __init__(self, workspace: Workspace, number: int, steps: int, sign: float):
        self.workspace, self.number, self.steps, self.sign = workspace, number, steps, sign
        self._finalizer = weakref.finalize(self, _let_go, workspace, number)
        self._finalizer.atexit = False


def _let_go(workspace: Workspace, number: int) -> None:
    # no Julia in here: a finalizer runs in whatever thread dropped the last reference
    workspace.unbind()
    workspace.runtime.released.append((number, workspace))


@dataclass
class Forward:
    """What a forward solve leaves.

    Attributes:
        rows: states (T', N) at the requested times that were reached.
        kept: what stays in Julia, or None.
        reached: the user's time that was reached.
        step_t: times of the accepted steps, where they were asked for.
        witnesses: the field as it was called at first and at last, but for native runs.
        element: of the event functions, which ended the solve; before: a time just before that.
    """

    rows: Tensor
    retcode: Retcode
    reached: float
    message: str = ""
    kept: Kept | None = None
    step_t: list[float] = field(default_factory=list)
    witnesses: list[Witness] = field(default_factory=list)
    element: int = -1
    before: float = math.nan


def run_forward(
    runtime: Runtime,
    problem: Problem,
    plan: Plan,
    stats: SolveStats,
    *,
    keep: str = "",
    land: bool = False,
    event_fn: Callable[..., Tensor] | None = None,
    nevents: int = 0,
    adjoint: bool = False,
    native: NativeField | None = None,
) -> Forward:
    """Solve. ``keep`` is "", "dense", "steps" or "checkpoints"; ``land``: steps end on times.

    ``adjoint``: the workspace is going to serve an adjoint too; ``native``: runs the field.
    """
    y0 = problem.y0.detach().contiguous()
    times = problem.times
    sign = 1.0 if times[-1] >= times[0] else -1.0
    ours = times if sign > 0 else [-t for t in times]
    _check_resolution(times, plan)
    rows = torch.empty(len(times), y0.numel(), dtype=y0.dtype, device=y0.device)
    jacobian = plan.method.implicit and plan.jacobian
    times_c = doubles(ours)
    request, report = Request(), Report()
    request.y0, request.out = y0.data_ptr(), rows.data_ptr()
    request.times, request.ntimes = address(times_c), len(ours)
    alive = _fill(request, problem, plan, ours, sign, land)
    request.jacobian, request.nevents = jacobian, nevents
    if native is not None:
        tensors = native.addresses()
        alive.append(tensors)
        request.tape, request.tensors = native.id, address(tensors)
        request.backwards = sign < 0
    workspace = acquire(runtime, problem, jacobian, params=adjoint)
    rhs = workspace.bind(problem, sign, event_fn, plan.method.nystrom)
    try:
        with workspace.calling():
            code = runtime.solve(
                workspace.id, plan.method.name, keep, address(request), address(report)
            )
    finally:
        stats.nfe_forward += rhs.nfe if native is None else int(report.nf)
        stats.n_jacobians += rhs.n_jacobians
        number = int(report.handle)
        seen = [] if native is not None else workspace.witnesses()
        if number == 0:
            give_back(workspace)
        del alive
    stats.n_accepted, stats.n_rejected = int(report.accepted), int(report.rejected)
    kept = Kept(workspace, number, int(report.steps), sign) if number else None
    reached = sign * report.reached
    retcode = Retcode.of(str(code))
    message = ""
    if not retcode.successful:
        message = (
            f"{plan.method.name} stopped at t = {reached:.6g} with retcode {retcode}, after "
            f"{stats.n_accepted} accepted and {stats.n_rejected} rejected steps. "
            f"{advice(retcode, plan)}"
        )
    done = Forward(rows[: int(report.rows)], retcode, reached, message, kept, witnesses=seen)
    done.element, done.before = int(report.element) - 1, sign * report.before
    return done


def _fill(
    request: Request, problem: Problem, plan: Plan, ours: list[float], sign: float, land: bool
) -> list[object]:
    """The plan's part of a request; what is returned must outlive the call."""
    alive: list[object] = []
    for name, value in (("abstol", plan.atol), ("reltol", plan.rtol)):
        if isinstance(value, Tensor):
            value = value.to(problem.y0).contiguous()
            alive.append(value)
            setattr(request, f"{name}_at", value.data_ptr())
        else:
            setattr(request, name, value)
    grid = plan.grid
    request.dt = plan.dt or (ours[-1] - ours[0] if grid else 0.0)
    request.dtmin, request.dtmax = plan.dtmin, plan.dtmax
    request.adaptive, request.maxiters = plan.adaptive, _most_steps(plan, ours)
    request.second_order = plan.method.nystrom
    request.ncheckpoints = plan.checkpoints or 0
    land = land or plan.lands or grid
    if plan.stops or land:
        stops = {sign * t for t in plan.stops} | set(ours if land else ())
        stops_c = doubles(sorted(s for s in stops if ours[0] < s <= ours[-1]))
        alive.append(stops_c)
        request.tstops, request.ntstops = address(stops_c), len(stops_c)
    if plan.jumps:
        jumps_c = doubles([sign * t for t in plan.jumps])
        alive.append(jumps_c)
        request.jumps, request.njumps = address(jumps_c), len(jumps_c)
    if problem.mass is not None:
        mass = problem.mass.to(problem.y0).contiguous()
        alive.append(mass)
        request.mass_at, request.brown = mass.data_ptr(), plan.initialization == "brown"
    return alive


def _most_steps(plan: Plan, times: list[float]) -> int:
    """The limit of an adaptive method; a grid, which was checked, always runs."""
    if plan.adaptive or math.isinf(times[-1]):
        return plan.max_steps
    inside = number_of_steps(times[0], times[-1], plan.dt) if plan.dt else 0
    return max(plan.max_steps, inside + len(times) + len(plan.stops) + len(plan.jumps) + 1)


def _check_resolution(times: list[float], plan: Plan) -> None:
    """Julia solves in the time since the first, in float64: times must stay apart in it, and steps
    of a fixed size in the user's.
    """
    since = [abs(t - times[0]) for t in times]
    for i in range(len(times) - 1):
        if since[i] == since[i + 1]:
            raise InvalidArgumentError(
                f"t[{i}] and t[{i + 1}] are {abs(times[i + 1] - times[i]):.2g} apart, and the same "
                f"in the time since t[0] = {times[0]:g}, in which Julia solves: start nearer to "
                "them, or leave one out"
            )
    latest = max(abs(t) for t in (times[0], times[-1]) if math.isfinite(t))
    if not plan.adaptive and plan.dt is not None and plan.dt < 2 * math.ulp(latest):
        raise InvalidArgumentError(
            f"step_size (dt) = {plan.dt:g} is below the resolution of time at t = {latest:.10g}, "
            f"{math.ulp(latest):.1g}: take larger steps, or count the time from the start"
        )


def held_until(times: list[float]) -> tuple[float, ...]:
    """The last time, where Julia sees it from the side of the solve; see PyJuliaODE.Clock."""
    return tuple(times[-1:]) if abs(times[-1]) <= 4 * abs(times[-1] - times[0]) else ()


@dataclass
class Accepted:
    """The accepted steps of a solve.

    Attributes:
        t: the user's times between them (S + 1); y: the states there (S + 1, N).
        since: the same since the first: at late times t is too coarse for their differences.
    """

    t: list[float]
    since: list[float]
    y: Tensor

    def lengths(self, dt: float | None) -> list[float]:
        """Of the steps; ``dt`` where they differ from it by the rounding of their ends alone."""
        pairs = list(zip(self.since, self.since[1:], strict=False))
        return [dt if dt is not None and a + dt == b else b - a for a, b in pairs]


def accepted_steps(runtime: Runtime, kept: Kept, problem: Problem) -> Accepted:
    """The accepted steps of a solution that Julia keeps."""
    y0 = problem.y0
    times, since = torch.empty(2, kept.steps, dtype=torch.float64, device="cpu").unbind()
    states = torch.empty(kept.steps, y0.numel(), dtype=y0.dtype, device=y0.device)
    with runtime.errors():
        runtime.steps(kept.number, times.data_ptr(), since.data_ptr(), states.data_ptr())
    return Accepted(times.mul_(kept.sign).tolist(), since.tolist(), states)


class KeptDense:
    """The flat trajectory by Julia's interpolant."""

    def __init__(self, runtime: Runtime, kept: Kept, problem: Problem, end: float):
        self.runtime, self.kept, self.y0 = runtime, kept, problem.y0.detach()
        self.span = (problem.times[0], end)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.span

    def at_all(self, times: list[float]) -> Tensor:
        """States (S, N) at times within the span."""
        self.runtime.check()
        ours = torch.tensor(times, dtype=torch.float64, device="cpu").mul_(self.kept.sign)
        out = torch.empty(len(times), self.y0.numel(), dtype=self.y0.dtype, device=self.y0.device)
        with self.runtime.errors():
            self.runtime.interpolate(self.kept.number, ours.data_ptr(), len(times), out.data_ptr())
        return out
