"""What ``pyjuliaode crosscheck`` solves: the package's models, untrained, from data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data import digits, point_cloud
from ..dynamics import DYNAMICS, Dynamics
from ..errors import unknown_name

SPAN, N_TIMES = (1.0, 2.0), 11  # the Nesterov models cannot start at 0
HIDDEN = 16
GAIN = 2.0  # times the initial weights, with which the flow is almost linear
N_DIGITS = 8


class Problem(NamedTuple):
    """A model with its data.

    Attributes:
        title: one line that says what it is.
        func: the dynamics, float64.
        y0: initial state (K, B, D), float64.
        t: output times, shape (11,).
    """

    title: str
    func: Dynamics
    y0: Tensor
    t: Tensor


class Field(nn.Module):
    """A smooth network f(t, h): (..., n_in) -> (..., n_out)."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_in + 1, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, n_out))

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return self.net(torch.cat([h, t.to(h).expand(*h.shape[:-1], 1)], dim=-1))


def _points() -> tuple[str, Tensor]:
    cloud = point_cloud(8, 12, dtype=torch.float64)
    return "20 points of the point cloud", cloud.points


def _images() -> tuple[str, Tensor]:
    images = digits().test_x[:N_DIGITS].flatten(start_dim=1).double()
    return f"{N_DIGITS} handwritten digits of 64 pixels", images


PROBLEMS = {"digits": _images, "point-cloud": _points}


def build(model: str, problem: str, seed: int) -> Problem:
    """A model by its name on a problem by its name; the weights are a function of the seed.

    Raises:
        InvalidArgumentError: an unknown name.
        UnsupportedError: the data is not installed.
    """
    if model not in DYNAMICS:
        raise unknown_name("model", model, DYNAMICS)
    if problem not in PROBLEMS:
        raise unknown_name("problem", problem, PROBLEMS)
    what, h0 = PROBLEMS[problem]()
    n = h0.shape[-1] + (model == "anode")
    torch.manual_seed(seed)
    field = Field(2 * n if model == "sonode" else n, n)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(GAIN if parameter.dim() > 1 else 1.0)
    func = DYNAMICS[model](field).double()
    y0 = func.initial_state(h0, t0=SPAN[0]).detach()
    return Problem(f"{model} on {what}", func, y0, torch.linspace(*SPAN, N_TIMES).double())
