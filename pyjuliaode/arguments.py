"""Checks of what a user hands over; an error names the argument, what came and what is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Set
from decimal import Decimal
from functools import wraps
from inspect import signature
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import InvalidArgumentError, nearest

Function = TypeVar("Function", bound=Callable[..., Any])


def as_float(value: Any) -> float | None:
    """A number, or what holds exactly one real number, as a float; None for anything else, and for
    numbers that no float can hold."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (Real, Decimal)):
        try:
            return float(value)
        except (OverflowError, ValueError):
            return None
    if isinstance(value, Tensor):
        other = value.is_complex() or value.dtype == torch.bool or value.is_meta
        return None if other or value.numel() != 1 else float(value)
    if getattr(value, "size", None) == 1 and hasattr(value, "item"):  # of NumPy
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
    return int(number(name, value, wanted, lambda x: least <= x <= most and x.is_integer()))


def check_tolerance(name: str, value: Any) -> None:
    """A number, a tensor or array, or a tuple of such; all of them >= 0."""
    refuse_gradient(name, value)
    if isinstance(value, (tuple, list)):
        for i, part in enumerate(value):
            check_tolerance(f"{name}[{i}]", part)
    elif as_float(value) is None and hasattr(value, "__array__"):
        if not _finite_and_not_negative(value):
            raise InvalidArgumentError(
                f"{name} must be >= 0 in every element, and finite, got {shown(value)}"
            )
    else:
        not_negative(name, value)


def _finite_and_not_negative(value: Any) -> bool:
    """Of the numbers of a tensor or array."""
    try:
        value = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):  # an array of text, of objects, ...
        return False
    if value.is_meta or value.is_complex() or value.dtype == torch.bool or value.numel() == 0:
        return False
    return bool(((value >= 0) & (value < float("inf"))).all())


def times(name: str, value: Any) -> tuple[float, ...]:
    """Finite times: a tensor, or any sequence of numbers; None is none.

    Raises:
        InvalidArgumentError: other things, and a tensor that requires a gradient, in a list too.
    """
    if value is None:
        return ()
    refuse_gradient(name, value)
    one = as_float(value)
    try:
        parts = [one] if one is not None else _parts(value)
    except TypeError:  # nothing to go through
        parts = [None]
    for i, part in enumerate(parts):
        refuse_gradient(f"{name}[{i}]", part)
    found = [as_float(x) for x in parts]
    if any(x is None or not math.isfinite(x) for x in found):
        raise InvalidArgumentError(f"{name} must be finite times, got {shown(value)}")
    return tuple(x for x in found if x is not None)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return [None] if value.is_meta else value.reshape(-1).tolist()
    return list(value)


def in_order(value: Any) -> bool:
    """Whether a value is made of parts that have an order: no text, set or dict."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Set, Mapping))


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


def options_of(name: str, value: Any) -> Mapping[str, Any] | None:
    """A dict of names to values, or None.

    Raises:
        InvalidArgumentError: something else.
    """
    named = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if value is None or named:
        return value
    raise InvalidArgumentError(f"{name} must be a dict of names to values, got {shown(value)}")


def keywords(
    remedy: Callable[[str], str | None], known_elsewhere: Iterable[str] = ()
) -> Callable[[Function], Function]:
    """Decorator: arguments that the function does not have are refused in a sentence.

    ``remedy`` says of a name what to write instead, or None; then the nearest names are given,
    those ``known_elsewhere`` among them.
    """

    def decorate(function: Function) -> Function:
        parameters = signature(function).parameters
        known = frozenset(parameters)
        names = [k for k, p in parameters.items() if k != "self" and p.kind is not p.VAR_KEYWORD]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        by_place = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        called = function.__qualname__.removesuffix(".__init__")

        @wraps(function)
        def checked(*args: Any, **given: Any) -> Any:
            if len(args) > len(by_place):
                taken = ", ".join(name for name in by_place if name != "self")
                rest = [name for name in names if name not in by_place]
                more = f", and by name alone {', '.join(rest)}: write {rest[0]}=..." if rest else ""
                raise InvalidArgumentError(
                    f"{called} takes at most {len(by_place) - ('self' in by_place)} arguments by "
                    f"position ({taken}){more}"
                )
            if not open_ended and not known.issuperset(given):
                wrong = next(k for k in given if k not in known)
                valid = {*names, *known_elsewhere}
                advice = remedy(wrong) or f"it takes {', '.join(names)}.{nearest(wrong, valid)}"
                raise InvalidArgumentError(f"{called} has no argument {wrong!r}: {advice}")
            return function(*args, **given)

        return checked  # type: ignore[return-value]

    return decorate
