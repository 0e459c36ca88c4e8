"""Tolerances as the user gives them, on the flat state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..problem import Structure


def tolerance(name: str, value: Any, structure: Structure, like: Tensor) -> float | Tensor:
    """A tolerance as a number or as a flat tensor (N,): per element, or per part of a tuple."""
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, (tuple, list)):
        if not structure.is_tuple or len(value) != len(structure.sizes):
            raise InvalidArgumentError(
                f"{name} has {len(value)} entries; a tuple of tolerances needs a tuple state of "
                "as many parts"
            )
        parts = [
            torch.as_tensor(v, dtype=torch.float64, device=like.device).expand(s).reshape(-1)
            for v, s in zip(value, structure.shapes, strict=True)
        ]
        return torch.cat(parts).to(like.abs().dtype)
    value = torch.as_tensor(value, device=like.device)
    if value.numel() == 1:
        return float(value)
    try:
        return value.expand(structure.shapes[0]).reshape(-1).to(like.abs().dtype)
    except RuntimeError:
        raise InvalidArgumentError(
            f"{name} has shape {tuple(value.shape)}, which does not fit the state's shape "
            f"{tuple(structure.shapes[0])}"
        ) from None
