"""method="pan": polynomial-approximation integration, parallel in time.

basis: Chebyshev polynomials and the maps between coefficients, nodes and integrals. interval: one
interval by least-squares Picard iteration and Newton's. stream: intervals one after another.
"""

from .quadrature import PanQuadrature
from .stream import PanStep, PanStream

__all__ = ["PanQuadrature", "PanStep", "PanStream"]
