"""Figures of the experiments; every model keeps its colour and line style in all of them.

The functions take plain data, as in metrics.json, and return a matplotlib Figure that belongs to
no window and no backend. matplotlib is imported when the first figure is drawn.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UnsupportedError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision (their yellow is too light on white).
MODEL_STYLES: dict[str, tuple[str, str, str]] = {
    "node": ("#000000", "-", "NODE"),
    "anode": ("#E69F00", (0, (4, 1)), "ANODE"),
    "sonode": ("#56B4E9", (0, (3, 1, 1, 1)), "SONODE"),
    "hbnode": ("#0072B2", "-", "HBNODE"),
    "ghbnode": ("#009E73", (0, (5, 1)), "GHBNODE"),
    "nesterovnode": ("#D55E00", "-", "NesterovNODE"),
    "gnesterovnode": ("#CC79A7", (0, (5, 1)), "GNesterovNODE"),
    "resnet": ("#000000", "-", "ResNet"),
    "iresnet": ("#009E73", (0, (5, 1)), "i-ResNet"),
    "momentum": ("#0072B2", "-", "Momentum ResNet"),
    "ista": ("#777777", ":", "ISTA"),
    "lista": ("#E69F00", "-", "LISTA"),
    "revnet": ("#D55E00", (0, (3, 1, 1, 1)), "RevNet"),
}
INNER_COLOUR, OUTER_COLOUR = "#D55E00", "#0072B2"
FORWARD, BACKWARD = "#0072B2", "#E69F00"
GREY = "#777777"
TOP = 1e20  # of the axes of a growth: what passes it has exploded

_RC = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "figure.dpi": 100,
}


def label(model: str | None) -> str:
    """The name of a model as the papers write it."""
    return MODEL_STYLES[model][2] if model in MODEL_STYLES else str(model)


def save(figure: Figure, path: str | Path) -> Path:
    """Write ``figure`` to ``path``; the format follows its suffix."""
    with _style():
        figure.savefig(path)
    return Path(path)


@contextlib.contextmanager
def _style() -> Iterator[None]:
    try:
        import matplotlib
    except ImportError as error:
        raise UnsupportedError(
            "figures need matplotlib: pip install 'pyjuliaode[experiments]'"
        ) from error
    with matplotlib.rc_context(_RC):
        yield


def _figure(width: float, height: float) -> Figure:
    """An empty figure in inches that pyplot does not know of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _line(model: str) -> dict[str, Any]:
    colour, style, name = MODEL_STYLES.get(model, (GREY, "-", model))
    return {"color": colour, "linestyle": style, "label": name}


# ---------------------------------------------------------------- training


def training(records: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Loss, accuracy and NFE of one run, against epochs (above) and seconds (below).

    NFE only where the records have them: a network without an ODE evaluates nothing.
    """
    panels = [_loss_panel, _accuracy_panel]
    if any("nfe_forward" in record for record in records):
        panels.append(_nfe_panel)
    with _style():
        figure = _figure(2.4 * len(panels), 4.4)
        axes = figure.subplots(2, len(panels), sharey="col")
        epochs = [record["epoch"] for record in records]
        seconds = list(accumulate(record["seconds"] for record in records))
        for row, x, name in ((axes[0], epochs, "epoch"), (axes[1], seconds, "training time (s)")):
            for panel, ax in zip(panels, row, strict=True):
                panel(ax, x, records)
                ax.set_xlabel(name)
        for ax in axes[0]:
            ax.legend(loc="best")
            _whole_ticks(ax)
        figure.suptitle(title)
        return figure


def _loss_panel(ax: Axes, x: Sequence[float], records: Sequence[Mapping[str, Any]]) -> None:
    _plot(ax, x, [r["loss"] for r in records], color=FORWARD, label="train")
    _plot(ax, x, [r["test_loss"] for r in records], color=BACKWARD, linestyle="--", label="test")
    _log_loss(ax, [r[key] for r in records for key in ("loss", "test_loss")])
    ax.set_ylabel("loss")


def _accuracy_panel(ax: Axes, x: Sequence[float], records: Sequence[Mapping[str, Any]]) -> None:
    _plot(ax, x, [r["accuracy"] for r in records], color=FORWARD, label="train")
    test = [r["test_accuracy"] for r in records]
    _plot(ax, x, test, color=BACKWARD, linestyle="--", label="test")
    ax.set_ylabel("accuracy")


def _nfe_panel(ax: Axes, x: Sequence[float], records: Sequence[Mapping[str, Any]]) -> None:
    _plot(ax, x, [r["nfe_forward"] for r in records], color=FORWARD, label="forward")
    backward = [r["nfe_backward"] for r in records]
    _plot(ax, x, backward, color=BACKWARD, linestyle="--", label="backward")
    ax.set_ylabel("NFE per training step")
    ax.set_ylim(bottom=0)


def _plot(ax: Axes, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    """A line, with markers while it is short enough for them to be told apart."""
    ax.plot(x, y, marker="o" if len(x) <= 12 else None, markersize=3, **style)


def _log_loss(ax: Axes, losses: Sequence[float | None]) -> None:
    """A logarithmic axis, cut where a loss is as good as zero; zeros are left out of a line."""
    positive = [value for value in losses if value is not None and value > 0]
    if positive:
        ax.set_yscale("log", nonpositive="mask")
        ax.set_ylim(bottom=max(0.7 * min(positive), 1e-6 * max(positive)))


def _whole_ticks(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


# ---------------------------------------------------------------- comparison

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
    with _style():
        records = [record for seeds in runs.values() for one in seeds for record in one]
        shown = [key for key in _COMPARED if any(key in record for record in records)]
        rows = max(1, math.ceil(len(shown) / 2))
        figure = _figure(7.2, 0.4 + 2.4 * rows)
        axes = figure.subplots(rows, 2, squeeze=False)
        for ax, key in zip(axes.flat, shown, strict=False):
            for model, seeds in runs.items():
                _mean_and_band(ax, model, seeds, key)
            ax.set_ylabel(_COMPARED[key])
            ax.set_xlabel("epoch")
            _whole_ticks(ax)
            if key.startswith("nfe"):
                ax.set_ylim(bottom=0)
        _log_loss(axes[0, 0], _mean_losses(runs))
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
    line = _line(model)
    _plot(ax, x, [sum(column) / len(column) for column in columns], **line)
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


# ---------------------------------------------------------------- point cloud


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
    with _style():
        shown = _spread_indices(len(times), 4)
        figure = _figure(1.6 * (len(shown) + 1), 2.05)
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
    with _style():
        shown = _spread_indices(len(times), 4)
        columns, rows = len(shown) + 1, len(snapshots)
        figure = _figure(1.6 * columns, 1.65 * rows + 0.4)
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


# ---------------------------------------------------------------- optimizers

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
    with _style():
        figure = _figure(3.6 * len(problems), 5.6)
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


# ---------------------------------------------------------------- growth of the state


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
    with _style():
        figure = _figure(7.2, 3.1)
        axes = figure.subplots(1, 3)
        panels = (
            ("median", "median of $|h(t)|$"),
            ("mean", "mean of $|h(t)|$"),
            ("fraction_large", "share with $|h(t)| > 10^3$"),
        )
        for ax, (key, name) in zip(axes, panels, strict=True):
            for model, summary in summaries.items():
                values = [math.nan if value is None else value for value in summary[key]]
                ax.plot(times, values, **_line(model))
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


# ---------------------------------------------------------------- NFE against tolerance


def nfe_vs_tolerance(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """NFE and errors of the output and of the gradient against the tolerance.

    Arguments:
        rows: each with "model", "tol", "nfe_forward", "nfe_backward", "error",
            "gradient_error".
    """
    with _style():
        figure = _figure(7.2, 5.2)
        axes = figure.subplots(2, 2, sharex=True)
        panels = (
            ("nfe_forward", "NFE forward"),
            ("nfe_backward", "NFE backward"),
            ("error", "relative error of $h(T)$"),
            ("gradient_error", "relative error of the gradient"),
        )
        models = list(dict.fromkeys(row["model"] for row in rows))
        for ax, (key, name) in zip(axes.flat, panels, strict=True):
            for model in models:
                own = [row for row in rows if row["model"] == model and row[key]]
                _plot(ax, [row["tol"] for row in own], [row[key] for row in own], **_line(model))
            ax.set(xscale="log", yscale="log", ylabel=name)
            ax.xaxis.minorticks_off()
        for ax in axes[0]:
            _plain_log_ticks(ax)
        for ax in axes[1]:
            tolerances = sorted({row["tol"] for row in rows})
            ax.plot(tolerances, tolerances, color=GREY, linewidth=0.8, linestyle=":")
            ax.set_xlabel("tolerance (rtol = atol)")
        axes[0, 0].invert_xaxis()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(title)
        return figure


def _plain_log_ticks(ax: Axes) -> None:
    """20, 50, 100, 200 in place of powers of ten: NFE span little more than one decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


# ---------------------------------------------------------------- evaluations, two ways to count

_MARKERS = "os^Dv<>P"
# Okabe and Ito's colours, and dark ones of the same hues for what remains
_CYCLE = (
    *("#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"),
    *("#CC79A7", "#7F7F7F", "#B22222", "#882255", "#332288"),
)


def evaluations(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Errors over evaluations: one after another (left) and all together (right).

    Arguments:
        rows: each with "solver", "error", "sequential" and "total", by solver from loose to tight;
            those without an error are left out.
    """
    with _style():
        figure = _figure(7.2, 4.2)
        axes = figure.subplots(1, 2, sharey=True)
        names = list(dict.fromkeys(row["solver"] for row in rows))
        for i, name in enumerate(names):
            own = [row for row in rows if row["solver"] == name and row["error"]]
            outside = name.startswith("SciPy")
            style = {
                "color": _CYCLE[i % len(_CYCLE)],
                "marker": _MARKERS[i % len(_MARKERS)],
                "linestyle": ":" if outside else "-",
                "linewidth": 1.0 if outside else 1.6,
                "label": name,
            }
            for ax, what in zip(axes, ("sequential", "total"), strict=True):
                ax.plot([r[what] for r in own], [r["error"] for r in own], markersize=4, **style)
        for ax, what in zip(axes, ("one after another", "all together"), strict=True):
            ax.set(xscale="log", yscale="log", xlabel=f"evaluations, {what}")
        axes[0].set_ylabel("error at the end")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(title)
        return figure


def scaling(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Seconds over the batch, a panel for each width, a line for each method.

    Arguments:
        rows: each with "method", "batch", "width", "seconds"; those without seconds are left out.
    """
    widths = list(dict.fromkeys(row["width"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with _style():
        figure = _figure(7.2, 3.0)
        axes = figure.subplots(1, len(widths), sharey=True, squeeze=False)[0]
        for ax, width in zip(axes, widths, strict=True):
            for i, method in enumerate(methods):
                own = [
                    (row["batch"], row["seconds"])
                    for row in rows
                    if (row["width"], row["method"]) == (width, method) and row["seconds"]
                ]
                look = {"color": _CYCLE[i + 1], "marker": _MARKERS[i], "label": method}
                if own:
                    ax.plot(*zip(*own, strict=True), markersize=4, **look)
            ax.set(xscale="log", yscale="log", xlabel="batch", title=f"width {width}")
        axes[0].set_ylabel("seconds")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(methods))
        figure.suptitle(title)
        return figure


def memory(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Peak memory (left) and seconds (right) of a gradient over the depth, a line for each way.

    Arguments:
        rows: each with "way", "depth", "mib", "seconds"; those without the number are left out.
    """
    ways = list(dict.fromkeys(row["way"] for row in rows))
    panels = (("mib", "peak above the start (MiB)"), ("seconds", "seconds of one gradient"))
    with _style():
        figure = _figure(7.2, 3.9)
        axes = figure.subplots(1, 2)
        for ax, (key, name) in zip(axes, panels, strict=True):
            for i, way in enumerate(ways):
                own = [row for row in rows if row["way"] == way and (row[key] or 0) > 0]
                style = {"color": _CYCLE[i % len(_CYCLE)], "marker": _MARKERS[i % len(_MARKERS)]}
                style |= {"linestyle": "-" if "reversible" in way else "--", "label": way}
                style |= {"linewidth": 2.8 - 0.25 * i}  # equal ones show one below the other
                points = [(row["depth"], row[key]) for row in own]
                if points:
                    ax.plot(*zip(*points, strict=True), markersize=4, **style)
            ax.set(xscale="log", yscale="log", xlabel="depth", ylabel=name)
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_formatter("{x:g}")
            ax.xaxis.minorticks_off()
        handles, labels = axes[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.suptitle(title)
        return figure


# ---------------------------------------------------------------- momentum networks


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

    with _style():
        figure = _figure(5.0, 3.1)
        ax = figure.subplots()
        for model, values in losses.items():
            series = np.asarray(values, dtype=float)
            width = max(len(series) // 50, 1)  # single batches would hide one model by another
            ax.plot(series, color=_line(model)["color"], linewidth=0.4, alpha=0.35)
            mean = np.convolve(series, np.ones(width) / width, mode="valid")
            ax.plot(np.arange(len(mean)) + (width - 1) / 2, mean, **_line(model))
        for name, level in (levels or {}).items():
            ax.axhline(level, color=GREY, linestyle=":", linewidth=1.0, label=name)
        ax.set(xlabel="step", ylabel=what)
        _log_loss(ax, [value for values in losses.values() for value in values])
        figure.legend(loc="outside lower center", ncols=4)
        figure.suptitle(title)
        return figure


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

    with _style():
        columns = max(len(one["layers"]) for one in models.values()) + 1
        figure = _figure(1.25 * columns, 1.25 * len(models) + 0.3)
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


def crossing(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Paths of inputs on a line through the layers of each model, and the maps that they learn.

    Arguments:
        models: model -> {"paths": (depth + 1, B), "x": (M,), "y": (M,), its map there}.
    """
    import numpy as np
    from matplotlib import colormaps

    with _style():
        figure = _figure(2.0 * (len(models) + 1.2), 2.9)
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
            _whole_ticks(ax)
        for model, one in models.items():
            axes[-1].plot(one["x"], np.asarray(one["y"], dtype=float), **_line(model))
        x = np.linspace(-1, 1, 101)
        axes[-1].plot(x, -(x**3), color=GREY, linestyle=":", label="$-x^3$")
        axes[-1].set(title="learned map", xlabel="input", ylabel="output", ylim=(-1.2, 1.2))
        handles, labels = axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        return figure


def excess_loss(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """What the loss has above its minimum, over the depth, a line for each series.

    Arguments:
        rows: each with "series", "model", "depth" and "excess"; those without excess are left
            out. Series of one model share its colour.
    """
    with _style():
        figure = _figure(5.0, 3.6)
        ax = figure.subplots()
        names = list(dict.fromkeys((row["series"], row["model"]) for row in rows))
        for i, (series, model) in enumerate(names):
            own = [row for row in rows if row["series"] == series and row["excess"]]
            of_model = [other for other, its in names if its == model]
            look = {
                "color": _line(model)["color"],
                "linestyle": _DASHES[of_model.index(series) % len(_DASHES)],
                "marker": _MARKERS[i % len(_MARKERS)],
                "label": series,
            }
            ax.plot([r["depth"] for r in own], [r["excess"] for r in own], markersize=4, **look)
        ax.set(yscale="log", xlabel="depth", ylabel=r"$F(x_{\mathrm{depth}}) - \min F$")
        ax.set_xticks(sorted({row["depth"] for row in rows}))
        figure.legend(loc="outside lower center", ncols=3, handlelength=3)
        figure.suptitle(title)
        return figure


def momentum_refit(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Divergence from the original network (left) and agreement with it (right) over a refit.

    Arguments:
        rows: each with "gamma" and "curve", a list of {"step", "KL, WHICH", "agreement, WHICH"},
            WHICH pictures being "held out" or "seen"; a single point, of a network that needs no
            refit, is drawn as a line across.
    """
    with _style():
        figure = _figure(7.2, 3.4)
        axes = figure.subplots(1, 2)
        last = max(1, *(row["curve"][-1]["step"] for row in rows))
        for i, row in enumerate(rows):
            curve = row["curve"] * (2 if len(row["curve"]) == 1 else 1)
            steps = [point["step"] for point in curve] if len(row["curve"]) > 1 else [0, last]
            for which, line in (("held out", "-"), ("seen", ":")):
                look = {"color": _CYCLE[i], "linestyle": line, "marker": _MARKERS[i]}
                name = f"γ = {row['gamma']:g}, {which}"
                for ax, what in zip(axes, ("KL", "agreement"), strict=True):
                    values = [point[f"{what}, {which}"] for point in curve]
                    ax.plot(steps, values, markersize=4, label=name, **look)
        axes[0].set(ylabel="KL(original | momentum) in nats")
        axes[1].set(ylabel="share of equal first choices", ylim=(0, 1.03))
        for ax in axes:
            ax.set_xlabel("steps of the refit")
            _whole_ticks(ax)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(rows))
        figure.suptitle(title)
        return figure


# ---------------------------------------------------------------- cross-check

SOLVER_COLOURS = {
    "torch": "#0072B2",
    "julia": "#9558B2",
    "julia native": "#E69F00",
    "scipy": "#000000",
    "torchdiffeq": "#D55E00",
    "torchode": "#009E73",
}
_NATIVE = {
    "linewidth": 0.8,
    "markerfacecolor": "none",
}  # with callbacks NFE and errors are the same
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (6, 2)))


def crosscheck(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """NFE (above) and seconds (below) over the errors of the states and of the gradient.

    The colour is the backend (and its mode) or package, the marker its method, the line its
    adjoint. States do not depend on the adjoint: of those that share them the first is drawn.

    Arguments:
        rows: each with the fields of a crosscheck's Row, "backend" being its label; those without
            errors (not run, failed) are left out.
    """
    with _style():
        figure = _figure(7.2, 7.0)
        axes = figure.subplots(2, 2, sharex="col")
        styles = _solver_styles([row for row in rows if row["state_error"] is not None])
        for who, style in styles.items():
            own = [row for row in rows if _solver(row) == who and row["state_error"] is not None]
            if who == next(other for other in styles if other[:2] == who[:2]):
                _work_precision(axes[:, 0], own, ("state_error",), ("forward",), style)
            errors = ("gradient_y0", "gradient_params")
            _work_precision(axes[:, 1], own, errors, ("forward", "backward"), style)
        axes[0, 0].set(title="states", ylabel="NFE")
        axes[0, 1].set_title("gradient, forward and backward together")
        axes[1, 0].set(ylabel="seconds", xlabel="largest absolute error")
        axes[1, 1].set_xlabel("relative error")
        for ax in axes.flat:
            ax.set(xscale="log", yscale="log")
            ax.xaxis.minorticks_off()
        for ax in axes[0]:
            low, high = ax.get_ylim()
            if high < 100 * low:
                _plain_log_ticks(ax)
        for ax in axes[1]:
            ax.invert_xaxis()
        handles, labels = axes[0, 1].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=4)
        figure.suptitle(title)
        return figure


def _solver(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["backend"], row["method"], row["adjoint"]


def _solver_styles(
    rows: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str, str], dict[str, Any]]:
    """A style for each competitor, in the order of the rows."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    adjoints: dict[str, list[str]] = {}  # of every backend, since their names are its own
    for row in rows:
        known = adjoints.setdefault(row["backend"], [])
        if row["adjoint"] not in known:
            known.append(row["adjoint"])
    return {
        who: {
            "color": SOLVER_COLOURS.get(who[0], GREY),
            "marker": _MARKERS[methods.index(who[1]) % len(_MARKERS)],
            "linestyle": _DASHES[adjoints[who[0]].index(who[2]) % len(_DASHES)],
            "label": " ".join(who),
            **(_NATIVE if who[0].endswith(" native") else {}),
        }
        for who in dict.fromkeys(_solver(row) for row in rows)
    }


def _work_precision(
    axes: Sequence[Axes],
    rows: Sequence[Mapping[str, Any]],
    errors: Sequence[str],
    passes: Sequence[str],
    style: Mapping[str, Any],
) -> None:
    """One competitor's NFE and seconds, over the largest of its ``errors``."""
    for ax, what in zip(axes, ("nfe", "seconds"), strict=True):
        points = []
        for row in rows:
            error = max((row[key] for key in errors if row[key] is not None), default=None)
            costs = [row[f"{what}_{name}"] for name in passes]
            # a logarithmic axis shows neither 0 nor infinity
            if error and math.isfinite(error) and None not in costs:
                points.append((error, sum(costs)))
        if points:
            ax.plot(*zip(*points, strict=True), markersize=4, **style)
