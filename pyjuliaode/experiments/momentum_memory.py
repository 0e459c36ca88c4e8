"""Memory and time of a gradient against depth: Sander et al. 2021, figure 2."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from .. import plotting
from ..memory import NOTHING_KEPT, in_fresh_process, peak_rise
from ..momentum import MomentumNet
from ..momentum.exact import ExactState, Ratio
from ..progress import progress_bar
from .base import Defaults, Study
from .config import RunConfig
from .folder import RunFolder
from .markdown import table
from .settings import STEPS, WIDTH, numbers, whole

# name -> (how the gradient is found, gamma); None is the paper's, which varies with the depth
WAYS: dict[str, tuple[str, float | None]] = {
    "ResNet, backprop": ("backprop", 0.0),
    "momentum 0.9, backprop": ("backprop", 0.9),
    "momentum 0.9, checkpoints": ("checkpoint", 0.9),
    "momentum 0.5, reversible": ("reversible", 0.5),
    "momentum 0.9, reversible": ("reversible", 0.9),
    "momentum 0.99, reversible": ("reversible", 0.99),
    "momentum 1 - 1/(50 depth), reversible": ("reversible", None),
}
REFERENCES = {"backprop": "momentum 0.9, backprop", "checkpoints": "momentum 0.9, checkpoints"}


class MomentumMemoryExperiment(Study):
    """One gradient of a network whose layers share fc tanh fc, float32, at several depths.

    Tied weights, so that gradients of parameters, which are alike for every way, do not grow with
    the depth. Every way and depth has a process of its own for the peak, every depth one for the
    times, in which the ways take turns. Checkpoints are torch's, sqrt(depth) segments. The paper's
    figure has d = 500, batch 500 and gamma = 1 - 1/(50 depth).
    """

    name = "momentum-memory"
    summary = "peak memory and time of a gradient against depth (momentum networks fig. 2)"
    defaults = Defaults(
        tol=None,
        method=None,
        settings={
            "depths": numbers("10,30,100,300,1000", whole(1, 1, WIDTH)),
            "batch": whole(512),
            "dim": whole(64, 1, WIDTH),
            "hidden": whole(256, 1, WIDTH),
            "repeats": whole(3, high=STEPS),
        },
    )

    def work(self, config: RunConfig) -> int:
        return math.prod(config.settings[name] for name in ("batch", "dim", "hidden"))

    def compute(self, config: RunConfig, progress: bool) -> dict[str, Any]:
        settings = dict(config.settings)
        depths = sorted({int(depth) for depth in settings.pop("depths").split(",")})
        repeats = settings.pop("repeats")
        settings |= {"seed": config.seed, "threads": torch.get_num_threads()}
        total = len(depths) * (len(WAYS) + 1)
        rows = []
        with progress_bar(total, "measurement", shown=progress) as bar:
            for depth in depths:
                bar.set_description(f"time, depth {depth}")
                timed = in_fresh_process(times, depth=depth, repeats=repeats, **settings)
                bar.update()
                for way in WAYS:
                    bar.set_description(f"memory, {way}, depth {depth}")
                    found = in_fresh_process(memory, NOTHING_KEPT, way=way, depth=depth, **settings)
                    row = {"way": way, "depth": depth, "mib": None, "seconds": timed.get(way)}
                    rows.append(row | found)
                    bar.update()
        return {"rows": rows, "threads": settings["threads"], "final": summarise(rows)}

    def draw(self, results: Mapping[str, Any], folder: RunFolder) -> None:
        title = "one gradient of a network of tied layers, fc tanh fc"
        figure = plotting.memory(results["rows"], title)
        folder.write("momentum-memory.png", lambda path: plotting.save(figure, path))
        text = markdown(results)
        folder.write("momentum-memory.md", lambda path: path.write_text(text, encoding="utf-8"))


# ------------------------------------------------------------------------ in the fresh processes


def memory(way: str, depth: int, **sizes: int) -> dict[str, Any]:
    """The memory of one point.

    Returns:
        "mib", how far one gradient raises the peak above the start; of a reversible network also
        "buffer_mib", what the digits that v has lost take up, "words", that many for an element,
        and "paper_mib", what log2(1/gamma) bits for every element and layer would.
    """
    f, x = _problem(**sizes)
    _gradient(way, f, 4, x)()  # what loads and allocates once
    found = {"gamma": _gamma(way, depth), "mib": peak_rise(_gradient(way, f, depth, x))}
    return found | (_buffer(way, f, depth, x) if WAYS[way][0] == "reversible" else {})


def times(depth: int, repeats: int, **sizes: int) -> dict[str, float]:
    """Seconds of a gradient, each way: the median of ``repeats`` turns."""
    f, x = _problem(**sizes)
    samples: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS:
        _gradient(way, f, 4, x)()
    for _ in range(repeats):
        for way in WAYS:
            gradient = _gradient(way, f, depth, x)
            began = time.perf_counter()
            gradient()
            samples[way].append(time.perf_counter() - began)
    return {way: statistics.median(seconds) for way, seconds in samples.items()}


def _problem(
    batch: int, dim: int, hidden: int, seed: int, threads: int
) -> tuple[nn.Module, Tensor]:
    """The residual function and its first x, shape (batch, dim)."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    f = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim))
    return f, torch.randn(batch, dim)


def _gamma(way: str, depth: int) -> float:
    gamma = WAYS[way][1]
    return 1 - 1 / (50 * depth) if gamma is None else gamma


def _gradient(way: str, f: nn.Module, depth: int, x: Tensor) -> Callable[[], None]:
    """Computes the gradient of the mean square of the output."""
    kind, gamma = WAYS[way][0], _gamma(way, depth)
    if kind == "checkpoint":
        layers, start = [_Layer(f, gamma)] * depth, (x, torch.zeros_like(x))
        segments = max(1, round(depth**0.5))

        def output() -> Tensor:
            return checkpoint_sequential(layers, segments, start, use_reentrant=False)[0]

    else:
        net = MomentumNet([f] * depth, gamma, mode=kind)

        def output() -> Tensor:
            return net(x)

    def gradient() -> None:
        f.zero_grad(set_to_none=True)
        output().square().mean().backward()

    return gradient


class _Layer(nn.Module):
    """(x, v) -> (x, v), a layer of a momentum network: torch keeps one of many."""

    def __init__(self, f: nn.Module, gamma: float):
        super().__init__()
        self.f, self.gamma = f, gamma

    def forward(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, v = state
        v = torch.add(self.gamma * v, self.f(x), alpha=1 - self.gamma)
        return x + v, v


@torch.no_grad()
def _buffer(way: str, f: nn.Module, depth: int, x: Tensor) -> dict[str, Any]:
    gamma = _gamma(way, depth)
    state = ExactState(x, torch.zeros_like(x), gamma)
    for _ in range(depth):
        state.advance(f(state.value()))
    ratio, words = Ratio.of(gamma, x.dtype), len(state.words) + 1
    return {
        "words": words,
        "buffer_mib": words * state.word.nbytes / 2**20,
        "paper_mib": ratio.bits_per_layer * depth * x.numel() / 8 / 2**20,
    }


# --------------------------------------------------------------------------------------- results


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Per way: peak at the largest depth, and over that at the smallest, with and without the
    buffer; time at the largest depth over that of backprop and of checkpoints."""
    depths = [row["depth"] for row in rows]
    at = {(row["way"], row["depth"]): row for row in rows}
    final = {}
    for way in dict.fromkeys(row["way"] for row in rows):
        low, high = at[way, min(depths)], at[way, max(depths)]
        final[way] = {
            "peak_mib": high["mib"],
            "buffer_mib": high.get("buffer_mib"),
            "paper_mib": high.get("paper_mib"),
            "growth": _over(high["mib"], low["mib"]),
            "growth_without_buffer": _over(_rest(high), _rest(low)),
            "seconds": high["seconds"],
        }
        for name, reference in REFERENCES.items():
            seconds = at[reference, max(depths)]["seconds"]
            final[way][f"time_over_{name}"] = _over(high["seconds"], seconds)
    return final


def _rest(row: Mapping[str, Any]) -> float | None:
    """The peak but for the buffer."""
    return None if row["mib"] is None else row["mib"] - row.get("buffer_mib", 0.0)


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


_COLUMNS = {
    "peak_mib": ("peak MiB", ".1f"),
    "buffer_mib": ("buffer MiB", ".2f"),
    "paper_mib": ("log2(1/gamma) bits, MiB", ".2f"),
    "growth": ("peak over first", ".2f"),
    "growth_without_buffer": ("without buffer", ".2f"),
    "seconds": ("seconds", ".3f"),
    "time_over_backprop": ("time over backprop", ".2f"),
    "time_over_checkpoints": ("time over checkpoints", ".2f"),
}


def markdown(results: Mapping[str, Any]) -> str:
    """What ``final`` holds, as a table, under the depths that it is of."""
    depths = sorted({row["depth"] for row in results["rows"]})
    heads = ["gradient", *(heading for heading, _ in _COLUMNS.values())]
    lines = []
    for way, final in results["final"].items():
        values = ((final[key], form) for key, (_, form) in _COLUMNS.items())
        lines.append(
            [way, *("-" if value is None else f"{value:{form}}" for value, form in values)]
        )
    title = f"Depth {depths[-1]:,}; growth over depth {depths[0]:,}."
    return f"{title}\n\n{table(heads, lines)}\n"


EXPERIMENT = MomentumMemoryExperiment()
