"""Image classification by a residual network and its momentum twin: Sander et al. 2021, table 2."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..data import Digits, digits, mnist
from ..errors import InvalidArgumentError
from ..momentum import MomentumNet
from .base import Defaults, Training
from .config import RunConfig
from .settings import SEED, WIDTH, choice, learning_rate, number, whole
from .trainer import Task, right_choices

CLASSES = 10
DATA = {"digits": "scikit-learn digits", "mnist": "MNIST"}


class Block(nn.Module):
    """f of a layer: conv3x3 BatchNorm ReLU conv3x3 BatchNorm, the shape of x kept.

    A BasicBlock without its skip connection, which is the network's, and without the ReLU after
    it, as in the paper's momentum networks.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(channels, channels, 1),
            nn.ReLU(),
            *_convolution(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _convolution(n_in: int, n_out: int, stride: int) -> Iterable[nn.Module]:
    yield nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
    yield nn.BatchNorm2d(n_out)


def network(config: RunConfig, stride: int) -> nn.Module:
    """(B, 1, H, W) -> (B, 10): a stem, two stages of ``blocks`` layers, the mean over the pixels.

    Both models have the same parameters under the same names: a residual network is the momentum
    network with gamma = 0. Between the stages the pixels are halved and the channels doubled.

    Arguments:
        stride: of the stem.
    """
    settings = config.settings
    width, blocks = settings["width"], settings["blocks"]
    momentum = config.model == "momentum"
    gamma, mode = (settings["gamma"], settings["mode"]) if momentum else (0.0, "backprop")

    def stage(channels: int) -> nn.Module:
        return MomentumNet([Block(channels) for _ in range(blocks)], gamma, mode=mode)

    return nn.Sequential(
        *_convolution(1, width, stride),
        nn.ReLU(),
        stage(width),
        *_convolution(width, 2 * width, 2),
        nn.ReLU(),
        stage(2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, CLASSES),
    )


class MomentumDigitsExperiment(Training):
    """Classify handwritten digits; the twins have equal parameters, and begin with equal ones.

    ``data`` is scikit-learn's 1,797 digits, of which 20 % are held out, or the full MNIST, whose
    28 x 28 pixels the stem halves; ``limit`` takes only so many of its training images, evenly
    spread (0: all). The paper's table 2 has ResNet-101 on CIFAR-10 and CIFAR-100.
    """

    name = "momentum-digits"
    summary = "a residual network and its momentum twin on digits (momentum networks table 2)"
    models = ("resnet", "momentum")
    defaults = Defaults(
        tol=None,
        method=None,
        model="momentum",
        epochs=10,
        settings={
            "data": choice(*DATA),
            "limit": whole(0, 0),
            "data_seed": whole(0, 0, SEED),
            "gamma": number(0.9, 0.0, 1.0),
            "mode": choice("reversible", "backprop"),
            "width": whole(16, 1, WIDTH),
            "blocks": whole(4, 1, 1000),
            "lr": learning_rate(1e-3),
            "batch_size": whole(64),
        },
    )

    def work(self, config: RunConfig) -> int:
        # either stage: twice the channels at a quarter of the pixels
        settings = config.settings
        pixels, images = {"digits": (8**2, 1437), "mnist": (14**2, 60_000)}[settings["data"]]
        return 9 * settings["width"] ** 2 * pixels * min(settings["batch_size"], images)

    def task(self, config: RunConfig) -> Task:
        data = self._data(config)
        return Task(
            model=network(config, stride=1 if data.train_x.shape[-1] < 20 else 2),
            loss=nn.functional.cross_entropy,
            correct=right_choices,
            train=(data.train_x, data.train_y),
            test=(data.test_x, data.test_y),
            batch_size=config.settings["batch_size"],
            lr=config.settings["lr"],
            info=self._info(config, data),
        )

    @staticmethod
    def _data(config: RunConfig) -> Digits:
        name, limit = config.settings["data"], config.settings["limit"]
        data = digits(seed=config.settings["data_seed"]) if name == "digits" else mnist()
        if limit > len(data.train_x):
            raise InvalidArgumentError(
                f"setting 'limit' must lie between 0 (all) and {len(data.train_x)}, got {limit}"
            )
        every = len(data.train_x) // limit if limit else 1
        few = slice(None, limit * every or None, every)
        return data._replace(train_x=data.train_x[few], train_y=data.train_y[few])

    @staticmethod
    def _info(config: RunConfig, data: Digits) -> dict[str, Any]:
        return {
            "data": DATA[config.settings["data"]],
            "train_samples": len(data.train_x),
            "test_samples": len(data.test_x),
            "dtype": "float32",
        }


EXPERIMENT = MomentumDigitsExperiment()
