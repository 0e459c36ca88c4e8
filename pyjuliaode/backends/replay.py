"""The discrete adjoint by replay: each accepted step again with a graph, one product through it.

Exact for the steps that were taken: memory is one state per step and the graph of one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..adjoints.node import Gradients, Needs
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
    needs: Needs,
    inspect: Callable[..., bool],
    refusal: Callable[[], UnsupportedError],
    product: Product | None = None,
) -> Gradients:
    """The gradient of the steps.

    ``grad`` holds dL/dy at the requested times that were reached, (T', N). ``inspect`` is called
    with the first slope of every step, its state and the leaves of that graph, until it returns
    True. ``product`` takes over where the gradient of the times is not wanted, but at
    discontinuities. A step that comes out otherwise than it did raises ``refusal``.
    """
    times = problem.times
    rhs = RHS(problem, backward=True, needs=needs.tensors)
    t_leaf = problem.t.detach().requires_grad_() if needs.t else None
    inputs = [*rhs.inputs, *(() if t_leaf is None else (t_leaf,))]
    totals: list[Tensor | None] = [None] * len(inputs)
    cotangent = torch.zeros_like(grad[0])
    pending, after, seen, off = grad.shape[0] - 1, steps.end, False, []
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
            y1, cotangent, nfe = product(t0, t1, steps.y[i], cotangent, within, of_within)
            rhs.nfe += nfe
        else:
            with torch.enable_grad():
                clock = {} if t_leaf is None else clock_of(problem, t_leaf)
                y = steps.y[i].detach().requires_grad_()
                close = bool(inside) and not steps.linear
                step = _repeat(rhs, steps, clock, i, y, close=close)
                seen = seen or inspect(step.first, y, *inputs)
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
            y1, cotangent = step.y1, found[0]
            totals = [_add(a, b) for a, b in zip(totals, found[1:], strict=True)]
        if after is not None and after.numel():
            off.append(_differs(y1.detach(), after))
        after = steps.y[i]
    if off and bool(torch.stack(off).any()):
        raise _refused(rhs, steps, torch.stack(off).tolist(), refusal)
    if product is not None:
        mine = [x for x, need in zip(product.totals, needs.tensors, strict=True) if need]
        totals[: len(mine)] = map(_add, totals, mine)
    # zero, not None, for what was asked for and never used
    found = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, totals, strict=True)]
    d_t = None if t_leaf is None else found.pop()
    return Gradients(cotangent, needs.spread(found), d_t, nfe=rhs.nfe)


def _differs(again: Tensor, before: Tensor) -> Tensor:
    """Whether a step comes out otherwise than in the forward solve, but for rounding.

    The same sums in another order, seen through the field, are some tens of units in the last
    place; what dropout does, or a step of an optimizer, is far above.
    """
    size = 1.0 + before.abs().amax()
    return (again - before).abs().amax() > torch.finfo(before.dtype).eps ** 0.6 * size


def _refused(
    rhs: RHS, steps: Steps, off: Sequence[bool], refusal: Callable[[], UnsupportedError]
) -> UnsupportedError:
    """The error for steps that come out otherwise, of which ``off`` tells, the last one first."""
    i = len(off) - 1 - list(off).index(True)
    if (at := _jump(rhs, steps.t[i : i + 2], steps.y[i])) is None:
        return refusal()
    return UnsupportedError(
        f"a step, taken again, comes out otherwise: the field jumps at t = {at:.9g}, at the end of "
        "a step, and which side of the jump a step has is decided by rounding: name the times of "
        "such jumps in options={'jump_t': [...]}"
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
