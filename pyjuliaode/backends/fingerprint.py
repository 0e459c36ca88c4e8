"""Whether a module is still what it was when something was made of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

from ..problem import Problem
from .surroundings import PLAIN, Source, Surroundings, reader

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_EVERYWHERE = (
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_forward_pre_hooks,
    nn.modules.module._global_backward_hooks,
    nn.modules.module._global_backward_pre_hooks,
)
_KIND = attrgetter("dtype", "shape", "device")
_STANDARD = vars(nn.Module()).keys() - {"training"}  # attributes of every module


def hooked(func: Callable[..., Any]) -> bool:
    """Whether calling the module, or a part of it, calls hooks."""
    parts = func.modules() if isinstance(func, nn.Module) else ()
    return any(_EVERYWHERE) or any(vars(part)[name] for part in parts for name in _HOOKS)


class Fingerprint:
    """A module as it was: a change of an attribute, submodule, parameter or hook is noticed, and
    one of what else its code can read, see :class:`Surroundings`.

    Values are compared by identity, plain numbers and texts as such; lists, sets, dicts and small
    arrays also by what they hold. Nothing but numbers, texts and parameters is kept alive.
    """

    def __init__(self, module: nn.Module):
        around = Surroundings(module)
        parts = [Source(m, _puller(m)) for m in around.modules]
        self._sources = [(s.owner, s.pull) for s in (*parts, *around.sources)]
        values, known = self._pulled(), set()
        self._readers: list[tuple[int, type, Callable[[Any], list[Any]]]] = []
        for i, value in enumerate(values):  # grows
            read = None if id(value) in known else reader(value)
            if read is not None:
                known.add(id(value))  # it may hold itself
                self._readers.append((i, type(value), read))
                values += read(value)
        self._remember(values)
        self._leaves = list(module.parameters())
        self._tracked = [p.requires_grad for p in self._leaves]

    def unchanged(self) -> bool:
        # by map alone: this is asked before every solve
        if self._gone or any(_EVERYWHERE):
            return False
        values = self._now()
        return (
            values is not None
            and (list(map(id, values)) == self._ids or self._equal(values))
            and [p.requires_grad for p in self._leaves] == self._tracked
        )

    def holds(self, value: Any) -> bool:
        """Whether it is one of the values."""
        return id(value) in self._ids

    def _pulled(self) -> list[Any]:
        """Values but those within containers; of what is gone none."""
        values: list[Any] = []
        for owner, pull in self._sources:
            found = owner()
            if found is not None:
                values += pull(found)
        return values

    def _now(self) -> list[Any] | None:
        """All values; None where one is missing or no longer of its type."""
        try:
            values = self._pulled()
        except KeyError:
            return None
        for i, kind, read in self._readers:
            if i >= len(values) or type(values[i]) is not kind:
                return None
            values += read(values[i])
        return values

    def _remember(self, values: list[Any]) -> None:
        self._ids = list(map(id, values))
        self._plain = {i: x for i, x in enumerate(values) if isinstance(x, PLAIN)}
        self._gone: list[Any] = []  # references to what has died, whose identity means nothing
        self._references, self._kept = [], []
        containers = {i for i, *_ in self._readers}
        for i, value in enumerate(values):
            if i in self._plain or i in containers:
                continue  # known by what they hold
            try:
                self._references.append(weakref.ref(value, self._gone.append))
            except TypeError:
                self._kept.append(value)

    def _equal(self, values: list[Any]) -> bool:
        """Whether what is another object is an equal number, text or container."""
        if len(values) != len(self._ids):
            return False
        other = [
            i for i, (x, was) in enumerate(zip(values, self._ids, strict=True)) if id(x) != was
        ]
        known, containers = self._plain, {i for i, *_ in self._readers}
        same = all(i in containers or (i in known and _same(known[i], values[i])) for i in other)
        if same:
            self._remember(values)
        return same


def _puller(module: nn.Module) -> Callable[[nn.Module], tuple[Any, ...]]:
    """What lists all that a module holds, and whether it has hooks."""
    names = tuple(vars(module).keys() - _STANDARD)

    def pull(module: nn.Module) -> tuple[Any, ...]:
        own = vars(module)
        return (
            *(*map(own.__getitem__, names), len(own)),
            *(*own["_parameters"].values(), *own["_buffers"].values(), *own["_modules"].values()),
            any(map(own.__getitem__, _HOOKS)),
        )

    return pull


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or a != a)


class Kinds:
    """Tensors whose values may change, and whose dtype, shape, device and strides may not."""

    def __init__(self, tensors: list[Tensor]):
        self._tensors = tensors
        self._kinds = list(map(_KIND, tensors))
        self._strides = list(map(Tensor.stride, tensors))

    def unchanged(self) -> bool:
        return (
            list(map(_KIND, self._tensors)) == self._kinds
            and list(map(Tensor.stride, self._tensors)) == self._strides
        )


def same_params(problem: Problem, params: tuple[Tensor, ...], everything: bool) -> bool:
    """Whether the problem's parameters are still ``params``: ``everything`` that its unchanged
    module has, which the problem then need not look for, or those that the user listed.
    """
    if problem.explicit_params is None:
        if everything:
            problem.__dict__["params"] = params  # a search through the modules is saved
        return everything
    asked = problem.explicit_params
    return len(asked) == len(params) and all(map(is_, asked, params))
