"""The clock: medians of runs that are measured in turns."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Task = Callable[[], Any]
LONG = 0.1  # seconds; a task that takes longer need not be warmed up before every measurement
ENOUGH = 2.0  # seconds; a task measured so long, and three times, is not measured again


def interleaved(tasks: Mapping[str, Task], repeats: int, least: float = 5e-3) -> dict[str, float]:
    """Median seconds of one call of every task, measured in turns.

    Each round starts with another task. A task shorter than ``least`` seconds is called several
    times per measurement; one that takes seconds is measured three times, where ``repeats`` are
    more.
    """
    samples: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    with _frozen():
        calls = {name: _calls(task, least) for name, task in tasks.items()}
        for i in range(repeats):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                if i < 3 or sum(samples[name]) < ENOUGH:
                    samples[name].append(_timed(tasks[name], *calls[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


@contextmanager
def _frozen() -> Iterator[None]:
    """What lives already is not looked through by every collection."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _calls(task: Task, least: float) -> tuple[int, int]:
    """How often a task is called while the clock runs, and how often before."""
    once = _timed(task, 1, 1)
    if once >= LONG:
        return 1, 0
    once = min(once, *(_timed(task, 1, 1) for _ in range(2)))
    calls = max(1, math.ceil(least / max(once, 1e-9)))
    return calls, min(calls, 5)


def _timed(task: Task, calls: int, before: int) -> float:
    """Seconds of one call; the collector runs first, which empties the caches: so warm up."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(before):
            task()
        start = time.perf_counter()
        for _ in range(calls):
            task()
        return (time.perf_counter() - start) / calls
    finally:
        gc.enable()
