"""The system that the Nesterov paper's published code integrates: variant="published".

Its state (p, q) starts as (h0, h'(t0)) but is integrated as if it were (x, m) of the paper's
equations: the momentum is computed from (p, q) as from (h, h'), and the factor k is applied to
what comes out at the end. It differs from eq. 14 and 15 and is kept to repeat the paper's runs.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import InvalidArgumentError
from .nesterov_factor import inverse_factor, rate

HINT = "take t0 = 1, as the papers' runs do"


def momentum(t: Tensor, p: Tensor, q: Tensor, r: float) -> Tensor:
    """μ = (1/k)'(t) p + (1/k)(t) q."""
    return inverse_factor(t, r) * (q - rate(t, r) * p)


def velocity(t: Tensor, p: Tensor, q: Tensor, r: float, kappa: Tensor) -> Tensor:
    """What the published code returns as dh/dt; ``kappa`` is the factor σ_k(k(t))."""
    slope = (0.5 * r / t) * inverse_factor(t, r) - 0.5 / kappa
    return kappa * (q - slope * (kappa * p))


def check_sign(variant: str, sign: int | None) -> float:
    """The sign of the field in m': -1 in the paper; the published runs use both (default +1).

    Raises:
        InvalidArgumentError: not +1 or -1, or given for variant="paper".
    """
    if variant == "paper":
        if sign is not None:
            raise InvalidArgumentError('sign is an argument of variant="published" only')
        return -1.0
    if sign not in (None, 1, -1):
        raise InvalidArgumentError(f"sign must be +1 or -1, got {sign!r}")
    return 1.0 if sign is None else float(sign)
