"""run: one experiment by name, into a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import InvalidArgumentError, SolverError, UnsupportedError
from . import get
from .config import RunConfig
from .folder import RunFolder
from .rng import reproducible
from .trainer import Callback, TrainingError

# what ends one run of a comparison; any other error would end all of them alike
RUN_FAILURES = (SolverError, TrainingError)


def run(
    name: str,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    **choices: Any,
) -> dict[str, Any]:
    """Run the experiment ``name`` and write metrics.json, the checkpoint and the figures.

    Arguments:
        name: see :func:`pyjuliaode.experiments.names`.
        out: the folder; default runs/NAME-MODEL-seedN.
        resume: continue the run that lies there, if one does; without ``epochs``, up to the
            number of epochs that it was started with.
        overwrite: remove the run that lies there.
        threads: of torch, within this run; default: as they are.
        progress: show a progress bar (only where standard error is a terminal).
        callbacks: hooks of the trainer.
        choices: model, seed, epochs, method, tol, adjoint, backend, device, settings: see
            :meth:`.base.Experiment.configure`.

    Returns:
        The metrics, as in metrics.json.

    Raises:
        InvalidArgumentError: a wrong choice, or a folder that holds another run; nothing has
            been written.
        KeyboardInterrupt: Ctrl-C; what was complete is on disk, and ``resume`` continues it.
    """
    config = get(name).configure(**choices)
    folder = RunFolder(config.default_folder if out is None else out)
    if resume and choices.get("epochs") is None:
        config = _with_stored_epochs(config, folder)
    return execute(
        config,
        folder,
        resume=resume,
        overwrite=overwrite,
        threads=threads,
        progress=progress,
        callbacks=callbacks,
    )


def execute(
    config: RunConfig,
    folder: RunFolder,
    *,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Run ``config`` into ``folder``: see :func:`run`."""
    _check_surroundings(config, threads)
    experiment = get(config.experiment)
    folder.open(config.to_dict(), resume=resume, overwrite=overwrite)
    with reproducible(config.seed, threads):
        return experiment.execute(config, folder, callbacks, progress)


def _check_surroundings(config: RunConfig, threads: int | None) -> None:
    """What would otherwise fail after an hour of training."""
    if threads is not None and threads < 1:
        raise InvalidArgumentError(f"threads must be at least 1, got {threads}")
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"unknown device {config.device!r}: cpu, cuda, cuda:1"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidArgumentError("no CUDA device is visible to torch here: use --device cpu")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "the experiments draw with matplotlib: pip install 'pyjuliaode[experiments]'"
        ) from error


def _with_stored_epochs(config: RunConfig, folder: RunFolder) -> RunConfig:
    from dataclasses import replace

    old = folder.read_metrics()
    stored = old["config"].get("epochs") if old is not None else None
    return config if stored is None else replace(config, epochs=stored)


def as_settings(pairs: Sequence[str]) -> Mapping[str, str]:
    """``["lr=0.01", ...]`` as a dict.

    Raises:
        InvalidArgumentError: one has no equals sign.
    """
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise InvalidArgumentError(f"--set takes NAME=VALUE, got {wrong[0]!r}")
    return dict(pair.split("=", 1) for pair in pairs)
