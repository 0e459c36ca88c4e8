"""What all figures share: colours, line styles, axes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._install import install_command
from ..errors import UnsupportedError

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
MARKERS = "os^Dv<>P"
# Okabe and Ito's colours, and dark ones of the same hues for what remains
CYCLE = (
    *("#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"),
    *("#CC79A7", "#7F7F7F", "#B22222", "#882255", "#332288"),
)
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (6, 2)))
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
    with styled():
        figure.savefig(path)
    return Path(path)


@contextlib.contextmanager
def styled() -> Iterator[None]:
    try:
        import matplotlib
    except ImportError as error:
        raise UnsupportedError(
            f"figures need matplotlib: {install_command('experiments')}"
        ) from error
    with matplotlib.rc_context(_RC):
        yield


def empty(width: float, height: float) -> Figure:
    """An empty figure in inches that pyplot does not know of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def line_of(model: str) -> dict[str, Any]:
    colour, style, name = MODEL_STYLES.get(model, (GREY, "-", model))
    return {"color": colour, "linestyle": style, "label": name}


def plot(ax: Axes, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    """A line, with markers while it is short enough for them to be told apart."""
    ax.plot(x, y, marker="o" if len(x) <= 12 else None, markersize=3, **style)


def log_loss(ax: Axes, losses: Sequence[float | None]) -> None:
    """A logarithmic axis, cut where a loss is as good as zero; zeros are left out of a line."""
    positive = [value for value in losses if value is not None and value > 0]
    if positive:
        ax.set_yscale("log", nonpositive="mask")
        ax.set_ylim(bottom=max(0.7 * min(positive), 1e-6 * max(positive)))


def whole_ticks(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def plain_log_ticks(ax: Axes) -> None:
    """20, 50, 100, 200 in place of powers of ten: NFE span little more than one decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
