"""TorchBackend: choose method and adjoint, run, and report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..._torch import traced
from ...adjoints import Adjoint, Auto, Continuous, Direct
from ...adjoints.checks import unlisted_leaves, warn_of_lost_gradients
from ...adjoints.node import differentiated
from ...autocast import AutocastField, unwrapped
from ...errors import InvalidArgumentError, StopIterationPasses, UnsupportedError
from ...graph import saved_bytes
from ...problem import HALF, Problem
from ...refusal import batched, refuse_transforms, transforms_active
from ...rhs import RHS, PerFunction
from ...solution import Retcode, SolveStats
from ...solver import Solver
from ..base import Capabilities, Result
from ..dense import UserDense
from ..limits import check_scale, warn_of_coarse_times
from ..runge_kutta import NeedsGraph
from ..tolerance import tolerance
from . import per_sample
from .compiled import CompiledField, CompiledRHS, CompiledStepper, StepProduct, compiled_field
from .continuous import ContinuousWay
from .dense import DenseOutput, RestepOutput
from .direct import ReplayWay, run_graph
from .forward import Trace, run
from .pan.direct import PanWay
from .plan import METHODS, Plan, user_norm

ADJOINTS = ("direct", "backsolve", "interpolating", "gauss")
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
            adjoints=ADJOINTS,
            devices=("cpu", "cuda"),
            dtypes=("float32", "float64", "complex64", "complex128"),
            structures=("ode",),
            events=True,
        )

    def refuses(
        self,
        problem: Problem,
        solver: Solver,
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
        event_fn: Callable[..., Tensor] | None = None,
    ) -> Result:
        """Solve; see :class:`pyjuliaode.backends.base.Backend`."""
        if refused := self.refuses(problem, solver, event_fn):
            raise UnsupportedError(refused)
        device = problem.y0.device.type
        if torch.is_autocast_enabled(device):
            problem = replace(problem, func=AutocastField(problem.func, device))
            with torch.autocast(device, enabled=False):
                return self.solve(problem, solver, event_fn)
        plan = _forward_plan(problem, solver)
        _check_of_plan(problem, plan)
        adjoint = solver.gradient
        adjoint.check(plan.abilities)
        if isinstance(adjoint, Auto):
            adjoint = adjoint.resolved(plan.abilities)
        stats = SolveStats(method=plan.method, adjoint=adjoint.name, backend=self.name)
        started = time.perf_counter()
        try:
            trace = _run(problem, solver, adjoint, plan, stats, event_fn)
        except _TwoPasses:
            trace = _run_to_event(problem, solver, adjoint, plan, stats, event_fn)
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
    adjoint: Adjoint,
    plan: Plan,
    stats: SolveStats,
    event_fn: Callable[..., Tensor] | None,
) -> Trace:
    rhs = RHS(problem)
    dense = solver.option("dense", "steps")
    options = {"dense": dense is True, "record": dense == "steps", "event_fn": event_fn}
    if plan.kind in ("pan", "scipy"):  # whose dense output is there already
        options |= {"dense": dense is not False, "record": False}
    compiled = _compiled(problem, solver, adjoint, plan) if solver.option("compile") else None
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
            return per_sample.run(problem, plan, rhs, solver, adjoint, stats, event_fn is not None)
        if plan.kind == "scipy":
            refuse_transforms("method 'scipy_solver'")
        if isinstance(adjoint, Direct):
            return _run_direct(problem, adjoint, plan, rhs, stats, options, compiled)
        return _run_continuous(problem, solver, adjoint, plan, rhs, stats, options, compiled)
    finally:
        stats.nfe_forward, stats.alongside_forward = rhs.nfe, rhs.alongside


def _run_to_event(
    problem: Problem,
    solver: Solver,
    adjoint: Adjoint,
    plan: Plan,
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
    trace = _run(upto, solver, adjoint, plan, stats, None)
    stats.nfe_forward += rhs.nfe
    stats.alongside_forward += rhs.alongside
    if event is not None and trace.failure is None:
        trace.event = replace(event, y=trace.rows[-1])
    return trace


def _compiled(
    problem: Problem, solver: Solver, adjoint: Adjoint, plan: Plan
) -> CompiledField | None:
    """options={"compile": True}: the module's programs, or the reason why not raised."""
    what = "options={'compile': True}"
    if plan.tableau is None or solver.option("per_sample", False):
        raise UnsupportedError(
            f"{what} compiles the steps of explicit Runge-Kutta methods for the whole state; leave "
            f"it out with method {plan.method!r} and these options"
        )
    if isinstance(adjoint, Direct) and adjoint.checkpoint is False:
        raise UnsupportedError(
            f"{what} keeps no graph: its gradient is that of checkpoint=True, by compiled code; "
            "leave one of the two out"
        )
    refuse_transforms(what)
    return compiled_field(problem, plan.tableau)


def _run_continuous(
    problem: Problem,
    solver: Solver,
    adjoint: Continuous,
    plan: Plan,
    rhs: RHS,
    stats: SolveStats,
    options: dict[str, Any],
    compiled: CompiledField | None,
) -> Trace:
    backward = _backward_plan(problem, solver, plan, adjoint)
    if not problem.wants_gradient:
        return _run_plain(problem, plan, rhs, stats, options)
    if options["event_fn"] is not None:
        raise _TwoPasses
    refuse_transforms(f"adjoint {adjoint.name!r}")
    products = RHS if compiled is None else partial(CompiledRHS, field=compiled)
    return _by(ContinuousWay(problem, plan, adjoint, backward, rhs, stats, options, products))


def _run_plain(problem: Problem, plan: Plan, rhs: RHS, stats: SolveStats, options: Any) -> Trace:
    """No gradient is known to be wanted; refuse where the field depends on one all the same."""
    try:
        return run(plan, problem, rhs, problem.y0, None, stats, graph=False, **options)
    except NeedsGraph:
        if problem.explicit_params is None:
            raise InvalidArgumentError(
                f"func depends on tensors that require a gradient, which adjoint {stats.adjoint!r} "
                "cannot know: hand them over in args, solve(func, y0, t, solver, args=(x,)), make "
                "func a torch.nn.Module with them as parameters, pass params (adjoint_params), or "
                "use adjoint='direct'"
            ) from None
    rhs.nfe = rhs.alongside = stats.n_accepted = stats.n_rejected = 0
    with torch.no_grad():
        return run(plan, problem, rhs, problem.y0, None, stats, graph=False, **options)


def _by(way: Any) -> Trace:
    """What a way leaves, with the states that it differentiates."""
    y = differentiated(way)
    trace, way.trace = way.trace, None
    trace.y = y
    return trace


def _run_direct(
    problem: Problem,
    adjoint: Direct,
    plan: Plan,
    rhs: RHS,
    stats: SolveStats,
    options: dict[str, Any],
    compiled: CompiledField | None,
) -> Trace:
    """The discrete adjoint, or no adjoint where nothing requires a gradient."""
    if plan.kind == "adaptive" and batched(problem.y0):
        raise UnsupportedError(
            "torch.func.vmap cannot follow adaptive steps, which depend on the values; use a "
            "batch dimension, options={'per_sample': True}, or a method of fixed step"
        )
    f0 = _first_slope(problem, plan, rhs)
    needs = torch.is_grad_enabled() and (f0.requires_grad or problem.wants_gradient_of_start)
    if not (needs or transforms_active()):
        try:
            return run(plan, problem, rhs, problem.y0, f0, stats, graph=False, **options)
        except NeedsGraph:
            stats.n_accepted = stats.n_rejected = 0
    if plan.kind == "pan" and options["event_fn"] is None:
        return _run_pan(problem, plan, rhs, f0, stats, options)
    checkpoint = compiled is not None or adjoint.checkpoint
    if options["event_fn"] is not None and (checkpoint or plan.tableau is None):
        raise _TwoPasses
    if checkpoint is None and adjoint.graph_memory is not None:
        return _run_within_budget(problem, adjoint.graph_memory, plan, rhs, f0, stats, options)
    if checkpoint:
        return _run_replay(problem, plan, rhs, f0, stats, options, compiled)
    return run_graph(problem, plan, rhs, f0, stats, **options)


def _run_replay(
    problem: Problem,
    plan: Plan,
    rhs: RHS,
    f0: Tensor,
    stats: SolveStats,
    options: dict[str, Any],
    compiled: CompiledField | None,
) -> Trace:
    _check_replay(problem)
    product = None
    if compiled is not None:  # which knows what it depends on
        product = partial(StepProduct, problem, compiled, plan.tableau, plan.linear)
    elif f0.requires_grad:
        warn_of_lost_gradients(problem, f0, problem.y0)
    stats.adjoint = "direct (replay)"
    return _by(ReplayWay(problem, plan, rhs, f0, stats, options, product))


def _run_pan(
    problem: Problem, plan: Plan, rhs: RHS, f0: Tensor, stats: SolveStats, options: Any
) -> Trace:
    """The gradient through the equations that were solved, of tensors that are known."""
    refuse_transforms("method 'pan'")
    if f0.requires_grad and (lost := unlisted_leaves(problem, f0, problem.y0)):
        raise InvalidArgumentError(
            f"func depends on {len(lost)} tensor(s) that require a gradient and are not among its "
            "parameters; method 'pan' cannot know them: hand them over in args, solve(func, y0, t, "
            "solver, args=(x,)), make func a torch.nn.Module with them as parameters, or pass "
            "params (adjoint_params)"
        )
    return _by(PanWay(problem, plan, rhs, f0, stats, options))


def _first_slope(problem: Problem, plan: Plan, rhs: RHS) -> Tensor:
    times = problem.times
    return rhs(plan.sides(rhs.time_dtype).after(times[0], times[-1], {}), problem.y0)


def _check_replay(problem: Problem) -> None:
    refuse_transforms("options={'checkpoint': True}")
    if not problem.tensors and not isinstance(unwrapped(problem.func), nn.Module):
        raise InvalidArgumentError(
            "options={'checkpoint': True} needs func to be a torch.nn.Module, or its tensors among "
            "args (or adjoint_params): those of a plain function are not known"
        )


def _run_within_budget(
    problem: Problem,
    budget: float,
    plan: Plan,
    rhs: RHS,
    f0: Tensor,
    stats: SolveStats,
    options: dict[str, Any],
) -> Trace:
    """Keep the graph while it fits the budget, else replay the steps.

    What the last solve by this function took is a guess at what this one will.
    """
    func = unwrapped(problem.func)  # under autocast problem.func is made anew for every solve
    if plan.kind == "adams" or not isinstance(func, nn.Module) or transforms_active():
        return run_graph(problem, plan, rhs, f0, stats, **options)
    per_evaluation = saved_bytes(f0, problem.y0)
    key = ("evaluations", problem.y0.shape, problem.y0.dtype, plan.method, problem.times[-1])
    expected = _facts.get(func, key) or 0

    @cache
    def limited() -> bool:
        """Tensors of a closure are known to the graph alone: then the graph has no limit."""
        return not f0.requires_grad or not unlisted_leaves(problem, f0, problem.y0)

    def watch() -> None:
        if rhs.nfe * per_evaluation > budget and limited():
            raise _GraphTooLarge

    try:
        if expected * per_evaluation <= budget or not limited():
            try:
                return run_graph(problem, plan, rhs, f0, stats, watch=watch, **options)
            except _GraphTooLarge:
                stats.n_accepted = stats.n_rejected = 0
        if options["event_fn"] is not None:
            raise _TwoPasses
        return _run_replay(problem, plan, rhs, f0, stats, options, None)
    finally:
        _facts.put(func, key, rhs.nfe)


def _backward_plan(problem: Problem, solver: Solver, plan: Plan, adjoint: Continuous) -> Plan:
    """The backward solve's plan: the forward one, with what was set for the adjoint."""
    structure, like = problem.structure, problem.y0
    options = dict(adjoint.options or {})
    if not options and adjoint.method in (None, plan.method):
        options = dict(solver.options or {})
        for name in ("norm", "dense", "checkpoint", "graph_memory", "first_step"):
            options.pop(name, None)
    if adjoint.method in (None, plan.method) and "solver" in plan.options:
        options.setdefault("solver", plan.options["solver"])  # a stiff problem's adjoint is stiff
    if (
        adjoint.name != "gauss"
        and not like.is_complex()
        and any(p.is_complex() for p in problem.tensors)
    ):
        raise UnsupportedError(
            f"adjoint {adjoint.name!r} carries the parameters' gradient in the dtype of the state, "
            "which is real, but some parameters are complex; use adjoint='gauss' or 'direct'"
        )
    rtol = solver.rtol if adjoint.rtol is None else adjoint.rtol
    atol = solver.atol if adjoint.atol is None else adjoint.atol
    return Plan.build(
        adjoint.method or plan.method,
        tolerance("adjoint_rtol", rtol, structure, like),
        tolerance("adjoint_atol", atol, structure, like),
        max_steps=solver.max_steps,
        dt=solver.dt,
        options=options,
    )


def _given(dense: DenseOutput) -> DenseOutput:
    return dense


def _result(problem: Problem, plan: Plan, trace: Trace, stats: SolveStats) -> Result:
    retcode, message = Retcode.SUCCESS, ""
    if trace.failure is not None:
        retcode, message = trace.failure.retcode, trace.failure.message
    elif trace.event is not None:
        retcode = Retcode.TERMINATED
    stats.retcode = retcode
    if len(trace.step_t) > 1:
        warn_of_coarse_times(problem, trace.step_t[-1])
    dense = None
    flat = trace.dense
    if flat is not None and flat.h:
        dense = UserDense(partial(_given, flat), problem.structure)
    elif trace.step_y and plan.tableau is not None:
        states = [*trace.step_y, trace.end]
        make = partial(RestepOutput.of, trace.step_t, states, problem, plan)
        dense = UserDense(make, problem.structure)
    y = trace.y
    if y is None:
        rows = torch.stack(trace.rows)
        y = problem.structure.unpack(rows, (rows.shape[0],))
    return Result(y, stats, retcode, message, trace.step_t, dense, trace.event)
