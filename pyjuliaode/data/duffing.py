"""A generated record: the forced Duffing oscillator, the equation behind the Silverbox."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .record import Record

SUBSTEPS = 10  # Runge-Kutta steps between two samples


def duffing(
    n: int = 1000,
    seed: int = 0,
    *,
    a: float = -0.5,
    b: float = -0.05,
    c: float = -0.1,
    d: float = 0.5,
    harmonics: int = 20,
) -> Record:
    """x'' = a x + b x^3 + c x' + d u(t) from rest, sampled at t = 0, 1, ..., n - 1.

    The input is a multisine: ``harmonics`` sines of equal amplitude and random phase, at
    frequencies spread evenly up to 0.2 cycles per sample, with standard deviation 1.

    Arguments:
        n: number of samples, at least 2.
        seed: of the phases; the record is a function of it.
        a, b, c, d: stiffness, cubic stiffness, damping, gain.
        harmonics: number of sines.

    Returns:
        :class:`Record` named "generated Duffing oscillator"; u and y are (n,).

    Raises:
        InvalidArgumentError: fewer than two samples or no sine.
    """
    if n < 2 or harmonics < 1:
        raise InvalidArgumentError(f"need n >= 2 and harmonics >= 1, got {n} and {harmonics}")
    generator = torch.Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(harmonics, generator=generator, dtype=torch.float64)
    omega = 2 * math.pi * 0.2 * torch.arange(1, harmonics + 1, dtype=torch.float64) / harmonics

    half_steps = torch.arange(2 * SUBSTEPS * (n - 1) + 1, dtype=torch.float64) / (2 * SUBSTEPS)
    u = math.sqrt(2 / harmonics) * torch.sin(half_steps[:, None] * omega + phase).sum(dim=1)
    y = _integrate((d * u).tolist(), a, b, c)
    return Record("generated Duffing oscillator", u[:: 2 * SUBSTEPS].clone(), y, 1.0)


def _integrate(force: list[float], a: float, b: float, c: float) -> Tensor:
    """The classical Runge-Kutta method; ``force`` is given at every half step."""
    step = 1.0 / SUBSTEPS

    def rhs(x: float, v: float, f: float) -> tuple[float, float]:
        return v, a * x + b * x**3 + c * v + f

    x = v = 0.0
    samples = [x]
    for i in range(0, len(force) - 1, 2):
        k1 = rhs(x, v, force[i])
        k2 = rhs(x + step / 2 * k1[0], v + step / 2 * k1[1], force[i + 1])
        k3 = rhs(x + step / 2 * k2[0], v + step / 2 * k2[1], force[i + 1])
        k4 = rhs(x + step * k3[0], v + step * k3[1], force[i + 2])
        x += step / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0])
        v += step / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1])
        if (i + 2) % (2 * SUBSTEPS) == 0:
            samples.append(x)
    return torch.tensor(samples, dtype=torch.float64)
