"""How many threads of torch a run gets: more than one only where its layers are worth sharing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .folder import RunFolder
from .settings import read_whole

# Multiply-adds of the largest layer for a batch. Measured on two cores: below, a second thread
# saves a fifth of the time on an idle machine, and takes ten times as long where other programs
# run, since either thread waits for the other in every layer; above, it saves a third and more.
ENOUGH = 5 * 10**7
MOST = 4096


@dataclass(frozen=True)
class Threads:
    """A number of threads of torch, and why this one; empty where somebody asked for it."""

    number: int
    reason: str = ""

    def line(self) -> str:
        """What a run says of it; empty where there was nothing to choose."""
        present = torch.get_num_threads()
        if present == 1 or not self.reason:
            return ""
        return f"threads: {self.number} of {present} ({self.reason}; --threads changes it)"


@contextlib.contextmanager
def using(number: int) -> Iterator[None]:
    """So many threads of torch within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose(
    work: int,
    folder: RunFolder,
    *,
    asked: int | None = None,
    resume: bool = False,
    jobs: int = 1,
) -> Threads:
    """The threads of a run.

    Arguments:
        work: multiply-adds of its largest layer for a batch.
        folder: where it goes; what it began with there, ``resume`` continues with.
        asked: by the user.
        jobs: runs at a time, which share those that torch has.
    """
    if asked is not None:
        return Threads(read_whole("threads", asked, 1, MOST))
    begun = folder.read_metrics() if resume else None
    if begun is not None and (number := begun.get("environment", {}).get("threads")):
        return Threads(number, "as the run began")
    if not work:
        return Threads(1, "small problem")
    size = f"{work:,} multiply-adds in its largest layer"
    if work < ENOUGH:
        return Threads(1, f"small network: {size}")
    return Threads(max(1, torch.get_num_threads() // jobs), f"large network: {size}")
