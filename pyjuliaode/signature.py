"""What a user's function can be called with, read from its code: nothing is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from .errors import InvalidArgumentError

_TIMES = frozenset({"t", "time", "times", "ts", "tau", "timestep", "timesteps"})


def check_func(func: Callable[..., Any], n_args: int = 0) -> None:
    """Raise where ``func`` cannot be called as func(t, y, *args), or was written as func(y, t).

    Costs a microsecond: it reads names off the code. What has no code is left to the call.
    """
    if isinstance(func, type):
        raise InvalidArgumentError(
            f"func is the class {func.__name__}: pass an instance of it, {func.__name__}(...)"
        )
    found = _positional(func)
    if found is None:
        return
    names, more = found
    if len(names) < 2 and not more:
        takes = f"takes one argument ({names[0]})" if names else "takes no argument"
        raise InvalidArgumentError(
            f"func {takes}, and a solver calls func(t, y): for a field f(h) pass "
            "pyjuliaode.NODE(func), or write lambda t, y: func(y)"
        )
    if len(names) < 2 + n_args and not more:
        raise InvalidArgumentError(
            f"func takes {len(names)} arguments ({', '.join(names)}), and with {n_args} args a "
            "solver calls func(t, y, *args)"
        )
    if len(names) > 1 and swapped(names):
        raise InvalidArgumentError(
            f"func is written as func({names[0]}, {names[1]}), and a solver calls func(t, y): let "
            "it take the time first, or pass lambda t, y: func(y, t)"
        )


def swapped(names: tuple[str, ...]) -> bool:
    """Whether the second of the parameters is called a time, and the first something else."""
    first, second = names[0], names[1]
    return second in _TIMES and not (is_time(first) or first.startswith("_"))


def is_time(name: str) -> bool:
    """Whether a parameter is called a time."""
    return name.strip("_") in _TIMES


def _positional(func: Callable[..., Any]) -> tuple[tuple[str, ...], bool] | None:
    """Names of the positional parameters, and whether there may be more of them; None: unknown."""
    if isinstance(func, nn.Module):
        func = func._modules.get("_orig_mod") or func  # of torch.compile
        func = vars(func).get("forward") or func.forward
    elif not isinstance(func, (FunctionType, MethodType)):
        func = getattr(func, "__call__", None)  # noqa: B004
    own = 0
    if isinstance(func, MethodType):
        func, own = func.__func__, 1
    if not isinstance(func, FunctionType):
        return None
    code = func.__code__
    more = bool(code.co_flags & inspect.CO_VARARGS)
    return code.co_varnames[own : code.co_argcount], more
