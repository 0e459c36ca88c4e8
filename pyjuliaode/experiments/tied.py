"""Momentum ResNets and ResNets of one tied function, side by side: a base of two studies."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..momentum import MomentumNet
from ..progress import Bar, progress_bar
from .base import ALL, Study
from .config import RunConfig
from .descent import descend

RESNET, INVERTIBLE, MOMENTUM = "resnet", "iresnet", "momentum"
LIPSCHITZ = 0.99  # of f in the i-ResNet: with less than 1 every layer is a homeomorphism


class Field(nn.Module):
    """f(x) = W2^T tanh(W1 x + b), (B, n) -> (B, n): paper, section 4.1.

    Arguments:
        contract: divide f by what its Lipschitz constant |W1| |W2| has above ``LIPSCHITZ``.
    """

    def __init__(self, n: int, hidden: int, contract: bool = False):
        super().__init__()
        self.inner, self.outer = nn.Linear(n, hidden), nn.Linear(hidden, n, bias=False)
        self.contract = contract

    def forward(self, x: Tensor) -> Tensor:
        f = self.outer(torch.tanh(self.inner(x)))
        if not self.contract:
            return f
        return f / (_norm(self.inner.weight) * _norm(self.outer.weight) / LIPSCHITZ).clamp(min=1)


def _norm(weight: Tensor) -> Tensor:
    """|W|; NaN where W is not finite, for which torch has an error."""
    if not bool(weight.isfinite().all()):
        return weight.new_tensor(math.nan)
    return torch.linalg.matrix_norm(weight, 2)


def network(name: str, n: int, config: RunConfig) -> MomentumNet:
    """The network ``name`` on (B, n); "mode" is of the momentum network, which alone has two."""
    settings = config.settings
    field = Field(n, settings["hidden"], contract=name == INVERTIBLE)
    layers = [field.to(config.device)] * settings["depth"]
    if name == MOMENTUM:
        return MomentumNet(layers, settings["gamma"], mode=settings["mode"])
    return MomentumNet(layers, gamma=0.0)


@torch.no_grad()
def path(net: MomentumNet, x: Tensor) -> Tensor:
    """x before every layer and after the last: (B, n) -> (depth + 1, B, n)."""
    states: list[Tensor] = []
    fields = set(net.functions)
    hooks = [f.register_forward_pre_hook(lambda _, given: states.append(given[0])) for f in fields]
    try:
        end = net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([*states, end])


@torch.no_grad()
def leaps(net: MomentumNet, x: Tensor) -> float:
    """Share of the points x, (B, n), where a layer of a ResNet reverses orientation.

    There det(I + df/dx) < 0, which is so of no layer that is a step along a flow.
    """
    field, states = net.functions[0], path(net, x)[:-1].flatten(0, 1)
    jacobians = torch.func.vmap(torch.func.jacrev(field))(states)
    signs = torch.linalg.det(torch.eye(x.shape[1]).to(x) + jacobians)
    return float((signs < 0).view(net.depth, -1).any(0).float().mean())


class TiedStudy(Study):
    """Trains "resnet", "iresnet" and "momentum" one after another, each from the same seed.

    "iresnet" is no part of the figures: its layers have f of a Lipschitz constant below 1 and are
    homeomorphisms (Behrmann et al. 2019), as the flow of a first-order ODE is; those of a ResNet
    are so only while its steps are small.
    """

    models = (ALL, RESNET, INVERTIBLE, MOMENTUM)
    n: int  # dimension of x

    @abstractmethod
    def loss(self, net: MomentumNet, config: RunConfig) -> Tensor:
        """On a fresh batch."""

    @abstractmethod
    def optimizer(self, net: MomentumNet, name: str, config: RunConfig) -> Optimizer:
        """Of the parameters of the network ``name``."""

    @abstractmethod
    def examine(self, net: MomentumNet, config: RunConfig) -> dict[str, Any]:
        """Of the trained network: numbers under "final", beside them what is drawn."""

    def rate(self, progress: float) -> float:
        """Of the learning rate, what is left after the share ``progress`` of the iterations."""
        return 1.0

    def compute(self, config: RunConfig, progress: bool) -> dict[str, Any]:
        names = self.models[1:] if config.model == ALL else (config.model,)
        total = len(names) * config.settings["iterations"]
        with progress_bar(total, "step", shown=progress) as bar:
            found = {name: self._train(name, config, bar) for name in names}
        return {"models": found, "final": {name: one.pop("final") for name, one in found.items()}}

    def _train(self, name: str, config: RunConfig, bar: Bar) -> dict[str, Any]:
        bar.set_description(name)
        torch.manual_seed(config.seed)
        net, settings = network(name, self.n, config), config.settings
        optimizer = self.optimizer(net, name, config)
        began = time.perf_counter()
        losses = descend(
            lambda: self.loss(net, config),
            optimizer,
            settings["iterations"],
            bar,
            clip=settings["clip"],
            rate=self.rate,
        )
        seconds = time.perf_counter() - began
        found: Mapping[str, Any] = self.examine(net, config)
        final = found["final"]
        if not math.isfinite(losses[-1]):  # numbers of such a network mean nothing
            final = dict.fromkeys(final)
        final = {**final, "steps": len(losses), "seconds": seconds}
        return {**found, "losses": losses, "final": final}
