"""Momentum residual networks (Sander, Ablin, Blondel and Peyré 2021), exactly invertible."""

from .convert import from_momentum as from_momentum
from .convert import to_momentum as to_momentum
from .net import MomentumNet as MomentumNet
