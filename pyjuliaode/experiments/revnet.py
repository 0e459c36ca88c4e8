"""RevNet: a residual network on two halves, each of which moves the other (Gomez et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..errors import InvalidArgumentError


class RevNet(nn.Module):
    """x1 <- x1 + f_k(x2), x2 <- x2 + g_k(x1), k = 0, 1, ..., both from x; returns their mean.

    The activations are duplicated, as in section 5 of the Momentum ResNet paper, so that f_k and
    g_k act on the whole of x: at equal depth there are twice the parameters of a ResNet.

    Arguments:
        functions: the modules f_0, g_0, f_1, g_1, ..., each (x, *args) -> x + f(x), their skip
            connection inside.

    Raises:
        InvalidArgumentError: their number is odd, or 0.
    """

    def __init__(self, functions: Iterable[nn.Module]):
        super().__init__()
        self.functions = nn.ModuleList(functions)
        if len(self.functions) % 2 or not len(self.functions):
            raise InvalidArgumentError(
                f"functions must be pairs of modules, got {len(self.functions)} of them"
            )

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """The mean of x1 and x2 after the last layer, of the shape of x."""
        x1 = x2 = x
        for f, g in zip(self.functions[::2], self.functions[1::2], strict=True):
            x1 = x1 + f(x2, *args) - x2
            x2 = x2 + g(x1, *args) - x1
        return (x1 + x2) / 2
