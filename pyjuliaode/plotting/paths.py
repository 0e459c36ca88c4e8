"""Trajectories: over a landscape, in size, along a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .style import GREY, empty, label, line_of, styled, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOW_STYLES = {
    "gradient flow": ("#000000", "-"),
    "heavy ball": ("#0072B2", (0, (5, 1))),
    "Nesterov": ("#D55E00", (0, (3, 1, 1, 1))),
}


def optimizer_paths(problems: Sequence[Mapping[str, Any]]) -> Figure:
    """Paths over the contours of each function (above), distance to the minimum (below).

    Arguments:
        problems: each with "name", "minimum" (2,), "contour" (x (M,), y (K,), F (K, M)) and
            "flows": flow name -> {"t": (T,), "path": (T, 2), "distance": (T,)}.
    """
    with styled():
        figure = empty(3.6 * len(problems), 5.6)
        axes = figure.subplots(2, len(problems), squeeze=False, height_ratios=(1.4, 1))
        for column, problem in zip(axes.T, problems, strict=True):
            _contour_panel(column[0], problem)
            _distance_panel(column[1], problem)
        handles, labels = axes[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        return figure


def _contour_panel(ax: Axes, problem: Mapping[str, Any]) -> None:
    import numpy as np

    x, y, values = (np.asarray(part, dtype=float) for part in problem["contour"])
    levels = np.geomspace(max(values.min(), 1e-2), values.max(), 14)
    ax.contour(x, y, values, levels=levels, colors="#bbbbbb", linewidths=0.6)
    for name, flow in problem["flows"].items():
        colour, style = FLOW_STYLES[name]
        path = np.asarray(flow["path"], dtype=float)
        ax.plot(*path.T, color=colour, linestyle=style)
        ax.plot(*path[-1], "o", color=colour, markersize=4)
    ax.plot(*problem["minimum"], "*", color="#009E73", markersize=11)
    ax.grid(False)
    ax.set(title=problem["name"], xlabel="$x_1$", ylabel="$x_2$")
    ax.set(xlim=(x.min(), x.max()), ylim=(y.min(), y.max()))


def _distance_panel(ax: Axes, problem: Mapping[str, Any]) -> None:
    for name, flow in problem["flows"].items():
        colour, style = FLOW_STYLES[name]
        ax.plot(flow["t"], flow["distance"], color=colour, linestyle=style, label=name)
    ax.axvline(problem["horizon"], color=GREY, linewidth=0.8, linestyle=":")
    ax.annotate(
        " end in the paper",
        (problem["horizon"], 0.02),
        xycoords=("data", "axes fraction"),
        fontsize=7,
        color=GREY,
    )
    ax.set(xlabel="$t$", ylabel="distance to the minimum")
    ax.set_yscale("log")


TOP = 1e20  # of the axes of a growth: what passes it has exploded


def norm_growth(
    times: Sequence[float],
    summaries: Mapping[str, Mapping[str, Sequence[float | None]]],
    title: str = "",
) -> Figure:
    """Median (left), mean (middle) of |h(t)|, and the share of runs above 1000 (right).

    Arguments:
        times: shape (T,).
        summaries: model -> {"median", "mean", "fraction_large"}, each (T,); None is not finite.
    """
    with styled():
        figure = empty(7.2, 3.1)
        axes = figure.subplots(1, 3)
        panels = (
            ("median", "median of $|h(t)|$"),
            ("mean", "mean of $|h(t)|$"),
            ("fraction_large", "share with $|h(t)| > 10^3$"),
        )
        for ax, (key, name) in zip(axes, panels, strict=True):
            for model, summary in summaries.items():
                values = [math.nan if value is None else value for value in summary[key]]
                ax.plot(times, values, **line_of(model))
            ax.set(xlabel="$t$", ylabel=name)
        for ax, (key, _) in zip(axes[:2], panels, strict=False):
            values = [v for summary in summaries.values() for v in summary[key] if v]
            ax.set_yscale("log")
            ax.set_ylim(min(values, default=1) / 2, min(max(values, default=1) * 2, TOP))
        axes[2].set_ylim(-0.03, 1.03)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(title)
        return figure


def crossing(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Paths of inputs on a line through the layers of each model, and the maps that they learn.

    Arguments:
        models: model -> {"paths": (depth + 1, B), "x": (M,), "y": (M,), its map there}.
    """
    import numpy as np
    from matplotlib import colormaps

    with styled():
        figure = empty(2.0 * (len(models) + 1.2), 2.9)
        ratios = [1] * len(models) + [1.2]
        axes = figure.subplots(1, len(models) + 1, width_ratios=ratios, sharey=True)
        for number, (ax, (model, one)) in enumerate(zip(axes, models.items(), strict=False)):
            paths = np.asarray(one["paths"], dtype=float).T
            # viridis without its yellow, which is too light on white
            colours = colormaps["viridis"](np.linspace(0, 0.85, len(paths)))
            for single, colour in zip(paths, colours, strict=True):
                ax.plot(single, color=colour, linewidth=1.0)
            ax.set(title=label(model), xlabel="layer")
            if number == 0:
                ax.set_ylabel("$x_k$")
            whole_ticks(ax)
        for model, one in models.items():
            axes[-1].plot(one["x"], np.asarray(one["y"], dtype=float), **line_of(model))
        x = np.linspace(-1, 1, 101)
        axes[-1].plot(x, -(x**3), color=GREY, linestyle=":", label="$-x^3$")
        axes[-1].set(title="learned map", xlabel="input", ylabel="output", ylim=(-1.2, 1.2))
        handles, labels = axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        return figure
