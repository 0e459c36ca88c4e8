"""Outside witnesses: SciPy, torchdiffeq and torchode, each by its own solver and gradient."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._install import install_command
from ..problem import State
from .case import Case, Gradient, Outcome, clock

WITNESSES = ("scipy", "torchdiffeq", "torchode")
# Their adaptive methods by the names of this package.
TORCHDIFFEQ = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
TORCHODE = {"dopri5": "dopri5", "tsit5": "tsit5", "adaptive_heun": "heun"}
MAX_STEPS = 100_000


def witnesses(names: Sequence[str], methods: Sequence[str]) -> list[Any]:
    """The witnesses with the methods asked for, or with one of theirs where they have none."""
    found: list[Any] = []
    if "scipy" in names:
        found.append(SciPy())
    if "torchdiffeq" in names:
        theirs = [m for m in methods if m in TORCHDIFFEQ] or ["dopri5"]
        found += [TorchDiffEq(m, a) for m in theirs for a in ("odeint", "odeint_adjoint")]
    if "torchode" in names:
        found += [TorchODE(m) for m in [m for m in methods if m in TORCHODE] or ["tsit5"]]
    return found


def _not_installed(package: str) -> str | None:
    if importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed: {install_command('bench')}"


class Counted(nn.Module):
    """``func`` as a module that counts its calls."""

    def __init__(self, func: Callable[[Tensor, State], State]):
        super().__init__()
        self.func = func
        self.calls = 0

    def forward(self, t: Tensor, y: State) -> State:
        self.calls += 1
        return self.func(t, y)


@dataclass(frozen=True)
class TorchDiffEq:
    """torchdiffeq's ``odeint`` (through the graph) or ``odeint_adjoint``."""

    method: str
    adjoint: str
    backend: str = field(default="torchdiffeq", init=False)
    in_float64: bool = field(default=False, init=False)
    native: bool = field(default=False, init=False)

    def missing(self) -> str | None:
        return _not_installed("torchdiffeq")

    def run(self, case: Case, rtol: float, atol: float) -> Outcome:
        import torchdiffeq

        func, y0, t = Counted(case.func), case.start(), case.t.to(case.device)
        choices: dict[str, Any] = {"method": self.method, "rtol": rtol, "atol": atol}
        choices["options"] = {"max_num_steps": MAX_STEPS}
        if self.adjoint == "odeint_adjoint":
            choices["adjoint_params"] = case.params
        began = clock(case.device)
        states = getattr(torchdiffeq, self.adjoint)(func, y0, t, **choices)
        solved, nfe = clock(case.device), func.calls
        gradient = case.gradient(states, y0)
        done = clock(case.device)
        return Outcome(
            states=case.flat(states).detach().double().cpu(),
            gradient=gradient,
            nfe_forward=nfe,
            # through the graph every evaluation has its product
            nfe_backward=nfe if self.adjoint == "odeint" else func.calls - nfe,
            seconds_forward=solved - began,
            seconds_backward=done - solved,
        )


@dataclass(frozen=True)
class TorchODE:
    """torchode through the graph; the whole state as one sample."""

    method: str
    adjoint: str = field(default="autodiff", init=False)
    backend: str = field(default="torchode", init=False)
    in_float64: bool = field(default=False, init=False)
    native: bool = field(default=False, init=False)

    def missing(self) -> str | None:
        return _not_installed("torchode")

    def run(self, case: Case, rtol: float, atol: float) -> Outcome:
        with warnings.catch_warnings():  # of decorators that new versions of torch deprecate
            warnings.simplefilter("ignore")
            import torchode
            from torchode.interface import METHODS

        structure, func = case.structure, Counted(case.func)

        def flat_func(t: Tensor, y: Tensor) -> Tensor:
            return structure.pack(func(t[0], structure.unpack(y[0])))[None]

        y0 = case.start()
        t = case.t.to(device=case.device, dtype=case.dtype)[None]
        term = torchode.ODETerm(flat_func)
        control = torchode.IntegralController(atol, rtol, term=term)
        # the products of the step size control are not part of the gradient that is compared
        solver = torchode.AutoDiffAdjoint(
            METHODS[TORCHODE[self.method]](term=term),
            control,
            max_steps=MAX_STEPS,
            backprop_through_step_size_control=False,
        )
        began = clock(case.device)
        problem = torchode.InitialValueProblem(structure.pack(y0)[None], t_eval=t)
        solution = solver.solve(problem)
        solved, nfe = clock(case.device), func.calls
        if int(solution.status.max()) != 0:
            status = torchode.Status(int(solution.status.max())).name
            raise RuntimeError(f"torchode ended with status {status}")
        gradient = case.gradient(structure.unpack(solution.ys[0], (len(case.t),)), y0)
        done = clock(case.device)
        accepted = int(solution.stats["n_accepted"].sum())
        return Outcome(
            states=solution.ys[0].detach().double().cpu(),
            gradient=gradient,
            nfe_forward=nfe,
            nfe_backward=nfe,
            seconds_forward=solved - began,
            seconds_backward=done - solved,
            n_accepted=accepted,
            n_rejected=int(solution.stats["n_steps"].sum()) - accepted,
        )


@dataclass(frozen=True)
class SciPy:
    """SciPy's DOP853 for the states, and for the gradient on the adjoint equations, in float64.

    Only the right-hand side and its vector-Jacobian products are torch's. The adjoint equations
    are solved backward from output to output, each time from the state found there.
    """

    method: str = "DOP853"
    adjoint: str = field(default="backsolve", init=False)
    backend: str = field(default="scipy", init=False)
    in_float64: bool = field(default=True, init=False)
    native: bool = field(default=False, init=False)

    def missing(self) -> str | None:
        return _not_installed("scipy")

    def run(self, case: Case, rtol: float, atol: float) -> Outcome:
        began = clock(case.device)
        states, nfe = self._forward(case, rtol, atol)
        solved = clock(case.device)
        gradient, products = self._backward(case, states, rtol, atol)
        done = clock(case.device)
        return Outcome(
            states=states,
            gradient=gradient,
            nfe_forward=nfe,
            nfe_backward=products,
            seconds_forward=solved - began,
            seconds_backward=done - solved,
        )

    def _forward(self, case: Case, rtol: float, atol: float) -> tuple[Tensor, int]:
        structure, device = case.structure, case.device
        y0 = structure.pack(case.y0).cpu().numpy()

        def rhs(t: float, y: Any) -> Any:
            with torch.no_grad():
                state = structure.unpack(torch.from_numpy(y).to(device))
                out = case.func(torch.tensor(t, dtype=torch.float64, device=device), state)
            return structure.pack(out).cpu().numpy()

        times = case.t.numpy()
        found = self._solve(rhs, (times[0], times[-1]), y0, rtol, atol, t_eval=times)
        return torch.from_numpy(found.y.T.copy()), found.nfev

    def _backward(
        self, case: Case, states: Tensor, rtol: float, atol: float
    ) -> tuple[Gradient, int]:
        """The adjoint a with da/dt = -a df/dy, jumping by dL/dy(t_i); dL/dp = ∫ a df/dp dt."""
        structure, device, n = case.structure, case.device, case.structure.total
        leaf = states.to(device).detach().requires_grad_()
        loss = case.loss(structure.unpack(leaf, (len(case.t),)))
        (jumps,) = torch.autograd.grad(loss.reshape(()), leaf)
        size = sum(p.numel() for p in case.params)

        def rhs(t: float, z: Any) -> Any:
            now = torch.from_numpy(z).to(device)
            with torch.enable_grad():
                y = now[:n].clone().requires_grad_()
                at = torch.tensor(t, dtype=torch.float64, device=device)
                out = structure.pack(case.func(at, structure.unpack(y)))
                inputs = (y, *case.params)
                found = (None,) * len(inputs)  # of a field of the time alone
                if out.requires_grad:
                    found = torch.autograd.grad(out, inputs, now[n : 2 * n], allow_unused=True)
            products = [
                torch.zeros(x.numel(), dtype=torch.float64, device=device)
                if g is None
                else g.reshape(-1).double()
                for x, g in zip(inputs, found, strict=True)
            ]
            return torch.cat([out.detach(), *(-p for p in products)]).cpu().numpy()

        adjoint, products = jumps[-1].cpu(), 0
        integral = torch.zeros(size, dtype=torch.float64)
        for i in range(len(case.t) - 1, 0, -1):
            z = torch.cat([states[i], adjoint, integral]).numpy()
            span = float(case.t[i]), float(case.t[i - 1])
            found = self._solve(rhs, span, z, rtol, atol)
            products += found.nfev
            end = torch.from_numpy(found.y[:, -1].copy())
            adjoint, integral = end[n : 2 * n] + jumps[i - 1].cpu(), end[2 * n :]
        return Gradient(adjoint, integral), products

    def _solve(self, rhs: Any, span: Any, y0: Any, rtol: float, atol: float, **more: Any) -> Any:
        from scipy.integrate import solve_ivp

        found = solve_ivp(rhs, span, y0, method=self.method, rtol=rtol, atol=atol, **more)
        if found.status != 0:
            raise RuntimeError(f"SciPy's {self.method} ended early: {found.message}")
        return found
