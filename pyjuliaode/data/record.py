"""An input-output record of a system, as system identification uses it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Record(NamedTuple):
    """A measured or generated input-output record.

    Attributes:
        name: what the data is; every title and metric bears it.
        u: input, shape (N,), float64.
        y: output, shape (N,), float64.
        sample_rate: samples per second.
    """

    name: str
    u: Tensor
    y: Tensor
    sample_rate: float
