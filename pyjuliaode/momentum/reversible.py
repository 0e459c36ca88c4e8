"""Training without stored activations: the layers are undone, exactly, as their gradients are due.

Kept of the forward pass, whatever the depth: the last x and v, the bits that v has lost, and the
state of the random number generators before the functions that drew from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .._torch import opaque
from ..errors import SolverError
from ..refusal import once_only
from ..solution import Retcode
from .calls import Buffers, Randomness, autocast_now, check_leaves, frozen_statistics, residual
from .exact import Broken, ExactState, NotFinite

BACKPROP = "use mode='backprop'"


@dataclass
class Task:
    """What is run, and what it leaves for the way back.

    Attributes:
        functions: one for every layer.
        gamma: of the momentum.
        skip_inside: the functions return x + f(x).
        checked: functions whose graph has been looked at; these are added.
        args, kwargs: further arguments of every function.
    """

    functions: Sequence[nn.Module]
    gamma: float
    skip_inside: bool
    checked: set[nn.Module]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.leaves, self.spec = pytree.tree_flatten((tuple(self.args), dict(self.kwargs)))
        self.places = [i for i, x in enumerate(self.leaves) if isinstance(x, Tensor)]
        self.own = {id(f): [p for p in f.parameters() if p.requires_grad] for f in self.functions}
        self.params = list(dict.fromkeys(p for own in self.own.values() for p in own))
        self.random: list[Randomness | None] = []
        self.autocast: Callable[[], contextlib.AbstractContextManager[Any]] = None

    @property
    def tensors(self) -> list[Tensor]:
        """Those among the further arguments."""
        return [self.leaves[i] for i in self.places]

    def call(self, k: int, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """f of layer k."""
        leaves = list(self.leaves)
        for i, tensor in zip(self.places, tensors, strict=True):
            leaves[i] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return residual(self.functions[k], k, self.skip_inside, x, args, kwargs)


@opaque(
    "a reversible network reads numbers from its state in every layer, so it is not traced. Leave "
    "out fullgraph=True, or use mode='backprop'"
)
def run(task: Task, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """x and v after the last layer, with gradients to x, v, the arguments and the parameters.

    Raises:
        SolverError: a number is not finite; from backward(): a function gave another value when
            it was called again.
    """
    return _Reversible.apply(task, x, v, *task.tensors, *task.params)


def forward(task: Task, x: Tensor, v: Tensor, tensors: Sequence[Tensor]) -> ExactState:
    """The exact state after the last layer."""
    tensors = _detached(tensors)
    task.random, task.autocast = [], autocast_now(x.device.type)
    what = "x or v is not finite (the input)"
    try:
        state = ExactState(x, v, task.gamma)
        for k, function in enumerate(task.functions):
            f = _first_call(task, k, function, state.value(), tensors)
            what = f"the function's value is not finite (functions[{k}])"
            state.advance(f)
    except NotFinite:
        raise SolverError(f"MomentumNet: {what}", Retcode.UNSTABLE) from None
    return state


def _first_call(
    task: Task, k: int, function: nn.Module, x: Tensor, tensors: Sequence[Tensor]
) -> Tensor:
    """f of layer k; what its second call needs is written down.

    With a graph, that is thrown away: some modules take other, differently rounded ways without.
    """
    x.requires_grad_()
    before, buffers = Randomness.now(x.device), Buffers(function, k)
    with torch.enable_grad():
        f = task.call(k, x, tensors)
    buffers.check()
    drew = not before.same_as(Randomness.now(x.device))
    task.random.append(before if drew else None)
    if function not in task.checked:
        check_leaves(f, [x, *tensors, *task.own[id(function)]], function, k)
        task.checked.add(function)
    return f.detach()


def second_call(task: Task, k: int, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """f of layer k as it was the first time, with its graph."""
    random = task.random[k]
    again = contextlib.nullcontext() if random is None else random.again()
    with again, frozen_statistics(task.functions[k]), task.autocast(), torch.enable_grad():
        return task.call(k, x, tensors)


def broken() -> SolverError:
    return SolverError(
        "MomentumNet: a function did not repeat the value that it gave in the forward pass, so "
        "that the layers cannot be undone (changed between forward and backward, not "
        "deterministic, or random numbers of another source than torch); use mode='backprop'",
        Retcode.FAILURE,
    )


def _detached(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().requires_grad_(x.requires_grad) for x in tensors]


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, task: Task, x: Tensor, v: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        args = tensors[: len(task.places)]
        state = forward(task, x, v, args)
        out = state.value(), state.speed()
        ctx.save_for_backward(*tensors, *state.tensors())
        ctx.n, ctx.state = len(tensors), state.released()
        ctx.task = task
        return out

    @staticmethod
    def backward(ctx: Any, gx: Tensor, gv: Tensor) -> Any:
        task, saved = ctx.task, ctx.saved_tensors
        tensors, state = saved[: ctx.n], ctx.state.restored(list(saved[ctx.n :]))
        with torch.no_grad():
            grads = _sweep(task, state, tensors[: len(task.places)], gx.detach(), gv.detach())
        if torch.is_grad_enabled():
            grads = once_only("mode 'reversible'", grads, [gx, gv, *tensors], BACKPROP)
        return None, *grads


def _sweep(
    task: Task, state: ExactState, args: Sequence[Tensor], gx: Tensor, gv: Tensor
) -> list[Tensor | None]:
    """Gradients of (x, v, *args, *params), for those of the last x and v."""
    args, gamma = _detached(args), task.gamma
    wanted = [x for x in args if x.requires_grad]
    totals: dict[int, Tensor] = {}
    try:
        for k in reversed(range(len(task.functions))):
            x = state.retreat().requires_grad_()
            f = second_call(task, k, x, args)
            gv = gv + gx
            inputs = [x, *wanted, *task.own[id(task.functions[k])]]
            found = _products(f, inputs, (1 - gamma) * gv)
            state.undo(f.detach())
            if found[0] is not None:
                gx = gx + found[0]
            gv = gamma * gv
            for tensor, g in zip(inputs[1:], found[1:], strict=True):
                if g is not None:
                    total = totals.get(id(tensor))
                    totals[id(tensor)] = g if total is None else total + g
    except Broken:
        raise broken() from None
    return [gx, gv, *(totals.get(id(x)) for x in args), *(totals.get(id(p)) for p in task.params)]


def _products(f: Tensor, inputs: Sequence[Tensor], g: Tensor) -> Sequence[Tensor | None]:
    if not f.requires_grad:
        return [None] * len(inputs)
    return torch.autograd.grad(f, inputs, g.to(f.dtype), allow_unused=True)
