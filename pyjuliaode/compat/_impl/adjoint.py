"""torchdiffeq._impl.adjoint: the adjoint, and the parameters that it takes of a module."""

from torch import Tensor, nn

from pyjuliaode.api import odeint_adjoint as odeint_adjoint
from pyjuliaode.problem import parameters_of


def find_parameters(module: nn.Module) -> list[Tensor]:
    """The parameters of a module, also of a copy that DataParallel made."""
    return list(parameters_of(module))
