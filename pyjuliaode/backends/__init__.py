"""Backends: what executes a solve."""

from .base import (
    Backend,
    Capabilities,
    Event,
    Result,
    backend_for,
    choose,
    register,
    registered,
)
from .julia import JuliaBackend
from .torch import TorchBackend

register(TorchBackend())
register(JuliaBackend())

__all__ = [
    "Backend",
    "Capabilities",
    "Event",
    "Result",
    "backend_for",
    "choose",
    "registered",
]
