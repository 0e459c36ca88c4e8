"""The papers' experiments, run by name.

``names()`` lists them, ``get(name)`` gives one, ``run(name, ...)`` runs it into a folder. The
modules are imported on first use, so that listing names costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import unknown_name

if TYPE_CHECKING:
    from .base import Experiment

# name -> module that defines EXPERIMENT
_MODULES = {
    "cubic": "cubic",
    "digits": "digits",
    "lista": "lista",
    "momentum-digits": "momentum_digits",
    "momentum-memory": "momentum_memory",
    "momentum-finetune": "momentum_finetune",
    "nfe-vs-tolerance": "tolerance",
    "optimizers": "optimizers",
    "pan-lorenz": "pan_lorenz",
    "pan-moons": "pan_moons",
    "pan-scaling": "pan_scaling",
    "pan-spiral": "pan_spiral",
    "point-cloud": "point_cloud",
    "rings": "rings",
    "silverbox-init": "silverbox_init",
}


def names() -> list[str]:
    """The names of all experiments."""
    return sorted(_MODULES)


def get(name: str) -> Experiment:
    """The experiment called ``name``.

    Raises:
        InvalidArgumentError: there is none; the message names the nearest.
    """
    if name not in _MODULES:
        raise unknown_name("experiment", name, _MODULES)
    return importlib.import_module(f".{_MODULES[name]}", __name__).EXPERIMENT


def run(name: str, **arguments: Any) -> dict[str, Any]:
    """Run one experiment into a folder and return its metrics: see :func:`.runner.run`."""
    from .runner import run as run_named

    return run_named(name, **arguments)


def compare(name: str, **arguments: Any) -> dict[str, Any]:
    """Train several models and seeds and tabulate them: see :func:`.comparison.compare`."""
    from .comparison import compare as compare_named

    return compare_named(name, **arguments)


__all__ = ["compare", "get", "names", "run"]
