"""Gradients: every model and adjoint against finite differences, each other and torchdiffeq."""

from __future__ import annotations

import copy

import pytest
import torch
import torchdiffeq
from problems import F64, Field, gradients, models, relative_error
from torch import nn

import pyjuliaode as pjo

ADJOINTS = ["direct", "replay", "interpolating", "gauss", "backsolve"]


def solver(adjoint: str, tol: float, method: str = "dopri5", **options) -> pjo.Solver:
    if adjoint == "replay":
        adjoint, options["checkpoint"] = "direct", True
    return pjo.Solver(method, tol, tol, adjoint=adjoint, options=options)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", models())
def test_gradcheck_of_every_model_and_adjoint(name, adjoint):
    """Against central differences in float64, with respect to h0, the times and all parameters.

    Tolerance 1e-9 of the solve, step 1e-5: differences carry errors up to 1e-9 / 1e-5 = 1e-4 where
    an adaptive step changes, hence atol = 1e-4 of entries of order one (no step does here, mostly).
    """
    dynamics = models()[name]
    h0 = torch.randn(2, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([1.0, 1.4, 2.0], dtype=F64, requires_grad=True)
    params = list(dynamics.parameters())

    def run(h0, t, *params):
        state = dynamics.initial_state(h0, t0=1.0)
        return pjo.solve(dynamics, state, t, solver(adjoint, 1e-9)).y

    inputs = (h0, t, *params)
    # the fast mode takes one random projection of the Jacobian
    assert torch.autograd.gradcheck(run, inputs, eps=1e-5, atol=1e-4, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("name", models())
def test_adjoints_agree_at_tight_tolerance(name):
    """All five to 1e-8 relative, at tolerance 1e-12, between times of which some are outputs."""
    dynamics = models()[name]
    h0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([1.0, 1.3, 1.9, 2.5], dtype=F64, requires_grad=True)
    inputs = [h0, t, *dynamics.parameters()]
    found = {}
    for adjoint in ADJOINTS:
        y = pjo.solve(dynamics, dynamics.initial_state(h0, t0=1.0), t, solver(adjoint, 1e-12)).y
        found[adjoint] = gradients(y, inputs)
    for adjoint in ADJOINTS[1:]:
        assert relative_error(found[adjoint], found["direct"]) < 1e-8, adjoint


@pytest.mark.parametrize("decreasing", [False, True])
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gradients_agree_with_torchdiffeq(adjoint, decreasing):
    """Forward and backward in time, unused parameters, gradients of the times: 1e-6 relative.

    The reference is torchdiffeq with exact steps onto the outputs (rk4, 2,000 steps).
    """
    field = Field()
    field.unused = nn.Linear(2, 2).to(F64)
    y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    times = [0.0, 0.5, 1.0, 1.5]
    t = torch.tensor(times[::-1] if decreasing else times, dtype=F64, requires_grad=True)
    inputs = [y0, t, *field.parameters()]
    grid = {"grid_constructor": lambda f, y, t: torch.linspace(t[0], t[-1], 2001, dtype=F64)}
    wanted = torchdiffeq.odeint(field, y0, t, method="rk4", options={**grid, "interp": "cubic"})
    wanted = gradients(wanted, [y0, *field.parameters()])
    y = pjo.solve(field, y0, t, solver(adjoint, 1e-10)).y
    found = gradients(y, inputs)
    assert relative_error([found[0], *found[2:]], wanted) < 1e-6
    assert float(found[-1].abs().max()) == 0.0  # the unused bias: zero, not None
    slopes = torch.stack([field(x, s) for x, s in zip(t, y, strict=True)])
    weight = torch.randn(y.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    by_hand = (weight * slopes).sum((1, 2))[1:]  # dL/dt_i = <dL/dy_i, f(t_i, y_i)>
    assert relative_error([found[1][1:]], [by_hand.detach()]) < 1e-6


@pytest.mark.parametrize("method", ["tsit5", "bosh3", "dopri8", "rk4", "implicit_adams", "euler"])
def test_direct_gradients_of_other_methods_pass_gradcheck(method):
    field = Field()
    y0 = torch.randn(2, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.4, 1.0], dtype=F64)
    fixed = {"step_size": 0.1} if method in ("rk4", "euler", "implicit_adams") else {}

    def run(y0, *params):
        return pjo.solve(field, y0, t, solver("direct", 1e-9, method, **fixed)).y

    assert torch.autograd.gradcheck(run, (y0, *field.parameters()), eps=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "dopri8"])
def test_replay_is_the_gradient_of_the_graph(method):
    """The same steps differentiated twice over: equal but for rounding (1e-10 relative)."""
    field = Field()
    y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.33, 1.0], dtype=F64, requires_grad=True)
    fixed = {"step_size": 0.07} if method == "rk4" else {}
    inputs = [y0, t, *field.parameters()]
    graph = gradients(pjo.solve(field, y0, t, solver("direct", 1e-6, method, **fixed)).y, inputs)
    replay = gradients(pjo.solve(field, y0, t, solver("replay", 1e-6, method, **fixed)).y, inputs)
    assert relative_error(replay, graph) < 1e-10


def test_auto_replays_when_the_graph_outgrows_its_memory():
    field = Field()
    y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    small = pjo.solve(field, y0, t, pjo.Solver("dopri5", 1e-8, 1e-8))
    tight = pjo.Solver("dopri5", 1e-8, 1e-8, options={"graph_memory": 2_000})
    large = pjo.solve(copy.deepcopy(field), y0, t, tight)
    again = pjo.solve(field, y0, t, tight)  # what the first solve took is known
    assert small.stats.adjoint == "direct"
    assert large.stats.adjoint == again.stats.adjoint == "direct (replay)"
    assert again.stats.nfe_forward < large.stats.nfe_forward  # no second attempt
    torch.testing.assert_close(small.y, large.y, rtol=0, atol=1e-12)


def test_second_derivatives_of_direct():
    field = Field()
    y0 = torch.randn(1, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.4, 1.0], dtype=F64)
    run = lambda y0: pjo.solve(field, y0, t, solver("direct", 1e-9)).y  # noqa: E731
    assert torch.autograd.gradgradcheck(run, (y0,), eps=1e-5, atol=1e-4)


@pytest.mark.parametrize("adjoint", ["replay", "interpolating", "gauss", "backsolve"])
def test_double_backward_is_refused_by_a_sentence(adjoint):
    field = Field()
    y0 = torch.randn(1, 2, dtype=F64, requires_grad=True)
    y = pjo.solve(field, y0, torch.tensor([0.0, 1.0], dtype=F64), solver(adjoint, 1e-6)).y
    (grad,) = torch.autograd.grad(y[-1].square().sum(), y0, create_graph=True)
    with pytest.raises(pjo.UnsupportedError, match="adjoint='direct'"):
        grad.sum().backward()


def test_create_graph_alone_does_not_disturb_the_gradient():
    field = Field()
    y0 = torch.randn(1, 2, dtype=F64, requires_grad=True)
    y = pjo.solve(field, y0, torch.tensor([0.0, 1.0], dtype=F64), solver("gauss", 1e-8)).y
    (plain,) = torch.autograd.grad(y[-1].sum(), y0, retain_graph=True)
    (kept,) = torch.autograd.grad(y[-1].sum(), y0, create_graph=True)
    assert torch.equal(plain, kept.detach())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jvp
def test_torch_func_grad_and_jvp_pass_through_direct():
    field, t = Field(), torch.tensor([0.0, 1.0], dtype=F64)
    y0 = torch.randn(2, 2, dtype=F64)

    def loss(y0):
        return pjo.solve(field, y0, t, solver("direct", 1e-8)).y[-1].square().sum()

    leaf = y0.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf), leaf)
    found = torch.func.grad(loss)(y0)
    assert relative_error([found], [wanted]) < 1e-12
    v = torch.randn_like(y0)
    _, tangent = torch.func.jvp(loss, (y0,), (v,))
    assert abs(float(tangent.detach() - (wanted * v).sum())) < 1e-10


def test_vmap_is_followed_by_fixed_steps_and_refused_by_adaptive_ones():
    field, t = Field(), torch.tensor([0.0, 1.0], dtype=F64)
    y0 = torch.randn(5, 2, dtype=F64)
    fixed = pjo.Solver("rk4", dt=0.1)
    found = torch.func.vmap(lambda y: pjo.solve(field, y, t, fixed).y[-1])(y0)
    assert float((found - pjo.solve(field, y0, t, fixed).y[-1]).abs().max().detach()) < 1e-12
    with pytest.raises(pjo.UnsupportedError, match="vmap"):
        torch.func.vmap(lambda y: pjo.solve(field, y, t).y[-1])(y0)


@pytest.mark.parametrize("adjoint", ["replay", "gauss", "backsolve"])
def test_torch_func_is_refused_by_custom_adjoints(adjoint):
    field, t = Field(), torch.tensor([0.0, 1.0], dtype=F64)
    run = lambda y: pjo.solve(field, y, t, solver(adjoint, 1e-6)).y.sum()  # noqa: E731
    with pytest.raises(pjo.UnsupportedError, match=r"torch\.func"):
        torch.func.grad(run)(torch.randn(1, 2, dtype=F64))


def test_the_adjoint_does_not_depend_on_the_scale_of_the_loss():
    """The adjoint equation is linear: a loss 1e-6 times smaller has that gradient, exactly."""
    field = Field()
    y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    y = pjo.solve(field, y0, torch.tensor([0.0, 2.0], dtype=F64), solver("gauss", 1e-6)).y
    inputs = [y0, *field.parameters()]
    large = torch.autograd.grad(y[-1].square().sum(), inputs, retain_graph=True)
    small = torch.autograd.grad(1e-6 * y[-1].square().sum(), inputs)
    assert relative_error([1e6 * g for g in small], list(large)) < 1e-12


def test_gradients_lost_by_a_closure_are_warned_of():
    outside = torch.ones(2, dtype=F64, requires_grad=True)

    class Closure(nn.Module):
        def forward(self, t, y):
            return -outside * y

    y0, t = torch.ones(2, dtype=F64, requires_grad=True), torch.tensor([0.0, 1.0], dtype=F64)
    y = pjo.solve(Closure(), y0, t, solver("gauss", 1e-6)).y
    with pytest.warns(pjo.GradientWarning, match="adjoint_params"):
        y.sum().backward()
    assert outside.grad is None
    y = pjo.solve(Closure(), y0, t, solver("gauss", 1e-9), params=[outside]).y
    y.sum().backward()
    exact = torch.full((2,), -torch.exp(torch.tensor(-1.0)).item(), dtype=F64)
    assert float((outside.grad - exact).abs().max()) < 1e-7


def test_auto_never_replays_where_a_closure_would_lose_its_gradient():
    outside = torch.ones(2, dtype=F64, requires_grad=True)

    class Closure(nn.Module):
        def forward(self, t, y):
            return -outside * y

    y0, t = torch.ones(2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    tight = pjo.Solver("dopri5", 1e-9, 1e-9, options={"graph_memory": 10})
    s = pjo.solve(Closure(), y0, t, tight)
    s.y[-1].sum().backward()
    assert s.stats.adjoint == "direct"
    assert float((outside.grad + torch.exp(torch.tensor(-1.0))).abs().max()) < 1e-7
    with pytest.warns(pjo.GradientWarning, match="adjoint_params"):
        pjo.solve(Closure(), y0, t, solver("replay", 1e-6))


def test_closures_and_plain_functions_are_differentiated_by_direct():
    rate = torch.tensor(0.7, dtype=F64, requires_grad=True)
    y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 2.0], dtype=F64)
    y = pjo.odeint(lambda t, y: -rate * y, y0, t)
    (grad,) = torch.autograd.grad(y[-1, 0], rate)
    assert abs(float(grad) + 2 * torch.exp(torch.tensor(-1.4)).item()) < 1e-6


def test_a_graph_that_begins_late_is_not_lost():
    """A parameter that enters only at t > 0.5 is unseen at t = 0; its gradient is right anyway."""
    rate = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def f(t, y):
        return -rate * y if float(t) > 0.5 else -0.7 * y

    y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    y = pjo.odeint(f, y0, t, options={"jump_t": torch.tensor([0.5])})
    (grad,) = torch.autograd.grad(y[-1, 0], rate)
    assert abs(float(grad) + 0.5 * torch.exp(torch.tensor(-0.7)).item()) < 1e-6


def test_complex_gradients_agree_between_adjoints():
    rate = nn.Parameter(torch.tensor([1j, -0.5 + 2j], dtype=torch.complex128))

    class Rotation(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = rate

        def forward(self, t, y):
            return self.rate * y

    y0 = torch.tensor([1.0 + 0.5j, 0.2j], dtype=torch.complex128, requires_grad=True)
    t = torch.tensor([0.0, 0.7, 1.5], dtype=F64, requires_grad=True)
    found = []
    for adjoint in ADJOINTS:
        y = pjo.solve(Rotation(), y0, t, solver(adjoint, 1e-11)).y
        found.append(torch.autograd.grad(y.abs().square().sum() + y.imag.sum(), [y0, t, rate]))
    for other in found[1:]:
        assert relative_error(list(other), list(found[0])) < 1e-8


def test_exceptions_of_the_field_come_out_as_themselves_from_backward():
    class Fragile(nn.Module):
        broken = False

        def forward(self, t, y):
            if self.broken:
                raise KeyError("from the field")
            return -y

    field = Fragile()
    y0 = torch.ones(1, dtype=F64, requires_grad=True)
    y = pjo.solve(
        field, y0, torch.tensor([0.0, 1.0], dtype=F64), solver("backsolve", 1e-6), params=[]
    ).y
    field.broken = True
    with pytest.raises(KeyError, match="from the field"):
        y.sum().backward()


def test_backward_statistics_are_filled_in():
    field = Field()
    y0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    for adjoint in ADJOINTS:
        s = pjo.solve(field, y0, torch.tensor([0.0, 1.0], dtype=F64), solver(adjoint, 1e-7))
        assert s.stats.nfe_backward == 0
        s.y[-1].sum().backward()
        assert s.stats.nfe_backward > 0
        if adjoint in ("direct", "replay"):  # one product for each stage of the accepted steps
            expected = 6 * s.stats.n_accepted
            looks = (
                1 if adjoint == "direct" else 2
            )  # whether the field is what it was, at both ends
            assert expected <= s.stats.nfe_backward <= expected + looks


@pytest.mark.parametrize("adjoint", ["replay", "gauss", "interpolating", "backsolve"])
def test_double_backward_is_refused_where_only_the_state_requires_a_gradient(adjoint):
    class Square(nn.Module):
        def forward(self, t, y):
            return -(y**2)

    y0 = torch.ones(1, dtype=F64, requires_grad=True)
    y = pjo.solve(Square(), y0, [0.0, 1.0], solver(adjoint, 1e-8)).y
    (grad,) = torch.autograd.grad(y[-1].sum(), y0, create_graph=True)
    assert grad.requires_grad
    with pytest.raises(pjo.UnsupportedError, match="adjoint='direct'"):
        torch.autograd.grad((grad**2).sum() + (y0**2).sum(), y0)


@pytest.mark.parametrize("adjoint", [None, "gauss", "interpolating", "backsolve"])
@pytest.mark.parametrize("extra", [{}, {"norm": "seminorm"}])
def test_the_adjoint_solve_keeps_the_step_size_of_the_forward_one(adjoint, extra):
    field = Field()
    y0 = torch.randn(2, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 5.0], dtype=F64)
    named = {} if adjoint is None else {"adjoint": adjoint}
    fixed = {"method": "rk4", "options": {"step_size": 0.02}}
    y = pjo.odeint_adjoint(field, y0, t, **fixed, adjoint_options={**named, **extra})
    found = gradients(y, [y0, *field.parameters()])
    wanted = gradients(pjo.odeint(field, y0, t, **fixed), [y0, *field.parameters()])
    assert relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("heun3", {"perturb": True, "step_size": 0.05}),
        ("rk4", {"perturb": True, "step_size": 0.1}),
        ("dopri5", {"perturb": True}),
        ("rk4", {"interp": "linear", "step_size": 0.3}),
        ("explicit_adams", {"step_size": 0.05}),
        ("implicit_adams", {"step_size": 0.05}),
    ],
)
def test_gradients_of_times_with_options(method, options):
    """Against the tight gradient; the bound is the error of the methods at these steps.

    Between the ends a linear interpolant has a derivative of first order only.
    """
    t = torch.tensor([0.1, 0.45, 0.8, 1.3], dtype=F64, requires_grad=True)
    f = lambda t, y: torch.sin(3 * t) * y + t**2  # noqa: E731
    exact = pjo.Solver("dopri8", 1e-12, 1e-12, adjoint="direct")

    def loss(t, solver):
        return pjo.solve(f, torch.ones(1, dtype=F64), t, solver).y.square().sum()

    (wanted,) = torch.autograd.grad(loss(t, exact), t)
    (found,) = torch.autograd.grad(loss(t, solver("direct", 1e-9, method, **options)), t)
    if "interp" in options:
        found, wanted = found[[0, -1]], wanted[[0, -1]]
    assert float((found - wanted).abs().max()) < 1e-2


@pytest.mark.filterwarnings("ignore::pyjuliaode.AccuracyWarning")
def test_a_gradient_of_the_times_does_not_change_the_value_in_float32():
    t = torch.tensor([1000.0, 1000.001], dtype=F64)
    f = lambda t, y: torch.ones_like(y)  # noqa: E731
    plain = pjo.solve(f, torch.zeros(1), t, pjo.Solver("rk4")).y[-1]
    graph = pjo.solve(f, torch.zeros(1), t.clone().requires_grad_(), pjo.Solver("rk4")).y[-1]
    assert abs(float(plain) - float(graph.detach())) < 1e-9


def test_a_conditioning_that_becomes_learned_is_not_lost_by_auto():
    class Conditioned(Field):
        cond = torch.zeros(2, dtype=F64)

        def forward(self, t, y):
            return super().forward(t, y) + self.cond * y

    field, tight = Conditioned(), pjo.Solver("dopri5", options={"graph_memory": 1000})
    y0, encoder = torch.ones(2, dtype=F64), torch.ones(2, dtype=F64, requires_grad=True)
    pjo.solve(field, y0, [0.0, 1.0], tight)
    field.cond = 0.5 * encoder
    pjo.solve(field, y0, [0.0, 1.0], tight).y.sum().backward()
    assert float(encoder.grad.abs().min()) > 0


def test_a_plain_function_of_learned_tensors_is_refused_by_continuous_adjoints():
    net = nn.Linear(2, 2).to(F64)
    with pytest.raises(pjo.InvalidArgumentError, match="adjoint='direct'"):
        pjo.solve(lambda t, y: net(y), torch.ones(2, dtype=F64), [0.0, 1.0], solver("gauss", 1e-6))


def test_a_non_finite_incoming_gradient_becomes_nan_as_in_backpropagation():
    field, y0 = Field(), torch.randn(2, 2, dtype=F64, requires_grad=True)
    y = pjo.solve(field, y0, [0.0, 1.0], solver("gauss", 1e-6)).y
    (grad,) = torch.autograd.grad(y, y0, torch.full_like(y, float("inf")))
    assert bool(grad.isnan().all())


def test_max_steps_bounds_each_interval_of_the_adjoint():
    field, y0 = Field(), torch.randn(2, 2, dtype=F64, requires_grad=True)
    short = pjo.Solver("dopri5", 1e-6, 1e-6, adjoint="gauss", max_steps=50)
    y = pjo.solve(field, y0, torch.linspace(0, 1, 101, dtype=F64), short).y
    y.sum().backward()
    assert bool(y0.grad.isfinite().all())


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_autocast_around_a_solve_reaches_the_field_and_not_the_steps(adjoint):
    """Products in bfloat16 (3 digits), states and gradients in float32, forward and backward."""
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    seen = set()

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, y):
            out = self.net(y)
            seen.add((y.dtype, out.dtype))
            return out

    y0, found = torch.randn(8, 2), []
    for enabled in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = pjo.solve(Mixed(), y0, [0.0, 1.0], solver(adjoint, 1e-3)).y
        assert y.dtype == torch.float32
        y[-1].square().sum().backward()
        found.append([p.grad.clone() for p in net.parameters()])
    assert seen == {(torch.float32, torch.float32), (torch.float32, torch.bfloat16)}
    assert relative_error(found[1], found[0]) < 0.05


def test_complex_parameters_of_a_real_state_are_refused_where_they_would_lose_a_part():
    class Rate(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.5 + 0.3j, dtype=torch.complex128))

        def forward(self, t, y):
            return (self.rate * self.rate).imag * y

    y0, grads = torch.ones(1, dtype=F64, requires_grad=True), {}
    for adjoint in ("direct", "gauss"):
        field = Rate()
        pjo.solve(field, y0, [0.0, 1.0], solver(adjoint, 1e-10)).y[-1].sum().backward()
        grads[adjoint] = field.rate.grad
    assert relative_error([grads["gauss"]], [grads["direct"]]) < 1e-7
    for adjoint in ("backsolve", "interpolating"):
        with pytest.raises(pjo.UnsupportedError, match="adjoint='gauss'"):
            pjo.solve(Rate(), y0, [0.0, 1.0], solver(adjoint, 1e-6))


def test_a_replay_is_remembered_under_autocast_too():
    field, y0 = Field(), torch.randn(3, 2, dtype=F64, requires_grad=True)
    tight = pjo.Solver("dopri5", 1e-6, 1e-6, options={"graph_memory": 2_000})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = pjo.solve(field, y0, [0.0, 1.0], tight).stats
        again = pjo.solve(field, y0, [0.0, 1.0], tight).stats
    assert first.adjoint == again.adjoint == "direct (replay)"
    assert again.nfe_forward < first.nfe_forward


def test_a_replay_that_does_not_repeat_is_an_error():
    """Dropout gives other values at the same point: replayed steps are not those of the solve."""
    func = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 4)).to(F64)
    model = pjo.NeuralODE(pjo.NODE(func), solver=solver("replay", 1e-3))
    with pytest.raises(pjo.UnsupportedError, match="dropout"):
        model(torch.randn(3, 4, dtype=F64)).sum().backward()
    func.eval()
    model(torch.randn(3, 4, dtype=F64)).sum().backward()
