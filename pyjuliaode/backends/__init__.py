"""Backends: what executes a solve."""

from .base import (
    AdjointRequest,
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
    "AdjointRequest",
    "Backend",
    "Capabilities",
    "Event",
    "Result",
    "backend_for",
    "choose",
    "registered",
]
