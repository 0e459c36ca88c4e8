"""Experiment: something that runs by name; the two kinds are trainings and studies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from ..backends import choose
from ..errors import InvalidArgumentError, unknown_name
from ..momentum import MomentumNet
from .config import RunConfig
from .environment import describe
from .folder import RunFolder, plain
from .models import MODELS
from .settings import SEED, STEPS, Setting, merge, read_number, read_whole
from .trainer import Callback, Task, Trainer

ALL = "all"


@dataclass(frozen=True)
class Defaults:
    """What an experiment runs with where nothing else is said.

    Attributes:
        tol, method, model, epochs: None where there is nothing to choose; what solves nothing has
            neither ``tol`` nor ``method``.
        tols: the smallest and the largest ``tol``.
        settings: what else can be chosen, by name.
    """

    tol: float | None
    method: str | None = "dopri5"
    model: str | None = None
    epochs: int | None = None
    tols: tuple[float, float] = (1e-15, 1.0)
    settings: Mapping[str, Setting] = field(default_factory=dict)


class Experiment(ABC):
    """An experiment of the papers.

    Attributes:
        name, summary: what it is called, and one sentence with its source.
        defaults: see :class:`Defaults`.
        models: what ``model`` may be; empty where there is nothing to choose.
        trains: whether it trains (and has epochs, checkpoints, comparisons).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    defaults: ClassVar[Defaults]
    models: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[bool] = False

    def configure(
        self,
        *,
        model: str | None = None,
        seed: int = 0,
        epochs: int | None = None,
        method: str | None = None,
        tol: float | None = None,
        adjoint: str = "auto",
        backend: str = "auto",
        device: str = "cpu",
        settings: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        """A config with this experiment's defaults for what is None.

        Raises:
            InvalidArgumentError: something that this experiment does not have or know.
        """
        if self.defaults.tol is None:
            given = {"method": method, "tol": tol}
            given |= {"adjoint": adjoint, "backend": backend}
            named = [name for name, value in given.items() if value not in (None, "auto")]
            if named:
                raise InvalidArgumentError(f"{self.name} solves no ODE: it has no {named[0]}")
        config = RunConfig(
            experiment=self.name,
            model=self._model(model),
            seed=read_whole("seed", seed, 0, SEED),
            epochs=self._epochs(epochs),
            method=self.defaults.method if method is None else method,
            tol=self.defaults.tol if tol is None else read_number("tol", tol, *self.defaults.tols),
            adjoint=adjoint,
            backend=backend,
            device=device,
            settings=merge(self.defaults.settings, settings or {}),
        )
        check_solver(config)
        check_device(device)
        check_momentum(config.settings)
        return config

    def work(self, config: RunConfig) -> int:
        """Multiply-adds of the largest layer for a batch; 0 where there is no network."""
        return 0

    def _epochs(self, epochs: int | None) -> int | None:
        if epochs is None:
            return self.defaults.epochs
        if not self.trains:
            raise InvalidArgumentError(f"{self.name} trains nothing: it has no epochs")
        return read_whole("epochs", epochs, 1, STEPS)

    def _model(self, model: str | None) -> str | None:
        if model is None:
            return self.defaults.model
        if not self.models:
            raise InvalidArgumentError(f"{self.name} has no model to choose")
        if model not in self.models:
            raise unknown_name("model", model, self.models)
        return model

    @abstractmethod
    def execute(
        self,
        config: RunConfig,
        folder: RunFolder,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ) -> dict[str, Any]:
        """Compute, write metrics and figures into the opened folder, return the metrics."""


def check_solver(config: RunConfig) -> None:
    """Raise, before anything is written, for what no run with this config could solve with."""
    capabilities = choose(config.backend).capabilities()
    methods = set(capabilities.methods)
    if config.backend == "auto":  # which is torch for what only torch has
        methods |= set(choose("torch").capabilities().methods)
    if config.method is not None and config.method not in methods:
        raise unknown_name("method", config.method, methods)
    known = ("auto", *capabilities.adjoints)
    if config.adjoint not in known:
        raise unknown_name("adjoint", config.adjoint, known)


def check_device(name: str) -> None:
    """Raise for a device that is not one, or is not here."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InvalidArgumentError(f"device must be cpu, cuda, cuda:1, ..., got {name!r}")
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= present:
        raise InvalidArgumentError(
            f"device {name!r} is not here: torch sees {present} CUDA devices; cpu always works"
        )


def check_momentum(settings: Mapping[str, Any]) -> None:
    """Raise for a ``gamma`` that a momentum network does not take in its ``mode``."""
    if "gamma" in settings:
        MomentumNet([nn.Identity()], settings["gamma"], mode=settings["mode"])


class Training(Experiment):
    """An experiment that trains one model; subclasses say on what."""

    trains = True
    models = tuple(MODELS)

    @abstractmethod
    def task(self, config: RunConfig) -> Task:
        """The network and its data; random numbers come from torch's global generator."""

    def extra_callbacks(self, config: RunConfig, folder: RunFolder) -> list[Callback]:
        """What else happens while it trains."""
        return []

    def execute(
        self,
        config: RunConfig,
        folder: RunFolder,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ) -> dict[str, Any]:
        """Train; the figures are drawn even where training was interrupted or failed."""
        own = self.extra_callbacks(config, folder)
        trainer = Trainer(self.task(config), config, folder, [*own, *callbacks], progress)
        try:
            return trainer.fit()
        finally:
            self.draw(trainer, folder)

    def draw(self, trainer: Trainer, folder: RunFolder) -> None:
        """Draw training.png, if an epoch is complete."""
        from .. import plotting

        if trainer.records:
            data = trainer.task.info.get("data", self.name)
            title = f"{plotting.label(trainer.config.model)} on {data}"
            figure = plotting.training(trainer.records, title)
            folder.write("training.png", lambda path: plotting.save(figure, path))


class Study(Experiment):
    """An experiment that trains nothing: it computes its results in one go."""

    @abstractmethod
    def compute(self, config: RunConfig, progress: bool) -> dict[str, Any]:
        """The results, as plain data with the key "final" among them."""

    @abstractmethod
    def draw(self, results: Mapping[str, Any], folder: RunFolder) -> None:
        """Draw the figures."""

    def execute(
        self,
        config: RunConfig,
        folder: RunFolder,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ) -> dict[str, Any]:
        """Compute and draw; a finished study is not computed again."""
        done = folder.read_metrics()
        if done is not None and done.get("status") == "finished":
            return done
        results = plain(self.compute(config, progress))
        metrics = {
            "status": "finished",
            "config": config.to_dict(),
            "environment": describe(config.device),
            **results,
        }
        folder.write_metrics(metrics)
        self.draw(results, folder)
        return metrics
