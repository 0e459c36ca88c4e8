"""Learning to optimise the Lasso: Momentum ResNet paper, figure 10."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import plotting
from ..momentum import MomentumNet
from ..progress import Bar, progress_bar
from .base import ALL, Defaults, Study
from .config import RunConfig
from .descent import descend
from .folder import RunFolder
from .lasso import fista, lipschitz, objective, soft_threshold
from .revnet import RevNet
from .settings import STEPS, WIDTH, learning_rate, number, numbers, whole

ROWS, COLUMNS = 16, 32  # of D
N_TEST = 1000
ISTA, LISTA, MOMENTUM, REVNET = "ista", "lista", "momentum", "revnet"


class Iteration(nn.Module):
    """g(x, y) = ST(W1 x + W2 y, eta lambda), with the weights of a step of ISTA to begin with.

    (B, 32), (B, 16) -> (B, 32); eta = 1 / |D|^2, W1 = I - eta D^T D, W2 = eta D^T.
    """

    def __init__(self, dictionary: Tensor, penalty: float):
        super().__init__()
        eta, gram = 1 / lipschitz(dictionary), dictionary.T @ dictionary
        self.w1 = nn.Parameter(torch.eye(len(gram)).to(gram) - eta * gram)
        self.w2 = nn.Parameter(eta * dictionary.T)
        self.threshold = eta * penalty

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return soft_threshold(x @ self.w1.T + y @ self.w2.T, self.threshold)


def network(
    name: str, depth: int, gamma: float, dictionary: Tensor, penalty: float
) -> MomentumNet | RevNet:
    """``depth`` iterations of weights of their own: (x, y) -> x, from x as ISTA has it.

    ISTA and LISTA are x <- g(x, y), the momentum network with gamma = 0; the functions of the
    others are f = g - x.
    """
    count = 2 * depth if name == REVNET else depth
    layers = [Iteration(dictionary, penalty) for _ in range(count)]
    if name == REVNET:
        return RevNet(layers)
    return MomentumNet(layers, gamma if name == MOMENTUM else 0.0, residual=False)


def samples(n: int, dictionary: Tensor) -> Tensor:
    """y = u / |D^T u|_inf, u normal, (n, 16): where lambda >= 1 the solution is 0."""
    u = torch.randn(n, len(dictionary), device=dictionary.device)
    return u / (u @ dictionary).abs().amax(1, keepdim=True)


class Lista(Study):
    """F(x) - min F on 1000 test samples after training on the mean of F, against depth.

    D is 16 x 32, normal, with columns of norm 1; lambda = 0.1; every network begins as ISTA, from
    x = 0. Every layer has its own W1 and W2, the threshold is fixed. Not as in the paper: Adam
    with a learning rate that falls to 0 as a half cosine, a clipped gradient and 1000 steps of 256
    fresh samples: it takes LISTA of 5 layers to 0.014 above the minimum, where SGD (0.001, 10,000
    steps of 1000) ends at 0.060. gamma is not stated there: "gammas" lists some. "ista" is not
    trained.
    """

    name = "lista"
    summary = "learn to solve the Lasso with LISTA, momentum networks, RevNet (momentum fig. 10)"
    models = (ALL, ISTA, LISTA, MOMENTUM, REVNET)
    defaults = Defaults(
        tol=None,
        method=None,
        model="all",
        settings={
            "depths": numbers("2,5,10,20", whole(1, 1, WIDTH)),
            "gammas": numbers("0.1,0.5", number(0.5, 0.0, 1.0)),
            "penalty": number(0.1, 0.0, 1e3, above=True),
            "iterations": whole(1000, high=STEPS),
            "batch_size": whole(256),
            "lr": learning_rate(3e-3),
            "clip": number(1.0, 0.0, 1e6),
        },
    )

    def work(self, config: RunConfig) -> int:
        return COLUMNS**2 * config.settings["batch_size"]

    def compute(self, config: RunConfig, progress: bool) -> dict[str, Any]:
        settings = config.settings
        depths = [int(depth) for depth in settings["depths"].split(",")]
        names = self.models[1:] if config.model == ALL else (config.model,)
        cases = [(name, 0.0) for name in names if name != MOMENTUM]
        if MOMENTUM in names:
            cases += [(MOMENTUM, float(gamma)) for gamma in settings["gammas"].split(",")]
        torch.manual_seed(config.seed)
        dictionary = torch.randn(ROWS, COLUMNS, device=config.device)
        dictionary /= dictionary.norm(dim=0)
        test = samples(N_TEST, dictionary)
        penalty = settings["penalty"]
        best = fista(test, dictionary, penalty)
        optimum = float(objective(best, test.double(), dictionary.double(), penalty).mean())
        total = sum(name != ISTA for name, _ in cases) * len(depths) * settings["iterations"]
        with progress_bar(total, "step", shown=progress) as bar:
            rows = [
                self._row(case, depth, dictionary, test, optimum, config, bar)
                for case in cases
                for depth in depths
            ]
        final = {
            series: {f"depth {r['depth']}": r["excess"] for r in rows if r["series"] == series}
            for series in dict.fromkeys(row["series"] for row in rows)
        }
        at_zero = float(test.square().sum(1).mean() / 2)
        return {"optimum": optimum, "loss_of_0": at_zero, "rows": rows, "final": final}

    def draw(self, results: Mapping[str, Any], folder: RunFolder) -> None:
        figure = plotting.excess_loss(results["rows"], "the Lasso, $D$ of 16 × 32")
        folder.write("lista.png", lambda path: plotting.save(figure, path))

    @staticmethod
    def _row(
        case: tuple[str, float],
        depth: int,
        dictionary: Tensor,
        test: Tensor,
        optimum: float,
        config: RunConfig,
        bar: Bar,
    ) -> dict[str, Any]:
        """One network, trained and tested."""
        (name, gamma), settings = case, config.settings
        series = f"momentum, γ = {gamma:g}" if name == MOMENTUM else plotting.label(name)
        bar.set_description(f"{series}, depth {depth}")
        torch.manual_seed(config.seed + 1)  # of the batches, which are the same for all
        net = network(name, depth, gamma, dictionary, settings["penalty"])

        def loss(y: Tensor) -> Tensor:
            x = net(y.new_zeros(len(y), COLUMNS), y)
            return objective(x, y, dictionary, settings["penalty"]).mean()

        optimizer = torch.optim.Adam(net.parameters(), lr=settings["lr"])
        began = time.perf_counter()
        losses = descend(
            lambda: loss(samples(settings["batch_size"], dictionary)),
            optimizer,
            0 if name == ISTA else settings["iterations"],
            bar,
            clip=settings["clip"],
            rate=lambda progress: (1 + math.cos(math.pi * progress)) / 2,
        )
        with torch.no_grad():
            tested = float(loss(test))
        return {
            "series": series,
            "model": name,
            "gamma": gamma,
            "depth": depth,
            "parameters": sum(p.numel() for p in net.parameters()),
            "steps": len(losses),
            "loss": tested,
            "excess": tested - optimum,
            "seconds": time.perf_counter() - began,
        }


EXPERIMENT = Lista()
