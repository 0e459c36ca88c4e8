"""TorchBackend: choose method and adjoint, run, and report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..._torch import traced
from ...errors import InvalidArgumentError, StopIterationPasses, UnsupportedError, unknown_name
from ...graph import saved_bytes
from ...problem import HALF, Problem
from ...refusal import refuse_transforms
from ...rhs import RHS, PerFunction, unlisted_leaves, warn_of_lost_gradients
from ...solution import Retcode, SolveStats
from ...solver import Solver
from ..autocast import AutocastField, unwrapped
from ..base import AdjointRequest, Capabilities, Result
from ..dense import UserDense
from ..limits import check_scale
from ..runge_kutta import NeedsGraph
from ..tolerance import tolerance
from . import per_sample
from .compiled import CompiledField, CompiledRHS, CompiledStepper, StepProduct, compiled_field
from .continuous import AdjointPlan, run_continuous
from .dense import DenseOutput, RestepOutput
from .direct import run_graph, run_replay
from .forward import Trace, run, transforms_active
from .pan.direct import run_pan
from .plan import METHODS, Plan, user_norm

ADJOINTS = ("auto", "direct", "backsolve", "interpolating", "gauss")
GRAPH_MEMORY = 2**30  # bytes of graph beyond which "auto" replays the steps instead
_facts = PerFunction()


class _GraphTooLarge(Exception):
    """The autograd graph has grown beyond its budget."""


class _TwoPasses(Exception):
    """This gradient is of a solve whose end is known: the event has to be found before."""


class TorchBackend:
    """Solves in PyTorch; needs nothing else."""

    name = "torch"

    def missing(self) -> str | None:
        return None

    def versions(self) -> dict[str, str]:
        return {"torch": str(torch.__version__)}

    def start(self) -> None:
        """There is nothing to start."""

    def capabilities(self) -> Capabilities:
        return Capabilities(
            methods=METHODS,
            adjoints=ADJOINTS[1:],
            devices=("cpu", "cuda"),
            dtypes=("float32", "float64", "complex64", "complex128"),
            structures=("ode",),
            events=True,
        )

    def refuses(
        self,
        problem: Problem,
        solver: Solver,
        adjoint: AdjointRequest,
        event_fn: Callable[..., Tensor] | None = None,
    ) -> str | None:
        if problem.mass is None:
            return None
        return (
            "the torch backend solves no systems with a mass matrix; use backend='julia' and "
            "method='Rodas5P', 'FBDF' or 'RadauIIA5', or eliminate the algebraic variables"
        )

    @StopIterationPasses()
    def solve(
        self,
        problem: Problem,
        solver: Solver,
        adjoint: AdjointRequest,
        event_fn: Callable[..., Tensor] | None = None,
    ) -> Result:
        """Solve; see :class:`pyjuliaode.backends.base.Backend`."""
        if solver.adjoint not in ADJOINTS:
            raise UnsupportedError(
                f"adjoint {solver.adjoint!r} does not exist in the torch backend; 'gauss' computes "
                "the same integral, and backend='julia' has it where Julia is set up"
            )
        if refused := self.refuses(problem, solver, adjoint, event_fn):
            raise UnsupportedError(refused)
        device = problem.y0.device.type
        if torch.is_autocast_enabled(device):
            problem = replace(problem, func=AutocastField(problem.func, device))
            with torch.autocast(device, enabled=False):
                return self.solve(problem, solver, adjoint, event_fn)
        plan = _forward_plan(problem, solver)
        _check_of_plan(problem, plan)
        stats = SolveStats(method=plan.method, adjoint=solver.adjoint, backend=self.name)
        started = time.perf_counter()
        try:
            trace = _run(problem, solver, plan, adjoint, stats, event_fn)
        except _TwoPasses:
            trace = _run_to_event(problem, solver, plan, adjoint, stats, event_fn)
        stats.seconds = time.perf_counter() - started
        return _result(problem, plan, trace, stats)


def _check_of_plan(problem: Problem, plan: Plan) -> None:
    """Raise for a y0 that the method or its tolerances cannot deal with."""
    if plan.chooses_steps:
        if problem.y0.dtype in HALF:
            raise UnsupportedError(
                f"y0 is {problem.y0.dtype}, in which method {plan.method!r} cannot control its "
                "steps: keep the state in float32, with torch.autocast inside the field or around "
                "the solve, or take fixed steps, method='rk4' and a step size"
            )
        check_scale(problem, plan.rtol, plan.atol)
    if traced(problem.y0) and plan.kind != "fixed":
        raise UnsupportedError(
            f"method {plan.method!r} chooses its steps, or its weights, by values that are not "
            "there while a model is exported or traced: use a Runge-Kutta method of fixed steps, "
            "Solver('rk4', dt=0.1, backend='torch'), or export the field alone"
        )


def _forward_plan(problem: Problem, solver: Solver) -> Plan:
    structure, like = problem.structure, problem.y0
    return Plan.build(
        solver.method,
        tolerance("rtol", solver.rtol, structure, like),
        tolerance("atol", solver.atol, structure, like),
        user_norm(solver.option("norm"), structure.unpack),
        solver.max_steps,
        solver.dt,
        solver.options,
    )


def _run(
    problem: Problem,
    solver: Solver,
    plan: Plan,
    request: AdjointRequest,
    stats: SolveStats,
    event_fn: Callable[..., Tensor] | None,
) -> Trace:
    rhs = RHS(problem)
    dense = solver.option("dense", "steps")
    options = {"dense": dense is True, "record": dense == "steps", "event_fn": event_fn}
    if plan.kind == "pan":  # whose dense output is there already
        options |= {"dense": dense is not False, "record": False}
    compiled = _compiled(problem, solver, plan) if solver.option("compile") else None
    if compiled is not None:
        stats.compiled = True
        options["compiled"] = partial(CompiledStepper, problem=problem, field=compiled)
    try:
        if len(problem.times) == 1:
            return Trace([problem.y0], list(problem.times))
        if traced(problem.y0):  # operations that can be recorded, whatever the adjoint
            stats.adjoint = "direct"
            return run_graph(problem, plan, rhs, None, stats, dense=False, record=False)
        if solver.option("per_sample", False) and problem.y0.numel():
            return per_sample.run(problem, plan, rhs, solver, stats, event_fn is not None)
        if plan.kind == "scipy":
            solver = _scipy_solver(solver, event_fn)
            stats.adjoint = solver.adjoint
        if solver.adjoint in ("auto", "direct"):
            return _run_direct(problem, solver, plan, rhs, stats, options, compiled)
        adjoint_plan = _adjoint_plan(problem, solver, plan, request)
        if not _wants_gradient(problem):
            return _run_plain(problem, plan, rhs, stats, options)
        if event_fn is not None:
            raise _TwoPasses
        refuse_transforms(f"adjoint {solver.adjoint!r}")
        if compiled is not None:
            options["backward_rhs"] = partial(CompiledRHS, field=compiled)
        return run_continuous(problem, plan, adjoint_plan, rhs, stats, **options)
    finally:
        stats.nfe_forward, stats.alongside_forward = rhs.nfe, rhs.alongside


def _run_to_event(
    problem: Problem,
    solver: Solver,
    plan: Plan,
    request: AdjointRequest,
    stats: SolveStats,
    event_fn: Callable[..., Tensor] | None,
) -> Trace:
    """Find the event without a graph, then solve up to it with one."""
    rhs = RHS(problem)
    stats.n_accepted = stats.n_rejected = 0
    with torch.no_grad():
        found = run(plan, problem, rhs, problem.y0, None, stats, graph=False, event_fn=event_fn)
    event = found.event
    if event is None and (found.failure is not None or math.isinf(problem.times[-1])):
        stats.nfe_forward = rhs.nfe
        return found
    stats.n_accepted = stats.n_rejected = 0
    upto = problem if event is None else problem.up_to(event.t)
    trace = _run(upto, solver, plan, request, stats, None)
    stats.nfe_forward += rhs.nfe
    stats.alongside_forward += rhs.alongside
    if event is not None and trace.failure is None:
        trace.event = replace(event, y=trace.rows[-1])
    return trace


def _compiled(problem: Problem, solver: Solver, plan: Plan) -> CompiledField | None:
    """options={"compile": True}: the module's programs, or the reason why not raised."""
    what = "options={'compile': True}"
    if plan.tableau is None or solver.option("per_sample", False):
        raise UnsupportedError(
            f"{what} compiles the steps of explicit Runge-Kutta methods for the whole state; leave "
            f"it out with method {plan.method!r} and these options"
        )
    if solver.option("checkpoint") is False:
        raise UnsupportedError(
            f"{what} keeps no graph: its gradient is that of checkpoint=True, by compiled code; "
            "leave one of the two out"
        )
    refuse_transforms(what)
    return compiled_field(problem, plan.tableau)


def _scipy_solver(solver: Solver, event_fn: Callable[..., Tensor] | None) -> Solver:
    """What SciPy can be asked for: no graph runs through it, and no events are watched."""
    if event_fn is not None:
        raise UnsupportedError("scipy_solver has no events here; use method='dopri5'")
    if solver.adjoint not in ("auto", "backsolve"):
        raise UnsupportedError(
            f"scipy_solver has no adjoint {solver.adjoint!r}: neither a graph nor an interpolant "
            "comes through NumPy; use adjoint='backsolve' or 'auto'"
        )
    return replace(solver, adjoint="backsolve")


def _wants_gradient(problem: Problem) -> bool:
    if not torch.is_grad_enabled():
        return False
    return problem.y0.requires_grad or problem.t.requires_grad or bool(problem.params)


def _run_plain(problem: Problem, plan: Plan, rhs: RHS, stats: SolveStats, options: Any) -> Trace:
    """No gradient is known to be wanted; refuse where the field depends on one all the same."""
    f0 = _first_slope(problem, plan, rhs)
    if f0.requires_grad and torch.is_grad_enabled() and problem.explicit_params is None:
        raise InvalidArgumentError(
            f"func depends on tensors that require a gradient, which adjoint {stats.adjoint!r} "
            "cannot know: make func a torch.nn.Module with them as parameters, pass params "
            "(adjoint_params), or use adjoint='direct'"
        )
    with torch.no_grad():
        return run(plan, problem, rhs, problem.y0, f0, stats, graph=False, **options)


def _run_direct(
    problem: Problem,
    solver: Solver,
    plan: Plan,
    rhs: RHS,
    stats: SolveStats,
    options: dict[str, Any],
    compiled: CompiledField | None,
) -> Trace:
    """The discrete adjoint, or no adjoint where nothing requires a gradient."""
    stats.adjoint = "direct"
    if plan.kind == "adaptive" and _batched(problem.y0):
        raise UnsupportedError(
            "torch.func.vmap cannot follow adaptive steps, which depend on the values; use a "
            "batch dimension, options={'per_sample': True}, or a method of fixed step"
        )
    f0 = _first_slope(problem, plan, rhs)
    needs = torch.is_grad_enabled() and (
        f0.requires_grad or problem.y0.requires_grad or problem.t.requires_grad
    )
    if not (needs or transforms_active()):
        try:
            return run(plan, problem, rhs, problem.y0, f0, stats, graph=False, **options)
        except NeedsGraph:
            stats.n_accepted = stats.n_rejected = 0
    if plan.kind == "pan" and options["event_fn"] is None:
        return _run_pan(problem, plan, rhs, f0, stats, options)
    checkpoint = compiled is not None or solver.option("checkpoint")
    if options["event_fn"] is not None and (checkpoint or plan.tableau is None):
        raise _TwoPasses
    if checkpoint is None and solver.adjoint == "auto":
        return _run_within_budget(problem, solver, plan, rhs, f0, stats, options)
    if checkpoint:
        _check_replay(problem, plan)
        if f0.requires_grad and compiled is None:  # which knows what it depends on
            warn_of_lost_gradients(problem, f0, problem.y0)
        stats.adjoint = "direct (replay)"
        if compiled is not None:
            options["product"] = partial(StepProduct, problem, compiled, plan.tableau, plan.linear)
        return run_replay(problem, plan, rhs, f0, stats, **options)
    return run_graph(problem, plan, rhs, f0, stats, **options)


def _run_pan(
    problem: Problem, plan: Plan, rhs: RHS, f0: Tensor, stats: SolveStats, options: Any
) -> Trace:
    """The gradient through the equations that were solved, of parameters that are known."""
    refuse_transforms("method 'pan'")
    if f0.requires_grad and (lost := unlisted_leaves(problem, f0, problem.y0)):
        raise InvalidArgumentError(
            f"func depends on {len(lost)} tensor(s) that require a gradient and are not among its "
            "parameters; method 'pan' cannot know them: make func a torch.nn.Module with them as "
            "parameters, or pass params (adjoint_params)"
        )
    return run_pan(problem, plan, rhs, f0, stats, **options)


def _first_slope(problem: Problem, plan: Plan, rhs: RHS) -> Tensor:
    times = problem.times
    return rhs(plan.sides(rhs.time_dtype).after(times[0], times[-1], {}), problem.y0)


def _batched(x: Tensor) -> bool:
    functorch = torch._C._functorch
    while torch._C._are_functorch_transforms_active():
        if functorch.is_batchedtensor(x):
            return True
        if not functorch.is_functorch_wrapped_tensor(x):
            return False
        x = functorch.get_unwrapped(x)
    return False


def _check_replay(problem: Problem, plan: Plan) -> None:
    refuse_transforms("options={'checkpoint': True}")
    if plan.kind == "adams":
        raise UnsupportedError(
            f"method {plan.method!r} keeps a history and cannot be replayed step by step; use "
            "options={'checkpoint': False} or a Runge-Kutta method"
        )
    if not problem.params and not isinstance(unwrapped(problem.func), torch.nn.Module):
        raise InvalidArgumentError(
            "options={'checkpoint': True} needs func to be a torch.nn.Module (or adjoint_params): "
            "the tensors of a plain function are not known"
        )


def _run_within_budget(
    problem: Problem,
    solver: Solver,
    plan: Plan,
    rhs: RHS,
    f0: Tensor,
    stats: SolveStats,
    options: dict[str, Any],
) -> Trace:
    """adjoint="auto": keep the graph while it fits the budget, else replay the steps."""
    can_replay = (
        plan.kind != "adams"
        and isinstance(unwrapped(problem.func), torch.nn.Module)
        and not transforms_active()
    )
    if not can_replay:
        return run_graph(problem, plan, rhs, f0, stats, **options)
    func = unwrapped(problem.func)  # under autocast problem.func is made anew for every solve
    key = (problem.y0.shape, problem.y0.dtype)
    per_evaluation = _facts.get(func, key)
    if per_evaluation is None:
        per_evaluation = saved_bytes(f0, problem.y0)
        if f0.requires_grad:
            _facts.put(func, key, per_evaluation)
    budget = float(solver.option("graph_memory", GRAPH_MEMORY))
    replay = _facts.get(func, (*key, "replay", budget)) is not None

    @cache
    def limited() -> bool:
        """Tensors of a closure are known to the graph alone: then the graph has no limit."""
        return not f0.requires_grad or not unlisted_leaves(problem, f0, problem.y0)

    def watch() -> None:
        if rhs.nfe * per_evaluation > budget and limited():
            raise _GraphTooLarge

    if not (replay and limited()):
        try:
            return run_graph(problem, plan, rhs, f0, stats, watch=watch, **options)
        except _GraphTooLarge:
            _facts.put(func, (*key, "replay", budget), True)
            stats.n_accepted = stats.n_rejected = 0
    if options["event_fn"] is not None:
        raise _TwoPasses
    stats.adjoint = "direct (replay)"
    return run_replay(problem, plan, rhs, f0, stats, **options)


def _adjoint_plan(
    problem: Problem, solver: Solver, plan: Plan, request: AdjointRequest
) -> AdjointPlan:
    """The backward solve's plan: the forward one, with what was set for the adjoint."""
    kind = solver.adjoint
    structure, like = problem.structure, problem.y0
    options = dict(request.options or {})
    norm = options.pop("norm", None)
    method = request.method or plan.method
    if not options and request.method in (None, plan.method):
        forward = dict(solver.options or {})
        for name in ("norm", "dense", "checkpoint", "graph_memory", "first_step"):
            forward.pop(name, None)
        options = forward
    if kind != "gauss" and not like.is_complex() and any(p.is_complex() for p in problem.params):
        raise UnsupportedError(
            f"adjoint {kind!r} carries the parameters' gradient in the dtype of the state, which "
            "is real, but some parameters are complex; use adjoint='gauss' or 'direct'"
        )
    if "pan" in (plan.kind, method) and (kind != "gauss" or method != plan.method):
        raise UnsupportedError(
            f"method 'pan' has the adjoints 'direct' and 'gauss', solved by itself, not {kind!r}"
            + (f" by {method!r}" if method != plan.method else "")
        )
    if kind != "backsolve" and not plan.has_interpolant:
        raise UnsupportedError(
            f"method {plan.method!r} has no interpolant of its order, which adjoint {kind!r} "
            "needs; use adjoint='direct' or 'backsolve', or method='dopri5'"
        )
    if isinstance(norm, str) and norm != "seminorm":
        raise unknown_name("adjoint norm", norm, ("seminorm",))
    if kind != "backsolve" and callable(norm):
        raise InvalidArgumentError(
            "an adjoint norm over (t, y, adj_y, *params) belongs to adjoint='backsolve'"
        )
    backward = Plan.build(
        method,
        tolerance("adjoint_rtol", _first(solver.adjoint_rtol, solver.rtol), structure, like),
        tolerance("adjoint_atol", _first(solver.adjoint_atol, solver.atol), structure, like),
        max_steps=solver.max_steps,
        dt=solver.dt,
        options=options,
    )
    return AdjointPlan(kind, backward, norm, relative_atol=solver.adjoint_atol is None)


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


def _given(dense: DenseOutput) -> DenseOutput:
    return dense


def _result(problem: Problem, plan: Plan, trace: Trace, stats: SolveStats) -> Result:
    retcode, message = Retcode.SUCCESS, ""
    if trace.failure is not None:
        retcode, message = trace.failure.retcode, trace.failure.message
    elif trace.event is not None:
        retcode = Retcode.TERMINATED
    stats.retcode = retcode
    dense = None
    flat = trace.dense
    if flat is not None and flat.h:
        dense = UserDense(partial(_given, flat), problem.structure)
    elif trace.step_y and plan.tableau is not None:
        make = partial(RestepOutput.of, trace.step_t, trace.step_y, problem, plan)
        dense = UserDense(make, problem.structure)
    rows = trace.rows
    y = torch.stack(rows) if isinstance(rows, list) else rows
    return Result(y, stats, retcode, message, trace.step_t, dense, trace.event)
