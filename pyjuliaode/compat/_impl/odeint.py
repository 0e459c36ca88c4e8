"""torchdiffeq._impl.odeint: the solvers by name."""

from pyjuliaode.api import odeint as odeint
from pyjuliaode.api import odeint_dense as odeint_dense
from pyjuliaode.api import odeint_event as odeint_event

_NAMES = (
    *("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun", "euler", "midpoint", "heun2"),
    *("heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams", "scipy_solver"),
)
# torchdiffeq has classes as values; what programs read are the names
SOLVERS: dict[str, str] = {name: name for name in _NAMES}
