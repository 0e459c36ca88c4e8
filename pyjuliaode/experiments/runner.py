"""run: one experiment by name, into a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .._install import install_command
from ..errors import InvalidArgumentError, SolverError, UnsupportedError
from ..progress import say
from . import get
from .config import RunConfig
from .folder import RunFolder
from .rng import reproducible
from .threads import choose, using
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
        threads: of torch, within this run; default: one where the layers are small, else as many
            as torch has now (see :mod:`.threads`).
        progress: say on standard error how far it is, by a bar where that is a terminal.
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
    check_figures()
    experiment = get(name)
    config = experiment.configure(**choices)
    folder = RunFolder(config.default_folder if out is None else out)
    if resume and choices.get("epochs") is None:
        config = _with_stored_epochs(config, folder)
    folder.check(config.to_dict(), resume=resume, overwrite=overwrite)
    chosen = choose(experiment.work(config), folder, asked=threads, resume=resume)
    say(chosen.line(), progress)
    return execute(
        config,
        folder,
        chosen.number,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        callbacks=callbacks,
    )


def execute(
    config: RunConfig,
    folder: RunFolder,
    threads: int,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Run ``config`` into ``folder``: see :func:`run`."""
    experiment = get(config.experiment)
    folder.open(config.to_dict(), resume=resume, overwrite=overwrite)
    try:
        with reproducible(config.seed), using(threads):
            return experiment.execute(config, folder, callbacks, progress)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise InvalidArgumentError(
            f"{config.experiment} needs more memory than there is: choose smaller sizes "
            f"({' '.join(str(error).split())})"
        ) from error


def _out_of_memory(error: Exception) -> bool:
    """Of Python, of a device, or of torch on the CPU, which has no class of its own for it."""
    kinds = (MemoryError, torch.cuda.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def check_figures() -> None:
    """Raise for what would otherwise fail after an hour of training."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            f"the experiments draw with matplotlib: {install_command('experiments')}"
        ) from error


def _with_stored_epochs(config: RunConfig, folder: RunFolder) -> RunConfig:
    from dataclasses import replace

    old = folder.read_metrics()
    stored = old["config"].get("epochs") if old is not None else None
    return config if stored is None else replace(config, epochs=stored)


def as_settings(pairs: Sequence[str]) -> Mapping[str, str]:
    """``["lr=0.01", ...]`` as a dict.

    Raises:
        InvalidArgumentError: one has no equals sign, or two have one name.
    """
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidArgumentError(f"--set takes NAME=VALUE, got {pair!r}")
        if name in settings:
            raise InvalidArgumentError(f"--set gives {name!r} twice")
        settings[name] = value
    return settings
