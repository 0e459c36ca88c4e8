"""Backends, methods and adjoints beside one another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .style import DASHES, GREY, MARKERS, empty, plain_log_ticks, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def crosscheck(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """NFE (above) and seconds (below) over the errors of the states and of the gradient.

    The colour is the backend (and its mode) or package, the marker its method, the line its
    adjoint. States do not depend on the adjoint: of those that share them the first is drawn.

    Arguments:
        rows: each with the fields of a crosscheck's Row, "backend" being its label; those without
            errors (not run, failed) are left out.
    """
    with styled():
        figure = empty(7.2, 7.0)
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
                plain_log_ticks(ax)
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
            "marker": MARKERS[methods.index(who[1]) % len(MARKERS)],
            "linestyle": DASHES[adjoints[who[0]].index(who[2]) % len(DASHES)],
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
