"""The models: each turns a field f(h) or f(t, h) into the right-hand side of a system."""

from __future__ import annotations

from .base import Dynamics as Dynamics
from .first_order import ANODE as ANODE
from .first_order import NODE as NODE
from .gnesterov import GNesterovNODE as GNesterovNODE
from .heavy_ball import GHBNODE as GHBNODE
from .heavy_ball import HBNODE as HBNODE
from .heavy_ball import SONODE as SONODE
from .nesterov import NesterovNODE as NesterovNODE
from .second_order import SecondOrderDynamics as SecondOrderDynamics

# The models by name, as the command line takes them.
DYNAMICS: dict[str, type[Dynamics]] = {
    model.__name__.lower(): model
    for model in (NODE, ANODE, SONODE, HBNODE, GHBNODE, NesterovNODE, GNesterovNODE)
}
