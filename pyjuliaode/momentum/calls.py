"""One function of a momentum network called, and called again as it was the first time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..errors import InvalidArgumentError

GENERATORS = threading.RLock()  # of torch's default generators, which all threads draw from

AS_IT_IS = contextlib.nullcontext()


def residual(
    function: nn.Module,
    k: int,
    skip_inside: bool,
    x: Tensor,
    args: Sequence,
    kwargs: Mapping,
    within: contextlib.AbstractContextManager[Any] = AS_IT_IS,
) -> Tensor:
    """f(x) of function number k: its value, minus x where the skip connection is inside.

    It is called ``within`` a context.

    Raises:
        InvalidArgumentError: as :func:`value`.
    """
    out = value(function, k, x, args, kwargs, within)
    return out - x if skip_inside else out


def value(
    function: nn.Module,
    k: int,
    x: Tensor,
    args: Sequence,
    kwargs: Mapping,
    within: contextlib.AbstractContextManager[Any] = AS_IT_IS,
) -> Tensor:
    """What function number k returns for x, called ``within`` a context.

    Raises:
        InvalidArgumentError: the value is not one tensor of the shape of x, or the function has
            changed x in place.
    """
    if x.is_inference():  # has no version to compare: what is done to a copy does no harm
        x = x.clone()
    before = version(x)
    try:
        with within:
            out = function(x, *args, **kwargs)
    except RuntimeError as error:
        if "in-place operation" in str(error) and "leaf" in str(error):
            raise refused(function, k, _IN_PLACE) from error
        raise
    if version(x) != before:
        raise refused(function, k, _IN_PLACE)
    if not isinstance(out, Tensor):
        what = f"returned a {type(out).__name__}; wanted one tensor: wrap it to return the state"
        raise refused(function, k, what)
    if out.shape != x.shape:
        what = f"returned shape {tuple(out.shape)} for x of shape {tuple(x.shape)}; wanted the same"
        raise refused(function, k, what)
    return out


_IN_PLACE = (
    "changes its input in place (ReLU(inplace=True)?), which the network needs: let it work on a "
    "copy, or set inplace=False"
)


def refused(function: nn.Module, k: int, what: str) -> InvalidArgumentError:
    """The error for function number k, which does ``what``."""
    return InvalidArgumentError(f"functions[{k}] ({type(function).__name__}) {what}")


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
        with GENERATORS, torch.random.fork_rng(devices):
            torch.set_rng_state(self.cpu)
            if self.device is not None:
                torch.cuda.set_rng_state(self.device, self.index)
            yield


class Instead(TorchFunctionMode):
    """Within, and in this thread alone, operations take other tensors in place of some.

    The modules themselves, which other threads may call, stay as they are.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]):
        super().__init__()
        self._replaced = [old for old, _ in pairs]  # that their ids stay theirs
        self._new = {id(old): new for old, new in pairs}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [self._swap(x) for x in args]
        if kwargs:
            return func(*args, **{name: self._swap(x) for name, x in kwargs.items()})
        return func(*args)

    def _swap(self, x: Any) -> Any:
        if isinstance(x, (list, tuple, dict)):
            return pytree.tree_map(self._swap, x)
        return self._new.get(id(x), x)


def autocast_now(device: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Enters the autocast state of this moment again."""
    state = {
        "enabled": torch.is_autocast_enabled(device),
        "dtype": torch.get_autocast_dtype(device),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }
    return lambda: torch.autocast(device, **state)


def version(x: Tensor) -> int:
    """Number of in-place changes so far; -1 of a tensor of inference mode, which counts none."""
    return -1 if x.is_inference() else x._version
