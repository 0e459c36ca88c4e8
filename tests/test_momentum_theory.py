"""The second-order ODE behind momentum networks, and what the paper proves of it."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import pyjuliaode as pjo
from pyjuliaode.momentum import theory

F64 = torch.float64


class Scaled(nn.Module):
    def __init__(self, field, factor):
        super().__init__()
        self.field, self.factor = field, factor

    def forward(self, x):
        return self.factor * self.field(x)


def tanh_field():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def flow(field, x, eps, t, backend="torch"):
    """eps x'' + x' = field(x), x'(0) = 0, as a heavy-ball neural ODE."""
    dynamics = pjo.HBNODE(Scaled(field, 1 / eps), gamma=1 / eps)
    solver = pjo.Solver("tsit5", 1e-11, 1e-11, backend=backend)
    return pjo.NeuralODE(dynamics, t=(0.0, t), solver=solver).double()(x)


def discrete(field, x, eps, t, layers, mode="reversible"):
    """The network with layers t / layers apart: gamma = 1 - h / eps, functions h f."""
    h = t / layers
    return pjo.MomentumNet([Scaled(field, h)] * layers, 1 - h / eps, mode=mode)(x)


@pytest.mark.parametrize("backend", ["torch", pytest.param("julia", marks=pytest.mark.julia)])
@pytest.mark.parametrize("eps", [0.3, 2.0])
def test_tied_weights_converge_to_the_ode_with_order_one(eps, backend):
    field, x = tanh_field(), torch.randn(5, 3, dtype=F64)
    with torch.no_grad():
        limit = flow(field, x, eps, 2.0, backend)
        errors = [
            float((discrete(field, x, eps, 2.0, n) - limit).abs().max())
            for n in (50, 100, 200, 400)
        ]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders[-1] == pytest.approx(1.0, abs=0.05)  # 1 + O(h), h = 1/200
    assert errors[-1] < 0.02


def test_gradients_converge_to_those_of_the_ode():
    field, x = tanh_field(), torch.randn(5, 3, dtype=F64, requires_grad=True)
    inputs = [x, *field.parameters()]
    limit = torch.autograd.grad(flow(field, x, 0.5, 1.0).square().sum(), inputs)
    errors = []
    for n in (100, 200):
        found = torch.autograd.grad(discrete(field, x, 0.5, 1.0, n).square().sum(), inputs)
        errors.append(
            max(float((a - b).norm() / b.norm()) for a, b in zip(found, limit, strict=True))
        )
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.1)  # order one
    assert errors[1] < 0.05


def test_the_limit_at_the_layers_own_spacing():
    """gamma = 1 - 1/eps with layers one unit apart: eps = 1 / (1 - gamma)."""
    field, x, gamma = Scaled(tanh_field(), 0.02), torch.randn(5, 3, dtype=F64), 0.98
    eps, layers = theory.eps_of(gamma), 100
    with torch.no_grad():
        net = pjo.MomentumNet([field] * layers, gamma)(x)
        limit = flow(field, x, eps, float(layers))
        plain = x + sum(field(x) for _ in range(layers))
    # of order (1 - gamma) relatively to the way gone, which is of order one
    assert float((net - limit).abs().max()) < 0.05 * float((limit - x).abs().max())
    assert float((net - plain).abs().max()) > 0.1 * float((limit - x).abs().max())


# ------------------------------------------------------------------------------------- linear maps


@pytest.mark.parametrize("eps", [0.1, 1.0, 10.0])
def test_the_linear_map_in_three_ways(eps):
    """Psi_eps by the matrix exponential, by its eigenvalues, and by solving the ODE."""
    torch.manual_seed(1)
    values = torch.tensor([-30.0, -1 / (4 * eps), -0.2, 0.0, 1.5], dtype=F64)
    basis = torch.randn(5, 5, dtype=F64)
    theta = basis @ torch.diag(values) @ torch.linalg.inv(basis)
    whole = theory.linear_map(theta, eps)
    by_values = basis @ torch.diag(theory.eigenvalue_map(values, eps)) @ torch.linalg.inv(basis)
    size = float(whole.abs().max()) * float(torch.linalg.cond(basis))
    torch.testing.assert_close(whole, by_values, rtol=0, atol=1e-12 * size)
    field = nn.Linear(5, 5, bias=False).double()
    with torch.no_grad():
        field.weight.copy_(theta)
        found = flow(field, torch.eye(5, dtype=F64), eps, 1.0)
    # a hundred times the tolerance of 1e-11: rows of theta are as large as 100
    torch.testing.assert_close(found, whole.T, rtol=0, atol=1e-9 * size)


@pytest.mark.parametrize("eps", [0.2, 0.5, 1.0, 5.0, 50.0])
def test_the_least_eigenvalue_is_what_no_linear_field_goes_below(eps):
    bound = theory.least_eigenvalue(eps)
    reached = theory.eigenvalue_map(
        -torch.linspace(0, 400 * max(1, eps), 2_000_001, dtype=F64), eps
    )
    assert bound < 0
    assert float(reached.min()) == pytest.approx(bound, abs=1e-6)  # the grid is that fine
    assert float(reached.min()) >= bound - 1e-12


def test_minus_the_identity_is_reached_up_to_a_factor():
    """theta = eps (-pi^2 - 1/(4 eps^2)) turns half a circle: x(1) = -exp(-1/(2 eps)) x(0)."""
    for eps in (0.5, 3.0):
        theta = torch.tensor([eps * (-(math.pi**2) - 1 / (4 * eps**2))], dtype=F64)
        found = theory.eigenvalue_map(theta, eps)
        assert float(found) == pytest.approx(-math.exp(-0.5 / eps), abs=1e-12)


def test_trajectories_cross():
    """x'' + x' = -x/2 from (x0, -x0/2): x0 e^(-t/2) cos(t/2), all of which meet at t = pi."""
    dynamics = pjo.HBNODE(Scaled(nn.Identity(), -0.5), gamma=1.0)
    solver = pjo.Solver("tsit5", 1e-11, 1e-11, backend="torch")
    model = pjo.NeuralODE(dynamics, t=torch.tensor([0.0, 1.0, math.pi], dtype=F64), solver=solver)
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    found = model(x, dh0=-0.5 * x)
    torch.testing.assert_close(found[1], x * math.exp(-0.5) * math.cos(0.5), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[2], 0 * x, rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------ propositions


def test_without_momentum_a_reversible_network_has_no_attracting_fixed_point():
    """Proposition 1: the Jacobian of x <- x + f(y), y <- y + g(x) has determinant 1, and so an
    eigenvalue of modulus at least 1; a layer with momentum attracts where f's slope is negative."""
    torch.manual_seed(0)
    for _ in range(20):
        f, g = torch.randn(2, 4, 4, dtype=F64)
        one = torch.eye(4, dtype=F64)
        first = torch.cat([torch.cat([one, f], 1), torch.cat([0 * one, one], 1)])
        second = torch.cat([torch.cat([one, 0 * one], 1), torch.cat([g, one], 1)])
        values = torch.linalg.eigvals(second @ first)
        assert float(values.abs().max()) >= 1 - 1e-9
    for gamma in (0.1, 0.5, 0.9):
        limit = 2 * (1 + gamma) / (1 - gamma)
        inside = theory.step_eigenvalues(
            torch.linspace(-0.999 * limit, -1e-3, 99, dtype=F64), gamma
        )
        outside = theory.step_eigenvalues(torch.tensor([-1.01 * limit, 0.1], dtype=F64), gamma)
        assert float(inside.abs().max()) < 1
        assert float(outside.abs().amax(-1).min()) > 1


def test_the_eigenvalues_of_a_layer():
    torch.manual_seed(0)
    a, gamma = torch.randn(4, 4, dtype=F64), 0.8
    linear = nn.Linear(4, 4, bias=False).double()
    with torch.no_grad():
        linear.weight.copy_(a)
    net = pjo.MomentumNet([linear], gamma)
    # the layer as a map of (x, v): columns of x with v = 0, and gamma for those of v
    x_part = torch.autograd.functional.jacobian(net, torch.zeros(4, dtype=F64))
    one = torch.eye(4, dtype=F64)
    slope = x_part - one  # (1 - gamma) a
    whole = torch.cat([torch.cat([x_part, gamma * one], 1), torch.cat([slope, gamma * one], 1)])
    found = torch.linalg.eigvals(whole)
    wanted = theory.step_eigenvalues(torch.linalg.eigvals(a), gamma).flatten()
    apart = (found[:, None] - wanted).abs()
    assert float(apart.amin(0).max()) < 1e-12
    assert float(apart.amin(1).max()) < 1e-12


def test_a_small_eps_is_the_first_order_flow():
    """Proposition 2: as eps -> 0, x tends to the solution of x' = f(x), at a distance O(eps)."""
    field, x = tanh_field(), torch.randn(5, 3, dtype=F64)
    solver = pjo.Solver("dopri8", 1e-12, 1e-12, backend="torch")
    with torch.no_grad():
        first_order = pjo.NeuralODE(pjo.NODE(field), t=(0.0, 1.0), solver=solver)(x)
        errors = [float((flow(field, x, e, 1.0) - first_order).abs().max()) for e in (2e-2, 1e-2)]
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.1)
    assert errors[1] < 0.05


def test_a_large_eps_forgets_its_friction():
    """Proposition 8: with f scaled by eps, as eps -> infinity x tends to that of x'' = f(x)."""
    field, x = tanh_field(), torch.randn(5, 3, dtype=F64)
    solver = pjo.Solver("dopri8", 1e-12, 1e-12, backend="torch")

    class Free(nn.Module):
        def forward(self, t, state):
            position, velocity = state.unbind(0)
            return torch.stack([velocity, field(position)])

    with torch.no_grad():
        start = torch.stack([x, torch.zeros_like(x)])
        free = pjo.solve(Free(), start, torch.tensor([0.0, 1.0]), solver).y[-1, 0]
        errors = [
            float((flow(Scaled(field, e), x, e, 1.0) - free).abs().max()) for e in (50.0, 100.0)
        ]
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.05)
    assert errors[1] < 0.01


def test_arguments_out_of_range():
    with pytest.raises(pjo.InvalidArgumentError, match=r"gamma must lie in \[0, 1\), got 1"):
        theory.eps_of(1.0)
    with pytest.raises(pjo.InvalidArgumentError, match="eps must be positive and finite, got 0"):
        theory.least_eigenvalue(0)
    with pytest.raises(pjo.InvalidArgumentError, match="square matrix, got shape"):
        theory.linear_map(torch.zeros(2, 3), 1.0)
