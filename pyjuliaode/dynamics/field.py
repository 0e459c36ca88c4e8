"""Calling the user's network: which arguments it takes, and whether its answer fits."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor

from ..errors import InvalidArgumentError
from ..signature import is_time, itself, swapped
from ..signature import positional as positional_names

Field = Callable[..., Tensor]  # f(h) or f(t, h): an nn.Module or any callable


def takes_time(field: Field) -> bool:
    """True where ``field`` is f(t, h), False where it is f(h), by the signature of the field.

    Raises:
        InvalidArgumentError: the field is not callable, or its signature fits neither.
    """
    if not callable(field):
        raise InvalidArgumentError(
            f"field must be a module or function f(h) or f(t, h), got {type(field).__name__}"
        )
    inner = itself(field)
    try:
        parameters = inspect.signature(getattr(inner, "forward", inner)).parameters.values()
    except (TypeError, ValueError):  # written in C, or torch.jit's
        if (found := positional_names(inner)) is None:
            raise _undecided(field, "has no signature") from None
        parameters = [inspect.Parameter(k, inspect.Parameter.POSITIONAL_ONLY) for k in found[0]]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in positional if p.default is p.empty]
    if len(required) == 2:
        if swapped(tuple(required)):
            raise InvalidArgumentError(
                f"the field is written as f({', '.join(required)}), and is called as f(t, h): let "
                "it take the time first, or pass lambda t, h: field(h, t)"
            )
        return True
    if len(required) > 2 and is_time(required[0]):
        return True
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if not variadic and (len(required) == 1 or (not required and len(positional) == 1)):
        return False
    raise _undecided(field, f"takes {', '.join(str(p) for p in parameters) or 'no arguments'}")


def _undecided(field: Field, what: str) -> InvalidArgumentError:
    name = getattr(field, "__name__", type(field).__name__)
    return InvalidArgumentError(
        f"cannot tell whether the field is f(h) or f(t, h): {name} {what}; "
        "pass time_dependent=False for f(h) or time_dependent=True for f(t, h)"
    )


def wrong_output(out: object, h: Tensor, wanted: Tensor) -> InvalidArgumentError:
    """The error for a field whose output cannot be a time derivative of ``wanted``."""
    got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
    return InvalidArgumentError(
        f"the field must return shape {tuple(wanted.shape)} for an input of shape "
        f"{tuple(h.shape)}, it returned {got}"
    )
