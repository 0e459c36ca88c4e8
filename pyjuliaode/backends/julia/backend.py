"""JuliaBackend: what it can do, what it refuses, and a solve from end to end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..._torch import traced
from ...adjoints.checks import unlisted_leaves, warn_of_lost_gradients
from ...adjoints.node import differentiated
from ...autocast import AutocastField, unwrapped
from ...errors import InvalidArgumentError, PyJuliaODEError, UnsupportedError
from ...problem import Problem, State
from ...rhs import RHS, PerFunction
from ...signature import itself
from ...solution import Retcode, SolveStats
from ...solver import Solver
from ..base import Capabilities, Event, Result, event_value
from ..dense import UserDense
from ..limits import check_scale, number_of_steps
from .adjoint import ContinuousInJulia, JuliaWay, NativeReplay, Replay
from .environment import missing
from .forward import Forward, KeptDense, accepted_steps, run_forward
from .methods import names
from .native.field import NativeField, native_field, recall
from .plan import ADJOINTS, Plan
from .runtime import Runtime, check_reach, get, started
from .tableau import tableau_of
from .workspace import NO_POSITION, PRECISION, drain

_facts = PerFunction()
_PLAIN = frozenset((str, int, float, bool, type(None)))
_REMEMBERED = 64
_CALLBACKS = tuple(
    f"callback_{what}{side}"
    for what in ("step", "accept_step", "reject_step")
    for side in ("", "_adjoint")
)


class JuliaBackend:
    """Solves with OrdinaryDiffEq and SciMLSensitivity, through juliacall."""

    name = "julia"

    def __init__(self) -> None:
        self._plans: dict[tuple[object, ...], Plan] = {}

    def missing(self) -> str | None:
        return None if started() is not None else missing()

    def _plan(self, problem: Problem, solver: Solver) -> Plan:
        """The plan; a remembered one where it depends on numbers and names alone."""
        adjoint = solver.gradient
        key = (
            *(solver.method, solver.rtol, solver.atol, solver.dt, solver.max_steps),
            *(adjoint.name, *vars(adjoint).values()),
            *(problem.mass is None, problem.second_order),
            *(() if solver.options is None else (x for o in solver.options.items() for x in o)),
        )
        if not _PLAIN.issuperset(map(type, key)):
            return Plan.build(problem, solver)
        plan = self._plans.get(key)
        if plan is None:
            plan = Plan.build(problem, solver)
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def versions(self) -> dict[str, str]:
        runtime = started()
        return {} if runtime is None else runtime.versions()

    def start(self) -> None:
        get().adjoints()

    def capabilities(self) -> Capabilities:
        return Capabilities(
            methods=names(),
            adjoints=ADJOINTS,
            devices=("cpu", "cuda"),
            dtypes=("float32", "float64"),
            structures=("ode", "mass_matrix"),
            events=True,
        )

    def refuses(
        self,
        problem: Problem,
        solver: Solver,
        event_fn: Callable[..., Tensor] | None = None,
    ) -> str | None:
        """Why this problem cannot be solved here, or None; starts nothing."""
        recall(problem)
        try:
            check_reach()
            _check(problem)
            plan = self._plan(problem, solver)
            _check_of_plan(problem, plan)
            _check_closure(problem, refuse=True)
        except PyJuliaODEError as error:
            return str(error)
        if problem.y0.device.type != "cpu":
            return "backend 'auto' solves CUDA tensors in torch"
        return None

    def solve(
        self,
        problem: Problem,
        solver: Solver,
        event_fn: Callable[..., Tensor] | None = None,
    ) -> Result:
        """Solve; see :class:`pyjuliaode.backends.base.Backend`."""
        device = problem.y0.device.type
        if torch.is_autocast_enabled(device):
            problem = replace(problem, func=AutocastField(problem.func, device))
            with torch.autocast(device, enabled=False):
                return self.solve(problem, solver, event_fn)
        known = recall(problem)
        _check(problem)
        plan = self._plan(problem, solver)
        _check_of_plan(problem, plan)
        _check_closure(problem)
        stats = SolveStats(method=plan.method.name, adjoint=plan.adjoint, backend=self.name)
        if len(problem.times) == 1:
            y = problem.structure.unpack(problem.y0[None], (1,))
            return Result(y, stats, step_t=list(problem.times))
        runtime = get()
        drain(runtime)
        if device == "cuda":
            runtime.cuda()
            _check_backward_thread(problem)
        started = time.perf_counter()
        keep_dense = bool(solver.option("dense", True))
        native = _native(runtime, problem, solver, plan, known)
        stats.native = native is not None
        result = _run(runtime, problem, plan, stats, keep_dense, event_fn, native)
        stats.seconds = time.perf_counter() - started
        return result


def _native(
    runtime: Runtime, problem: Problem, solver: Solver, plan: Plan, known: NativeField | None
) -> NativeField | None:
    """The tape that runs the field, or None.

    Raises:
        UnsupportedError: ``native="always"``, and there is none; says why.
    """
    if solver.native == "never":
        return None
    found: NativeField | str
    if problem.y0.device.type != "cpu":
        found = "native mode is of the CPU"
    elif problem.args.values:
        found = "it takes args"
    elif plan.jumps or problem.mass is not None:
        found = "it goes with neither options['jump_t'] nor a mass matrix"
    else:
        found = known or native_field(runtime, problem)
        if isinstance(found, NativeField) and plan.method.nystrom and not found.position_first:
            found = NO_POSITION
    if isinstance(found, NativeField):
        return found if solver.native == "always" or found.pays() else None
    if solver.native == "always":
        raise UnsupportedError(f"native='always', but the field cannot be run in Julia: {found}")
    return None


def _run(
    runtime: Runtime,
    problem: Problem,
    plan: Plan,
    stats: SolveStats,
    keep_dense: bool,
    event_fn: Callable[..., Tensor] | None,
    native: NativeField | None,
) -> Result:
    if event_fn is not None:
        return _run_to_event(runtime, problem, plan, stats, keep_dense, event_fn, native)
    if not problem.wants_gradient:
        keep = "dense" if keep_dense else ""
        done = run_forward(runtime, problem, plan, stats, keep=keep, native=native)
        return _result(runtime, problem, stats, done, _shaped(problem, done.rows), keep_dense)
    way = _way(problem, plan, native)(runtime, problem, plan, stats, keep_dense, native)
    if plan.adjoint == "direct":
        way.tableau = tableau_of(runtime, plan.method.name)
        if way.tableau is None:
            raise UnsupportedError(
                f"the steps of {plan.method.name} cannot be replayed: it is no plain explicit "
                "Runge-Kutta method in the version installed here; use adjoint='gauss'"
            )
        stats.adjoint = "direct (replay)"
    y = differentiated(way)
    done, way.done = way.done, None
    return _result(runtime, problem, stats, done, y, keep_dense)


def _way(problem: Problem, plan: Plan, native: NativeField | None) -> type[JuliaWay]:
    if plan.adjoint != "direct":
        return ContinuousInJulia
    return Replay if native is None or problem.t.requires_grad else NativeReplay


def _shaped(problem: Problem, rows: Tensor) -> State:
    return problem.structure.unpack(rows, (rows.shape[0],))


def _result(
    runtime: Runtime,
    problem: Problem,
    stats: SolveStats,
    done: Forward,
    y: State,
    keep_dense: bool,
) -> Result:
    stats.retcode = done.retcode
    dense = None
    if keep_dense:
        make = partial(KeptDense, runtime, done.kept, problem, done.reached)
        dense = UserDense(make, problem.structure, portable=False)
    return Result(y, stats, done.retcode, done.message, done.step_t, dense)


def _run_to_event(
    runtime: Runtime,
    problem: Problem,
    plan: Plan,
    stats: SolveStats,
    keep_dense: bool,
    event_fn: Callable[..., Tensor],
    native: NativeField | None,
) -> Result:
    """Find the event, then solve up to it where a gradient is wanted."""
    with torch.no_grad():
        time_of, unpack = RHS(problem).time, problem.structure.unpack
        first = event_value(event_fn(time_of(problem.times[0]), unpack(problem.y0)))
    if first.numel() > problem.y0.numel():
        raise UnsupportedError(
            f"event_fn returns {first.numel()} values, the Julia backend takes as many as the "
            f"state has numbers, {problem.y0.numel()}; use backend='torch'"
        )
    done = run_forward(
        runtime, problem, plan, stats, keep="dense", event_fn=event_fn, nevents=first.numel()
    )
    stats.retcode = done.retcode
    ended = done.retcode.value == "Terminated"
    gradient = problem.wants_gradient
    if not ended and not (gradient and done.retcode.successful):
        return Result(_shaped(problem, done.rows), stats, done.retcode, done.message)
    t, y, n, since = done.reached, None, done.rows.shape[0], None
    upto = problem.up_to(t) if ended else problem
    if ended:
        taken = accepted_steps(runtime, done.kept, problem)
        since, y = taken.t[-2], taken.y[-1].clone()
    if gradient and t != problem.times[0]:
        nfe, stats.retcode = stats.nfe_forward, Retcode.SUCCESS
        stats.nfe_forward = 0
        result = _run(runtime, upto, plan, stats, keep_dense, None, native)
        stats.nfe_forward += nfe
        if not ended or not result.retcode.successful:
            return result
        y = problem.structure.pack(_last(result.y))
    else:
        rows = done.rows[: min(n, len(upto.times) - 1)]
        result = Result(_shaped(problem, torch.cat([rows, y[None]])), stats)
    result.retcode = stats.retcode = done.retcode
    result.event = Event(t, y, done.element, done.before, since)
    return result


def _last(y: State) -> State:
    return y[-1] if isinstance(y, Tensor) else tuple(part[-1] for part in y)


def _check(problem: Problem) -> None:
    """Raise for what Julia cannot take, with what can."""
    y0 = problem.y0
    if y0.dtype not in PRECISION:
        raise UnsupportedError(
            f"the Julia backend solves float32 and float64 states, y0 is {y0.dtype}; use "
            "backend='torch'"
        )
    if y0.numel() == 0:
        raise UnsupportedError("the Julia backend takes no empty state; use backend='torch'")
    if problem.wants_gradient and any(p.is_complex() for p in problem.tensors):
        raise UnsupportedError("the Julia backend takes real parameters only; use backend='torch'")
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        raise UnsupportedError(
            "torch.func transforms and forward-mode differentiation do not pass through Julia; "
            "use backend='torch' with adjoint='direct'"
        )
    if traced(y0):
        raise UnsupportedError(
            "a solve by Julia cannot be exported or traced; use backend='torch' with a method of "
            "fixed steps"
        )
    func = itself(unwrapped(problem.func))
    own = getattr(func, "__dict__", ())
    told = [name for name in _CALLBACKS if name in own or hasattr(type(func), name)]
    if told:
        raise UnsupportedError(
            f"func has {', '.join(told)}, which the Julia backend does not call; use "
            "backend='torch'"
        )


def _check_of_plan(problem: Problem, plan: Plan) -> None:
    """Raise for what this method cannot do with these times and y0, which no plan knows."""
    if plan.adaptive:
        check_scale(problem, plan.rtol, plan.atol)
    elif plan.dt is not None and not math.isinf(problem.times[-1]):
        number_of_steps(problem.times[0], problem.times[-1], plan.dt)
    if plan.grid and math.isinf(problem.times[-1]):
        raise InvalidArgumentError(
            f"method {plan.method.name!r} takes one step between two times, and an event's time is "
            "not known: pass options={'step_size': ...}"
        )
    if plan.method.nystrom and problem.times[-1] < problem.times[0]:
        raise UnsupportedError(
            f"method {plan.method.name!r} goes forward in time only; use another for decreasing "
            "times"
        )
    if problem.mass is None or not problem.wants_gradient:
        return
    if problem.t.requires_grad:
        raise UnsupportedError(
            "the Julia backend gives no gradient of the times of a system with a mass matrix; pass "
            "t.detach(), or solve the eliminated form"
        )
    if plan.method.kind != "bdf" and not plan.method.name.startswith(("Ro", "RO")):
        raise UnsupportedError(
            f"gradients of a system with a mass matrix come out wrong or fail with "
            f"{plan.method.name!r}; use 'Rodas5P' or 'FBDF'"
        )


def _check_backward_thread(problem: Problem) -> None:
    """With CUDA tensors torch runs backward() in a thread of its own, which cannot call Julia."""
    if problem.wants_gradient and torch._C._is_multithreading_enabled():
        raise UnsupportedError(
            "gradients of CUDA tensors by the Julia backend need backward() in this thread: call "
            "torch.autograd.set_multithreading_enabled(False) first, or use backend='torch'"
        )


def _check_closure(problem: Problem, refuse: bool = False) -> None:
    """Tensors that a function carries along get no gradient here: refuse, or warn for a module.

    ``refuse``: a module too. Costs one evaluation, once for every function and shape that was
    found without such tensors; backward() looks again.
    """
    if problem.explicit_params is not None or not torch.is_grad_enabled():
        return
    func = unwrapped(problem.func)
    key = (problem.y0.shape, problem.y0.dtype)
    if _facts.get(func, key):
        return
    with torch.enable_grad():
        origin = problem.y0.detach().requires_grad_()
        f0 = RHS(problem)(problem.times[0], origin)
    if f0.requires_grad and unlisted_leaves(problem, f0, origin):
        if refuse or not isinstance(func, nn.Module):
            raise InvalidArgumentError(
                "func depends on tensors that require a gradient and is no torch.nn.Module, so "
                "they are not known: make it a module with them as parameters, pass params "
                "(adjoint_params), or use backend='torch' with adjoint='direct'"
            )
        warn_of_lost_gradients(problem, f0, origin)
        return
    _facts.put(func, key, True)
