"""Neural ODEs in PyTorch, solved and differentiated by PyTorch or by Julia's SciML."""

from . import _eager as _eager
from .adjoints import Backsolve as Backsolve
from .adjoints import Direct as Direct
from .adjoints import Gauss as Gauss
from .adjoints import Interpolating as Interpolating
from .adjoints import Quadrature as Quadrature
from .api import backends as backends
from .api import odeint as odeint
from .api import odeint_adjoint as odeint_adjoint
from .api import odeint_dense as odeint_dense
from .api import odeint_event as odeint_event
from .api import solve as solve
from .api import warmup as warmup
from .crosscheck import CrossCheck as CrossCheck
from .crosscheck import DisagreementError as DisagreementError
from .crosscheck import crosscheck as crosscheck
from .dae import SemiExplicitDAE as SemiExplicitDAE
from .doctor import doctor as doctor
from .dynamics import ANODE as ANODE
from .dynamics import GHBNODE as GHBNODE
from .dynamics import HBNODE as HBNODE
from .dynamics import NODE as NODE
from .dynamics import SONODE as SONODE
from .dynamics import GNesterovNODE as GNesterovNODE
from .dynamics import NesterovNODE as NesterovNODE
from .errors import AccuracyWarning as AccuracyWarning
from .errors import BackendError as BackendError
from .errors import BackendUnavailableError as BackendUnavailableError
from .errors import GradientWarning as GradientWarning
from .errors import InvalidArgumentError as InvalidArgumentError
from .errors import PyJuliaODEError as PyJuliaODEError
from .errors import SolverError as SolverError
from .errors import UnsupportedError as UnsupportedError
from .layer import NeuralODE as NeuralODE
from .momentum import MomentumNet as MomentumNet
from .momentum import from_momentum as from_momentum
from .momentum import to_momentum as to_momentum
from .solution import Retcode as Retcode
from .solution import Solution as Solution
from .solution import SolveStats as SolveStats
from .solver import Solver as Solver

__version__ = "0.1.0"

__all__ = [
    "ANODE",
    "GHBNODE",
    "HBNODE",
    "NODE",
    "SONODE",
    "AccuracyWarning",
    "BackendError",
    "BackendUnavailableError",
    "Backsolve",
    "CrossCheck",
    "Direct",
    "DisagreementError",
    "GNesterovNODE",
    "Gauss",
    "GradientWarning",
    "Interpolating",
    "InvalidArgumentError",
    "MomentumNet",
    "NesterovNODE",
    "NeuralODE",
    "PyJuliaODEError",
    "Quadrature",
    "Retcode",
    "SemiExplicitDAE",
    "Solution",
    "SolveStats",
    "Solver",
    "SolverError",
    "UnsupportedError",
    "backends",
    "crosscheck",
    "doctor",
    "from_momentum",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "solve",
    "to_momentum",
    "warmup",
]
