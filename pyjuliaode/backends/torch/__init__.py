"""The pure-PyTorch backend: the reference against which everything is checked."""

from .backend import TorchBackend

__all__ = ["TorchBackend"]
