"""The Julia backend. Importing it starts nothing."""

from .backend import JuliaBackend

__all__ = ["JuliaBackend"]
