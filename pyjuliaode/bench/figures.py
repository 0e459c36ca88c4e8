"""The figures: time over error, ratios over all problems, growth of costs.

matplotlib is imported when the first is drawn. The figures belong to no window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .competitors import BASE, PACKAGES
from .measure import Row
from .report import WHATS, curves, firsts, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
# Okabe and Ito's colours, told apart with any colour vision, and a marker for print without.
STYLES = {
    "torch": ("#0072B2", "o"),
    "compiled": ("#56B4E9", "P"),
    "pan": ("#8C510A", "*"),
    "julia": ("#E69F00", "s"),
    "native": ("#D55E00", "D"),
    "torchdiffeq": ("#000000", "X"),
    "torchode": ("#009E73", "^"),
    "diffrax": ("#CC79A7", "v"),
}
LINES = ("-", "--", ":", "-.", (0, (1, 3)))  # of the methods or adjoints of one package
AXES = {"batch": "batch", "dim": "dimension of h", "width": "parameters", "tol": "1 / tolerance"}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def work_precision(problems: Sequence[Result]) -> Figure:
    """Milliseconds over achieved error; a row of panels per problem that was swept."""
    figure = _figure(11, 4.6 * len(problems))
    axes = figure.subplots(len(problems), 2, squeeze=False)
    for panels, problem in zip(axes, problems, strict=True):
        for ax, what in zip(panels, WHATS, strict=True):
            ax.set_title(f"{problem['name']}: {what}", fontsize=10)
            if rows := rows_of(problem, what, "sweep"):
                _work_precision_panel(ax, rows)
            else:
                ax.set_axis_off()
                ax.text(0.5, 0.5, "nobody here does it", ha="center", color="#777777")
    return figure


def _work_precision_panel(ax: Axes, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    package_of = {row.label: row.package for row in rows}
    drawn: dict[str, int] = {}
    for label, curve in curves(rows).items():
        package = package_of[label]
        colour, marker = STYLES[package]
        line = LINES[drawn.get(package, 0) % len(LINES)]
        drawn[package] = drawn.get(package, 0) + 1
        errors, seconds = zip(*curve, strict=True)
        look = {"color": colour, "marker": marker, "linestyle": line, "label": label}
        ax.loglog(errors, [1e3 * s for s in seconds], markersize=4, linewidth=1.2, **look)
    ax.invert_xaxis()
    ax.xaxis.set_major_locator(LogLocator(numticks=12))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="relative error", ylabel="ms")
    ax.grid(True, which="major", alpha=0.3)
    # below the axes: inside, it hides a curve wherever the measurements put one
    ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


def grid(problems: Sequence[Result]) -> Figure:
    """Time over that of the base, a line per problem; milliseconds where the base was not run."""
    related = any(row["package"] == BASE for problem in problems for row in problem["rows"])
    figure = _figure(10, 1.6 + 0.42 * len(problems))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, what in zip(axes, WHATS, strict=True):
        for place, problem in enumerate(problems):
            _grid_line(ax, place, firsts(rows_of(problem, what)), related)
        unit = f"time / {BASE}" if related else "ms"
        ax.set(xscale="log", title=what, xlabel=unit)
        ax.set_yticks(range(len(problems)), [problem["name"] for problem in problems])
        ax.set_ylim(len(problems) - 0.5, -0.5)
        ax.grid(True, axis="x", which="major", alpha=0.3)
        ax.grid(True, axis="y", alpha=0.15)
        if related:
            ax.axvline(1.0, color=STYLES[BASE][0], linewidth=0.8)
    _legend(figure, axes)
    return figure


def _grid_line(ax: Axes, place: int, rows: Mapping[str, Row], related: bool) -> None:
    if related and BASE not in rows:
        at = ax.get_yaxis_transform()
        text = f"no {BASE} to compare with"
        ax.text(0.02, place, text, transform=at, va="center", fontsize=7, color="#777777")
        return
    unit = rows[BASE].seconds if related else 1e-3
    for package, row in rows.items():
        colour, marker = STYLES[package]
        ax.plot(
            row.seconds / unit, place, marker, color=colour, markersize=7, label=PACKAGES[package]
        )


def growth(points: Sequence[Result]) -> Figure:
    """Milliseconds of forward solve and gradient over every swept quantity."""
    quantities = list(dict.fromkeys(point["quantity"] for point in points))
    figure = _figure(9, 2.6 * len(quantities) + 0.6)
    axes = figure.subplots(len(quantities), 2, squeeze=False, sharey="row")
    for panels, quantity in zip(axes, quantities, strict=True):
        here = [point for point in points if point["quantity"] == quantity]
        for ax, what in zip(panels, WHATS, strict=True):
            _growth_panel(ax, here, what)
            ax.set(xlabel=AXES[quantity], title=what if quantity == quantities[0] else "")
            ax.grid(True, which="major", alpha=0.3)
        panels[0].set_ylabel("ms")
    _legend(figure, axes.flat)
    return figure


def _growth_panel(ax: Axes, points: Sequence[Result], what: str) -> None:
    found: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        for package, row in firsts(rows_of(point, what)).items():
            found.setdefault(package, []).append((_place(point), 1e3 * row.seconds))
    for package, curve in found.items():
        colour, marker = STYLES[package]
        look = {"color": colour, "marker": marker, "label": PACKAGES[package]}
        ax.loglog(*zip(*curve, strict=True), markersize=4, linewidth=1.2, **look)


def _place(point: Result) -> float:
    """Where a point lies on its axis."""
    if point["quantity"] == "tol":
        return 1 / point["value"]
    return point["parameters"] if point["quantity"] == "width" else point["value"]


def _legend(figure: Figure, axes: Any) -> None:
    """One for all panels, below them; every package once, in the order of the tables."""
    handles = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    names = [name for name in PACKAGES.values() if name in handles]
    chosen = [handles[name] for name in names]
    figure.legend(chosen, names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
