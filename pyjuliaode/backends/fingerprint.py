"""Whether a module is still what it was when something was made of it."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

from ..problem import Problem

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_EVERYWHERE = (
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_forward_pre_hooks,
    nn.modules.module._global_backward_hooks,
    nn.modules.module._global_backward_pre_hooks,
)
_KIND = attrgetter("dtype", "shape", "device")
_CONTAINERS = {list: tuple, set: frozenset, dict: lambda d: tuple(d.items())}


def hooked(func: Callable[..., Any]) -> bool:
    """Whether calling the module, or a part of it, calls hooks."""
    parts = func.modules() if isinstance(func, nn.Module) else ()
    return any(_EVERYWHERE) or any(vars(part)[name] for part in parts for name in _HOOKS)


class Fingerprint:
    """A module as it was: a change of an attribute, submodule, parameter or hook is noticed.

    What an attribute holds is compared by identity; lists, sets and dicts also by what they hold.
    """

    def __init__(self, module: nn.Module):
        standard = vars(nn.Module()).keys() - {"training"}
        self._dicts: list[dict] = []
        self._hooks: list[dict] = [*_EVERYWHERE]
        self._containers: list[tuple[Any, Any]] = []
        entries: list[tuple[dict, str, Any]] = []
        for part in module.modules():
            own = vars(part)
            held = [own[name] for name in ("_parameters", "_buffers", "_modules")]
            self._dicts += [own, *held]
            self._hooks += [own[name] for name in _HOOKS]
            mine = [(own, k, v) for k, v in own.items() if k not in standard]
            entries += mine + [(d, k, v) for d in held for k, v in d.items()]
            self._containers += [
                (v, _CONTAINERS[type(v)](v)) for _, _, v in mine if type(v) in _CONTAINERS
            ]
        self._holders, self._names, self._values = (list(x) for x in zip(*entries, strict=True))
        self._sizes = list(map(len, self._dicts))
        self._leaves = list(module.parameters())
        self._tracked = [p.requires_grad for p in self._leaves]

    def unchanged(self) -> bool:
        # by map alone: this is asked before every solve
        return (
            all(map(is_, map(dict.get, self._holders, self._names), self._values))
            and list(map(len, self._dicts)) == self._sizes
            and [p.requires_grad for p in self._leaves] == self._tracked
            and not any(self._hooks)
            and all(self._same(v, kept) for v, kept in self._containers)
        )

    @staticmethod
    def _same(value: Any, kept: Any) -> bool:
        now = _CONTAINERS[type(value)](value)
        if len(now) != len(kept):
            return False
        if isinstance(value, set):
            return now == kept
        flat = zip(now, kept, strict=True)
        if isinstance(value, dict):
            return all(a[0] is b[0] and a[1] is b[1] for a, b in flat)
        return all(a is b for a, b in flat)


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
