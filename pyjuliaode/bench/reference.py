"""States and gradients to measure errors against, each found in two ways."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._install import install_command
from ..errors import UnsupportedError
from .competitors import Competitor
from .problems import Problem
from .torch_solvers import solver


@dataclass(frozen=True)
class Reference:
    """State and gradient to measure errors against, and how well two ways to get them agree."""

    y: Tensor
    grads: tuple[Tensor, ...]
    doubt_state: float
    doubt_gradient: float

    def error(self, what: str, found: Sequence[Tensor]) -> float:
        """Relative error of a state, or the larger of those of dL/dy0 and dL/dparameters."""
        if what == "forward":
            return relative(found, [self.y])
        return gradient_difference(found, self.grads)


def relative(values: Iterable[Tensor], truth: Iterable[Tensor]) -> float:
    """Relative error, in the 2-norm over all tensors together."""
    off, size = 0.0, 0.0
    for value, true in zip(values, truth, strict=True):
        off += (value.detach().double() - true).square().sum().item()
        size += true.square().sum().item()
    return math.sqrt(off / size)


def gradient_difference(grads: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The larger of the relative errors of the first tensor and of the others together."""
    return max(relative(grads[:1], truth[:1]), relative(grads[1:], truth[1:]))


def reference(problem: Problem) -> Reference:
    """The reference of a problem, in float64.

    Raises:
        UnsupportedError: the problem is stiff and SciPy is not installed.
    """
    exact = problem.in_float64()
    (y, grads), (other, other_grads) = _implicit(exact) if exact.stiff else _explicit(exact)
    return Reference(y, grads, relative([other], [y]), gradient_difference(other_grads, grads))


Found = tuple[Tensor, tuple[Tensor, ...]]  # states at t[1:], and the gradient


def _explicit(exact: Problem) -> list[Found]:
    """rk4 with many steps, and dopri8 at a tight tolerance.

    The first is the reference: its steps are short also where the field has kinks (ELU), at
    which the gradients of longer steps are off by 1e-7, whatever the tolerance.
    """
    return [
        _solved(exact, Competitor("torch", "rk4", "direct checkpointed"), exact.span / exact.grid),
        _solved(exact, Competitor("torch", "dopri8", "direct checkpointed"), None),
    ]


def _implicit(exact: Problem) -> list[Found]:
    """The equations of the sensitivities by two implicit methods."""
    return [_sensitivities(exact, method) for method in ("LSODA", "Radau")]


def _solved(exact: Problem, who: Competitor, dt: float | None) -> Found:
    y0 = exact.y0.clone().requires_grad_()
    y, _ = solver(exact, who, exact.tight, dt)(y0)
    return y.detach(), torch.autograd.grad((y * exact.weight).sum(), (y0, *exact.params))


def _sensitivities(exact: Problem, method: str) -> Found:
    """An implicit method of SciPy on y and S = dy/d(y0, p): S' = (df/dy) S + (0, df/dp)."""
    try:
        import numpy as np
        from scipy.integrate import solve_ivp
    except ImportError as error:
        raise UnsupportedError(
            f"the reference of {exact.name} needs scipy: {install_command('bench')}"
        ) from error
    n, sizes = exact.y0.numel(), [p.numel() for p in (exact.y0, *exact.params)]
    columns = sum(sizes)

    def parts(t: float, z: Any) -> tuple[Any, Any, Any]:
        """f, df/dy and df/dp at the state in front of z."""
        y = torch.from_numpy(z[:n].copy()).view_as(exact.y0).requires_grad_()
        f = exact.func(torch.tensor(t, dtype=torch.float64), y).reshape(-1)
        inputs = (y, *exact.params)
        rows = [torch.autograd.grad(f[i], inputs, retain_graph=True) for i in range(n)]
        jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).numpy()
        return f.detach().numpy(), jacobian[:, :n], jacobian[:, n:]

    def rhs(t: float, z: Any) -> Any:
        f, df_dy, df_dp = parts(t, z)
        slope = df_dy @ z[n:].reshape(n, columns)
        slope[:, n:] += df_dp
        return np.concatenate([f, slope.reshape(-1)])

    def newton(t: float, z: Any) -> Any:
        """Without the coupling of S to y, which is triangular: Newton's iteration converges."""
        _, df_dy, _ = parts(t, z)
        return _block_diagonal(df_dy, np.kron(df_dy, np.eye(columns)))

    start = np.concatenate([exact.y0.reshape(-1).numpy(), np.eye(n, columns).reshape(-1)])
    times = exact.t.numpy()
    # the sensitivities are of the size of 1e4 and more; the state's smallest species of 1e-5
    limits = {"rtol": 1e-11, "atol": 1e-11 * exact.atol_factor}
    end = solve_ivp(
        rhs, (times[0], times[-1]), start, method=method, t_eval=times[1:], jac=newton, **limits
    )
    if not end.success:
        raise UnsupportedError(f"{exact.name} has no reference: SciPy's {method}: {end.message}")
    y = torch.from_numpy(end.y[:n].T.copy()).view_as(exact.weight)
    sensitivity = torch.from_numpy(end.y[n:].T.copy()).view(len(y), n, columns)
    gradient = torch.einsum("ti,tij->j", exact.weight.view(len(y), n), sensitivity)
    shapes = (x.shape for x in (exact.y0, *exact.params))
    pieces = zip(gradient.split(sizes), shapes, strict=True)
    return y, tuple(piece.view(shape) for piece, shape in pieces)


def _block_diagonal(first: Any, second: Any) -> Any:
    import numpy as np

    n, m = len(first), len(second)
    return np.block([[first, np.zeros((n, m))], [np.zeros((m, n)), second]])
