"""diffrax: solves and gradients that are compiled before the clock runs.

JAX is imported by the first function that is called here, and by nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .competitors import Competitor
from .jax_fields import Params, field
from .problems import Problem

METHODS = {"dopri5": "Dopri5", "tsit5": "Tsit5", "Kvaerno5": "Kvaerno5"}
MAX_STEPS = 4096  # diffrax's own default; the memory of its gradient grows with the root of it
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


@dataclass(frozen=True)
class Compiled:
    """A solve or a gradient as machine code, with the arguments it is called with."""

    run: Callable[[], Any]
    tensors: Callable[[Any], list[Tensor]]
    seconds: float


def prepare(problem: Problem, who: Competitor, what: str, tol: float) -> Compiled:
    """Compile the forward solve, or the gradient of the loss in y0 and the parameters.

    Raises:
        UnsupportedError: the right-hand side has no translation.
    """
    jax = _import()
    with jax.enable_x64(problem.y0.dtype == torch.float64):
        y0, params, weight = _arrays(problem)
        states = _solve(problem, who, tol, field(problem.func))

        def loss(y0: Any, params: Params, weight: Any) -> Any:
            found, success = states(y0, params)
            return (found * weight).sum(), success

        if what == "forward":
            function, given = states, (y0, params)
        else:
            function = jax.grad(loss, argnums=(0, 1), has_aux=True)
            given = (y0, params, weight)
        began = time.perf_counter()
        compiled = jax.jit(function).lower(*given).compile()
        seconds = time.perf_counter() - began
    names = list(params)

    def tensors(result: Any) -> list[Tensor]:
        found, success = result
        if not success:
            raise RuntimeError(f"diffrax did not reach the end in {MAX_STEPS} steps")
        arrays = [found] if what == "forward" else [found[0], *(found[1][n] for n in names)]
        import numpy as np

        return [torch.from_numpy(np.array(x)) for x in arrays]

    return Compiled(lambda: jax.block_until_ready(compiled(*given)), tensors, seconds)


def count_evaluations(problem: Problem, who: Competitor, tol: float) -> int:
    """Evaluations of one forward solve, counted by a call out of the compiled field."""
    jax = _import()
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    with jax.enable_x64(problem.y0.dtype == torch.float64):
        y0, params, _ = _arrays(problem)
        plain = field(problem.func)

        def counted(params: Params, t: Any, y: Any) -> Any:
            jax.debug.callback(count)
            return plain(params, t, y)

        jax.block_until_ready(jax.jit(_solve(problem, who, tol, counted))(y0, params))
        jax.effects_barrier()
    return calls


def _import() -> Any:
    """JAX, whose threads on the CPU are those of torch where torch has one."""
    before = os.environ.get("XLA_FLAGS")
    if torch.get_num_threads() == 1:
        os.environ["XLA_FLAGS"] = f"{before or ''} {ONE_THREAD}".strip()
    try:
        import jax

        jax.devices()  # which reads the flags
    finally:
        os.environ.pop("XLA_FLAGS", None)
        if before is not None:
            os.environ["XLA_FLAGS"] = before
    return jax


def _arrays(problem: Problem) -> tuple[Any, Params, Any]:
    from jax import numpy as jnp

    params = {n: jnp.asarray(p.detach().numpy()) for n, p in problem.func.named_parameters()}
    return jnp.asarray(problem.y0.numpy()), params, jnp.asarray(problem.weight.numpy())


def _solve(problem: Problem, who: Competitor, tol: float, rhs: Callable[..., Any]) -> Callable:
    """(y0, params) -> states at t[1:], and whether the solve came to its end."""
    import diffrax

    t = problem.t.tolist()
    saveat = diffrax.SaveAt(t1=True) if len(t) == 2 else diffrax.SaveAt(ts=t[1:])
    control = diffrax.PIDController(rtol=tol, atol=tol * problem.atol_factor)
    term = diffrax.ODETerm(lambda t, y, params: rhs(params, t, y))
    method = getattr(diffrax, METHODS[who.method])()

    def states(y0: Any, params: Params) -> tuple[Any, Any]:
        found = diffrax.diffeqsolve(
            term,
            method,
            t[0],
            t[-1],
            None,
            y0,
            params,
            saveat=saveat,
            stepsize_controller=control,
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
            max_steps=MAX_STEPS,
            throw=False,
        )
        return found.ys, found.result == diffrax.RESULTS.successful

    return states
