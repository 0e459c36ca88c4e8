"""torchdiffeq's names, for programs that cannot change their import line.

``import pyjuliaode.compat as torchdiffeq``, or, before anything imports torchdiffeq::

    import sys, pyjuliaode.compat
    sys.modules["torchdiffeq"] = pyjuliaode.compat
"""

# absolute imports: bound to the name torchdiffeq, modules below are loaded under that name
from pyjuliaode.api import odeint as odeint
from pyjuliaode.api import odeint_adjoint as odeint_adjoint
from pyjuliaode.api import odeint_dense as odeint_dense
from pyjuliaode.api import odeint_event as odeint_event

__version__ = "0.2.5"  # of the torchdiffeq whose interface this is
