"""Clouds of points in the plane, and what models do to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .style import INNER_COLOUR, OUTER_COLOUR, empty, label, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def point_cloud(
    times: Sequence[float],
    clouds: Any,
    labels: Any,
    title: str = "",
) -> Figure:
    """The cloud on its way through the flow: its state at some times, and the paths.

    Each panel has its own scale; the bar in it has length 1.

    Arguments:
        times: shape (T,).
        clouds: shape (T, N, 2), array or nested lists: h at those times.
        labels: shape (N,): negative for the disc, positive for the annulus.
    """
    with styled():
        shown = _spread_indices(len(times), 4)
        figure = empty(1.6 * (len(shown) + 1), 2.05)
        axes = figure.subplots(1, len(shown) + 1)
        _cloud_row(axes, times, clouds, labels, shown)
        figure.suptitle(title)
        return figure


def point_cloud_evolution(
    times: Sequence[float],
    snapshots: Mapping[int, Any],
    labels: Any,
    title: str = "",
) -> Figure:
    """One row of :func:`point_cloud` for each epoch in ``snapshots`` (epoch -> (T, N, 2))."""
    with styled():
        shown = _spread_indices(len(times), 4)
        columns, rows = len(shown) + 1, len(snapshots)
        figure = empty(1.6 * columns, 1.65 * rows + 0.4)
        axes = figure.subplots(rows, columns, squeeze=False)
        for number, (epoch, clouds) in enumerate(sorted(snapshots.items())):
            row = axes[number]
            _cloud_row(row, times, clouds, labels, shown, titles=number == 0)
            row[0].set_ylabel(f"epoch {epoch}")
        figure.suptitle(title)
        return figure


def _cloud_row(
    axes: Any,
    times: Sequence[float],
    clouds: Any,
    labels: Any,
    shown: Sequence[int],
    titles: bool = True,
) -> None:
    """Scatter at the times ``shown``, then the paths, each in its own window."""
    import numpy as np
    from matplotlib.collections import LineCollection

    clouds, labels = np.asarray(clouds, dtype=float), np.asarray(labels, dtype=float).ravel()
    colours = np.where(labels < 0, INNER_COLOUR, OUTER_COLOUR)
    for ax, i in zip(axes, shown, strict=False):
        _cloud_panel(ax, clouds[i], colours, size=7)
        if titles:
            ax.set_title(f"$t = {times[i]:.3g}$")
    paths = axes[-1]
    lines = LineCollection(clouds.swapaxes(0, 1), colors=colours, linewidths=0.5, alpha=0.6)
    paths.add_collection(lines)
    if titles:
        paths.set_title("paths")
    _square_window(paths, clouds)


def _cloud_panel(ax: Axes, cloud: Any, colours: Any, size: float) -> None:
    """Points (N, 2) of the plane in a window of their own."""
    ax.scatter(*cloud.T, c=colours, s=size, linewidths=0)
    _square_window(ax, cloud)


def _square_window(ax: Axes, clouds: Any) -> None:
    """Show all finite points in a square without ticks; a bar of length 1 gives the scale."""
    import numpy as np

    points = clouds.reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):  # a training that broke down
        points = np.zeros((1, 2))
    low, high = points.min(axis=0), points.max(axis=0)
    half = 0.62 * max(float((high - low).max()), 0.1)
    x, y = (low + high) / 2
    ax.set(xlim=(x - half, x + half), ylim=(y - 1.1 * half, y + 0.9 * half), xticks=[], yticks=[])
    ax.set_aspect("equal")
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color("#bbbbbb")
    left, bottom = x - 0.93 * half, y - 1.02 * half
    if half > 0.6:
        ax.plot([left, left + 1], [bottom, bottom], color="#000000", linewidth=1.5)


def _spread_indices(n: int, k: int) -> list[int]:
    """At most ``k`` indices from 0 to n - 1, the ends among them."""
    if n <= k:
        return list(range(n))
    return [round(i * (n - 1) / (k - 1)) for i in range(k)]


def separation(
    models: Mapping[str, Mapping[str, Any]], accuracies: Mapping[str, float | None]
) -> Figure:
    """What each model (row) does to a cloud of two classes, layer by layer, and its regions.

    Each panel of a layer has its own scale; the bar in it has length 1. In the last of them
    the dotted line is where the two numbers, the logits, are equal.

    Arguments:
        models: model -> {"layers": (L,), "clouds": (L, N, 2), "labels": (N,), 0 or 1,
            "window": half the width of the regions, "regions": (K, K), 0 or 1}.
        accuracies: model -> share of points; None where training broke down.
    """
    import numpy as np

    with styled():
        columns = max(len(one["layers"]) for one in models.values()) + 1
        figure = empty(1.25 * columns, 1.25 * len(models) + 0.3)
        axes = figure.subplots(len(models), columns, squeeze=False)
        for number, (row, (model, one)) in enumerate(zip(axes, models.items(), strict=True)):
            clouds = np.asarray(one["clouds"], dtype=float)
            colours = np.where(np.asarray(one["labels"]) < 0.5, INNER_COLOUR, OUTER_COLOUR)
            for ax, layer, cloud in zip(row, one["layers"], clouds, strict=False):
                _cloud_panel(ax, cloud, colours, size=2)
                if number == 0:
                    ax.set_title("input" if layer == 0 else f"layer {layer}")
            _diagonal(row[-2])
            _regions_panel(row[-1], one)
            if number == 0:
                row[-1].set_title("regions")
            accuracy = accuracies[model]
            said = "broke down" if accuracy is None else f"accuracy {accuracy:.3f}"
            row[0].set_ylabel(f"{label(model)}\n{said}")
        return figure


def _diagonal(ax: Axes) -> None:
    ax.axline((0, 0), slope=1, color="#000000", linestyle=":", linewidth=0.8)


def _regions_panel(ax: Axes, model: Mapping[str, Any]) -> None:
    """The class of every point of the plane, and the inputs in it."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    window = model["window"]
    ax.imshow(
        np.asarray(model["regions"], dtype=float),
        extent=(-window, window, -window, window),
        origin="lower",
        cmap=ListedColormap([INNER_COLOUR, OUTER_COLOUR]),
        vmin=0,
        vmax=1,
        alpha=0.35,
    )
    labels = np.asarray(model["labels"])
    colours = np.where(labels < 0.5, INNER_COLOUR, OUTER_COLOUR)
    ax.scatter(*np.asarray(model["clouds"][0], dtype=float).T, c=colours, s=0.8, linewidths=0)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color("#bbbbbb")
