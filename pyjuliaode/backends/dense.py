"""Dense output in the user's shapes: what ``Solution.dense`` is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

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

    @cached_property
    def flat(self) -> Flat:
        """Made when first asked for: most solutions never are."""
        return self._make()

    def __call__(self, t: float | Tensor) -> Any:
        ts = (
            t.detach()
            if isinstance(t, Tensor)
            else torch.tensor(float(t), dtype=torch.float64, device="cpu")
        )
        if ts.ndim > 1:
            raise InvalidArgumentError(f"t must be a number or 1-d, got shape {tuple(ts.shape)}")
        low, high = sorted((self.flat.bounds[0], self.flat.bounds[-1]))
        slack = 4 * torch.finfo(ts.dtype).eps * max(abs(low), abs(high))
        values = ts.reshape(-1).tolist()
        for k, x in enumerate(values):
            values[k] = min(max(x, low), high)
            if abs(values[k] - x) > slack:
                raise InvalidArgumentError(
                    f"t = {x:g} lies outside the solved span [{low:g}, {high:g}]"
                )
        flat = self.flat.at_all(values)
        if ts.ndim == 0:
            return self.structure.unpack(flat[0])
        return self.structure.unpack(flat, (len(values),))
