"""MNIST: 60,000 + 10,000 handwritten digits of 28 x 28 pixels, in four IDX files."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .digits import Digits
from .files import VARIABLE, find, read

# name -> (shape, md5 of the uncompressed file)
FILES = {
    "train-images-idx3-ubyte": ((60_000, 28, 28), "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ((60_000,), "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ((10_000, 28, 28), "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ((10_000,), "27ae3e4e09519cfbb04c329615203637"),
}
BELOW = ("", "MNIST/raw")  # the latter is torchvision's
_HOW = (
    "get the four files with torchvision.datasets.MNIST(root, download=True), and set "
    f"{VARIABLE} to that root or to the folder that they lie in"
)


def mnist(folder: str | os.PathLike[str] | None = None) -> Digits:
    """The full set (LeCun, Cortes and Burges 1998), pixels scaled to [0, 1].

    Arguments:
        folder: where the files lie, compressed (.gz) or not, or a folder with MNIST/raw in it as
            torchvision makes it; default ``$PYJULIAODE_DATA``.

    Returns:
        :class:`Digits`: train_x (60000, 1, 28, 28), test_x (10000, 1, 28, 28).

    Raises:
        InvalidArgumentError: a file is not there, or is not that of MNIST.
    """
    train_x, train_y, test_x, test_y = (_load(name, folder) for name in FILES)
    return Digits(_scaled(train_x), train_y.long(), _scaled(test_x), test_y.long())


def _load(name: str, folder: str | os.PathLike[str] | None) -> Tensor:
    """The numbers of one file, uint8, in their shape."""
    path = find((name, f"{name}.gz"), folder, "MNIST", _HOW, BELOW)
    content = read(path)
    shape, md5 = FILES[name]
    values = _parse(path, content)
    if values.shape != shape:
        raise _other(path, f"holds numbers of shape {tuple(values.shape)}, wanted {shape}")
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise _other(path, "has the right shape but other values than MNIST")
    return values


def _parse(path: Path, content: bytes) -> Tensor:
    """An IDX file: 0, 0, 8 (unsigned bytes), the number of axes, big-endian lengths, the bytes."""
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise _other(path, "does not begin as an IDX file of unsigned bytes does")
    body = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, body, 4)]
    if len(content) - body != math.prod(shape):
        found, wanted = len(content) - body, math.prod(shape)
        raise _other(path, f"holds {found:,} numbers, its header says {wanted:,}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=body).reshape(shape)


def _other(path: Path, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{path} {what}: {_HOW}")


def _scaled(images: Tensor) -> Tensor:
    return images.unsqueeze(1) / 255
