"""RunConfig: everything that decides what a run computes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunConfig:
    """What is run; two runs with equal configs (and threads) give equal numbers.

    Attributes:
        experiment: its name.
        model: lower-case class name, or None where the experiment has no model to choose.
        seed: of the initial parameters and of the order of the samples.
        epochs: how long to train; None for experiments that train nothing.
        method, tol, adjoint, backend: the solver; ``tol`` is both rtol and atol. None, None, "auto"
            and "auto" where nothing is solved.
        device: "cpu", "cuda", "cuda:1", ...
        settings: what else the experiment lets one choose.
    """

    experiment: str
    model: str | None
    seed: int
    epochs: int | None
    method: str | None
    tol: float | None
    adjoint: str = "auto"
    backend: str = "auto"
    device: str = "cpu"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for metrics.json and the checkpoint."""
        return asdict(self) | {"settings": dict(self.settings)}

    @property
    def default_folder(self) -> str:
        """runs/NAME-MODEL-seedN."""
        parts = (self.experiment, self.model, f"seed{self.seed}")
        return "runs/" + "-".join(part for part in parts if part)

    def command(self, out: str, defaults: RunConfig) -> str:
        """The command line of this run, with only what differs from ``defaults``."""
        words = ["pyjuliaode", "run", self.experiment]
        if self.model is not None:
            words += ["--model", self.model]
        words += ["--seed", str(self.seed)]
        if self.epochs is not None:
            words += ["--epochs", str(self.epochs)]
        for name in ("method", "tol", "adjoint", "backend", "device"):
            if getattr(self, name) != getattr(defaults, name):
                words += [f"--{name}", str(getattr(self, name))]
        for name, value in self.settings.items():
            if value != defaults.settings.get(name):
                words += ["--set", f"{name}={value}"]
        return shlex.join([*words, "--out", out])


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What distinguishes two configs as plain data; the number of epochs does not."""
    flat = [dict(config) | dict(config.get("settings", {})) for config in (there, here)]
    keys = sorted((flat[0].keys() | flat[1].keys()) - {"epochs", "settings"})
    return [
        f"{key}: {flat[0].get(key)!r} there, {flat[1].get(key)!r} here"
        for key in keys
        if flat[0].get(key) != flat[1].get(key)
    ]
