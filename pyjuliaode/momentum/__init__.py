"""Momentum residual networks (Sander, Ablin, Blondel and Peyré 2021), exactly invertible."""

from .net import MomentumNet as MomentumNet
