"""RunConfig: everything that decides what a run computes."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import InvalidArgumentError, unknown_name


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

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise InvalidArgumentError(f"epochs must be at least 1, got {self.epochs}")
        if self.tol is not None and not 0 < self.tol < float("inf"):
            raise InvalidArgumentError(f"tol must be positive and finite, got {self.tol}")
        if not 0 <= self.seed < 2**63:
            raise InvalidArgumentError(f"seed must be a number from 0 to 2^63 - 1, got {self.seed}")

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


def merge_settings(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults overridden by ``given``; values take the type of the default.

    Raises:
        InvalidArgumentError: an unknown setting, or a value of another type.
    """
    merged = dict(defaults)
    for name, value in given.items():
        if name not in defaults:
            raise unknown_name("setting", name, defaults)
        merged[name] = _cast(name, value, defaults[name])
    return merged


def _cast(name: str, value: Any, default: Any) -> Any:
    """``value``, as text or as a value, in the type of ``default`` (None: whatever it reads as)."""
    kind = type(default)
    try:
        if default is None:
            return _literal(value)
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        cast = kind(value)
    except (KeyError, TypeError, ValueError):
        cast = None
    if cast is None or (kind is int and float(value) != cast):
        raise InvalidArgumentError(f"setting {name!r} must be a {kind.__name__}, got {value!r}")
    return cast


def _literal(value: Any) -> Any:
    """Text as the Python literal that it spells, else as itself."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return value
