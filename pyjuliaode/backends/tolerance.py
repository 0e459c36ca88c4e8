"""Tolerances as the user gives them, on the flat state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arguments import as_float
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
            _expanded(f"{name}[{i}]", _of_part(v), shape)
            for i, (v, shape) in enumerate(zip(value, structure.shapes, strict=True))
        ]
        return torch.cat(parts).to(like.abs())
    if (one := as_float(value)) is not None:
        return one
    value = torch.as_tensor(value)
    if structure.is_tuple:
        raise InvalidArgumentError(
            f"{name} is a tensor and the state a tuple: pass a tuple of {len(structure.shapes)} "
            "tolerances, or one number"
        )
    return _expanded(name, value, structure.shapes[0]).to(like.abs())


def _of_part(value: Any) -> Tensor:
    """A number, tensor or array as a tensor of float64."""
    one = as_float(value)
    if one is not None and not isinstance(value, Tensor):
        return torch.tensor(one, dtype=torch.float64)
    return torch.as_tensor(value, dtype=torch.float64)


def _expanded(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return value.expand(shape).reshape(-1)
    except RuntimeError:
        raise InvalidArgumentError(
            f"{name} has shape {tuple(value.shape)}, which does not fit the state's shape "
            f"{tuple(shape)}"
        ) from None
