"""Distances from what is to be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .style import CYCLE, DASHES, MARKERS, empty, line_of, styled, whole_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def excess_loss(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """What the loss has above its minimum, over the depth, a line for each series.

    Arguments:
        rows: each with "series", "model", "depth" and "excess"; those without excess are left
            out. Series of one model share its colour.
    """
    with styled():
        figure = empty(5.0, 3.6)
        ax = figure.subplots()
        names = list(dict.fromkeys((row["series"], row["model"]) for row in rows))
        for i, (series, model) in enumerate(names):
            own = [row for row in rows if row["series"] == series and row["excess"]]
            of_model = [other for other, its in names if its == model]
            look = {
                "color": line_of(model)["color"],
                "linestyle": DASHES[of_model.index(series) % len(DASHES)],
                "marker": MARKERS[i % len(MARKERS)],
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
    with styled():
        figure = empty(7.2, 3.4)
        axes = figure.subplots(1, 2)
        last = max(1, *(row["curve"][-1]["step"] for row in rows))
        for i, row in enumerate(rows):
            curve = row["curve"] * (2 if len(row["curve"]) == 1 else 1)
            steps = [point["step"] for point in curve] if len(row["curve"]) > 1 else [0, last]
            for which, line in (("held out", "-"), ("seen", ":")):
                look = {"color": CYCLE[i], "linestyle": line, "marker": MARKERS[i]}
                name = f"γ = {row['gamma']:g}, {which}"
                for ax, what in zip(axes, ("KL", "agreement"), strict=True):
                    values = [point[f"{what}, {which}"] for point in curve]
                    ax.plot(steps, values, markersize=4, label=name, **look)
        axes[0].set(ylabel="KL(original | momentum) in nats")
        axes[1].set(ylabel="share of equal first choices", ylim=(0, 1.03))
        for ax in axes:
            ax.set_xlabel("steps of the refit")
            whole_ticks(ax)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(rows))
        figure.suptitle(title)
        return figure
