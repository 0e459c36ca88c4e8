"""Data of the papers' experiments.

A loader looks in ``$PYJULIAODE_DATA`` or in the package that carries the data, checks what it
found, and otherwise names the public way to get it. None falls back to another set.
"""

from .digits import Digits as Digits
from .digits import digits as digits
from .duffing import duffing as duffing
from .mnist import mnist as mnist
from .point_cloud import PointCloud as PointCloud
from .point_cloud import point_cloud as point_cloud
from .record import Record as Record
from .silverbox import silverbox as silverbox

__all__ = [
    "Digits",
    "PointCloud",
    "Record",
    "digits",
    "duffing",
    "mnist",
    "point_cloud",
    "silverbox",
]
