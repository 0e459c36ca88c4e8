"""torchdiffeq's callbacks: methods of func that are told of every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...errors import warn
from ...rhs import Time
from ...signature import itself

STEP, ACCEPT, REJECT = "callback_step", "callback_accept_step", "callback_reject_step"


class Callbacks:
    """Calls ``func.callback_step(t, y, dt)`` and its accept and reject forms where they exist."""

    def __init__(
        self,
        found: Mapping[str, Callable[..., Any]],
        time: Callable[[Time], Tensor],
        unpack: Callable[[Tensor], Any],
    ):
        self.found, self.time, self.unpack = found, time, unpack

    @classmethod
    def of(
        cls,
        func: Any,
        time: Callable[[Time], Tensor],
        unpack: Callable[[Tensor], Any],
        known: Sequence[str],
        suffix: str = "",
    ) -> Callbacks | None:
        """The callbacks of ``func``, or None; warns of those that the method does not call."""
        func = itself(func)
        # not getattr: where it is missing a module searches its parameters and buffers at length
        own = getattr(func, "__dict__", ())
        names = [
            n
            for n in (STEP, ACCEPT, REJECT)
            if n + suffix in own or hasattr(type(func), n + suffix)
        ]
        if not names:
            return None
        unused = [n + suffix for n in names if n not in known]
        if unused:
            warn(f"this method never calls {', '.join(unused)}: " + _reason(known))
        return cls({n: getattr(func, n + suffix) for n in names if n in known}, time, unpack)

    def report(self, accepted: bool, t: float, y: Tensor, h: float) -> None:
        """Tell of one attempted step from (t, y) of length h."""
        args = (self.time(t), self.unpack(y), self.time(h))
        for name in (STEP, ACCEPT if accepted else REJECT):
            if name in self.found:
                self.found[name](*args)


def _reason(known: Sequence[str]) -> str:
    """Why a method calls no more than the ``known`` callbacks."""
    if ACCEPT in known:
        return "SciPy does not tell of steps that it rejects"
    return "it has no error control" if known else "its intervals are its own"
