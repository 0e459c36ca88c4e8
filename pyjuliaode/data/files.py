"""Files of data: where they lie, and their bytes."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from ..errors import InvalidArgumentError

VARIABLE = "PYJULIAODE_DATA"


def find(
    names: Sequence[str],
    folder: str | os.PathLike[str] | None,
    what: str,
    how: str,
    below: Sequence[str] = ("",),
) -> Path:
    """The first file of ``names`` that there is.

    Arguments:
        names: of the file.
        folder: where to look; default ``$PYJULIAODE_DATA``.
        what, how: for the error: what is missing, and how to get it.
        below: folders in the folder.

    Raises:
        InvalidArgumentError: there is none, or no folder to look in.
    """
    place = folder if folder is not None else os.environ.get(VARIABLE)
    if not place:
        raise InvalidArgumentError(f"{what} is not at hand: {how}")
    root = Path(place).expanduser()
    for candidate in (root / sub / name for sub in below for name in names):
        if candidate.is_file():
            return candidate
    others = f" (or {', '.join(names[1:])})" if names[1:] else ""
    raise InvalidArgumentError(f"there is no {names[0]}{others} in {root}: {how}")


def read(path: Path) -> bytes:
    """The bytes of the file, uncompressed where its name ends in .gz.

    Raises:
        InvalidArgumentError: they cannot be read.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidArgumentError(f"cannot read {path}: {error}") from error
