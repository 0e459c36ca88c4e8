"""What a run ran on: recorded in every metrics.json."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

PACKAGES = ("pyjuliaode", "torch", "numpy", "scipy", "scikit-learn", "matplotlib", "juliacall")


def describe(device: str) -> dict[str, Any]:
    """Versions, platform, device and threads, as plain data."""
    return {
        "versions": {"python": platform.python_version()} | _versions(),
        "platform": platform.platform(),
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()})"
