"""Losses and costs while models are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from .style import (
    BACKWARD,
    FORWARD,
    GREY,
    empty,
    line_of,
    log_loss,
    plot,
    styled,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def training(records: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Loss, accuracy and NFE of one run, against epochs (above) and seconds (below).

    NFE only where the records have them: a network without an ODE evaluates nothing.
    """
    panels = [_loss_panel, _accuracy_panel]
    if any("nfe_forward" in record for record in records):
        panels.append(_nfe_panel)
    with styled():
        figure = empty(2.4 * len(panels), 4.4)
        axes = figure.subplots(2, len(panels), sharey="col")
        epochs = [record["epoch"] for record in records]
        seconds = list(accumulate(record["seconds"] for record in records))
        for row, x, name in ((axes[0], epochs, "epoch"), (axes[1], seconds, "training time (s)")):
            for panel, ax in zip(panels, row, strict=True):
                panel(ax, x, records)
                ax.set_xlabel(name)
        for ax in axes[0]:
            ax.legend(loc="best")
            whole_ticks(ax)
        figure.suptitle(title)
        return figure


def _loss_panel(ax: Axes, x: Sequence[float], records: Sequence[Mapping[str, Any]]) -> None:
    plot(ax, x, [r["loss"] for r in records], color=FORWARD, label="train")
    plot(ax, x, [r["test_loss"] for r in records], color=BACKWARD, linestyle="--", label="test")
    log_loss(ax, [r[key] for r in records for key in ("loss", "test_loss")])
    ax.set_ylabel("loss")


def _accuracy_panel(ax: Axes, x: Sequence[float], records: Sequence[Mapping[str, Any]]) -> None:
    plot(ax, x, [r["accuracy"] for r in records], color=FORWARD, label="train")
    test = [r["test_accuracy"] for r in records]
    plot(ax, x, test, color=BACKWARD, linestyle="--", label="test")
    ax.set_ylabel("accuracy")


def _nfe_panel(ax: Axes, x: Sequence[float], records: Sequence[Mapping[str, Any]]) -> None:
    plot(ax, x, [r["nfe_forward"] for r in records], color=FORWARD, label="forward")
    backward = [r["nfe_backward"] for r in records]
    plot(ax, x, backward, color=BACKWARD, linestyle="--", label="backward")
    ax.set_ylabel("NFE per training step")
    ax.set_ylim(bottom=0)


_COMPARED = {
    "loss": "training loss",
    "test_accuracy": "test accuracy",
    "nfe_forward": "NFE forward",
    "nfe_backward": "NFE backward",
}


def comparison(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], title: str = ""
) -> Figure:
    """Several models over their seeds: mean (line), lowest to highest seed (band).

    A panel for each of the quantities that the records have; NFE are those of an ODE.

    Arguments:
        runs: per model, the records of each seed. A mean reaches as far as all seeds do.
    """
    with styled():
        records = [record for seeds in runs.values() for one in seeds for record in one]
        shown = [key for key in _COMPARED if any(key in record for record in records)]
        rows = max(1, math.ceil(len(shown) / 2))
        figure = empty(7.2, 0.4 + 2.4 * rows)
        axes = figure.subplots(rows, 2, squeeze=False)
        for ax, key in zip(axes.flat, shown, strict=False):
            for model, seeds in runs.items():
                _mean_and_band(ax, model, seeds, key)
            ax.set_ylabel(_COMPARED[key])
            ax.set_xlabel("epoch")
            whole_ticks(ax)
            if key.startswith("nfe"):
                ax.set_ylim(bottom=0)
        log_loss(axes[0, 0], _mean_losses(runs))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
        figure.suptitle(title)
        return figure


def _mean_and_band(
    ax: Axes, model: str, seeds: Sequence[Sequence[Mapping[str, Any]]], key: str
) -> None:
    """The mean over the seeds as a line, from the lowest to the highest seed as a band.

    Not a standard deviation: that would pass an accuracy of 1 and a loss of 0.
    """
    columns = _columns(seeds, key)
    x = range(1, len(columns) + 1)
    line = line_of(model)
    plot(ax, x, [sum(column) / len(column) for column in columns], **line)
    if len(seeds) > 1:
        # a logarithmic axis cannot show the 0 that a loss may reach
        floor = 1e-12 if key == "loss" else -math.inf
        low = [max(min(column), floor) for column in columns]
        high = [max(*column, floor) for column in columns]
        ax.fill_between(x, low, high, color=line["color"], alpha=0.12, linewidth=0)


def _columns(seeds: Sequence[Sequence[Mapping[str, Any]]], key: str) -> list[list[float]]:
    """The values of all seeds, epoch by epoch, as far as every seed has come."""
    length = min((len(records) for records in seeds), default=0)
    return [[records[i][key] for records in seeds] for i in range(length)]


def _mean_losses(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> list[float]:
    columns = [column for seeds in runs.values() for column in _columns(seeds, "loss")]
    return [sum(column) / len(column) for column in columns]


def descent(
    losses: Mapping[str, Sequence[float | None]],
    what: str,
    title: str = "",
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Losses of every model over the steps, each the mean of those around it.

    Arguments:
        losses: model -> (steps,); None is not finite.
        what: the name of the loss.
        levels: horizontal lines by name.
    """
    import numpy as np

    with styled():
        figure = empty(5.0, 3.1)
        ax = figure.subplots()
        for model, values in losses.items():
            series = np.asarray(values, dtype=float)
            width = max(len(series) // 50, 1)  # single batches would hide one model by another
            ax.plot(series, color=line_of(model)["color"], linewidth=0.4, alpha=0.35)
            mean = np.convolve(series, np.ones(width) / width, mode="valid")
            ax.plot(np.arange(len(mean)) + (width - 1) / 2, mean, **line_of(model))
        for name, level in (levels or {}).items():
            ax.axhline(level, color=GREY, linestyle=":", linewidth=1.0, label=name)
        ax.set(xlabel="step", ylabel=what)
        log_loss(ax, [value for values in losses.values() for value in values])
        figure.legend(loc="outside lower center", ncols=4)
        figure.suptitle(title)
        return figure
