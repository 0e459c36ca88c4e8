"""The seven models by name, and what their networks must look like."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..dynamics import DYNAMICS
from ..layer import NeuralODE
from ..solver import Solver
from .config import RunConfig

MODELS = dict(DYNAMICS)  # lower-case class name -> class
FIRST_ORDER = ("node", "anode")
NESTEROV = ("nesterovnode", "gnesterovnode")


# The learned velocity has to stay in the range of the activation that the momentum goes through:
# GNESTEROV_SPEED with t0 = 1 and |h0| <= GNESTEROV_LIMIT allow any |h'(t0)| <= GNESTEROV_LIMIT.
GNESTEROV_SPEED, GNESTEROV_LIMIT = "hardtanh(5)", 3.0

_TAKES: dict[str, tuple[str, ...]] = {
    "node": (),
    "anode": ("augment",),
    "sonode": ("initial_velocity",),
    "hbnode": ("initial_velocity",),
    "ghbnode": ("xi", "activation", "initial_velocity"),
    "nesterovnode": ("variant", "sign", "initial_velocity"),
    "gnesterovnode": (
        "xi",
        "activation",
        "activation_velocity",
        "variant",
        "sign",
        "initial_velocity",
    ),
}


def dynamics(name: str, field: nn.Module, **choices: Any) -> nn.Module:
    """The dynamics ``name`` of ``field``; a choice that the model does not have is left out.

    Arguments:
        name: lower-case class name.
        field: f(t, h); a SONODE's takes [h, v].
        choices: augment, initial_velocity, xi, activation, activation_velocity, variant, and
            sign, which only variant="published" has.
    """
    if choices.get("variant") != "published":
        choices.pop("sign", None)
    return MODELS[name](field, **{key: choices[key] for key in _TAKES[name] if key in choices})


def limited(module: nn.Module, name: str) -> nn.Module:
    """``module``, its output clipped where ``name`` is the model that needs it."""
    if name != "gnesterovnode":
        return module
    return nn.Sequential(module, nn.Hardtanh(-GNESTEROV_LIMIT, GNESTEROV_LIMIT))


def solver(config: RunConfig) -> Solver:
    """The solver that a config asks for; ``tol`` is both tolerances."""
    return Solver(
        method=config.method,
        rtol=config.tol,
        atol=config.tol,
        adjoint=config.adjoint,
        backend=config.backend,
    )


def layer(module: nn.Module, span: tuple[float, float], config: RunConfig) -> NeuralODE:
    """The continuous-depth layer of ``module`` over ``span``."""
    return NeuralODE(module, t=span, solver=solver(config))
