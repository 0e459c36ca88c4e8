"""Dense output in the user's shapes: what ``Solution.dense`` is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..arguments import as_float, times
from ..errors import InvalidArgumentError
from ..problem import Structure


class Flat(Protocol):
    """A trajectory on the flat state; its times begin at bounds[0] and end at bounds[-1]."""

    @property
    def bounds(self) -> Sequence[float]: ...

    def at_all(self, times: Sequence[float]) -> Tensor:
        """States (S, N) at times within the bounds; no autograd graph."""


class UserDense:
    """Times checked, states in the user's shapes; ``portable``: can be copied and pickled."""

    def __init__(self, make: Callable[[], Flat], structure: Structure, portable: bool = True):
        self._make, self.structure, self.portable = make, structure, portable
        self.end: float | None = None  # the solution's, where an event moved it by a rounding

    @cached_property
    def flat(self) -> Flat:
        """Made when first asked for: most solutions never are."""
        return self._make()

    def __call__(self, t: float | Tensor | Sequence[float]) -> Any:
        ts = t.detach() if isinstance(t, Tensor) else _as_times(t)
        if ts.ndim > 1 or not ts.is_floating_point():
            raise InvalidArgumentError(
                "t must be a number or a 1-d tensor of floating point, got a tensor of shape "
                f"{tuple(ts.shape)} and {ts.dtype}"
            )
        first, last = self.flat.bounds[0], self.flat.bounds[-1]
        low, high = sorted((first, last))
        slack = 4 * torch.finfo(ts.dtype).eps * max(abs(low), abs(high))
        slack += 0.0 if self.end is None else abs(self.end - last)
        values = ts.reshape(-1).tolist()
        for k, x in enumerate(values):
            values[k] = min(max(x, low), high)
            if not abs(values[k] - x) <= slack:  # NaN neither
                raise InvalidArgumentError(
                    f"t = {x:g} lies outside the solved span [{low:g}, {high:g}]"
                )
        flat = self.flat.at_all(values)
        if ts.ndim == 0:
            return self.structure.unpack(flat[0])
        return self.structure.unpack(flat, (len(values),))


def _as_times(t: Any) -> Tensor:
    one = None if getattr(t, "shape", None) else as_float(t)  # an array of one is a sequence
    if one is None and isinstance(t, (Set, Mapping)):  # in no order
        t = None
    found = times("t", t) if one is None else one
    if found == ():
        raise InvalidArgumentError(f"t must be a number or several, got {t!r}")
    return torch.tensor(found, dtype=torch.float64, device="cpu")
