"""Nested rings: Momentum ResNet paper, figure 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import plotting
from ..momentum import MomentumNet
from .base import Defaults
from .config import RunConfig
from .folder import RunFolder
from .settings import STEPS, WIDTH, choice, learning_rate, number, whole
from .tied import MOMENTUM, TiedStudy, leaps, path

SHOWN, N_GRID = 150, 121  # points of a ring in the figure, and of an axis of the regions


def rings(n: int, count: int, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """``n`` points on each of ``count`` rings, r = 3 (k / 2 + 0.2 U), k = 1, 2, ..., any angle.

    Returns:
        Points (n count, 2), the innermost first, and classes (n count,), 0 and 1 in turn.
    """
    k = torch.arange(1, count + 1, device=device).repeat_interleave(n)
    radius = 3 * (k / 2 + 0.2 * torch.rand(len(k), device=device))
    angle = 2 * math.pi * torch.rand(len(k), device=device)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return points, (k - 1) % 2


class Rings(TiedStudy):
    """Separate rings of alternating classes; the two numbers of the last x are the logits.

    Depth 15, 16 hidden, 500 fresh points a ring and step. Adam; its learning rate is halved after
    half of the iterations and divided by ten after three quarters, as published for the ResNet.
    The gradient's norm is clipped, as is not published: without it the loss of either network
    jumps, and how it ends is chance. Published are lr=0.2 and clip=0.

    The paper has the ResNet fail, since paths of a first-order flow cannot cross. A ResNet that is
    a homeomorphism, "iresnet", does on four rings (accuracy 0.8). One that is free to leap from one
    side of a ring to the other does not, once clipping makes it train: over eight seeds it reaches
    0.96 and the momentum network 0.98. "leaps" is the share of points at which a layer reverses
    orientation, as no step along a flow does.
    """

    name = "rings"
    summary = "separate nested rings with a momentum and a residual network (momentum fig. 5)"
    n = 2
    defaults = Defaults(
        tol=None,
        method=None,
        model="all",
        settings={
            "rings": whole(4, 2, 1000),
            "points": whole(500),
            "depth": whole(15, 1, WIDTH),
            "hidden": whole(16, 1, WIDTH),
            "gamma": number(0.99, 0.0, 1.0),
            "mode": choice("backprop", "reversible"),
            "iterations": whole(3000, high=STEPS),
            "lr": learning_rate(0.1),
            "resnet_lr": learning_rate(0.01),
            "clip": number(1.0, 0.0, 1e6),
        },
    )

    def work(self, config: RunConfig) -> int:
        settings = config.settings
        return self.n * settings["hidden"] * settings["points"] * settings["rings"]

    def optimizer(self, net: MomentumNet, name: str, config: RunConfig) -> torch.optim.Optimizer:
        lr = config.settings["lr" if name == MOMENTUM else "resnet_lr"]
        return torch.optim.Adam(net.parameters(), lr=lr)

    def rate(self, progress: float) -> float:
        return 1.0 if progress < 0.5 else 0.5 if progress < 0.75 else 0.05

    def loss(self, net: MomentumNet, config: RunConfig) -> Tensor:
        points, classes = self._points(config, config.settings["points"])
        return nn.functional.cross_entropy(net(points), classes)

    @torch.no_grad()
    def examine(self, net: MomentumNet, config: RunConfig) -> dict[str, Any]:
        points, classes = self._points(config, 2000)
        logits = net(points)
        final = {
            "accuracy": float((logits.argmax(1) == classes).float().mean()),
            "loss": float(nn.functional.cross_entropy(logits, classes)),
        }
        if net.gamma == 0:
            final["leaps"] = leaps(net, points)
        shown, labels = self._points(config, SHOWN)
        layers = [round(i * net.depth / 5) for i in range(6)]
        window = 1.1 * float(points.abs().max())
        axis = torch.linspace(-window, window, N_GRID, device=points.device)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
        return {
            "final": final,
            "layers": layers,
            "clouds": path(net, shown)[layers].tolist(),
            "labels": labels.tolist(),
            "window": window,
            "regions": net(grid.view(-1, 2)).argmax(1).view(N_GRID, N_GRID).tolist(),
        }

    def draw(self, results: Mapping[str, Any], folder: RunFolder) -> None:
        models = results["models"]
        accuracies = {name: results["final"][name]["accuracy"] for name in models}
        figure = plotting.separation(models, accuracies)
        folder.write("rings.png", lambda path: plotting.save(figure, path))
        losses = {name: one["losses"] for name, one in models.items()}
        curves = plotting.descent(losses, "cross-entropy of the batch", "nested rings")
        folder.write("losses.png", lambda path: plotting.save(curves, path))

    @staticmethod
    def _points(config: RunConfig, n: int) -> tuple[Tensor, Tensor]:
        return rings(n, config.settings["rings"], config.device)


EXPERIMENT = Rings()
