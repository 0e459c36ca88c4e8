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
            _expanded(f"{name}[{i}]", torch.as_tensor(v, dtype=torch.float64), shape)
            for i, (v, shape) in enumerate(zip(value, structure.shapes, strict=True))
        ]
        return torch.cat(parts).to(like.abs())
    value = torch.as_tensor(value)
    if value.numel() == 1:
        return float(value)
    if structure.is_tuple:
        raise InvalidArgumentError(
            f"{name} is a tensor and the state a tuple: pass a tuple of {len(structure.shapes)} "
            "tolerances, or one number"
        )
    return _expanded(name, value, structure.shapes[0]).to(like.abs())


def _expanded(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return value.expand(shape).reshape(-1)
    except RuntimeError:
        raise InvalidArgumentError(
            f"{name} has shape {tuple(value.shape)}, which does not fit the state's shape "
            f"{tuple(shape)}"
        ) from None
