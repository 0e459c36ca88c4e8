"""The discrete adjoint by replay: each accepted step again with a graph, one product through it.

Exact for the steps that were taken: memory is one state per step and the graph of one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..problem import Problem
from ..rhs import RHS
from .runge_kutta import GraphStepper, Sides, Step, nudge, state_at
from .tableau import Tableau


@dataclass
class Steps:
    """The accepted steps of an explicit Runge-Kutta method.

    Attributes:
        t: step boundaries (S + 1 of them).
        y: flat states at the first S of them.
        end: the state at the last boundary, where the last step is to be compared with it.
        lengths: of the steps, where the boundaries are too coarse for their differences.
        linear: states between the boundaries are interpolated linearly.
    """

    tableau: Tableau
    t: Sequence[float]
    y: Sequence[Tensor]
    sides: Sides
    linear: bool = False
    end: Tensor | None = None
    lengths: Sequence[float] | None = None


class Product(Protocol):
    """Products with the derivative of whole steps, added up for all parameters in ``totals``."""

    totals: list[Tensor]

    def __call__(
        self,
        t0: float,
        t1: float,
        y: Tensor,
        cotangent: Tensor,
        times: Sequence[float] = (),
        grad: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, int]:
        """The state after a step, the gradient of the one before it, and the evaluations.

        ``grad`` (S, N) holds the cotangents of states at ``times`` within the step.
        """
        ...


def clock_of(problem: Problem, t: Tensor) -> dict[float, Tensor]:
    """Each requested time mapped to its 0-d tensor, in the dtype in which the field sees it."""
    tensors = t.to(dtype=problem.time_dtype, device=problem.y0.device).unbind(0)
    return dict(zip(problem.times, tensors, strict=True))


def replay(
    problem: Problem,
    steps: Steps,
    grad: Tensor,
    t: Tensor,
    params: Sequence[Tensor],
    needs: Sequence[bool],
    inspect: Callable[..., None] | None = None,
    product: Product | None = None,
) -> tuple[list[Tensor | None], int]:
    """Gradients of (y0, t, *params), and the evaluations that they took.

    ``grad`` holds dL/dy at the requested times that were reached, (T', N); ``needs`` says of t and
    of every parameter whether its gradient is wanted (None is returned where not). ``inspect`` is
    called once with a state that carries the graph of a step, and the leaves of that graph.
    ``product`` takes over where the gradient of the times is not wanted, but at discontinuities.
    """
    times = problem.times
    rhs = RHS(problem)
    t_leaf = t.detach().requires_grad_() if needs[0] else None
    inputs = [p for p, need in zip(params, needs[1:], strict=True) if need]
    if t_leaf is not None:
        inputs.append(t_leaf)
    totals: list[Tensor | None] = [None] * len(inputs)
    cotangent = torch.zeros_like(grad[0])
    pending = grad.shape[0] - 1
    for i in reversed(range(len(steps.y))):
        t0, t1 = steps.t[i], steps.t[i + 1]
        inside = []
        while pending > 0 and abs(times[pending] - times[0]) > abs(t0 - times[0]):
            if times[pending] == t1:
                cotangent = cotangent + grad[pending]
            else:
                inside.append(pending)
            pending -= 1
        apart = steps.sides.apart(t0) or steps.sides.apart(t1)
        if product is not None and t_leaf is None and not apart:
            within = [times[j] for j in inside]
            of_within = grad[inside] if inside else None
            end, cotangent, nfe = product(t0, t1, steps.y[i], cotangent, within, of_within)
            rhs.nfe += nfe
            if i == len(steps.y) - 1 and steps.end is not None:
                _check_repeats(end, steps.end, partial(_jump, rhs, (t0, t1), steps.y[i]))
            continue
        with torch.enable_grad():
            clock = {} if t_leaf is None else clock_of(problem, t_leaf)
            y = steps.y[i].detach().requires_grad_()
            step = _repeat(rhs, steps, clock, i, y, close=bool(inside) and not steps.linear)
            if i == len(steps.y) - 1 and steps.end is not None:
                _check_repeats(step.y1, steps.end, partial(_jump, rhs, steps.t[i : i + 2], y))
            if inspect is not None:
                inspect(step.y1, y, *inputs)
                inspect = None
            outputs = [step.y1]
            outputs += [
                state_at(step, times[j], clock.get(times[j], times[j]), steps.linear)
                for j in inside
            ]
        cotangents = [cotangent, *(grad[j] for j in inside)]
        # what was computed before the solve, of the parameters, is shared by all steps
        found = torch.autograd.grad(
            outputs, [y, *inputs], cotangents, allow_unused=True, retain_graph=True
        )
        cotangent = found[0]
        totals = [_add(a, b) for a, b in zip(totals, found[1:], strict=True)]
    if product is not None:
        mine = [x for x, need in zip(product.totals, needs[1:], strict=True) if need]
        totals[: len(mine)] = map(_add, totals, mine)
    # zero, not None, for what was asked for and never used
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, totals, strict=True)]
    d_t = None if t_leaf is None else found.pop()
    rest = iter(found)
    return [cotangent + grad[0], d_t, *(next(rest) if n else None for n in needs[1:])], rhs.nfe


def _check_repeats(again: Tensor, before: Tensor, jump: Callable[[], float | None]) -> None:
    """Raise where a step comes out otherwise than in the forward solve; ``jump``: a time at which
    the field jumps, as far as that is known."""
    if before.numel() == 0:
        return
    size = 1.0 + float(before.abs().max())
    off = float((again.detach() - before).abs().max()) / size
    if off > _apart(before):
        if (at := jump()) is not None:
            raise UnsupportedError(
                f"the last step, taken again, differs by {off:.1e}: the field jumps at "
                f"t = {at:.9g}, at the end of a step, and which side of the jump a step has is "
                "decided by rounding: name the times of such jumps in options={'jump_t': [...]}"
            )
        raise UnsupportedError(
            f"the last step, taken again, differs by {off:.1e}: the field gives other values at "
            "the same point (dropout, batch normalisation, random numbers, or parameters changed "
            "since the solve), so its steps cannot be replayed; use backend='torch' with "
            "adjoint='direct' and options={'checkpoint': False}"
        )


def _apart(like: Tensor) -> float:
    # rounding of one step is far below, and what dropout does far above
    return torch.finfo(like.dtype).eps ** 0.5


@torch.no_grad()
def _jump(rhs: RHS, ends: Sequence[float], y: Tensor) -> float | None:
    """One of the times at which the field, which gives the same value twice, jumps; or None."""
    for t in ends:
        here, again = rhs(t, y), rhs(t, y)
        if not torch.equal(here, again):
            return None
        sides = [rhs(nudge(t, side, rhs.time_dtype), y) for side in (-math.inf, math.inf)]
        size = 1.0 + float(here.abs().max())
        if max(float((x - here).abs().max()) for x in sides) > _apart(y) * size:
            return t
    return None


def _repeat(
    rhs: RHS,
    steps: Steps,
    clock: Mapping[float, Tensor],
    i: int,
    y: Tensor,
    close: bool,
) -> Step:
    """One accepted step again, as autograd operations."""
    t0, t1 = steps.t[i], steps.t[i + 1]
    stepper = GraphStepper(rhs, steps.tableau, clock)
    stepper.start(rhs(steps.sides.after(t0, t1, clock), y))
    h = stepper.span(t0, t1, t1 - t0 if steps.lengths is None else steps.lengths[i])
    y1 = stepper.trial(t0, t1, h, y, steps.sides.before(t0, t1, clock), close=close)
    return Step(stepper, t0, t1, h, y, y1)


def _add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more
