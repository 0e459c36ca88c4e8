"""What :func:`to_momentum` did to a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """Consecutive blocks that became one momentum network.

    Attributes:
        path: of their container in the model; empty for the model itself.
        first, last: their positions in the original container.
        kind: class names of the blocks.
    """

    path: str
    first: int
    last: int
    kind: str

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.last - self.first + 1

    @property
    def places(self) -> str:
        """As "3", or "3 to 5"."""
        return f"{self.first}" if self.depth == 1 else f"{self.first} to {self.last}"


@dataclass(frozen=True)
class Kept:
    """A child of such a container that stays as it was.

    Attributes:
        path: in the original model.
        kind: its class name.
        reason: why it is not converted.
    """

    path: str
    kind: str
    reason: str


@dataclass(frozen=True)
class MomentumReport:
    """Attributes: ``gamma``; ``converted``, the runs of blocks; ``kept``, what lies beside them."""

    gamma: float
    converted: tuple[Run, ...]
    kept: tuple[Kept, ...]

    @property
    def blocks(self) -> int:
        """Number of blocks converted."""
        return sum(run.depth for run in self.converted)

    def __str__(self) -> str:
        blocks, networks = _count(self.blocks, "block"), len(self.converted)
        head = f"{blocks} in {_count(networks, 'momentum network')}"
        rows = [("container", "blocks", "of class")]
        rows += [(run.path or "(the model)", run.places, run.kind) for run in self.converted]
        lines = [f"{head}, gamma = {self.gamma:g}", *_aligned(rows)]
        if self.kept:
            kept = [("kept", "of class", "because")]
            kept += [(block.path, block.kind, block.reason) for block in self.kept]
            lines += ["", *_aligned(kept)]
        return "\n".join(lines)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
