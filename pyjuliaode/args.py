"""Further arguments of a field: func(t, y, *args), with gradients to every tensor among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ._torch import pytree
from .arguments import shown
from .errors import InvalidArgumentError


@dataclass(frozen=True)
class Args:
    """The arguments as the user gave them, and the tensors in them.

    Attributes:
        values: tuple of anything: tensors, numbers, and lists, tuples and dicts of such.
        leaves, spec: the same, flattened.
        places: which leaves are tensors that require a gradient.
    """

    values: tuple[Any, ...] = ()
    leaves: tuple[Any, ...] = ()
    spec: Any = None
    places: tuple[int, ...] = ()

    @classmethod
    def of(cls, args: Any) -> Args:
        """Raises:
        InvalidArgumentError: no tuple or list.
        """
        if isinstance(args, tuple) and not args:
            return _NONE
        if not isinstance(args, (tuple, list)):
            raise InvalidArgumentError(
                f"args must be a tuple, as func is called func(t, y, *args), got {shown(args)}; "
                "one argument is args=(c,)"
            )
        leaves, spec = pytree.tree_flatten(tuple(args))
        places = tuple(i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad)
        return cls(tuple(args), tuple(leaves), spec, places)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that require a gradient, each once."""
        return tuple({id(x): x for x in (self.leaves[i] for i in self.places)}.values())

    def with_tensors(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """The arguments with others in place of :attr:`tensors`."""
        if not self.places:
            return self.values
        new = {id(x): y for x, y in zip(self.tensors, tensors, strict=True)}
        leaves = [new.get(id(x), x) if isinstance(x, Tensor) else x for x in self.leaves]
        return pytree.tree_unflatten(leaves, self.spec)


_NONE = Args()
