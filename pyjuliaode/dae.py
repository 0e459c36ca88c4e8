"""SemiExplicitDAE: a user's own system with algebraic equations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .errors import InvalidArgumentError
from .problem import State


class SemiExplicitDAE(nn.Module):
    """mass * dy/dt = func(t, y), with zeros in ``mass`` where the equation is algebraic.

    Semi-explicit systems of index 1 only: the algebraic equations must determine the algebraic
    variables (their Jacobian with respect to these is invertible). y0 has to satisfy them, or
    ``options={"initialization": "brown"}`` has its algebraic part solved for. Gradients with
    respect to y0 are those of the differential variables; they are zero for algebraic ones.
    The Julia backend solves it, with implicit methods: "Rodas5P" and "FBDF", and without
    gradients others such as "RadauIIA5".

    Arguments:
        func: ``func(t, y)``, a module or callable, of the structure of y0.
        mass: the diagonal of the mass matrix: a tensor that broadcasts to y0, or a tuple of such
            for a tuple state.

    Raises:
        InvalidArgumentError: func is not callable, or mass is no tensor or tuple of tensors.
    """

    def __init__(self, func: Callable[[Tensor, State], State], mass: State):
        super().__init__()
        if not callable(func):
            raise InvalidArgumentError(
                f"func must be callable as func(t, y), got {type(func).__name__}"
            )
        parts = mass if isinstance(mass, (tuple, list)) else (mass,)
        if not parts or not all(isinstance(m, Tensor) for m in parts):
            raise InvalidArgumentError(f"mass must be a tensor or a tuple of tensors, got {mass!r}")
        self.func = func
        self._tuple = isinstance(mass, (tuple, list))
        for i, part in enumerate(parts):
            self.register_buffer(f"mass_{i}", torch.as_tensor(part), persistent=False)
        self._count = len(parts)

    def mass_of(self, y0: State) -> State:
        """The diagonal of the mass matrix."""
        parts = tuple(getattr(self, f"mass_{i}") for i in range(self._count))
        return parts if self._tuple else parts[0]

    def forward(self, t: Tensor, y: State) -> State:
        return self.func(t, y)
