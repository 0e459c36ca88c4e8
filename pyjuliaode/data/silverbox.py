"""The Silverbox benchmark: an electronic circuit that behaves as a Duffing oscillator."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import torch

from ..errors import InvalidArgumentError
from .files import VARIABLE, find, read
from .record import Record

N_SAMPLES = 131_072
SAMPLE_RATE = 610.35  # Hz
FILES = ("SNLS80mV.csv", "SNLS80mV.csv.gz")
# Of the parsed values, so that line endings and compression do not matter.
SHA256 = "633747e9bbe0317747a4cfd0a6f1e5532d275e951f812b5578461853c9be2d8d"


def silverbox(folder: str | os.PathLike[str] | None = None) -> Record:
    """The full Silverbox record SNLS80mV (Wigren and Schoukens, 2013), in volts.

    Arguments:
        folder: where SNLS80mV.csv or SNLS80mV.csv.gz lies; default ``$PYJULIAODE_DATA``.

    Returns:
        :class:`Record` with u = V1 and y = V2, each (131072,).

    Raises:
        InvalidArgumentError: the file is not there, or is not that record.
    """
    path = _find(folder)
    values = _parse(path)
    if values.shape != (N_SAMPLES, 2):
        raise InvalidArgumentError(
            f"{path} has {len(values):,} rows, the Silverbox record has {N_SAMPLES:,}: "
            "download it again from https://www.nonlinearbenchmark.org"
        )
    if _digest(values) != SHA256:
        raise InvalidArgumentError(
            f"{path} has the right number of rows but other values than the Silverbox record: "
            "download it again from https://www.nonlinearbenchmark.org"
        )
    return Record("Silverbox", values[:, 0].clone(), values[:, 1].clone(), SAMPLE_RATE)


def _find(folder: str | os.PathLike[str] | None) -> Path:
    return find(FILES, folder, "the Silverbox record", _HOW, ("", "SilverboxFiles"))


_HOW = (
    "download the Silverbox files from https://www.nonlinearbenchmark.org (Silverbox), put "
    f"SNLS80mV.csv into a folder and set {VARIABLE} to that folder"
)


def _parse(path: Path) -> torch.Tensor:
    """The two columns of the file, shape (N, 2), float64."""
    import numpy as np

    raw = read(path)
    try:
        table = np.loadtxt(
            io.BytesIO(raw), delimiter=",", skiprows=1, usecols=(0, 1), ndmin=2, dtype=np.float64
        )
    except ValueError as error:
        raise InvalidArgumentError(f"cannot read {path}: {error}") from error
    return torch.from_numpy(table)


def _digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().astype("<f8").tobytes()).hexdigest()
