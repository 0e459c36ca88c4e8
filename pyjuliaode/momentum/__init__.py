"""Momentum residual networks (Sander, Ablin, Blondel and Peyré 2021): invertible, and exactly so."""

from .net import MomentumNet as MomentumNet
