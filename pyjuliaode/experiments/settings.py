"""Settings of the experiments: each is declared with its type and range, and read from text too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..dynamics.activations import make_activation
from ..errors import InvalidArgumentError, unknown_name

# more than these is a mistake:
WIDTH = 10**4  # of a layer, and depth
MOST = 10**6  # of samples and the like
STEPS = 10**9  # of what takes time and no memory
SEED = 2**32 - 2  # scikit-learn's end at 2^32 - 1, and test data take the next one


@dataclass(frozen=True)
class Setting:
    """A setting of an experiment.

    Attributes:
        default: its value where none is given.
        read: (its name, a value or the text of one) -> the value, or InvalidArgumentError.
    """

    default: Any
    read: Callable[[str, Any], Any]


def whole(default: int, low: int = 1, high: int = MOST) -> Setting:
    """A whole number from ``low`` to ``high``."""
    return Setting(default, lambda name, given: read_whole(f"setting {name!r}", given, low, high))


def number(default: float, low: float, high: float, *, above: bool = False) -> Setting:
    """A number from ``low`` (``above``: but not that itself) to ``high``."""

    return Setting(
        default, lambda name, given: read_number(f"setting {name!r}", given, low, high, above=above)
    )


def learning_rate(default: float) -> Setting:
    """A positive number; from 1000 on nothing is learned."""
    return number(default, 0.0, 1e3, above=True)


def choice(*names: str) -> Setting:
    """One of some names, of which the first is the default."""

    def read(name: str, given: Any) -> str:
        if given not in names:
            raise unknown_name(name, given, names)
        return given

    return Setting(names[0], read)


def numbers(default: str, one: Setting) -> Setting:
    """Numbers with commas between them, each as ``one`` has it; the value is a text."""

    def read(name: str, given: Any) -> str:
        parts = str(given).split(",")
        if None in map(_number, parts):
            raise _refusal(f"setting {name!r}", "numbers with commas between them", given)
        return ",".join(str(one.read(name, part)) for part in parts)

    return Setting(default, read)


def activation(default: str) -> Setting:
    """The name of an activation, as the models have them."""

    def read(name: str, given: Any) -> str:
        make_activation(str(given), 1.0)
        return str(given)

    return Setting(default, read)


def merge(declared: Mapping[str, Setting], given: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every setting: what is given, else its default.

    Raises:
        InvalidArgumentError: an unknown setting, a value of another type or out of its range.
    """
    for name in given:
        if name not in declared:
            raise unknown_name("setting", name, declared)
    return {
        name: setting.read(name, given[name]) if name in given else setting.default
        for name, setting in declared.items()
    }


def read_whole(what: str, given: Any, low: int, high: int) -> int:
    """``given``, a number or its text, as a whole number from ``low`` to ``high``.

    Raises:
        InvalidArgumentError: it is none.
    """
    value = _number(given)
    if value is None or value != int(value) or not low <= value <= high:
        raise _refusal(what, f"a whole number from {low} to {high}", given)
    return int(value)


def read_number(what: str, given: Any, low: float, high: float, *, above: bool = False) -> float:
    """``given``, a number or its text, from ``low`` (``above``: but not that itself) to ``high``.

    Raises:
        InvalidArgumentError: it is none.
    """
    value = _number(given)
    if value is None or not low <= value <= high or (above and value == low):
        start = f"above {low:g} and up to" if above else f"from {low:g} to"
        raise _refusal(what, f"a number {start} {high:g}", given)
    return value


def _number(given: Any) -> float | None:
    """A finite number, else None; True and False are none."""
    if isinstance(given, bool):
        return None
    try:
        value = float(given)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _refusal(what: str, wanted: str, given: Any) -> InvalidArgumentError:
    return InvalidArgumentError(f"{what} must be {wanted}, got {given!r}")
