"""Draw front.png, the README's figure, from the tables of the page of measurements.

``python docs/figures/front.py``, after a table has changed; matplotlib is all that it needs.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PAGES = HERE.parent / "measurements"

WAYS = {  # column of the table: (label, colour, marker)
    "torch": ("torch", "#0072B2", "o"),
    "compiled": ("torch, compiled steps", "#56B4E9", "P"),
    "Julia, native": ("Julia, native", "#D55E00", "D"),
}
PROBLEMS = {
    "spiral, 2-50-2, batch 1, 10 outputs, 1e-7": "spiral",
    "HBNODE, batch 120": "HBNODE, batch 120",
    "GNesterovNODE, batch 120": "GNesterovNODE, batch 120",
    "HBNODE, batch 4096": "HBNODE, batch 4096",
    "64-256-64, batch 256, float32, 1e-5": "64-256-64, batch 256",
    "convolutions, 16 x 8 x 28 x 28, float32, 1e-5": "convolutions",
}
SECOND_ORDER = ("SONODE", "HBNODE", "GHBNODE", "NesterovNODE", "GNesterovNODE")


def table(page: str, start: str) -> list[dict[str, str]]:
    """The rows of the table whose heading begins with ``start``."""
    lines = (PAGES / page).read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(start))
    cells = []
    for line in lines[at:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").split("|")])
    head, _, *rows = cells
    return [dict(zip(head, row, strict=True)) for row in rows]


def draw() -> plt.Figure:
    """Left: times of gradients over torchdiffeq's; right: evaluations of the models on digits."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.0, 2.9), width_ratios=(1.35, 1), layout="constrained"
    )
    times = {row["gradient"]: row for row in table("speed.md", "| gradient |")}
    for y, problem in enumerate(PROBLEMS):
        for column, (_, colour, marker) in WAYS.items():
            ratio = float(times[problem][column].split("(")[1].rstrip(")"))
            left.plot(ratio, y, marker, color=colour, ms=6, clip_on=False)
    for label, colour, marker in WAYS.values():
        left.plot([], [], marker, color=colour, ms=6, label=label)
    left.axvline(1.0, color="black", lw=1)
    left.set(xscale="log", xlim=(0.008, 1.3), ylim=(len(PROBLEMS) - 0.6, -0.6))
    left.set_title("time of a gradient, torchdiffeq's = 1", fontsize=9)
    left.set_xticks([0.01, 0.1, 1.0], ["1/100", "1/10", "1"])
    left.set_yticks(range(len(PROBLEMS)), PROBLEMS.values())
    left.grid(axis="x", which="major", color="#dddddd")
    left.legend(loc="lower left", frameon=False, fontsize=8, handletextpad=0.2)

    models = table("models.md", "| model | parameters |")
    for y, row in enumerate(models):
        mean = float(row["NFE forward"].split("±")[0]) + float(row["NFE backward"].split("±")[0])
        second = row["model"] in SECOND_ORDER
        right.barh(y, mean, color="#0072B2" if second else "#999999", height=0.7)
        accuracy = 100 * float(row["test accuracy"].split("±")[0])
        right.text(1.0, y, f"{accuracy:.1f} %", va="center", color="white", fontsize=8)
    right.set_yticks(range(len(models)), [row["model"] for row in models])
    right.invert_yaxis()
    right.set_title("NFE of a training step, digits (accuracy)", fontsize=9)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    return figure


if __name__ == "__main__":
    plt.rcParams.update({"font.size": 9})
    draw().savefig(HERE / "front.png", dpi=160, facecolor="white")
