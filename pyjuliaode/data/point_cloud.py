"""The point cloud of the heavy-ball and Nesterov papers: a disc inside an annulus."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, unknown_name

INNER = (0.0, 0.5)
OUTER = (0.85, 1.0)
PROTOCOLS = ("heavy-ball", "nesterov")


class PointCloud(NamedTuple):
    """Points of the plane and their class.

    Attributes:
        points: shape (N, 2); the inner points come first.
        labels: shape (N, 1); -1 for the disc, +1 for the annulus.
    """

    points: Tensor
    labels: Tensor


def point_cloud(
    n_inner: int = 40,
    n_outer: int = 80,
    protocol: str = "heavy-ball",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PointCloud:
    """A disc of radius 0.5 (label -1) inside the annulus 0.85 < r < 1 (label +1).

    Arguments:
        n_inner, n_outer: number of points in the disc and in the annulus. Both papers write 40
            and 80; the heavy-ball paper's own runs train on 22 and 28.
        protocol: "heavy-ball" draws uniformly in area (rejection from the square), "nesterov"
            draws the radius as (R - r) sqrt(U) + r, which is not uniform in the annulus.
        seed: the cloud is a function of it.
        dtype: of the points and labels; the cloud is drawn in float64 whatever this is.

    Returns:
        :class:`PointCloud` with points (n_inner + n_outer, 2).

    Raises:
        InvalidArgumentError: a negative count or an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("point cloud protocol", protocol, PROTOCOLS)
    if n_inner < 0 or n_outer < 0:
        raise InvalidArgumentError(f"counts must not be negative, got {n_inner} and {n_outer}")
    generator = torch.Generator().manual_seed(seed)
    draw = _by_rejection if protocol == "heavy-ball" else _by_radius
    points = torch.cat([draw(n_inner, *INNER, generator), draw(n_outer, *OUTER, generator)])
    labels = torch.cat([-torch.ones(n_inner, 1), torch.ones(n_outer, 1)])
    return PointCloud(points.to(dtype), labels.to(dtype))


def _by_rejection(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """``n`` points uniform in the area low <= r <= high, shape (n, 2)."""
    kept = torch.empty(0, 2, dtype=torch.float64)
    while len(kept) < n:
        square = 2 * torch.rand(4 * n, 2, generator=generator, dtype=torch.float64) - 1
        radius = square.norm(dim=1)
        kept = torch.cat([kept, square[(radius >= low) & (radius <= high)]])
    return kept[:n]


def _by_radius(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """``n`` points with radius (high - low) sqrt(U) + low and uniform angle, shape (n, 2)."""
    uniform = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    radius = (high - low) * uniform[:, 0].sqrt() + low
    angle = 2 * math.pi * uniform[:, 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
