"""The Julia backend's gradients: finite differences, the torch backend, and traps of the engine."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from problems import F64, Field, gradients, models, relative_error
from test_julia_solves import Robertson, VanDerPol
from torch import nn

import pyjuliaode as pjo

pytestmark = [pytest.mark.julia, pytest.mark.timeout(900)]

CONTINUOUS = ["gauss", "interpolating", "quadrature", "backsolve"]
ADJOINTS = ["direct", *CONTINUOUS]


def julia(method: str = "tsit5", tol: float = 1e-8, adjoint: str = "auto", **options) -> pjo.Solver:
    return pjo.Solver(
        *(method, tol, tol),
        adjoint=adjoint,
        backend="julia",
        options=options,
        native="never",  # callbacks; test_native.py has the rest
    )


def reference(func, y0, t, inputs):
    """Backpropagation through rk4 with 400 steps a unit of time: truth to 1e-12 (smooth fields)."""
    y = pjo.odeint(func, y0, t, method="rk4", options={"step_size": 1 / 400}, backend="torch")
    return gradients(y, inputs)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", models())
def test_gradcheck_of_every_model_and_adjoint(name, adjoint):
    """Against central differences in float64, with respect to h0, the times and all parameters.

    Tolerance 1e-9 of the solve, step 1e-5: differences carry errors up to 1e-9 / 1e-5 = 1e-4.
    """
    dynamics = models()[name]
    h0 = torch.randn(2, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([1.0, 1.4, 2.0], dtype=F64, requires_grad=True)
    params = list(dynamics.parameters())

    def run(h0, t, *params):
        state = dynamics.initial_state(h0, t0=1.0)
        return pjo.solve(dynamics, state, t, julia(tol=1e-9, adjoint=adjoint)).y

    inputs = (h0, t, *params)
    assert torch.autograd.gradcheck(run, inputs, eps=1e-5, atol=1e-4, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("name", models())
def test_adjoints_agree_with_the_torch_backend(name):
    """All five to 1e-8 relative with the truth, at tolerance 1e-12."""
    dynamics = models()[name]
    h0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([1.0, 1.3, 1.9, 2.5], dtype=F64, requires_grad=True)
    inputs = [h0, t, *dynamics.parameters()]
    state = dynamics.initial_state(h0, t0=1.0)
    wanted = gradients(pjo.solve(dynamics, state, t, pjo.Solver("dopri5", 1e-12, 1e-12)).y, inputs)
    for adjoint in ADJOINTS:
        state = dynamics.initial_state(h0, t0=1.0)
        sol = pjo.solve(dynamics, state, t, julia(tol=1e-12, adjoint=adjoint))
        assert relative_error(gradients(sol.y, inputs), wanted) < 1e-8, adjoint
        assert sol.stats.nfe_backward > 0
        assert sol.stats.backend == "julia"


@pytest.mark.parametrize("adjoint", CONTINUOUS)
@pytest.mark.parametrize("method", ["Vern6", "Vern7", "Vern8", "Vern9", "BS5"])
def test_verner_s_methods_have_right_gradients(method, adjoint):
    """With lazy interpolation stages they are wrong by 1e-5 to 6e-4 whatever the tolerance: the
    stages of the last step are filled with a step of length zero when it is read at its end."""
    field = Field()
    y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=F64)
    inputs = [y0, *field.parameters()]
    y = pjo.solve(field, y0, t, julia(method, 1e-10, adjoint)).y
    assert relative_error(gradients(y, inputs), reference(field, y0, t, inputs)) < 1e-9


@pytest.mark.parametrize(
    "method", ["DP5", "Tsit5", "BS3", "Vern7", "DP8", "RK4", "OwrenZen5", "Vern9"]
)
@pytest.mark.parametrize("outputs", [2, 5])
def test_replay_is_the_exact_gradient_of_the_steps(method, outputs):
    """Fixed steps: finite differences of the discrete solution itself, to their rounding of 1e-9;
    with outputs between the steps the interpolant takes part."""
    field = Field()
    y0 = torch.randn(2, dtype=F64)
    direction = torch.randn(2, dtype=F64)
    t = torch.linspace(0.0, 1.0, outputs, dtype=F64)
    solver = julia(method, 1e-3, "direct", step_size=0.4)  # coarse: steps do not meet the outputs
    weight = torch.randn(outputs, 2, dtype=F64)

    def value(y0):
        return (weight * pjo.solve(field, y0, t, solver).y).sum()

    leaf = y0.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(leaf), leaf)
    eps = 1e-6
    with torch.no_grad():
        slope = (value(y0 + eps * direction) - value(y0 - eps * direction)) / (2 * eps)
    assert float(found @ direction) == pytest.approx(float(slope), rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("adjoint", CONTINUOUS)
def test_fixed_steps_with_continuous_adjoints(adjoint):
    """Both directions at the method's order: 1e-6 with 40 steps of fifth order."""
    field = Field()
    y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    inputs = [y0, *field.parameters()]
    y = pjo.solve(field, y0, t, julia("Tsit5", 1e-8, adjoint, step_size=0.025)).y
    assert relative_error(gradients(y, inputs), reference(field, y0, t, inputs)) < 1e-6


@pytest.mark.parametrize("adjoint", CONTINUOUS)
def test_steps_on_a_grid_of_times_go_back_on_the_same_grid(adjoint):
    """rk4 without a step size and a loss on the last of 41 times: one step back is 10 % wrong."""
    field = Field()
    y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = torch.linspace(0, 2, 41, dtype=F64)
    inputs = [y0, *field.parameters()]
    wanted = gradients(pjo.solve(field, y0, t, julia("rk4", adjoint="direct")).y[-1:], inputs)
    y = pjo.solve(field, y0, t, julia("rk4", adjoint=adjoint)).y
    # a cubic interpolant of the forward solve at h = 0.05
    assert relative_error(gradients(y[-1:], inputs), wanted) < 1e-4


@pytest.mark.parametrize("method", ["FBDF", "QNDF", "RadauIIA5", "KenCarp4", "ROCK4"])
def test_auto_is_right_for_methods_that_cannot_be_replayed(method):
    """To 1e-5 at tolerance 1e-8: the forward solve's own error."""
    field = Field()
    y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.7, 2.0], dtype=F64)
    inputs = [y0, *field.parameters()]
    y = pjo.solve(field, y0, t, julia(method, 1e-8)).y
    assert relative_error(gradients(y, inputs), reference(field, y0, t, inputs)) < 1e-5


@pytest.mark.parametrize("adjoint", CONTINUOUS)
def test_gradients_across_a_discontinuity(adjoint):
    """y' = k1 y before t = 1/2 and k2 y from then on, whichever side 1/2 itself belongs to."""

    class Switched(nn.Module):
        def __init__(self, at):
            super().__init__()
            self.k, self.at = nn.Parameter(torch.tensor([0.7, -2.0], dtype=F64)), at

        def forward(self, t, y):
            late = t >= 0.5 if self.at else t > 0.5
            return torch.where(late, self.k[1], self.k[0]) * y

    for at in (True, False):
        func = Switched(at)
        y0 = torch.tensor([1.5], dtype=F64, requires_grad=True)
        options = {"jump_t": torch.tensor([0.5])}
        y = pjo.solve(func, y0, [0.0, 1.0], julia("tsit5", 1e-9, adjoint, **options)).y
        g0, gk = torch.autograd.grad(y[-1].sum(), [y0, func.k])
        end = 1.5 * math.exp((0.7 - 2.0) / 2)
        assert float(g0) == pytest.approx(end / 1.5, rel=1e-7)
        assert gk.tolist() == pytest.approx([end / 2, end / 2], rel=1e-6)


@pytest.mark.parametrize("adjoint", ["gauss", "interpolating"])
@pytest.mark.parametrize("method", ["tsit5", "Vern7"])
def test_checkpoints_give_the_gradient_of_all_steps(method, adjoint):
    """To 1e-7 relative at tolerance 1e-10."""
    field = Field()
    y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.7, 2.0], dtype=F64)
    inputs = [y0, *field.parameters()]
    options = {"checkpoints": 3, "dense": False}
    y = pjo.solve(field, y0, t, julia(method, 1e-10, adjoint, **options)).y
    assert relative_error(gradients(y, inputs), reference(field, y0, t, inputs)) < 1e-7


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_decreasing_times(adjoint):
    field = Field()
    y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([1.5, 1.0, 0.2], dtype=F64, requires_grad=True)
    inputs = [y0, t, *field.parameters()]
    y = pjo.solve(field, y0, t, julia(tol=1e-10, adjoint=adjoint)).y
    wanted = gradients(pjo.solve(field, y0, t, pjo.Solver("dopri5", 1e-12, 1e-12)).y, inputs)
    assert relative_error(gradients(y, inputs), wanted) < 1e-7


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_float32(adjoint):
    """Everything stays float32; against float64, to a hundred roundings."""
    torch.manual_seed(0)
    field = Field().to(torch.float32)
    y0 = torch.randn(3, 2, requires_grad=True)
    t = torch.tensor([0.0, 0.3, 1.0])
    inputs = [y0, *field.parameters()]
    y = pjo.solve(field, y0, t, julia(tol=1e-6, adjoint=adjoint)).y
    assert y.dtype == torch.float32
    found = gradients(y, inputs)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(F64)
    field64 = Field()
    field64.load_state_dict({k: v.to(F64) for k, v in field.state_dict().items()})
    y64 = y0.detach().to(F64).requires_grad_()
    out = pjo.solve(field64, y64, t.to(F64), pjo.Solver("dopri5", 1e-10, 1e-10)).y
    wanted = torch.autograd.grad((weight * out).sum(), [y64, *field64.parameters()])
    assert relative_error([x.to(F64) for x in found], list(wanted)) < 2e-5


class Fixed(nn.Module):
    """No parameters."""

    def forward(self, t, y):
        return -torch.cos(t) * y


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("shape", [(1,), (2, 3)])
def test_no_parameters_and_one_number(adjoint, shape):
    y0 = torch.ones(shape, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    y = pjo.solve(Fixed(), y0, t, julia(tol=1e-10, adjoint=adjoint)).y
    (found,) = torch.autograd.grad(y[-1].sum(), y0)
    assert torch.allclose(found, torch.exp(-torch.sin(t[-1])).expand(shape), rtol=1e-8)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_only_the_first_time_carries_a_gradient(adjoint):
    field = Field()
    y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    y = pjo.solve(field, y0, [0.0, 0.5, 1.0], julia(adjoint=adjoint)).y
    g = torch.autograd.grad(y[0].sum(), [y0, *field.parameters()], retain_graph=True)
    assert torch.equal(g[0], torch.ones_like(y0))
    assert all(not x.any() for x in g[1:])
    inner = torch.autograd.grad(y[1].sum(), y0)[0]  # a second backward, of another output
    again = pjo.solve(field, y0, [0.0, 0.5], julia(adjoint=adjoint)).y
    assert relative_error([inner], [torch.autograd.grad(again[1].sum(), y0)[0]]) < 1e-6


def test_parameters_of_other_shapes_that_are_not_used_and_that_are_frozen():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.5, dtype=F64))
            self.unused = nn.Parameter(torch.zeros(2, 3, dtype=F64))
            self.frozen = nn.Parameter(torch.tensor(1.0, dtype=F64), requires_grad=False)

        def forward(self, t, y):
            return -self.rate * self.frozen * y

    for adjoint in ADJOINTS:
        func = Partly()
        y0 = torch.ones(2, dtype=F64)
        pjo.solve(func, y0, [0.0, 1.0], julia(tol=1e-10, adjoint=adjoint)).y[-1].sum().backward()
        assert float(func.rate.grad) == pytest.approx(-2 * torch.tensor(-0.5).exp().item(), 1e-7)
        assert func.frozen.grad is None
        assert func.unused.grad is None or not func.unused.grad.any()


@pytest.mark.parametrize("adjoint", ["gauss", "quadrature"])
def test_robertson_s_rates(adjoint):
    """Gradients of a stiff solution against central differences of it, to 1e-4 relative."""
    func, y0 = Robertson(), torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    t = torch.tensor([0.0, 40.0], dtype=F64)
    weight = torch.tensor([1.0, 1e4, -1.0], dtype=F64)

    def value(solver):
        return (weight * pjo.solve(func, y0, t, solver).y[-1]).sum()

    # interpolating has the parameters in its error norm, whose gradients span ten powers of ten
    atol = 1e-9 if adjoint == "interpolating" else 1e-13
    solver = pjo.Solver("Rodas5P", 1e-8, 1e-12, adjoint=adjoint, adjoint_atol=atol, backend="julia")
    (found,) = torch.autograd.grad(value(solver), func.k)
    tight = pjo.Solver("Rodas5P", 1e-11, 1e-14, backend="julia")
    for i in range(3):
        eps = 1e-4 * float(func.k.detach()[i])
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                func.k[i] += sign * eps
                values.append(float(value(tight)))
                func.k[i] -= sign * eps
        slope = (values[0] - values[1]) / (2 * eps)
        assert float(found[i]) == pytest.approx(slope, rel=1e-4)


def test_the_stiffness_of_van_der_pol():
    func, y0 = VanDerPol(1e3), torch.tensor([2.0, 0.0], dtype=F64)
    t = torch.tensor([0.0, 0.8], dtype=F64)

    def value(tol):
        return pjo.solve(func, y0, t, julia("Rodas5P", tol, "gauss")).y[-1, 0]

    (found,) = torch.autograd.grad(value(1e-9), func.mu)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            func.mu += sign * 0.1
            values.append(float(value(1e-12)))
            func.mu -= sign * 0.1
    assert float(found) == pytest.approx((values[0] - values[1]) / 0.2, rel=1e-4)


@pytest.mark.parametrize("adjoint", ["gauss", "interpolating", "quadrature"])
def test_a_stiff_gradient_is_the_same_every_time(adjoint):
    """The forward pattern of the Jacobian once stood for one that has the parameters as well."""
    func, y0 = VanDerPol(100.0), torch.tensor([2.0, 0.0], dtype=F64)
    seen = set()
    for _ in range(5):
        sol = pjo.solve(func, y0, [0.0, 1.0], julia("Rodas5P", 1e-8, adjoint))
        (found,) = torch.autograd.grad(sol.y[-1].sum(), func.mu)
        seen.add((float(found), sol.stats.nfe_backward))
    assert len(seen) == 1
    (wanted,) = torch.autograd.grad(
        pjo.solve(func, y0, [0.0, 1.0], pjo.Solver("tsit5", 1e-11, 1e-11, backend="torch"))
        .y[-1]
        .sum(),
        func.mu,
    )
    # a hundred times the solver's tolerance: the gradient is 1e-4, the state 2
    assert float(found) == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("name", ["nesterovnode", "gnesterovnode"])
@pytest.mark.parametrize("adjoint", ["gauss", "quadrature"])
def test_mass_matrix_gradients_are_those_of_the_eliminated_form(name, adjoint):
    """Without a Jacobian that is told the time they are wrong by 0.1 to 0.2 where h is output."""
    dynamics = models()[name]
    h0 = torch.randn(2, 2, dtype=F64, requires_grad=True)
    inputs = [h0, *dynamics.parameters()]
    t = (1.0, 1.5, 2.0)
    plain = pjo.NeuralODE(dynamics, t=t, solver=pjo.Solver("dopri5", 1e-11, 1e-11))
    wanted = gradients(plain(h0), inputs)
    dae = pjo.NeuralODE(dynamics.as_dae(), t=t, solver=julia("Rodas5P", 1e-9, adjoint))
    assert relative_error(gradients(dae(h0), inputs), wanted) < 1e-6
    # as a choice of the solver
    options = {"form": "mass_matrix"}
    lifted = pjo.NeuralODE(dynamics, t=t, solver=julia("Rodas5P", 1e-9, adjoint, **options))
    assert relative_error(gradients(lifted(h0), inputs), wanted) < 1e-6


class Squared(nn.Module):
    """y' = -a z, 0 = z - y^2."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0, dtype=F64))

    def forward(self, t, y):
        return torch.stack((-self.a * y[1], y[1] - y[0] ** 2))


def test_gradients_of_a_dae_are_zero_for_its_algebraic_part():
    """y = 1 / (1/y0 + a t)."""
    dae = pjo.SemiExplicitDAE(Squared(), torch.tensor([1.0, 0.0]))
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    y = pjo.solve(dae, y0, [0.0, 1.0], julia("Rodas5P", 1e-10, "gauss")).y
    g, a = torch.autograd.grad(y[-1].sum(), [y0, dae.func.a])
    # y + y^2 at y = 1/2: (1 + 2 y) dy, with dy/dy0 = 1/4, dy/da = -1/4
    assert float(g[0]) == pytest.approx(0.5, rel=1e-6)
    assert float(g[1]) == 0.0
    assert float(a) == pytest.approx(-0.5, rel=1e-6)


def test_what_has_no_gradient_in_a_dae_is_refused():
    class Own(nn.Module):
        def forward(self, t, y):
            return torch.stack((-y[1], y[1] - (1 + t) * y[0] ** 2))

    dae = pjo.SemiExplicitDAE(Own(), torch.tensor([1.0, 0.0]))
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
    with pytest.raises(pjo.UnsupportedError, match=r"t\.detach"):
        pjo.solve(dae, y0, t, julia("Rodas5P"))
    off = torch.tensor([1.0, 0.3], dtype=F64, requires_grad=True)
    y = pjo.solve(dae, off, [0.0, 1.0], julia("Rodas5P", initialization="brown")).y
    with pytest.raises(pjo.UnsupportedError, match=r"t\[0\]"):
        y.sum().backward(retain_graph=True)
    y[1].sum().backward()
    assert off.grad[0] != 0
    assert off.grad[1] == 0


@pytest.mark.parametrize("method", ["Rodas4", "FBDF", "QNDF"])
def test_which_methods_have_gradients_of_a_dae(method):
    dae = pjo.SemiExplicitDAE(Squared(), torch.tensor([1.0, 0.0]))
    start, t = torch.ones(2, dtype=F64), [0.0, 1.0]
    y = pjo.solve(dae, start, t, julia(method, 1e-7, "gauss")).y
    (a,) = torch.autograd.grad(y[-1].sum(), dae.func.a)
    assert float(a) == pytest.approx(-0.5, rel=1e-5)
    with pytest.raises(pjo.UnsupportedError, match="Rodas5P"):
        pjo.solve(dae, start, t, julia("RadauIIA5", 1e-7, "gauss"))
    with torch.no_grad():
        assert pjo.solve(dae, start, t, julia("RadauIIA5", 1e-7)).y.isfinite().all()


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_gradient_that_would_be_lost_is_refused(adjoint, monkeypatch):
    """Conditioning set as an attribute, first without a gradient and then with one."""

    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.context = Field(), torch.zeros(2, dtype=F64)

        def forward(self, t, y):
            return self.net(t, y) + self.context

    func, encoder, y0 = Conditioned(), nn.Linear(2, 2).to(F64), torch.randn(3, 2, dtype=F64)
    pjo.solve(func, y0, [0.0, 1.0], julia(adjoint=adjoint)).y[-1].sum().backward()
    func.context = encoder(torch.ones(2, dtype=F64))
    y = pjo.solve(func, y0, [0.0, 1.0], julia(adjoint=adjoint)).y
    with pytest.raises(pjo.UnsupportedError, match="among its"):
        y[-1].sum().backward()
    monkeypatch.delenv("PYJULIAODE_BACKEND")
    # "auto" goes to torch, where nothing is lost
    fresh = Conditioned()
    fresh.context = func.context
    sol = pjo.solve(fresh, y0, [0.0, 1.0], pjo.Solver(backend="auto"))
    sol.y[-1].sum().backward()
    assert sol.stats.backend == "torch"
    assert encoder.weight.grad is not None


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_autocast_around_backward_rounds_nothing(adjoint):
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    func = pjo.NODE(net)
    y0 = func.initial_state(torch.randn(3, 2))
    found = []
    for enabled in (False, True):
        net.zero_grad()
        loss = pjo.solve(func, y0, [0.0, 1.0], julia("tsit5", 1e-5, adjoint)).y[-1].sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss.backward()
        found.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_a_failed_solve_reached_can_be_replayed():
    """y' = k y^2 blows up at 1; d y(1/2) / dk = t y^2 = 2."""
    func = nn.Module()
    func.k = nn.Parameter(torch.ones((), dtype=F64))
    func.forward = lambda t, y: func.k * y**2
    y0 = torch.ones(1, dtype=F64)
    sol = pjo.solve(func, y0, [0.0, 0.5, 2.0], julia("tsit5", 1e-8, "direct"), throw=False)
    assert not sol.retcode.successful
    sol.y[-1].sum().backward()
    assert float(func.k.grad) == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("adjoint", ["gauss", "interpolating"])
def test_nystrom_forward_and_first_order_adjoint(adjoint):
    dynamics = models()["hbnode"]
    h0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.4, 1.0], dtype=F64)
    inputs = [h0, *dynamics.parameters()]
    y = pjo.solve(dynamics, dynamics.initial_state(h0), t, julia("FineRKN5", 1e-10, adjoint)).y
    wanted = reference(dynamics, dynamics.initial_state(h0), t, inputs)
    assert relative_error(gradients(y, inputs), wanted) < 1e-6  # of a cubic interpolant


@pytest.mark.parametrize("adjoint", CONTINUOUS)
def test_a_failed_adjoint_is_an_error(adjoint):
    """Upstream returns whatever it has by then, 50 % wrong, as a success."""
    field, y0 = Field(), torch.randn(3, 2, dtype=F64, requires_grad=True)
    solver = pjo.Solver(
        *("tsit5", 1e-4, 1e-4),
        adjoint=adjoint,
        backend="julia",
        max_steps=20,
        adjoint_rtol=1e-13,
        adjoint_atol=1e-15,
    )
    y = pjo.solve(field, y0, [0.0, 1.0], solver).y
    with pytest.raises(pjo.SolverError, match="adjoint") as caught:
        y[-1].sum().backward()
    assert caught.value.retcode is pjo.Retcode.MAX_ITERS


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_an_exception_in_the_backward_pass_comes_out_as_itself(adjoint):
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.broken = Field(), False

        def forward(self, t, y):
            if self.broken:
                raise LookupError("broken")
            return self.net(t, y)

    func, y0 = Fragile(), torch.randn(3, 2, dtype=F64, requires_grad=True)
    y = pjo.solve(func, y0, [0.0, 1.0], julia(adjoint=adjoint)).y
    func.broken = True
    with pytest.raises(LookupError, match="broken"):
        y[-1].sum().backward(retain_graph=True)
    func.broken = False
    y[-1].sum().backward()
    assert y0.grad.isfinite().all()


@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
def test_double_backward_and_transforms_are_refused(adjoint):
    field, y0 = Field(), torch.randn(3, 2, dtype=F64, requires_grad=True)
    y = pjo.solve(field, y0, [0.0, 1.0], julia(adjoint=adjoint)).y
    (g,) = torch.autograd.grad(y[-1].sum(), y0, create_graph=True)
    with pytest.raises(pjo.UnsupportedError, match="double backward"):
        g.sum().backward()
    with pytest.raises(pjo.UnsupportedError, match=r"torch\.func"):
        torch.func.grad(lambda x: pjo.solve(field, x, [0.0, 1.0], julia()).y.sum())(y0.detach())


def test_changed_parameters_between_forward_and_backward_raise():
    field, y0 = Field(), torch.randn(3, 2, dtype=F64, requires_grad=True)
    for adjoint in ADJOINTS:
        y = pjo.solve(field, y0, [0.0, 1.0], julia(adjoint=adjoint)).y
        with torch.no_grad():
            next(field.parameters()).add_(0.1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y[-1].sum().backward()


def test_dropout_is_noticed_by_the_replay():
    func = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 4)).to(F64)
    model = pjo.NeuralODE(pjo.NODE(func), solver=julia("Tsit5", 1e-3, "direct", step_size=0.25))
    with pytest.raises(pjo.UnsupportedError, match="dropout"):
        model(torch.randn(3, 4, dtype=F64)).sum().backward()


class Held(nn.Module):
    """y' = a floor(3 (t - start)): an input that changes at multiples of 1/3."""

    def __init__(self, dtype, start):
        super().__init__()
        self.a, self.start = nn.Parameter(torch.tensor(0.7, dtype=dtype)), start

    def forward(self, t, y):
        return self.a * torch.floor(3 * (t - self.start)) * torch.ones_like(y)


@pytest.mark.parametrize("start", [0.0, 256.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("method", "step"), [("RK4", 0.02), ("Tsit5", 0.02), ("Tsit5", None)])
def test_a_replay_sees_the_times_that_were_taken(method, step, dtype, start):
    """The last requested time is a jump: one rounding decides which side of it the last slope sees.
    What is differentiated is linear in a, so that dy/da = y/a: to rounding."""
    f, options = Held(dtype, start), {} if step is None else {"step_size": step}
    y = pjo.solve(
        f,
        torch.zeros(1, dtype=dtype),
        [start, start + 1.0],
        julia(method, 1e-3, "direct", **options),
    ).y[-1]
    (found,) = torch.autograd.grad(y.sum(), f.a)
    eps = torch.finfo(dtype).eps
    assert float(found) == pytest.approx(float(y.detach()) / 0.7, rel=100 * eps)


def test_a_jump_that_a_replay_meets_otherwise_is_named():
    """The step's end sees another side of the jump than before: the message says which option."""
    from pyjuliaode.backends.replay import _check_repeats, _jump
    from pyjuliaode.problem import Problem
    from pyjuliaode.rhs import RHS

    y = torch.zeros(1, dtype=F64)
    rhs = RHS(Problem.build(Held(F64, 0.0), y, [0.0, 1.0]))
    assert _jump(rhs, (0.5, 1.0), y) == 1.0
    assert _jump(rhs, (0.4, 0.6), y) is None
    with pytest.raises(pjo.UnsupportedError, match="jump_t"):
        _check_repeats(y, y + 1.0, lambda: 1.0)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gradients_near_a_late_time(adjoint, dtype, backwards):
    """y' = -k cos(s) y in the time s since a day's end, where float32 numbers are 2^-7 apart: steps
    are shorter. The field's own rounding of the time decides the last digits: 2^-8 in float32."""
    start, sign = 86_400.0, -1.0 if backwards else 1.0

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = nn.Parameter(torch.tensor(0.8, dtype=dtype))

        def forward(self, t, y):
            return -sign * self.k * torch.cos(t - start) * y

    func, t = Late(), torch.tensor([start, start + sign * 0.25, start + sign], dtype=F64)
    y0 = torch.ones(2, dtype=dtype, requires_grad=True)
    y = pjo.solve(func, y0, t, julia("tsit5", 1e-6, adjoint)).y
    g0, gk = torch.autograd.grad(y[1:].sum(), [y0, func.k])
    ends = [(math.sin(s), math.exp(-0.8 * math.sin(s))) for s in (0.25, 1.0)]
    bound = 1e-5 if dtype is F64 else 2.0**-8
    assert g0.tolist() == pytest.approx([sum(e for _, e in ends)] * 2, rel=bound)
    assert float(gk) == pytest.approx(-2 * sum(s * e for s, e in ends), rel=bound)


@pytest.mark.parametrize("adjoint", ["direct", "gauss", "interpolating"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gradients_across_a_discontinuity_at_a_late_time(dtype, adjoint):
    """As above from 1,000 on; the number next to the jump is not the solver's any more."""

    class Switched(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = nn.Parameter(torch.tensor([0.7, -2.0], dtype=dtype))

        def forward(self, t, y):
            return torch.where(t >= 1000.5, self.k[1], self.k[0]) * y

    func, options = Switched(), {"jump_t": torch.tensor([1000.5])}
    y0 = torch.ones(1, dtype=dtype)
    sol = pjo.solve(func, y0, [1000.0, 1001.0], julia("tsit5", 1e-6, adjoint, **options))
    (gk,) = torch.autograd.grad(sol.y[-1].sum(), func.k)
    end = math.exp((0.7 - 2.0) / 2)
    # a float32 time next to the jump is 6e-5 from it
    assert gk.tolist() == pytest.approx([end / 2, end / 2], rel=1e-5 if dtype is F64 else 1e-3)
    assert sol.stats.n_rejected <= 2


def test_a_dropped_solution_lets_go_of_the_model_at_once():
    field, y0 = Field(), torch.randn(3, 2, dtype=F64, requires_grad=True)
    seen = weakref.ref(field)
    sol = pjo.solve(field, y0, [0.0, 1.0], julia(adjoint="gauss"))
    del field, sol
    gc.collect()
    assert seen() is None


def test_nothing_stays_in_julia():
    """Ten solves with gradients, some never used: handles go with their tensors."""
    from pyjuliaode.backends.julia.runtime import get
    from pyjuliaode.backends.julia.workspace import drain

    runtime, field = get(), Field()
    gc.collect()
    drain(runtime)
    before = tuple(runtime.package.alive())
    for i in range(10):
        y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
        sol = pjo.solve(field, y0, [0.0, 1.0], julia(adjoint="gauss"))
        if i % 2:
            sol.y[-1].sum().backward()
    during = tuple(runtime.package.alive())
    assert during[1] > before[1]
    del sol
    gc.collect()
    drain(runtime)
    after = tuple(runtime.package.alive())
    assert after[1] == before[1]
    assert after[0] <= before[0] + 16  # idle workspaces are kept for the next solve


def test_training_with_julia_follows_training_with_torch():
    """Ten steps of Adam: same losses to the tolerance of the solves."""
    torch.manual_seed(0)
    h0 = torch.randn(16, 2, dtype=F64)
    target = torch.stack((h0[:, 1], -h0[:, 0]), 1)
    losses = {}
    for backend in ("torch", "julia"):
        torch.manual_seed(1)
        dynamics = pjo.HBNODE(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))).to(F64)
        solver = pjo.Solver("dopri5", 1e-8, 1e-8, backend=backend)
        model = pjo.NeuralODE(dynamics, solver=solver)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        losses[backend] = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = (model(h0) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses[backend].append(loss.item())
    assert losses["julia"] == pytest.approx(losses["torch"], rel=1e-6)
    assert losses["julia"][-1] < losses["julia"][0]
