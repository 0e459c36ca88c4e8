"""Problems with known solutions, and small fields, shared by the tests."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pyjuliaode as pjo

F64 = torch.float64


class Field(nn.Module):
    """A smooth time-dependent field on (B, 2) with parameters of order one, float64."""

    def __init__(self, width: int = 6, inputs: int = 2, outputs: int = 2):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs))
        self.to(F64)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return self.net(h) * torch.cos(2 * t) + 0.1 * torch.sin(t)


def sine(t: Tensor, y: Tensor) -> Tensor:
    """torchdiffeq's non-autonomous problem on [1, 8]; solution :func:`sine_solution`."""
    return 2 * y / t + t**4 * torch.sin(2 * t) - t**2 + 4 * t**3


def sine_solution(t: Tensor) -> Tensor:
    return (
        -0.5 * t**4 * torch.cos(2 * t)
        + 0.5 * t**3 * torch.sin(2 * t)
        + 0.25 * t**2 * torch.cos(2 * t)
        - t**3
        + 2 * t**4
        + (math.pi - 0.25) * t**2
    )


def linear_matrix() -> Tensor:
    """A 4 x 4 matrix with decaying and oscillating modes."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(4, 4, dtype=F64, generator=generator)
    return (a - a.T) - 0.2 * torch.eye(4, dtype=F64)


def models(seed: int = 0) -> dict[str, nn.Module]:
    """All seven dynamics with small float64 fields on (B, 2)."""
    torch.manual_seed(seed)
    return {
        "node": pjo.NODE(Field()),
        "anode": pjo.ANODE(Field(inputs=3, outputs=3)),
        "sonode": pjo.SONODE(Field(inputs=4)),
        "hbnode": pjo.HBNODE(Field()).to(F64),
        "ghbnode": pjo.GHBNODE(Field()).to(F64),
        "nesterovnode": pjo.NesterovNODE(Field()).to(F64),
        "gnesterovnode": pjo.GNesterovNODE(Field()).to(F64),
    }


def relative_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest relative error over tensors, each in its own norm."""
    found, wanted = [x.detach() for x in found], [x.detach() for x in wanted]
    return max(
        float((a - b).norm() / b.norm().clamp(min=1e-300)) if float(b.norm()) else float(a.norm())
        for a, b in zip(found, wanted, strict=True)
    )


def gradients(y: Tensor, inputs: list[Tensor], seed: int = 0) -> list[Tensor]:
    """Gradients of a fixed random functional of y; zero where there is none."""
    weight = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(seed))
    grads = torch.autograd.grad((weight * y).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]


# of the grids over all methods: what differs from another in its numbers alone
_RARELY = frozenset(
    {
        *("bosh3", "fehlberg2", "adaptive_heun", "euler", "midpoint", "heun2", "heun3"),
        *("explicit_adams", "dopri5 own", "bosh3 own"),
    }
)


def methods(*names: str) -> list[object]:
    """Methods as parameters of a test: those that only vary another are of the slow tests."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in _RARELY else n for n in names]
