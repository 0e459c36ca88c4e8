"""Data of the papers' experiments.

A loader looks in ``$PYJULIAODE_DATA`` or in the package that carries the data, checks what it
found, and otherwise names the public way to get it. None falls back to another set.
"""

from .digits import Digits as Digits
from .digits import digits as digits
from .duffing import duffing as duffing
from .imagenet import Pictures as Pictures
from .imagenet import efficientnet_lite0_weights as efficientnet_lite0_weights
from .imagenet import imagenet_pictures as imagenet_pictures
from .mnist import mnist as mnist
from .point_cloud import PointCloud as PointCloud
from .point_cloud import point_cloud as point_cloud
from .record import Record as Record
from .silverbox import silverbox as silverbox

__all__ = [
    "Digits",
    "Pictures",
    "PointCloud",
    "Record",
    "digits",
    "duffing",
    "efficientnet_lite0_weights",
    "imagenet_pictures",
    "mnist",
    "point_cloud",
    "silverbox",
]
