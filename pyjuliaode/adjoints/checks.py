"""What must hold between a solve and its backward: the same field, and no gradient that is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GradientWarning, UnsupportedError, warn
from ..graph import leaves, memory
from ..problem import Problem
from ..rhs import RHS, Time

Witness = tuple[Time, Tensor, Tensor]  # a time, a state, and the field there as it was solved
_ROUNDING = 100  # units in the last place of the largest number: of another kernel, not of a change


@contextlib.contextmanager
def quiet(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Without the hooks of these tensors: an inner product is no gradient of theirs.

    They act on the whole gradient, as autograd hands it on.
    """
    hooked = [x for x in tensors if x._backward_hooks]
    kept = [(x, dict(x._backward_hooks)) for x in hooked]
    for x, _ in kept:
        x._backward_hooks.clear()
    try:
        yield
    finally:
        for x, hooks in kept:
            x._backward_hooks.update(hooks)


class Unchanged:
    """The field as it was when a problem was solved.

    It is compared where it was evaluated then: at ``witnesses``, and at all that ``more`` gives
    where the module, its tensors or its mode are not what they were.
    """

    def __init__(
        self,
        problem: Problem,
        witnesses: Sequence[Witness],
        more: Callable[[], Sequence[Witness]] = tuple,
    ):
        self.problem, self.witnesses, self.more = problem, witnesses, more
        self.look = _Look(problem.func) if isinstance(problem.func, nn.Module) else None

    def changes(self) -> list[str]:
        """What is not as it was in a module, in words."""
        return [] if self.look is None else self.look.changes()

    @torch.no_grad()
    def check(self) -> int:
        """Raise where the field gives other values now; the evaluations that it took.

        Raises:
            UnsupportedError: says what changed, as far as that can be told.
        """
        changes = self.changes()
        witnesses = [*self.witnesses, *(self.more() if changes else ())]
        off_now = [x for x in self.problem.tensors if not x.requires_grad]
        if off_now:
            raise UnsupportedError(
                f"{len(off_now)} tensor(s) of the field required a gradient when it was solved and "
                f"do not now (shapes {[tuple(x.shape) for x in off_now]}): call requires_grad_() "
                "again before backward(), or change it after"
            )
        rhs = RHS(self.problem)
        off = [
            (rhs(t, y) - slope).abs().amax() > _ROUNDING * _eps(slope) * slope.abs().amax()
            for t, y, slope in witnesses
            if y.numel()
        ]
        if off and bool(torch.stack(off).any()):
            raise self.refusal(changes)
        return rhs.nfe

    def refusal(self, changes: Sequence[str] | None = None) -> UnsupportedError:
        """The error for a field that is not what it was."""
        changes = self.changes() if changes is None else changes
        why = (
            f"since then {', '.join(changes)}"
            if changes
            else "something that it reads has changed since (a global variable, what an object "
            "holds), or it is not deterministic (dropout, random numbers)"
        )
        return UnsupportedError(
            "the field gives other values than in the solve whose gradient is asked for: "
            f"{why}. {KEEP}"
        )


KEEP = (
    "Call backward() before the change; hand conditions over as args, solve(func, y0, t, solver, "
    "args=(c,)), which keeps them; or keep the graph, backend='torch' with adjoint='direct' and "
    "options={'checkpoint': False}"
)


def _eps(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps


class _Look:
    """A module's attributes, mode, and the versions of its tensors, without holding any of them."""

    def __init__(self, module: nn.Module):
        self.parts = list(module.named_modules())
        self.states = [_state(part) for _, part in self.parts]

    def changes(self) -> list[str]:
        """What is not as it was, in words."""
        found = []
        for (path, part), before in zip(self.parts, self.states, strict=True):
            now = _state(part)
            if now != before:
                found += [f"{path}.{name}".strip(".") + what for name, what in _named(part, before)]
        return found


_HELD = ("_parameters", "_buffers", "_modules")


def _state(part: nn.Module) -> list[Any]:
    """Identities of what a module holds, and what tells that its tensors were written to."""
    own = vars(part)
    held = [_of(own, name).values() for name in _HELD]
    tensors = [x for values in held[:2] for x in values if x is not None]
    return [
        *(tuple(map(id, values)) for values in (own.values(), *held)),
        [(_version(x), memory(x)) for x in tensors],
    ]


def _named(part: nn.Module, before: list[Any]) -> Iterator[tuple[str, str]]:
    """Names of what differs from a state of a module."""
    own, now = vars(part), _state(part)
    for held, old, new in zip((own, *(_of(own, n) for n in _HELD)), before, now, strict=False):
        for name, a, b in zip_longest(held, old, new):
            if a != b:
                yield str(name), " was replaced" if name != "training" else " was switched"
    tensors = [n for held in _HELD[:2] for n, x in _of(own, held).items() if x is not None]
    for name, a, b in zip_longest(tensors, before[-1], now[-1]):
        if a != b:
            yield str(name), " was written to"


def _of(own: dict[str, Any], name: str) -> dict[str, Any]:
    """What a module holds of one kind; one of TorchScript holds it elsewhere."""
    return own.get(name) or {}


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def unlisted_leaves(
    problem: Problem, root: Tensor, origin: Tensor, *listed: Tensor
) -> list[Tensor]:
    """Leaves that require a gradient, on which ``root`` depends other than through ``origin``,
    and which are neither ``listed`` nor among the problem's tensors: their gradient would be lost.
    """
    known = {id(p) for p in (*problem.tensors, *listed, origin)}
    return [
        leaf
        for leaf in leaves(root, origin, *problem.tensors, *listed)
        if id(leaf) not in known and memory(leaf) != memory(origin)
    ]


_REMEDY = (
    "Hand them over in args, solve(func, y0, t, solver, args=(x,)), register them as parameters, "
    "or list them in params (adjoint_params)"
)


def lost(tensors: Sequence[Tensor]) -> str:
    """What is said of tensors whose gradient would be lost."""
    return (
        f"func depends on {len(tensors)} tensor(s) that require a gradient but are not among its "
        f"parameters (shapes {[tuple(x.shape) for x in tensors]})"
    )


def warn_of_lost_gradients(problem: Problem, root: Tensor, origin: Tensor, *listed: Any) -> bool:
    """Warn of tensors that get no gradient where gradients go to a list of parameters."""
    if problem.explicit_params is not None or not root.requires_grad:
        return False
    found = unlisted_leaves(problem, root, origin, *listed)
    if found:
        warn(
            f"{lost(found)}: they get no gradient. {_REMEDY}; or use adjoint='direct' with "
            "options={'checkpoint': False}.",
            GradientWarning,
        )
    return bool(found)


def refuse_lost_gradients(problem: Problem, root: Tensor, origin: Tensor, *listed: Tensor) -> None:
    """Raise where tensors that were not known at the solve would get no gradient."""
    if problem.explicit_params is not None or not root.requires_grad:
        return
    if found := unlisted_leaves(problem, root, origin, *listed):
        raise UnsupportedError(
            f"{lost(found)}: they would get no gradient. {_REMEDY}; or use backend='torch' with "
            "adjoint='direct'"
        )
