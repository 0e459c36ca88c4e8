"""What a user's function is and can be called with, read from its code: nothing is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import _lru_cache_wrapper, partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from .errors import InvalidArgumentError

_TIMES = frozenset({"t", "time", "times", "ts", "tau", "timestep", "timesteps"})
_STATES = frozenset(
    {
        *("x", "y", "z", "h", "u", "v", "w", "q", "xs", "ys", "zs", "hs", "state", "states"),
        *("hidden", "feature", "features", "latent", "latents", "image", "images", "img", "input"),
        *("inputs", "inp", "data", "batch", "pos", "position", "positions", "points", "tensor"),
        *("value", "values"),
    }
)
Names = tuple[tuple[str, ...], bool]  # of the positional parameters; whether there may be more


def itself(func: Any) -> Any:
    """What ``func`` is below the wrappers that call it with the arguments that they get."""
    while (inner := _inner(func)) is not None:
        func = inner
    return func


def _inner(func: Any) -> Any:
    """What torch.compile, DataParallel, torch.no_grad, ... have wrapped; None: it is no wrapper."""
    if isinstance(func, torch.jit.ScriptModule):
        return None
    if isinstance(func, nn.Module):
        own = func._modules
        if "_orig_mod" in own:  # of torch.compile
            return own["_orig_mod"]
        of_torch = type(func).__module__.startswith("torch.")  # DataParallel, AveragedModel, ...
        return own["module"] if of_torch and "module" in own else None
    if isinstance(func, partial):
        return None if func.args or func.keywords else func.func
    if isinstance(func, MethodType):
        model = isinstance(func.__self__, nn.Module) and func.__name__ in ("forward", "__call__")
        return func.__self__ if model else None
    if isinstance(func, _lru_cache_wrapper) or _of_torch(func):
        return getattr(func, "__wrapped__", None)
    return None


def _of_torch(function: Any) -> bool:
    """Whether the code of a function is torch's; a decorator of the user's may swap arguments."""
    if not isinstance(function, FunctionType):
        return False
    return function.__globals__.get("__name__", "").startswith("torch.")


def check_func(func: Callable[..., Any], n_args: int = 0, name: str = "func") -> None:
    """Raise where ``func`` cannot be called as func(t, y, *args), or was written as func(y, t).

    Costs some microseconds: it reads names off the code. What has no code is left to the call.
    """
    if isinstance(func, type):
        raise InvalidArgumentError(
            f"{name} is the class {func.__name__}: pass an instance of it, {func.__name__}(...)"
        )
    found = positional(func)
    if found is None:
        return
    names, more = found
    if len(names) < 2 and not more:
        takes = f"takes one argument ({names[0]})" if names else "takes no argument"
        field = "for a field f(h) pass pyjuliaode.NODE(func), or " if name == "func" else ""
        raise InvalidArgumentError(
            f"{name} {takes}, and a solver calls {name}(t, y): {field}write lambda t, y: {name}(y)"
        )
    if len(names) < 2 + n_args and not more:
        raise InvalidArgumentError(
            f"func takes {len(names)} arguments ({', '.join(names)}), and with {n_args} args a "
            "solver calls func(t, y, *args)"
        )
    if len(names) > 1 and swapped(names):
        raise InvalidArgumentError(
            f"{name} is written as {name}({names[0]}, {names[1]}), and a solver calls "
            f"{name}(t, y): let it take the time first, or pass lambda t, y: {name}(y, t)"
        )


def check_takes(name: str, function: Callable[..., Any], *wanted: str) -> None:
    """Raise where a function cannot be called with the positional arguments ``wanted``."""
    try:
        takes = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: no signature
        return
    try:
        takes.bind(*wanted)
    except TypeError:
        raise InvalidArgumentError(
            f"{name} is called as {name}({', '.join(wanted)}), and this one takes {takes}"
        ) from None


def swapped(names: tuple[str, ...]) -> bool:
    """Whether the first of the parameters is called a state, and the second a time."""
    first, second = names[0], names[1]
    stem = first.lower().lstrip("_").split("_")[0].rstrip("0123456789")
    return second in _TIMES and stem in _STATES


def is_time(name: str) -> bool:
    """Whether a parameter is called a time."""
    return name.strip("_") in _TIMES


def positional(func: Any) -> Names | None:
    """Names of the positional parameters; None: unknown."""
    if isinstance(func, torch.jit.ScriptModule):
        return _of_schema(getattr(func, "forward", None), 1)
    if isinstance(func, torch.jit.ScriptFunction):
        return _of_schema(func, 0)
    if isinstance(func, partial):
        return _left(func)
    if isinstance(func, MethodType):
        found = positional(func.__func__)
        return None if found is None else (found[0][1:], found[1])
    if (inner := _inner(func)) is not None:
        return positional(inner)
    if isinstance(func, nn.Module):
        return _of_module(func)
    if isinstance(func, FunctionType):
        code = func.__code__
        more = bool(code.co_flags & inspect.CO_VARARGS)
        return code.co_varnames[: code.co_argcount], more
    call = getattr(func, "__call__", None)  # noqa: B004
    return positional(call) if isinstance(call, MethodType) else None


def _of_module(func: nn.Module) -> Names | None:
    """Of ``forward``, or of the ``__call__`` of a class that has its own."""
    hooks = func._forward_pre_hooks or nn.modules.module._global_forward_pre_hooks
    if hooks:  # which may change the arguments
        return None
    call = type(func).__call__
    if call is not nn.Module.__call__ and not _of_torch(call):
        return positional(MethodType(call, func))
    return positional(vars(func).get("forward") or func.forward)


def _of_schema(scripted: Any, own: int) -> Names | None:
    """Of what torch.jit made, without the first ``own``."""
    schema = getattr(scripted, "schema", None)
    if schema is None:
        return None
    return tuple(x.name for x in schema.arguments if not x.kwarg_only)[own:], False


def _left(func: partial) -> Names | None:
    """Of those that functools.partial has left open."""
    found = positional(func.func)
    if found is None:
        return None
    names = found[0][len(func.args) :]
    given = [i for i, name in enumerate(names) if name in func.keywords]
    return names[: given[0]] if given else names, found[1] and not given
