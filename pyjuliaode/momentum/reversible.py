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
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from ..errors import SolverError, UnsupportedError
from ..refusal import once_only
from ..solution import Retcode
from .calls import AS_IT_IS, Randomness, autocast_now, residual
from .exact import Broken, ExactState, NotFinite
from .function import Function

BACKPROP = "use mode='backprop'"

# of (k, x before layer k, f of it, pairs of tensors and what was taken in place of them)
Visit = Callable[[int, Tensor, Tensor, Sequence[tuple[Tensor, Tensor]]], None]


@dataclass
class Task:
    """What is run, and what it leaves for the way back.

    Attributes:
        functions: one for every layer.
        gamma: of the momentum.
        skip_inside: the functions return x + f(x).
        args, kwargs: further arguments of every function.
    """

    functions: Sequence[nn.Module]
    gamma: float
    skip_inside: bool
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.leaves, self.spec = pytree.tree_flatten((tuple(self.args), dict(self.kwargs)))
        self.places = [i for i, x in enumerate(self.leaves) if isinstance(x, Tensor)]
        known: dict[nn.Module, Function] = {}
        for k, f in enumerate(self.functions):
            if f not in known:
                known[f] = Function(f, k)
        self.known = known
        self.params = list(dict.fromkeys(p for f in known.values() for p in f.params))
        self.random: list[Randomness | None] = []
        self.autocast: Callable[[], contextlib.AbstractContextManager[Any]] = None

    @property
    def tensors(self) -> list[Tensor]:
        """Those among the further arguments."""
        return [self.leaves[i] for i in self.places]

    def check_unwritten(self) -> None:
        """Raise where a parameter or buffer is not what it was after the forward pass.

        Raises:
            SolverError: names them.
        """
        written = [what for f in self.known.values() for what in f.written()]
        if written:
            raise _changed(written)

    def call(
        self,
        k: int,
        x: Tensor,
        tensors: Sequence[Tensor],
        within: contextlib.AbstractContextManager[Any] = AS_IT_IS,
    ) -> Tensor:
        """f of layer k, called ``within`` a context."""
        args, kwargs = self.args, self.kwargs
        if self.places:
            leaves = list(self.leaves)
            for i, tensor in zip(self.places, tensors, strict=True):
                leaves[i] = tensor
            args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return residual(self.functions[k], k, self.skip_inside, x, args, kwargs, within)


def run(task: Task, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """x and v after the last layer, with gradients to x, v, the arguments and the parameters.

    Raises:
        SolverError: a number is not finite; from backward(): a function gave another value when
            it was called again.
        UnsupportedError: a tensor carries a tangent of forward-mode differentiation.
    """
    _refuse_tangents([x, v, *task.tensors, *task.params])
    return _Reversible.apply(task, x, v, *task.tensors, *task.params)


def _refuse_tangents(tensors: Sequence[Tensor]) -> None:
    dual = forward_ad._current_level >= 0
    if dual and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise UnsupportedError(
            "forward-mode differentiation does not pass through a MomentumNet in mode "
            f"'reversible'; {BACKPROP}"
        )


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
    for known in task.known.values():
        known.note()
    return state


def _first_call(
    task: Task, k: int, function: nn.Module, x: Tensor, tensors: Sequence[Tensor]
) -> Tensor:
    """f of layer k; what its second call needs is written down.

    With a graph, that is thrown away: some modules take other, differently rounded ways without.
    """
    x.requires_grad_()
    known = task.known[function]
    with torch.enable_grad(), known.calling():
        began = x.view_as(x).grad_fn
        before = Randomness.now(x.device) if known.may_draw else None
        f = task.call(k, x, tensors)
        drew = known.may_draw and not before.same_as(Randomness.now(x.device))
    known.check_buffers()
    task.random.append(before if drew else None)
    if began is not None:
        known.check_graph(f, [x, *tensors, *known.params], began._sequence_nr())
    return f.detach()


def second_call(
    task: Task,
    k: int,
    x: Tensor,
    tensors: Sequence[Tensor],
    stand_ins: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """f of layer k as it was the first time, with its graph."""
    random, known = task.random[k], task.known[task.functions[k]]
    again = AS_IT_IS if random is None else random.again()
    with again, task.autocast(), torch.enable_grad():
        f = task.call(k, x, tensors, known.calling_again(stand_ins))
    known.check_stand_ins(f, stand_ins)
    return f


def undone(task: Task, state: ExactState, tensors: Sequence[Tensor], visit: Visit) -> None:
    """Undo all layers; ``visit`` is told k, x before the layer, f there and the stand-ins.

    Raises:
        SolverError: they cannot be; says what has changed since the forward pass.
    """
    known = task.known.values()
    switched = [what for f in known for what in f.switched()]
    stand_ins = {f.module: f.stand_ins() for f in known}
    try:
        for k in reversed(range(len(task.functions))):
            x, instead = state.retreat().requires_grad_(), stand_ins[task.functions[k]]
            f = second_call(task, k, x, tensors, instead)
            visit(k, x, f, instead)
            state.undo(f.detach())
    except Broken:
        raise _changed(switched) if switched else broken() from None
    except Exception as error:
        if switched:
            raise _changed(switched) from error
        raise


def _changed(what: Sequence[str]) -> SolverError:
    return SolverError(
        "MomentumNet: the functions are not what they were in the forward pass, so that the layers "
        f"cannot be undone: {'; '.join(what)}; call backward() first, or use mode='backprop'",
        Retcode.FAILURE,
    )


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
        task = ctx.task
        task.check_unwritten()  # torch, asked for the tensors, would not say which
        saved = ctx.saved_tensors
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

    def pull_back(k: int, x: Tensor, f: Tensor, stand_ins: Sequence[tuple[Tensor, Tensor]]) -> None:
        nonlocal gx, gv
        gv = gv + gx
        own = task.known[task.functions[k]].params
        instead = {id(old): new for old, new in stand_ins}
        inputs = [x, *wanted, *(instead.get(id(p), p) for p in own)]
        found = _products(f, inputs, (1 - gamma) * gv)
        if found[0] is not None:
            gx = gx + found[0]
        gv = gamma * gv
        for tensor, g in zip([*wanted, *own], found[1:], strict=True):
            if g is not None:
                total = totals.get(id(tensor))
                totals[id(tensor)] = g if total is None else total + g

    undone(task, state, args, pull_back)
    return [gx, gv, *(totals.get(id(x)) for x in args), *(totals.get(id(p)) for p in task.params)]


def _products(f: Tensor, inputs: Sequence[Tensor], g: Tensor) -> Sequence[Tensor | None]:
    if not f.requires_grad:
        return [None] * len(inputs)
    return torch.autograd.grad(f, inputs, g.to(f.dtype), allow_unused=True)
