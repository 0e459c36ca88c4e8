"""One function of a momentum network called, and called again as it was the first time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import InvalidArgumentError
from ..graph import leaves

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def residual(
    function: nn.Module, k: int, skip_inside: bool, x: Tensor, args: Sequence, kwargs: Mapping
) -> Tensor:
    """f(x) of function number k: its value, minus x where the skip connection is inside.

    Raises:
        InvalidArgumentError: as :func:`value`.
    """
    out = value(function, k, x, args, kwargs)
    return out - x if skip_inside else out


def value(function: nn.Module, k: int, x: Tensor, args: Sequence, kwargs: Mapping) -> Tensor:
    """What function number k returns for x.

    Raises:
        InvalidArgumentError: the value is not one tensor of the shape of x, or the function has
            changed x in place.
    """
    before = x._version
    try:
        out = function(x, *args, **kwargs)
    except RuntimeError as error:
        if "in-place operation" in str(error) and "leaf" in str(error):
            raise InvalidArgumentError(_said(function, k, _IN_PLACE)) from error
        raise
    if x._version != before:
        raise InvalidArgumentError(_said(function, k, _IN_PLACE))
    if not isinstance(out, Tensor):
        what = f"returned a {type(out).__name__}; wanted one tensor: wrap it to return the state"
        raise InvalidArgumentError(_said(function, k, what))
    if out.shape != x.shape:
        what = f"returned shape {tuple(out.shape)} for x of shape {tuple(x.shape)}; wanted the same"
        raise InvalidArgumentError(_said(function, k, what))
    return out


_IN_PLACE = (
    "changes its input in place (ReLU(inplace=True)?), which the network needs: let it work on a "
    "copy, or set inplace=False"
)


def _said(function: nn.Module, k: int, what: str) -> str:
    return f"functions[{k}] ({type(function).__name__}) {what}"


@dataclass(frozen=True)
class Randomness:
    """State of torch's generators before a call that drew from them.

    Attributes:
        cpu, device: as of torch.get_rng_state; the second of the CUDA device, where x is on one.
    """

    cpu: Tensor
    device: Tensor | None
    index: torch.device

    @classmethod
    def now(cls, device: torch.device) -> Randomness:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, device)

    def same_as(self, other: Randomness) -> bool:
        if not torch.equal(self.cpu, other.cpu):
            return False
        return self.device is None or torch.equal(self.device, other.device)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Within, random numbers are those that were drawn then."""
        devices = [] if self.device is None else [self.index]
        with torch.random.fork_rng(devices):
            torch.set_rng_state(self.cpu)
            if self.device is not None:
                torch.cuda.set_rng_state(self.device, self.index)
            yield


@contextlib.contextmanager
def frozen_statistics(function: nn.Module) -> Iterator[None]:
    """Within, normalisations in training mode leave their running statistics as they are.

    What they return does not depend on these: without them they take the statistics of the batch.
    """
    norms = [m for m in function.modules() if isinstance(m, _NormBase) and m.training]
    kept = [{name: m._buffers.get(name) for name in STATISTICS} for m in norms]
    try:
        for m in norms:
            m._buffers.update(dict.fromkeys(STATISTICS))
        yield
    finally:
        for m, buffers in zip(norms, kept, strict=True):
            m._buffers.update(buffers)


def autocast_now(device: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Enters the autocast state of this moment again."""
    state = {
        "enabled": torch.is_autocast_enabled(device),
        "dtype": torch.get_autocast_dtype(device),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }
    return lambda: torch.autocast(device, **state)


class Buffers:
    """Watches that no function changes a buffer which cannot be put back for a second call."""

    def __init__(self, function: nn.Module, k: int):
        self.function, self.k = function, k
        self.before = self._now()

    def _now(self) -> list[tuple[str, Tensor, int]]:
        return [
            (f"{path}.{name}".lstrip("."), buffer, buffer._version)
            for path, module in self.function.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and not (isinstance(module, _NormBase) and name in STATISTICS)
        ]

    def check(self) -> None:
        """Raise for a buffer that is another than before.

        Raises:
            InvalidArgumentError: names it.
        """
        for (name, old, was), (_, new, now) in zip(self.before, self._now(), strict=False):
            if old is not new or was != now:
                what = (
                    f"changes its buffer {name!r} when it is called, so that it cannot be called "
                    "again as it was; use mode='backprop'"
                )
                raise InvalidArgumentError(_said(self.function, self.k, what))


def check_leaves(out: Tensor, known: Sequence[Tensor], function: nn.Module, k: int) -> None:
    """Raise where a gradient of ``out`` would go to a tensor that is not known.

    Raises:
        InvalidArgumentError: says what to do with it.
    """
    ids = {id(x) for x in known}
    for leaf in leaves(out):
        if id(leaf) not in ids:
            what = (
                f"uses a tensor of shape {tuple(leaf.shape)} that requires a gradient and is "
                "neither one of its parameters nor an argument: pass it to the network as an "
                "argument, or use mode='backprop'"
            )
            raise InvalidArgumentError(_said(function, k, what))
