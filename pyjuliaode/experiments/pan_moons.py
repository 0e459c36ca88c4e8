"""Two moons, as the code of the PAN paper trains on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._install import install_command
from ..errors import UnsupportedError
from ..layer import NeuralODE
from . import models
from .base import Defaults, Training
from .config import RunConfig
from .settings import SEED, WIDTH, learning_rate, number, whole
from .trainer import Task, right_choices

SPAN = (0.0, 1.0)


class Network(nn.Module):
    """The flow alone: its end state is the logits, (B, 2) -> (B, 2)."""

    def __init__(self, ode: NeuralODE):
        super().__init__()
        self.ode = ode

    @property
    def stats(self) -> Any:
        return self.ode.stats

    def forward(self, x: Tensor) -> Tensor:
        return self.ode(x)


class Field(nn.Module):
    """fc tanh fc, autonomous: (..., 2) -> (..., 2)."""

    def __init__(self, hidden: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return self.net(h)


class PanMoonsExperiment(Training):
    """Tell two moons apart with a flow of the plane, by PAN or another ``method``.

    10,000 points with noise 0.2, batches of 64, Adam, three epochs, float32, cross entropy of
    the end state, t in [0, 1]; tested on 2,000 other points.
    """

    name = "pan-moons"
    summary = "two moons by a flow, trained through PAN or another method (PAN's code)"
    models = ("node",)
    defaults = Defaults(
        model="node",
        method="pan",
        epochs=3,
        tol=1e-3,
        settings={
            "lr": learning_rate(1e-3),
            "batch_size": whole(64),
            "hidden": whole(64, 1, WIDTH),
            "points": whole(10_000, 2),
            "noise": number(0.2, 0.0, 1e3),
            "data_seed": whole(0, 0, SEED),
        },
    )

    def work(self, config: RunConfig) -> int:
        settings = config.settings
        return 2 * settings["hidden"] * min(settings["batch_size"], settings["points"])

    def task(self, config: RunConfig) -> Task:
        settings, seed = config.settings, config.settings["data_seed"]
        field = Field(settings["hidden"])
        train = _moons(settings["points"], settings["noise"], seed)
        test = _moons(2_000, settings["noise"], seed + 1)
        return Task(
            model=Network(models.layer(models.dynamics(config.model, field), SPAN, config)),
            loss=nn.functional.cross_entropy,
            correct=right_choices,
            train=train,
            test=test,
            batch_size=settings["batch_size"],
            lr=settings["lr"],
            info={
                "data": "two moons of scikit-learn",
                "train_samples": len(train[0]),
                "test_samples": len(test[0]),
                "t": list(SPAN),
                "dtype": "float32",
            },
        )


def _moons(points: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import make_moons
    except ImportError as error:
        raise UnsupportedError(
            f"the moons come with scikit-learn: {install_command('experiments')}"
        ) from error
    x, labels = make_moons(points, noise=noise, random_state=seed)
    return torch.from_numpy(x).float(), torch.from_numpy(labels)


EXPERIMENT = PanMoonsExperiment()
