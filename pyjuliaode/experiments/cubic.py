"""x -> -x^3 on a line: Momentum ResNet paper, figure 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import plotting
from ..momentum import MomentumNet
from .base import Defaults
from .config import RunConfig
from .folder import RunFolder
from .settings import STEPS, WIDTH, choice, learning_rate, number, whole
from .tied import TiedStudy, leaps, path

FLOOR = 1 / 7  # E x^6, x ~ U(-1, 1): the error of 0, the best map whose paths do not cross
N_TEST, N_PATHS = 2001, 13


class Cubic(TiedStudy):
    """Regression of -x^3 on x ~ U(-1, 1), which reverses the order of the inputs.

    Depth 15, 16 hidden, SGD on fresh batches of 200. Paths of a first-order flow on a line cannot
    cross: no increasing map is nearer to -x^3 than 0, with the error 1/7, "floor". gamma is 0.9
    as in the figure's caption; the published example has 0.99. The gradient's norm is clipped:
    without it, as published, the ResNet's parameters overflow from most seeds.
    """

    name = "cubic"
    summary = "learn x -> -x^3 with a momentum and a residual network (momentum fig. 1)"
    n = 1
    defaults = Defaults(
        tol=None,
        method=None,
        model="all",
        settings={
            "batch_size": whole(200),
            "depth": whole(15, 1, WIDTH),
            "hidden": whole(16, 1, WIDTH),
            "gamma": number(0.9, 0.0, 1.0),
            "mode": choice("backprop", "reversible"),
            "iterations": whole(2000, high=STEPS),
            "lr": learning_rate(0.01),
            "clip": number(1.0, 0.0, 1e6),
        },
    )

    def compute(self, config: RunConfig, progress: bool) -> dict[str, Any]:
        results = super().compute(config, progress)
        return {**results, "final": {**results["final"], "floor": FLOOR}}

    def work(self, config: RunConfig) -> int:
        return self.n * config.settings["hidden"] * config.settings["batch_size"]

    def optimizer(self, net: MomentumNet, name: str, config: RunConfig) -> torch.optim.Optimizer:
        return torch.optim.SGD(net.parameters(), lr=config.settings["lr"])

    def loss(self, net: MomentumNet, config: RunConfig) -> Tensor:
        x = 2 * torch.rand(config.settings["batch_size"], 1, device=config.device) - 1
        return _error(net, x)

    @torch.no_grad()
    def examine(self, net: MomentumNet, config: RunConfig) -> dict[str, Any]:
        # midpoints of equal parts, so that the mean is the integral to 1e-6
        x = (torch.arange(N_TEST, device=config.device) + 0.5)[:, None] * (2 / N_TEST) - 1
        final = {"mse": float(_error(net, x))}
        if net.gamma == 0:
            final["leaps"] = leaps(net, x)
        starts = torch.linspace(-1, 1, N_PATHS, device=config.device)[:, None]
        shown = x[:: N_TEST // 100]
        return {
            "final": final,
            "paths": path(net, starts).squeeze(-1).tolist(),
            "x": shown.squeeze(-1).tolist(),
            "y": net(shown).squeeze(-1).tolist(),
        }

    def draw(self, results: Mapping[str, Any], folder: RunFolder) -> None:
        figure = plotting.crossing(results["models"])
        folder.write("cubic.png", lambda path: plotting.save(figure, path))
        losses = {name: one["losses"] for name, one in results["models"].items()}
        what, title = "mean squared error of the batch", r"$x \mapsto -x^3$ (floor: 1/7)"
        curves = plotting.descent(losses, what, title, {"floor": FLOOR})
        folder.write("losses.png", lambda path: plotting.save(curves, path))


def _error(net: MomentumNet, x: Tensor) -> Tensor:
    return (net(x) + x**3).square().mean()


EXPERIMENT = Cubic()
