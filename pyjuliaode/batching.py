"""A field at many times in one call, and whose mistake it is where that fails."""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

_RAISE = dis.opmap["RAISE_VARARGS"]
_TORCH = os.path.dirname(torch.__file__) + os.sep
# what an operation raises that cannot be batched: a branch on values, a write in place, ...
_OF_OPERATIONS = (RuntimeError, ValueError, TypeError, IndexError)


def users_own(error: BaseException, outer: BaseException | None = None) -> bool:
    """Whether ``error`` was raised by a ``raise`` of the user's code (or is of a kind that torch's
    operations do not raise), rather than by an operation that the batching may have broken.

    ``outer`` is what was being handled already when the field was called.
    """
    return all(_raised(x) for x in _chain(error, outer))


def handled() -> BaseException | None:
    """The exception that is being handled now, for ``outer``."""
    return sys.exc_info()[1]


def _chain(error: BaseException | None, outer: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised in the handling of: a library's may wrap torch's."""
    seen: set[int] = set()
    while error is not None and error is not outer and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _raised(error: BaseException) -> bool:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is not None:
        code = last.tb_frame.f_code
        if code.co_filename.startswith(_TORCH):
            return False
        if code.co_code[last.tb_lasti] == _RAISE:
            return True
    return not isinstance(error, _OF_OPERATIONS)


def form_of(func: Callable[..., Any]) -> tuple[object, ...]:
    """What a field is made of, as far as it decides whether it can be batched: the code and the
    mode of its parts.
    """
    if not isinstance(func, nn.Module):
        return ()
    return tuple((type(x), _code(vars(x).get("forward")), x.training) for x in func.modules())


def _code(function: Any) -> object:
    return getattr(function, "__code__", None)
