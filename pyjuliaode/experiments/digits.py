"""Handwritten digits with the image networks of both papers, sized down for 8 x 8 pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..data import digits
from ..data.digits import N_IMAGES
from ..layer import NeuralODE
from . import models
from .base import Defaults, Training
from .config import RunConfig
from .settings import SEED, activation, choice, learning_rate, whole
from .trainer import Task, right_choices

PIXELS, CLASSES = 64, 10
SPAN = (1.0, 2.0)  # the Nesterov paper's, so that every model integrates the same times

# Channels of the state and of the hidden layers: between 8,300 and 8,700 parameters each.
_SIZES = {"node": (1, 29), "anode": (6, 21)}
_SECOND_ORDER_SIZE = (5, 16)


class WithTime(nn.Conv2d):
    """A convolution that sees t as one more plane: (B, c, H, W) -> (B, c_out, H, W)."""

    def __init__(self, n_in: int, n_out: int, width: int):
        super().__init__(n_in + 1, n_out, width, padding=width // 2)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        plane = t.to(h).expand(len(h), 1, *h.shape[2:])
        return super().forward(torch.cat([h, plane], dim=1))


class Field(nn.Module):
    """conv1x1 ReLU conv3x3 ReLU conv1x1, t in each: (B, n_in, H, W) -> (B, n_out, H, W)."""

    def __init__(self, n_in: int, n_out: int, hidden: int):
        super().__init__()
        self.first = WithTime(n_in, hidden, 1)
        self.second = WithTime(hidden, hidden, 3)
        self.third = WithTime(hidden, n_out, 1)

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        h = torch.relu(self.first(t, h))
        return self.third(t, torch.relu(self.second(t, h)))


class FirstOrder(nn.Module):
    """NODE and ANODE: the flow of the image, flattened, then fc: (B, 1, 8, 8) -> (B, 10)."""

    def __init__(self, ode: NeuralODE, n: int):
        super().__init__()
        self.ode = ode
        self.head = nn.Linear(n * PIXELS, CLASSES)

    @property
    def stats(self) -> Any:
        return self.ode.stats

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.ode(image).flatten(1))


class SecondOrder(nn.Module):
    """The other models; one network learns what joins the image, and the initial velocity.

    h(t0) = [image, n - 1 learned channels], h'(t0) = n learned channels; the head sees h only.
    """

    def __init__(self, ode: NeuralODE, n: int, stem: nn.Module):
        super().__init__()
        self.ode = ode
        self.stem = stem
        self.head = nn.Linear(n * PIXELS, CLASSES)

    @property
    def stats(self) -> Any:
        return self.ode.stats

    def forward(self, image: Tensor) -> Tensor:
        h0, dh0 = torch.cat([image, self.stem(image)], dim=1).chunk(2, dim=1)
        return self.head(self.ode(h0, dh0=dh0).flatten(1))


def stem(n: int, hidden: int) -> nn.Module:
    """conv1x1 conv3x3 conv1x1 with LeakyReLU between: (B, 1, H, W) -> (B, 2n - 1, H, W)."""
    return nn.Sequential(
        nn.Conv2d(1, hidden, 1),
        nn.LeakyReLU(0.3),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        nn.LeakyReLU(0.3),
        nn.Conv2d(hidden, 2 * n - 1, 1),
    )


def network(config: RunConfig) -> nn.Module:
    """The network for ``config.model``."""
    name, settings = config.model, config.settings
    n, hidden = _SIZES.get(name, _SECOND_ORDER_SIZE)
    field = Field(2 * n if name == "sonode" else n, n, hidden)
    choices = {
        "augment": n - 1,
        "activation": settings["activation"],
        "activation_velocity": models.GNESTEROV_SPEED,
        "variant": settings["variant"],
        "sign": -1,
    }
    ode = models.layer(models.dynamics(name, field, **choices), SPAN, config)
    if name in models.FIRST_ORDER:
        return FirstOrder(ode, n)
    return SecondOrder(ode, n, models.limited(stem(n, hidden), name))


class DigitsExperiment(Training):
    """Classify scikit-learn's 1,797 digits: 80 % to train, 20 % held out, cross entropy.

    tol 1e-3, Adam 1e-3 (heavy-ball paper), batch 64, gradient norm clipped at 10.
    """

    name = "digits"
    summary = "classify scikit-learn's digits (networks of heavy-ball fig. 6, Nesterov table 1)"
    defaults = Defaults(
        model="hbnode",
        epochs=20,
        tol=1e-3,
        settings={
            "lr": learning_rate(3e-3),
            "batch_size": whole(64),
            "data_seed": whole(0, 0, SEED),
            "activation": activation("tanh"),
            "variant": choice("paper", "published"),
        },
    )

    def work(self, config: RunConfig) -> int:
        _, hidden = _SIZES.get(config.model, _SECOND_ORDER_SIZE)
        batch = min(config.settings["batch_size"], N_IMAGES)
        return 9 * hidden * (hidden + 1) * PIXELS * batch

    def task(self, config: RunConfig) -> Task:
        data = digits(seed=config.settings["data_seed"])
        return Task(
            model=network(config),
            loss=nn.functional.cross_entropy,
            correct=right_choices,
            train=(data.train_x, data.train_y),
            test=(data.test_x, data.test_y),
            batch_size=config.settings["batch_size"],
            lr=config.settings["lr"],
            clip=10.0,
            info={
                "data": "scikit-learn digits",
                "train_samples": len(data.train_x),
                "test_samples": len(data.test_x),
                "t": list(SPAN),
                "dtype": "float32",
            },
        )


EXPERIMENT = DigitsExperiment()
