"""Random number generators: scoped seeding, and their state as plain data."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch within the block; the caller's generators come back after it."""
    before = capture()
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    try:
        yield
    finally:
        restore(before)


def capture() -> dict[str, Any]:
    """The state of torch's, Python's and (where it is loaded) NumPy's generators.

    Tensors and plain data only, so that a checkpoint loads with ``weights_only=True``.
    """
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        _, keys, position, has_gauss, cached = sys.modules["numpy"].random.get_state()
        state["numpy"] = [keys.tolist(), int(position), int(has_gauss), float(cached)]
    return state


def restore(state: dict[str, Any]) -> None:
    """Put the generators back to what :func:`capture` returned."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        import numpy as np

        keys, position, has_gauss, cached = state["numpy"]
        # the generator of user code that calls numpy.random.* is this global one
        np.random.set_state(  # noqa: NPY002
            ("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached)
        )
