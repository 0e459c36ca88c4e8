"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._install import install_command
from ..errors import InvalidArgumentError, UnsupportedError

N_IMAGES = 1797


class Digits(NamedTuple):
    """Images scaled to [0, 1] and their classes.

    Attributes:
        train_x, test_x: shape (B, 1, 8, 8), of MNIST (B, 1, 28, 28); float32.
        train_y, test_y: shape (B,), int64, 0 to 9.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def digits(test_fraction: float = 0.2, seed: int = 0) -> Digits:
    """The digits carried by scikit-learn, split into train and test, every class alike.

    Arguments:
        test_fraction: share of the images held out, between 0 and 1.
        seed: the split is a function of it.

    Raises:
        InvalidArgumentError: ``test_fraction`` is not between 0 and 1.
        UnsupportedError: scikit-learn is not installed, or carries another set.
    """
    if not 0 < test_fraction < 1:
        raise InvalidArgumentError(f"test_fraction must lie between 0 and 1, got {test_fraction}")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UnsupportedError(
            f"the digits come with scikit-learn: {install_command('experiments')}"
        ) from error
    images, labels = load_digits(return_X_y=True)
    if images.shape != (N_IMAGES, 64):
        raise UnsupportedError(
            f"expected {N_IMAGES} digits of 64 pixels, scikit-learn has {images.shape}"
        )
    split = train_test_split(
        images / 16.0, labels, test_size=test_fraction, random_state=seed, stratify=labels
    )
    train_x, test_x, train_y, test_y = split
    return Digits(_images(train_x), _classes(train_y), _images(test_x), _classes(test_y))


def _images(pixels) -> Tensor:
    return torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)


def _classes(labels) -> Tensor:
    return torch.as_tensor(labels, dtype=torch.int64)
