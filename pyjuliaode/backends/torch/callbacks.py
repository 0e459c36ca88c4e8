"""torchdiffeq's callbacks: methods of func that are told of every step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...rhs import RHS

_NAMES = ("callback_step", "callback_accept_step", "callback_reject_step")


class Callbacks:
    """Calls ``func.callback_step(t, y, dt)`` and its accept and reject forms where they exist."""

    def __init__(self, rhs: RHS, found: dict[str, Any]):
        self.rhs, self.found = rhs, found

    @classmethod
    def of(cls, rhs: RHS, suffix: str = "", source: Any = None) -> Callbacks | None:
        """The callbacks of the user's function, or None where it has none."""
        source = rhs.func if source is None else source
        # not getattr: where it is missing a module searches its parameters and buffers at length
        own = getattr(source, "__dict__", ())
        present = [n for n in _NAMES if n + suffix in own or hasattr(type(source), n + suffix)]
        if not present:
            return None
        return cls(rhs, {n: getattr(source, n + suffix) for n in present})

    def report(self, accepted: bool, t: float, y: Tensor, h: float) -> None:
        """Tell of one attempted step from (t, y) of length h."""
        args = (self.rhs.time(t), self.rhs.structure.unpack(y), self.rhs.time(h))
        outcome = "callback_accept_step" if accepted else "callback_reject_step"
        for name in ("callback_step", outcome):
            if name in self.found:
                self.found[name](*args)
