"""Evaluations, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .style import CYCLE, GREY, MARKERS, empty, line_of, plain_log_ticks, plot, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def nfe_vs_tolerance(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """NFE and errors of the output and of the gradient against the tolerance.

    Arguments:
        rows: each with "model", "tol", "nfe_forward", "nfe_backward", "error",
            "gradient_error".
    """
    with styled():
        figure = empty(7.2, 5.2)
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
                plot(ax, [row["tol"] for row in own], [row[key] for row in own], **line_of(model))
            ax.set(xscale="log", yscale="log", ylabel=name)
            ax.xaxis.minorticks_off()
        for ax in axes[0]:
            plain_log_ticks(ax)
        for ax in axes[1]:
            tolerances = sorted({row["tol"] for row in rows})
            ax.plot(tolerances, tolerances, color=GREY, linewidth=0.8, linestyle=":")
            ax.set_xlabel("tolerance (rtol = atol)")
        axes[0, 0].invert_xaxis()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(title)
        return figure


def evaluations(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Errors over evaluations: one after another (left) and all together (right).

    Arguments:
        rows: each with "solver", "error", "sequential" and "total", by solver from loose to tight;
            those without an error are left out.
    """
    with styled():
        figure = empty(7.2, 4.2)
        axes = figure.subplots(1, 2, sharey=True)
        names = list(dict.fromkeys(row["solver"] for row in rows))
        for i, name in enumerate(names):
            own = [row for row in rows if row["solver"] == name and row["error"]]
            outside = name.startswith("SciPy")
            style = {
                "color": CYCLE[i % len(CYCLE)],
                "marker": MARKERS[i % len(MARKERS)],
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
    with styled():
        figure = empty(7.2, 3.0)
        axes = figure.subplots(1, len(widths), sharey=True, squeeze=False)[0]
        for ax, width in zip(axes, widths, strict=True):
            for i, method in enumerate(methods):
                own = [
                    (row["batch"], row["seconds"])
                    for row in rows
                    if (row["width"], row["method"]) == (width, method) and row["seconds"]
                ]
                look = {"color": CYCLE[i + 1], "marker": MARKERS[i], "label": method}
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
    with styled():
        figure = empty(7.2, 3.9)
        axes = figure.subplots(1, 2)
        for ax, (key, name) in zip(axes, panels, strict=True):
            for i, way in enumerate(ways):
                own = [row for row in rows if row["way"] == way and (row[key] or 0) > 0]
                style = {"color": CYCLE[i % len(CYCLE)], "marker": MARKERS[i % len(MARKERS)]}
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
