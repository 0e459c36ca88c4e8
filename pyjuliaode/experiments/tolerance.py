"""NFE and errors of all models against the tolerance, on one fixed network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import plotting
from ..data import point_cloud
from ..progress import progress_bar
from . import models
from .base import ALL, Defaults, Study
from .config import RunConfig
from .folder import RunFolder
from .point_cloud import network
from .settings import activation, choice, number

SPAN = (1.0, 2.0)
REFERENCE_FACTOR = 1e-2  # tolerance of the reference over the smallest one measured


class NFEvsTolerance(Study):
    """What a tolerance costs and gives, forward and backward.

    The point cloud's network at its initial values times ``gain`` (1 is an almost linear flow
    that tells little), float64, t in [1, 2], 120 points; the error is that of h(T) and of the
    gradient of the mean of |h(T)|^2, relative to a solve with a hundredth of the smallest
    tolerance. ``tol`` is that smallest tolerance; the largest is 1e-2. ELU's second derivative
    jumps, so that errors fall more slowly than the tolerance, those of the gradient most.
    """

    name = "nfe-vs-tolerance"
    summary = "NFE and errors of all models against the tolerance, on a fixed network"
    models = (ALL, *models.MODELS)
    defaults = Defaults(
        model=ALL,
        tol=1e-9,
        tols=(1e-12, 1e-2),
        settings={
            "gain": number(2.0, 0.0, 1e3, above=True),
            "activation": activation("tanh"),
            "variant": choice("paper", "published"),
        },
    )

    def work(self, config: RunConfig) -> int:
        return 20**2 * 120  # of the widest field

    def compute(self, config: RunConfig, progress: bool) -> dict[str, Any]:
        chosen = list(models.MODELS) if config.model == ALL else [config.model]
        tolerances = [tol for tol in (10.0**-k for k in range(2, 15)) if tol >= 0.99 * config.tol]
        rows: list[dict[str, Any]] = []
        total = len(chosen) * (len(tolerances) + 1)
        with progress_bar(total, "solve", shown=progress) as bar:
            for name in chosen:
                bar.set_description(name)
                h, gradient, _ = self._solve(name, config.tol * REFERENCE_FACTOR, config)
                bar.update()
                for tol in tolerances:
                    rows.append(self._row(name, tol, config, h, gradient))
                    bar.update()
        return {"rows": rows, "final": rows[-1] if len(chosen) == 1 else _last(rows)}

    def draw(self, results: Mapping[str, Any], folder: RunFolder) -> None:
        figure = plotting.nfe_vs_tolerance(results["rows"], "untrained network, 120 points")
        folder.write("nfe-vs-tolerance.png", lambda path: plotting.save(figure, path))

    def _row(
        self, name: str, tol: float, config: RunConfig, h: Tensor, gradient: Tensor
    ) -> dict[str, Any]:
        found, found_gradient, stats = self._solve(name, tol, config)
        return {
            "model": name,
            "tol": tol,
            "nfe_forward": stats.nfe_forward,
            "nfe_backward": stats.nfe_backward,
            "sequential_forward": stats.sequential_forward,
            "sequential_backward": stats.sequential_backward,
            "error": ((found - h).norm() / h.norm()).item(),
            "gradient_error": ((found_gradient - gradient).norm() / gradient.norm()).item(),
            "backend": stats.backend,
            "adjoint": stats.adjoint,
        }

    @staticmethod
    def _solve(name: str, tol: float, config: RunConfig) -> tuple[Tensor, Tensor, Any]:
        """h(T), the gradient of all parameters of the flow as one vector, and the cost."""
        torch.manual_seed(config.seed)
        ode = network(replace(config, model=name, tol=tol), SPAN, with_time=True).ode.double()
        with torch.no_grad():
            for parameter in ode.parameters():
                parameter.mul_(config.settings["gain"] if parameter.dim() > 1 else 1.0)
        h = ode(point_cloud(seed=config.seed, dtype=torch.float64).points)
        h.square().sum(dim=1).mean().backward()
        gradients = [p.grad.flatten() for p in ode.parameters() if p.grad is not None]
        return h.detach(), torch.cat(gradients), ode.stats


def _last(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the smallest tolerance for each model."""
    return {row["model"]: row for row in rows}


EXPERIMENT = NFEvsTolerance()
