"""Checks of what a user hands over; an error names the argument, what came and what is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from numbers import Real
from typing import Any, TypeVar

from torch import Tensor

from .errors import InvalidArgumentError, nearest

Function = TypeVar("Function", bound=Callable[..., Any])


def as_float(value: Any) -> float | None:
    """A number, or what holds exactly one real number, as a float; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Tensor):
        one = value.numel() == 1 and not value.is_complex()
        return float(value) if one else None
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # of NumPy
        return as_float(value.item())
    return None


def number(name: str, value: Any, wanted: str, fits: Callable[[float], bool]) -> float:
    """``value`` as a float that ``fits``.

    Raises:
        InvalidArgumentError: "``name`` must ``wanted``", for what is no number too; also for a
            tensor that requires a gradient, which would be lost.
    """
    refuse_gradient(name, value)
    found = as_float(value)
    if found is None or not fits(found):  # which NaN does not
        raise InvalidArgumentError(f"{name} must {wanted}, got {shown(value)}")
    return found


def refuse_gradient(name: str, value: Any) -> None:
    """Raise for a tensor that requires a gradient where only its value is read."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise InvalidArgumentError(
            f"{name} requires a gradient, and a solve has none with respect to it: pass "
            f"{name}.detach()"
        )


def positive(name: str, value: Any) -> float:
    """A finite number > 0."""
    return number(name, value, "be positive and finite", lambda x: 0 < x < math.inf)


def not_negative(name: str, value: Any) -> float:
    """A finite number >= 0."""
    return number(name, value, "be finite and >= 0", lambda x: 0 <= x < math.inf)


def within(name: str, value: Any, low: float, high: float, closed: bool = False) -> float:
    """A number in (low, high], or in [low, high] where ``closed``."""
    bracket = "[" if closed else "("
    wanted = f"lie in {bracket}{low:g}, {high:g}]"
    return number(name, value, wanted, lambda x: low < x <= high or (closed and x == low))


def whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """A whole number of at least ``least`` and at most ``most``."""
    wanted = f"be an integer of at least {least}" + (f", at most {most}" if most < 1e30 else "")
    return int(number(name, value, wanted, lambda x: least <= x <= most and x == math.floor(x)))


def check_tolerance(name: str, value: Any) -> None:
    """A number, a tensor or array, or a tuple of such; all of them >= 0."""
    refuse_gradient(name, value)
    if isinstance(value, (tuple, list)):
        for i, part in enumerate(value):
            check_tolerance(f"{name}[{i}]", part)
    elif isinstance(value, Tensor) and value.numel() != 1:
        if value.is_complex() or not bool((value >= 0).all()):
            raise InvalidArgumentError(f"{name} must be >= 0 in every element, got {value}")
    elif not hasattr(value, "__array__") or as_float(value) is not None:
        not_negative(name, value)


def times(name: str, value: Any) -> tuple[float, ...]:
    """Finite times: a tensor, or any sequence of numbers; None is none."""
    if value is None:
        return ()
    if isinstance(value, Tensor):
        refuse_gradient(name, value)
        value = value.reshape(-1).tolist()
    one = as_float(value)
    try:
        found = [one] if one is not None else [as_float(x) for x in value]
    except TypeError:  # nothing to go through
        found = [None]
    if any(x is None or not math.isfinite(x) for x in found):
        raise InvalidArgumentError(f"{name} must be finite times, got {shown(value)}")
    return tuple(x for x in found if x is not None)


def shown(value: Any) -> str:
    """A value as an error message shows it, on one short line."""
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"a tensor of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def unknown_options(given: Iterable[str], valid: Iterable[str]) -> list[str]:
    """Those of the names ``given`` that are not ``valid``, each with the nearest that is."""
    valid = set(valid)
    wrong = sorted(set(given) - valid)
    hints = [nearest(name, valid).strip() for name in wrong]
    return [f"{name} ({hint})" if hint else name for name, hint in zip(wrong, hints, strict=True)]


def keywords(
    remedy: Callable[[str], str | None], known_elsewhere: Iterable[str] = ()
) -> Callable[[Function], Function]:
    """Decorator: an argument that the function does not have is refused in a sentence.

    ``remedy`` says of a name what to write instead, or None; then the nearest names are given,
    those ``known_elsewhere`` among them.
    """

    def decorate(function: Function) -> Function:
        parameters = signature(function).parameters
        known = frozenset(parameters)
        names = [name for name in parameters if name != "self"]
        called = function.__qualname__.removesuffix(".__init__")

        @wraps(function)
        def checked(*args: Any, **given: Any) -> Any:
            if not known.issuperset(given):
                wrong = next(k for k in given if k not in known)
                valid = {*names, *known_elsewhere}
                advice = remedy(wrong) or f"it takes {', '.join(names)}.{nearest(wrong, valid)}"
                raise InvalidArgumentError(f"{called} has no argument {wrong!r}: {advice}")
            return function(*args, **given)

        return checked  # type: ignore[return-value]

    return decorate
