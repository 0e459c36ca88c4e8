"""Tensors whose numbers a traced function reads: a trace keeps the numbers, not the tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_LISTING = {"tolist", "numpy", "__array__"}
_OPERATIONS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default}


class UnknownRead(Exception):
    """The numbers of a tensor were read that may be other ones in every call."""


class Numbers:
    """Tensors with the numbers that they held."""

    def __init__(self) -> None:
        self._held: list[tuple[Tensor, Tensor]] = []

    def note(self, tensors: Iterator[Tensor]) -> None:
        self._held += [(x, x.detach().clone()) for x in tensors]

    def unchanged(self) -> bool:
        return all(torch.equal(x, was) for x, was in self._held)


@contextmanager
def numbers_read(known: Callable[[Tensor], bool]) -> Iterator[Numbers]:
    """Within, what is read by ``item``, by branches, ``tolist``, ``numpy`` is noted; to be around a
    trace, which refuses branches on what it computes.

    Raises:
        UnknownRead: ``tolist`` or ``numpy`` of a tensor that is not ``known``.
    """
    numbers = Numbers()
    with _Listing(numbers, known), _Reading(numbers):
        yield numbers


class _Reading(TorchDispatchMode):
    def __init__(self, numbers: Numbers):
        super().__init__()
        self._numbers = numbers

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _OPERATIONS:
            self._numbers.note(x for x in args if isinstance(x, Tensor))
        return func(*args, **(kwargs or {}))


class _Listing(TorchFunctionMode):
    def __init__(self, numbers: Numbers, known: Callable[[Tensor], bool]):
        super().__init__()
        self._numbers, self._known = numbers, known

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LISTING and isinstance(args[0], Tensor):
            if not self._known(args[0]):
                raise UnknownRead(f"it reads the numbers of its state or of a result ({name})")
            self._numbers.note(iter(args[:1]))
        return func(*args, **(kwargs or {}))
