"""Accuracy: closed forms, convergence order of every method, error at the requested times."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from problems import F64, linear_matrix, sine, sine_solution
from scipy.integrate import solve_ivp
from scipy.special import jv

import pyjuliaode as pjo

ADAPTIVE = ["dopri5", "tsit5", "bosh3", "fehlberg2", "adaptive_heun", "dopri8"]
ORDERS = {
    "euler": 1,
    "midpoint": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "explicit_adams": 4,
    "implicit_adams": 5,
    "adaptive_heun": 2,
    "fehlberg2": 2,
    "bosh3": 3,
    "dopri5": 5,
    "tsit5": 5,
    "dopri8": 8,
}


def fixed_steps(method: str, n: int, span: float) -> dict:
    """Options that make a method take n equal steps."""
    if method in ADAPTIVE:
        h = span / n
        return {"first_step": h, "max_step": h, "min_step": h}
    return {"step_size": span / n}


@pytest.mark.parametrize("method", ORDERS)
def test_methods_converge_at_their_order(method):
    """Slope of log error against log step on a smooth non-autonomous nonlinear problem.

    y' = y cos t, y = exp(sin t). The slope is taken where the error is above 1e-12, and may miss
    the order by 0.35: the steps are not yet infinitely small.
    """
    y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 2.0], dtype=F64)
    exact = math.exp(math.sin(2.0))
    sizes = {1: (64, 128), 2: (64, 128), 3: (64, 128), 8: (6, 12)}.get(ORDERS[method], (16, 32))
    errors = []
    for n in sizes:
        solver = pjo.Solver(method, 1e3, 1e3, options=fixed_steps(method, n, 2.0))
        if method == "implicit_adams":
            options = {**fixed_steps(method, n, 2.0), "max_iters": 20}
            solver = pjo.Solver(method, 1e-13, 1e-13, options=options)
        y = pjo.solve(lambda t, y: y * torch.cos(t), y0, t, solver).y[-1]
        errors.append(abs(float(y) - exact))
    slope = math.log2(errors[0] / errors[1])
    assert slope > ORDERS[method] - 0.35, (errors, slope)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "rk4", "heun3", "midpoint"])
def test_states_between_steps_keep_the_order(method):
    """Interpolated outputs converge as fast as the steps do (same problem as above)."""
    y0, t = torch.ones(1, dtype=F64), torch.linspace(0, 2, 24, dtype=F64)
    exact = torch.exp(torch.sin(t))
    errors = []
    for n in (16, 32):
        solver = pjo.Solver(method, 1e3, 1e3, options=fixed_steps(method, n, 2.0))
        y = pjo.solve(lambda t, y: y * torch.cos(t), y0, t, solver).y[:, 0]
        errors.append(float((y - exact).abs().max()))
    assert math.log2(errors[0] / errors[1]) > ORDERS[method] - 0.5, errors


@pytest.mark.parametrize("method", [m for m in ADAPTIVE if m != "fehlberg2"])
@pytest.mark.parametrize("reverse", [False, True])
def test_tolerance_is_obeyed_at_all_requested_times(method, reverse):
    """Global error at most 100 tol: the controller bounds the local error of each step.

    Not so for fehlberg2: its estimate is the error of the first-order solution, whose constant
    1/512 is smaller than the error of the second-order one at any practical step.
    """
    tol = 1e-5 if method == "adaptive_heun" else 1e-7
    a = linear_matrix()
    t = torch.linspace(0, 3, 13, dtype=F64)
    exact = torch.stack([torch.linalg.matrix_exp(x * a) for x in t]) @ torch.ones(4, dtype=F64)
    if reverse:
        t, exact = t.flip(0), exact.flip(0)
    y = pjo.solve(lambda t, y: y @ a.T, exact[0], t, pjo.Solver(method, tol, tol)).y
    assert float((y - exact).abs().max()) < 100 * tol


def test_errors_at_the_outputs_are_those_of_scipy():
    """At equal tolerance the error at the outputs is at most 3 times that of SciPy's RK45."""
    field = torch.nn.Sequential(torch.nn.Linear(2, 14), torch.nn.Tanh(), torch.nn.Linear(14, 2))
    field = field.to(F64)
    y0, t = torch.randn(2, dtype=F64), torch.linspace(0, 5, 9, dtype=F64)

    def fun(x, y):
        with torch.no_grad():
            return field(torch.as_tensor(y)).numpy()

    exact = solve_ivp(fun, (0, 5), y0.numpy(), "DOP853", t.numpy(), rtol=1e-12, atol=1e-13).y.T
    theirs = solve_ivp(fun, (0, 5), y0.numpy(), "RK45", t.numpy(), rtol=1e-5, atol=1e-5).y.T
    with torch.no_grad():
        ours = pjo.odeint(lambda t, y: field(y), y0, t, rtol=1e-5, atol=1e-5).numpy()
    assert abs(ours - exact).max() < 3 * abs(theirs - exact).max()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "bosh3"])
def test_time_dependent_problem_in_both_precisions(method, dtype):
    t = torch.linspace(1, 8, 10, dtype=dtype)
    y0 = sine_solution(t[0]).reshape(1)
    y = pjo.odeint(sine, y0, t, rtol=1e-5, atol=1e-5, method=method)
    assert y.dtype == dtype
    exact = sine_solution(t)
    # 4e3 at t = 8: 1e-4 relative leaves room for the growth of the error over the span
    assert float(((y[:, 0] - exact) / exact).abs().max()) < 1e-4


@pytest.mark.parametrize("r", [3.0, 5.0])
@pytest.mark.parametrize("t0", [0.0, 1.0])
@pytest.mark.parametrize("form", ["second_order", "dae"])
def test_nesterov_ode_solves_to_bessel_functions(r, t0, form):
    """h'' + (r/t) h' + h = 0: h(t) = Γ(ν+1) (2/t)^ν J_ν(t), ν = (r-1)/2, from either start."""
    if form == "dae" and t0 == 0.0:
        pytest.skip("the change of variables k(t) is singular at t = 0")
    nu = (r - 1) / 2

    def bessel(t):
        return math.gamma(nu + 1) * (2 / t) ** nu * jv(nu, t) if t else 1.0

    def slope(t):
        return -math.gamma(nu + 1) * (2 / t) ** nu * jv(nu + 1, t) if t else 0.0

    class Identity(torch.nn.Module):
        def forward(self, h):
            return h

    exact = {"exact": True} if form == "dae" else {}
    dynamics = pjo.NesterovNODE(Identity(), r=r, form=form, **exact)
    h0 = torch.tensor([[bessel(t0)]], dtype=F64)
    dh0 = torch.tensor([[slope(t0)]], dtype=F64) if t0 else None
    t = torch.linspace(t0, 4.0, 7, dtype=F64)
    model = pjo.NeuralODE(dynamics, t, pjo.Solver("dopri5", 1e-9, 1e-9))
    h = model(h0, dh0=dh0).flatten()
    wanted = torch.tensor([bessel(float(x)) for x in t], dtype=F64)
    assert float((h - wanted).abs().max()) < 1e-7  # 100 tol


@pytest.mark.parametrize("model", ["hbnode", "ghbnode"])
def test_linear_heavy_ball_is_a_matrix_exponential(model):
    a, gamma, xi = linear_matrix()[:2, :2], 0.3, 0.7
    field = torch.nn.Linear(2, 2, bias=False).to(F64)
    field.weight.data = a
    if model == "hbnode":
        dynamics, shift = pjo.HBNODE(field, gamma=gamma), torch.zeros(2, 2, dtype=F64)
    else:
        dynamics = pjo.GHBNODE(field, gamma=gamma, xi=xi, activation="identity")
        shift = xi * torch.eye(2, dtype=F64)
    zero, eye = torch.zeros(2, 2, dtype=F64), torch.eye(2, dtype=F64)
    system = torch.cat([torch.cat([zero, eye], 1), torch.cat([a - shift, -gamma * eye], 1)])
    h0, m0 = torch.randn(1, 2, dtype=F64), torch.randn(1, 2, dtype=F64)
    exact = torch.linalg.matrix_exp(2.0 * system) @ torch.cat([h0[0], m0[0]])
    net = pjo.NeuralODE(dynamics.to(F64), (0.0, 2.0), pjo.Solver("tsit5", 1e-10, 1e-10))
    assert float((net(h0, dh0=m0)[0] - exact[:2]).abs().max().detach()) < 1e-8  # 100 tol


def test_complex_states_are_solved():
    y0 = torch.tensor([1.0 + 0.5j, 0.2j], dtype=torch.complex128)
    rate = torch.tensor([1j, -0.5 + 2j], dtype=torch.complex128)
    t = torch.tensor([0.0, 0.7, 1.5], dtype=F64)
    y = pjo.odeint(lambda t, y: rate * y, y0, t)
    exact = y0 * torch.exp(rate * t[:, None])
    assert float((y - exact).abs().max()) < 1e-6


def test_discontinuity_declared_by_jump_t_costs_fewer_evaluations():
    def f(t, y):
        return torch.where(t < 0.5, y, -3 * y)

    y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    exact = math.exp(0.5 - 1.5)
    plain = pjo.solve(f, y0, t, pjo.Solver("dopri5", 1e-9, 1e-9))
    jump = pjo.solve(f, y0, t, pjo.Solver("dopri5", 1e-9, 1e-9, options={"jump_t": [0.5]}))
    assert abs(float(jump.y[-1]) - exact) < 1e-8
    assert jump.stats.nfe_forward < plain.stats.nfe_forward


def test_scipy_solver_handles_a_stiff_problem():
    """Van der Pol, mu = 100, against SciPy called directly: the same solver, so equal."""

    def f(t, y):
        return torch.stack([y[1], 100 * (1 - y[0] ** 2) * y[1] - y[0]])

    y0, t = torch.tensor([2.0, 0.0], dtype=F64), torch.tensor([0.0, 50.0], dtype=F64)
    options = {"solver": "Radau"}
    y = pjo.odeint(f, y0, t, rtol=1e-6, atol=1e-6, method="scipy_solver", options=options)
    ref = solve_ivp(
        lambda t, y: [y[1], 100 * (1 - y[0] ** 2) * y[1] - y[0]],
        (0, 50),
        [2.0, 0.0],
        "Radau",
        rtol=1e-6,
        atol=1e-6,
    )
    assert abs(y[-1].numpy() - ref.y[:, -1]).max() < 1e-10


def test_dense_output_has_the_accuracy_of_the_steps():
    t = torch.linspace(0, 2, 41, dtype=F64)
    exact = torch.exp(torch.sin(t))
    for method in ("dopri5", "tsit5", "dopri8", "rk4"):
        options = {"step_size": 0.02} if method == "rk4" else None
        dense = pjo.odeint_dense(
            lambda t, y: y * torch.cos(t),
            torch.ones(1, dtype=F64),
            0.0,
            2.0,
            rtol=1e-8,
            atol=1e-8,
            method=method,
            options=options,
        )
        assert float((dense(t)[:, 0] - exact).abs().max()) < 1e-6  # 100 tol
        assert float((dense(0.3) - math.exp(math.sin(0.3))).abs()) < 1e-6


@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "dopri8", "midpoint"])
def test_every_solution_can_be_asked_for_times_between(method, adjoint):
    """Without any option: by a fresh step, so of the method's order; 100 tol, 1e-4 for midpoint."""
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    solver = pjo.Solver(method, 1e-7, 1e-7, adjoint=adjoint, dt=0.01)
    sol = pjo.solve(lambda t, y: y * torch.cos(t), y0, [0.0, 2.0], solver)
    t = torch.linspace(0, 2, 17, dtype=F64)
    found = sol(t)
    assert found.shape == (17, 2)
    assert not found.requires_grad
    bound = 1e-4 if method == "midpoint" else 1e-5
    assert float((found[:, 0] - torch.exp(torch.sin(t))).abs().max()) < bound


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "rk4"])
@pytest.mark.parametrize("dense", ["steps", True])
def test_dense_output_is_on_the_right_side_of_a_discontinuity(method, dense):
    f = lambda t, y: torch.where(t <= 0.5, 1.0, -1.0).to(y) * torch.ones_like(y)  # noqa: E731
    options = {"jump_t": [0.5], "dense": dense}
    solver = pjo.Solver(method, 1e-8, 1e-8, dt=0.1, options=options)
    sol = pjo.solve(f, torch.zeros(1, dtype=F64), [0.0, 1.0], solver)
    for t, wanted in ((0.3, 0.3), (0.5, 0.5), (0.7, 0.3), (1.0, 0.0)):
        assert abs(float(sol(t)) - wanted) < 1e-8, t


def test_nothing_is_evaluated_outside_the_span():
    times = []

    def f(t, y):
        times.append(float(t))
        return 1e-3 * torch.ones_like(y)

    pjo.solve(f, torch.full((2,), 1000.0), [0.0, 1.0])
    assert min(times) >= 0.0
    assert max(times) <= 1.0


def test_solutions_and_errors_are_pickled():
    sol = pjo.solve(_decay, torch.ones(1, dtype=F64), [0.0, 1.0])
    copy = pickle.loads(pickle.dumps(sol))
    assert torch.equal(copy.y, sol.y)
    assert float(copy(0.5)) == float(sol(0.5))
    error = pickle.loads(pickle.dumps(pjo.SolverError("why", pjo.Retcode.UNSTABLE)))
    assert error.retcode is pjo.Retcode.UNSTABLE


def _decay(t, y):
    return -y
