"""Dense output of dopri8 and of SciPy's solvers, and the gradients that rest on it."""

from __future__ import annotations

import math
import warnings
from functools import cache

import pytest
import torch
from problems import F64, Field, gradients, relative_error
from torch import nn

import pyjuliaode as pjo
from pyjuliaode.backends.torch.plan import Plan
from pyjuliaode.backends.torch.tableaus import DOPRI8
from pyjuliaode.problem import Problem
from pyjuliaode.rhs import RHS
from pyjuliaode.solution import SolveStats

SCIPY = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
METHODS = ("dopri8", *SCIPY)


def solver(name: str, tol: float, **keywords) -> pjo.Solver:
    options = keywords.pop("options", {})
    if name in SCIPY:
        name, options = "scipy_solver", {"solver": name, **options}
    return pjo.Solver(name, tol, tol, backend="torch", options=options, **keywords)


def riccati(t, y):
    """y' = y² cos t; y = 1 / (2 - sin t) from 1/2 at 0."""
    return y**2 * torch.cos(t)


def riccati_solution(t):
    return 1 / (2 - torch.sin(t))


HALF = torch.full((1,), 0.5, dtype=F64)


# --- the extension of dopri8


@cache
def trees(n: int) -> tuple:
    """Rooted trees of n nodes: each is the sorted tuple of the trees at its root."""
    if n == 1:
        return ((),)
    grown = {
        tuple(sorted((*rest, t))) for k in range(1, n) for t in trees(k) for rest in trees(n - k)
    }
    return tuple(sorted(grown))


def nodes(tree) -> int:
    return 1 + sum(map(nodes, tree))


def density(tree) -> int:
    return nodes(tree) * math.prod(map(density, tree))


def elementary_weights(tree, a: torch.Tensor) -> torch.Tensor:
    """Of every stage: the product over the subtrees of what its row makes of them."""
    weights = torch.ones(len(a), dtype=F64)
    for branch in tree:
        weights = weights * (a @ elementary_weights(branch, a))
    return weights


def all_rows() -> torch.Tensor:
    rows = [(), *DOPRI8.a, DOPRI8.b, *(row for _, row in DOPRI8.extra)]
    return torch.tensor([[*row, *[0.0] * (len(rows) - len(row))] for row in rows], dtype=F64)


def test_the_extension_of_dopri8_meets_the_order_conditions_of_all_trees_to_order_7():
    """Σ_i p_ij Φ_i = 1/γ for j the tree's order, else 0; coefficients of 700 round to 1e-13."""
    a, dense = all_rows(), torch.tensor(DOPRI8.dense, dtype=F64)
    assert [len(trees(n)) for n in range(1, 8)] == [1, 1, 2, 4, 9, 20, 48]
    for order in range(1, 8):
        for tree in trees(order):
            wanted = torch.zeros(7, dtype=F64)
            wanted[order - 1] = 1 / density(tree)
            assert float((elementary_weights(tree, a) @ dense - wanted).abs().max()) < 1e-11
    abscissae = torch.tensor([*DOPRI8.c, 1.0, *(c for c, _ in DOPRI8.extra)], dtype=F64)
    assert float((a.sum(1) - abscissae).abs().max()) < 1e-14


def test_the_extension_of_dopri8_has_the_states_and_slopes_of_the_ends():
    dense = torch.tensor(DOPRI8.dense, dtype=F64)
    b, first, last = torch.zeros(3, len(dense), dtype=F64)
    b[:13], first[0], last[13] = torch.tensor(DOPRI8.b, dtype=F64), 1.0, 1.0
    assert torch.equal(dense[:, 0], first)
    assert float((dense.sum(1) - b).abs().max()) < 1e-12
    assert float((dense @ torch.arange(1.0, 8.0, dtype=F64) - last).abs().max()) < 1e-12


def equal_steps(n: int, span: float) -> dict:
    h = span / n
    return {"first_step": h, "max_step": h, "min_step": h, "dense": True}


@pytest.mark.parametrize("span", ["steps of a solve", "one step"])
def test_states_between_steps_of_dopri8_converge_at_order_7(span):
    """Largest error over the span; one order more of a single step. Slopes within 0.4 of theirs."""
    errors, one = [], span == "one step"
    for n in (4, 8):
        end = 3.0 / n if one else 3.0
        options = equal_steps(1 if one else n, end)
        sol = pjo.solve(riccati, HALF, [0.0, end], pjo.Solver("dopri8", 1e3, 1e3, options=options))
        t = torch.linspace(0, end, 97, dtype=F64)
        errors.append(float((sol(t)[:, 0] - riccati_solution(t)).abs().max()))
    assert errors[1] > 1e-13  # not yet rounding
    assert math.log2(errors[0] / errors[1]) > (8 if one else 7) - 0.4, errors


def steps_of(func, y0, end, plan):
    problem = Problem.build(func, y0, torch.tensor([0.0, end], dtype=F64), None)
    stream = plan.stream(RHS(problem), problem.y0, SolveStats(), False)
    return stream.steps(problem.y0, 0.0, end)


def test_the_trajectory_of_dopri8_has_a_continuous_derivative():
    """Slopes of order 1 times coefficients of 700 round to 1e-12."""
    plan = Plan.build("dopri8", 1e3, 1e3, options=equal_steps(6, 3.0))
    slopes = []
    for step in steps_of(riccati, HALF, 3.0, plan):
        q = step.polynomial()[0] / step.h
        degrees = torch.arange(1, 8, dtype=F64)
        slopes.append((step.t0, step.y0, q[0]))
        slopes.append((step.t1, step.y1, q @ degrees))
        assert float((step.y0 + step.h * q.sum() - step.y1).abs()) < 1e-12
    assert len(slopes) == 12
    for t, y, slope in slopes:
        assert float((riccati(torch.tensor(t, dtype=F64), y) - slope).abs()) < 1e-11


def test_what_dopri8_s_dense_output_costs():
    """Four evaluations a step where it is wanted; times at step ends, and asking later, none."""
    plain = pjo.solve(riccati, HALF, [0.0, 3.0], solver("dopri8", 1e-7, options={"dense": False}))
    dense = pjo.solve(riccati, HALF, [0.0, 3.0], solver("dopri8", 1e-7, options={"dense": True}))
    n = plain.stats.n_accepted
    assert torch.equal(plain.y, dense.y)
    # the slope at the end of a step is the first of the next; that of the last is one more
    assert dense.stats.nfe_forward == plain.stats.nfe_forward + 4 * n + 1
    ends = torch.tensor(plain.step_t, dtype=F64)
    landed = pjo.solve(riccati, HALF, ends, solver("dopri8", 1e-7, options={"dense": False}))
    assert landed.stats.nfe_forward <= plain.stats.nfe_forward
    calls = []
    watched = pjo.solve(
        lambda t, y: calls.append(t) or riccati(t, y),
        HALF,
        [0.0, 3.0],
        solver("dopri8", 1e-7, options={"dense": True}),
    )
    before = len(calls)
    watched(torch.linspace(0, 3, 50, dtype=F64))
    assert len(calls) == before == watched.stats.nfe_forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
def test_the_extension_in_other_dtypes(dtype):
    """Coefficients of 700 cancel; the states err by some roundings all the same."""
    y0 = torch.ones(2, dtype=dtype)
    f = lambda t, y: y * torch.cos(t)  # noqa: E731
    sol = pjo.solve(f, y0, [0.0, 2.0], solver("dopri8", 1e-5, options={"dense": True}))
    t = torch.linspace(0, 2, 33, dtype=F64)
    found = sol(t)
    assert found.dtype == dtype
    exact = torch.exp(torch.sin(t))[:, None]
    assert float((found - exact).abs().max()) < 5e-6


@pytest.mark.parametrize("decreasing", [False, True])
def test_per_sample_steps_of_dopri8_have_states_and_gradients_between(decreasing):
    """y = y0 exp(k sin t): every sample its own k; dL/dk = Σ y sin t."""
    k = torch.tensor([[0.3], [1.0], [3.0]], dtype=F64, requires_grad=True)
    y0 = torch.ones(3, 1, dtype=F64, requires_grad=True)
    t = torch.linspace(0, 4, 21, dtype=F64)
    t = t.flip(0) if decreasing else t
    own = solver("dopri8", 1e-10, options={"per_sample": True})
    y = pjo.solve(lambda t, y: k * torch.cos(t) * y, y0, t, own).y
    rise = (torch.sin(t) - torch.sin(t[0]))[:, None, None]
    exact = torch.exp(k * rise)
    assert relative_error([y], [exact]) < 1e-7  # 1000 tol
    found = torch.autograd.grad(y.sum(), [y0, k])
    wanted = [exact.sum(0), (exact * rise).sum(0)]
    assert relative_error(found, wanted) < 1e-8  # 100 tol


def test_gradcheck_of_per_sample_steps_of_dopri8():
    y0 = torch.tensor([[0.5], [0.4]], dtype=F64, requires_grad=True)
    own = solver("dopri8", 1e-9, options={"per_sample": True})
    run = lambda y0: pjo.solve(riccati, y0, [0.0, 0.3, 0.7, 1.5], own).y  # noqa: E731
    assert torch.autograd.gradcheck(run, (y0,), eps=1e-5, atol=1e-6)


# --- dense output and events of all of them


@pytest.mark.parametrize("decreasing", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_solution_has_states_between_its_steps(method, decreasing):
    """At 500 tol: LSODA and BDF hold local errors to the tolerance that add up; ends are exact."""
    times = [3.0, 0.0] if decreasing else [0.0, 3.0]
    y0 = riccati_solution(torch.tensor(times[:1], dtype=F64))
    sol = pjo.solve(riccati, y0, times, solver(method, 1e-8))
    t = torch.linspace(0, 3, 31, dtype=F64)
    assert float((sol(t)[:, 0] - riccati_solution(t)).abs().max()) < 5e-6
    assert torch.equal(sol(times[0]), y0)
    assert torch.equal(sol(times[1]), sol.y[-1])
    assert len(sol.step_t) == sol.stats.n_accepted + 1


@pytest.mark.parametrize("method", METHODS)
def test_an_event_between_the_ends_of_steps_is_seen(method):
    """y = sin t is above 0.95 for 0.6 of its period; loose steps pass over it. 1e3 tol."""
    f = lambda t, y: torch.cos(t).expand_as(y)  # noqa: E731
    y0 = torch.zeros(1, dtype=F64)
    s = pjo.solve(f, y0, [0.0, 20.0], solver(method, 1e-5), event_fn=lambda t, y: y - 0.95)
    assert s.retcode is pjo.Retcode.TERMINATED
    assert abs(float(s.event_t) - math.asin(0.95)) < 1e-2
    assert abs(float(s.y[-1]) - 0.95) < 1e-8


@pytest.mark.parametrize("interface", [pjo.odeint, pjo.odeint_adjoint])
@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_of_an_event_time(method, interface):
    """y = y0 e^-t falls to 0.1: dt*/dy0 = 1 / y0; the times err by the tolerance over the slope."""
    y0 = torch.tensor([2.0], dtype=F64, requires_grad=True)
    name = method if method == "dopri8" else "scipy_solver"
    options = None if method == "dopri8" else {"solver": method}
    t, _ = pjo.odeint_event(
        *(Decay(), y0, torch.tensor(0.0, dtype=F64)),
        event_fn=lambda t, y: y - 0.1,
        odeint_interface=interface,
        method=name,
        options=options,
        rtol=1e-8,
        atol=1e-8,
    )
    (found,) = torch.autograd.grad(t, y0)
    assert abs(float(t.detach()) - math.log(20)) < 1e-5
    assert abs(float(found) - 0.5) < 1e-5


class Decay(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, t, y):
        return -self.rate * y


# --- gradients


@pytest.mark.parametrize("adjoint", ["auto", "gauss", "interpolating"])
@pytest.mark.parametrize("decreasing", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_against_a_closed_form(method, decreasing, adjoint):
    """y = y0 exp(-a t), a loss of several states: 1e-5 relative at tolerance 1e-9.

    SciPy's multistep methods err by some thousand tolerances over the span.
    """
    func = Decay()
    y0 = torch.tensor([1.0, -0.5], dtype=F64, requires_grad=True)
    times = [0.0, 0.4, 1.3, 2.0]
    t = torch.tensor(times[::-1] if decreasing else times, dtype=F64, requires_grad=True)
    sol = pjo.solve(func, y0, t, solver(method, 1e-9, adjoint=adjoint))
    exact = y0 * torch.exp(-func.rate * (t - t[0]))[:, None]
    inputs = [y0, t, func.rate]
    assert relative_error(gradients(sol.y, inputs), gradients(exact, inputs)) < 1e-5
    assert sol.stats.nfe_backward > 0 or sol.stats.adjoint == "direct"
    if method in SCIPY:
        assert sol.stats.adjoint == ("gauss" if adjoint == "auto" else adjoint)


@pytest.mark.parametrize("method", METHODS)
def test_odeint_adjoint_is_gauss(method):
    field = Field()
    y0 = torch.randn(2, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=F64)
    inputs = [y0, *field.parameters()]
    wanted = gradients(pjo.solve(field, y0, t, solver("dopri5", 1e-11)).y, inputs)
    options = {"solver": method} if method in SCIPY else None
    name = "scipy_solver" if method in SCIPY else method
    y = pjo.odeint_adjoint(field, y0, t, rtol=1e-9, atol=1e-9, method=name, options=options)
    assert relative_error(gradients(y, inputs), wanted) < 1e-5


@pytest.mark.parametrize("method", ["dopri8", "RK45", "Radau"])
def test_gradcheck_of_gauss(method):
    field = Field()
    y0 = torch.randn(2, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.4, 1.0], dtype=F64, requires_grad=True)
    run = lambda y0, t, *p: pjo.solve(field, y0, t, solver(method, 1e-9, adjoint="gauss")).y  # noqa: E731
    inputs = (y0, t, *field.parameters())
    # differences carry errors up to 1e-9 / 1e-5 where a step changes
    assert torch.autograd.gradcheck(run, inputs, eps=1e-5, atol=1e-4, rtol=1e-3, fast_mode=True)


class VanDerPol(nn.Module):
    def __init__(self, mu: float):
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu, dtype=F64))

    def forward(self, t, y):
        return torch.stack([y[1], self.mu * (1 - y[0] ** 2) * y[1] - y[0]])


# dy1(T)/dmu from y = (2, 0): by SciPy's Radau at 1e-12, central differences, good to 1e-5
VAN_DER_POL = {(5.0, 2.0): 0.06364024, (1000.0, 1.0): 6.6659285e-7}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mu", [5.0, 1000.0])
def test_the_gradient_of_a_stiff_oscillator(mu, method):
    """Solved backward, the state of this one would not come back: to 1e-4."""
    if mu == 1000.0 and method not in ("Radau", "BDF", "LSODA"):
        pytest.skip("an explicit method takes thousands of steps")
    (end,) = (t for m, t in VAN_DER_POL if m == mu)
    func, y0 = VanDerPol(mu), torch.tensor([2.0, 0.0], dtype=F64)
    name = "scipy_solver" if method in SCIPY else method
    options = {"solver": method} if method in SCIPY else None
    t = torch.tensor([0.0, end], dtype=F64)
    y = pjo.odeint_adjoint(func, y0, t, rtol=1e-6, atol=1e-8, method=name, options=options)
    (found,) = torch.autograd.grad(y[-1, 0], func.mu)
    assert abs(float(found) / VAN_DER_POL[mu, end] - 1) < 1e-4


@pytest.mark.parametrize(("forward", "backward"), [("Radau", "dopri5"), ("tsit5", "BDF")])
def test_an_adjoint_by_another_method(forward, backward):
    func, y0 = Decay(), torch.ones(2, dtype=F64, requires_grad=True)
    name = "scipy_solver" if forward in SCIPY else forward
    other = "scipy_solver" if backward in SCIPY else backward
    y = pjo.odeint_adjoint(
        *(func, y0, torch.tensor([0.0, 1.0], dtype=F64)),
        rtol=1e-9,
        atol=1e-9,
        method=name,
        options={"solver": forward} if forward in SCIPY else None,
        adjoint_method=other,
        adjoint_options={"solver": backward} if backward in SCIPY else {},
    )
    found = torch.autograd.grad(y[-1].sum(), [y0, func.rate])
    e = math.exp(-1.0)
    wanted = [torch.full((2,), e, dtype=F64), torch.tensor(-2 * e, dtype=F64)]
    assert relative_error(found, wanted) < 1e-5


def test_adjoint_options_leave_the_solver_of_scipy():
    """RK45 would take thousands of steps for the adjoint of a problem of rates 1 and 10^6."""
    rates = torch.tensor([1.0, 1e6], dtype=F64)
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    y = pjo.odeint_adjoint(
        *(lambda t, y: -rates * y, y0, torch.tensor([0.0, 1.0], dtype=F64)),
        rtol=1e-6,
        atol=1e-9,
        method="scipy_solver",
        options={"solver": "Radau"},
        adjoint_options={"max_step": 0.5},
        adjoint_params=(),
    )
    (found,) = torch.autograd.grad(y[-1].sum(), y0)
    assert abs(float(found[0]) - math.exp(-1)) < 1e-5
    assert abs(float(found[1])) < 1e-5


# --- SciPy's steps


@pytest.mark.parametrize("method", SCIPY)
def test_steps_of_scipy_are_steps_like_others(method):
    plan = Plan.build("scipy_solver", 1e-6, 1e-6, options={"solver": method})
    steps = steps_of(riccati, HALF, 2.0, plan)
    slope = lambda t, y: riccati(torch.tensor(t, dtype=F64), y)  # noqa: E731
    before = None
    for step in steps:
        theta = torch.linspace(0, 1, 5, dtype=F64)
        times = [step.t0 + float(x) * step.h for x in theta]
        states = torch.stack(step.states(times))
        assert torch.allclose(states[2], step.interpolate(times[2]))
        assert torch.allclose(states[-1], step.y1, rtol=1e-12)
        q = step.polynomial()
        powers = theta[:, None] ** torch.arange(1, q.shape[1] + 1, dtype=F64)
        # y0 is missed by BDF and LSODA, by a part of the tolerance
        assert float((step.y0 + powers @ q.t() - states).abs().max()) < 1e-6
        assert float((step.first - slope(step.t0, step.y0)).abs().max()) < 1e-14
        if step.last is not None:
            assert torch.allclose(step.last, slope(step.t1, step.y1))
        assert before is None or (before.t1 == step.t0 and torch.equal(before.y1, step.y0))
        before = step
    assert before.t1 == 2.0


@pytest.mark.parametrize("method", SCIPY)
def test_the_steps_of_scipy_are_bounded_and_told_of(method):
    class Told(Decay):
        accepted = 0

        def callback_accept_step(self, t, y, dt):
            self.accepted += 1

    func, y0 = Told(), torch.ones(2, dtype=F64)
    sol = pjo.solve(func, y0, [0.0, 3.0], solver(method, 1e-6))
    assert func.accepted == sol.stats.n_accepted
    with pytest.raises(pjo.SolverError, match="3 steps were taken") as caught:
        pjo.solve(func, y0, [0.0, 3.0], solver(method, 1e-6, max_steps=3))
    assert caught.value.retcode is pjo.Retcode.MAX_ITERS
    per_interval = {"solver": method, "max_num_steps": sol.stats.n_accepted}
    t = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=F64)
    options = {"method": "scipy_solver", "options": per_interval, "rtol": 1e-6, "atol": 1e-6}
    assert pjo.odeint(func, y0, t, **options).shape == (4, 2)


@pytest.mark.parametrize("method", SCIPY)
def test_what_is_not_finite_ends_a_solve_of_scipy(method):
    """SciPy itself goes on for ever where the field at y0 is NaN; LSODA takes NaN for a success."""
    y0 = torch.ones(1, dtype=F64)
    from_start = lambda t, y: y * math.nan  # noqa: E731
    later = lambda t, y: torch.where(t > 0.5, math.nan, -1.0).to(y) * y  # noqa: E731
    for func, state in ((from_start, y0), (later, y0), (Decay(), y0 * math.nan)):
        with pytest.raises(pjo.SolverError) as caught, torch.no_grad():
            pjo.solve(func, state, [0.0, 2.0], solver(method, 1e-6))
        assert caught.value.retcode in (pjo.Retcode.UNSTABLE, pjo.Retcode.DT_LESS_THAN_MIN)


def test_an_error_of_the_field_passes_through_scipy():
    class Mine(Exception):
        pass

    def func(t, y):
        if t > 0.5:
            raise Mine
        return -y

    for method in SCIPY:
        with pytest.raises(Mine):
            pjo.solve(func, torch.ones(1, dtype=F64), [0.0, 1.0], solver(method, 1e-6))


@pytest.mark.parametrize("method", ["Radau", "LSODA"])
def test_complex_states_that_scipy_does_not_take(method):
    y0 = torch.ones(1, dtype=torch.complex128)
    with pytest.raises(pjo.UnsupportedError, match="solves real states"):
        pjo.solve(lambda t, y: 1j * y, y0, [0.0, 1.0], solver(method, 1e-6))


@pytest.mark.parametrize("method", ["dopri8", "RK45", "BDF"])
def test_gradients_of_complex_states(method):
    """y = y0 exp(w t): the derivative of |Re y| sums by hand, through the closed form."""
    rate = nn.Parameter(torch.tensor(-0.3 + 1.2j, dtype=torch.complex128))
    y0 = torch.tensor([1.0 + 0.5j], dtype=torch.complex128, requires_grad=True)
    sol = pjo.solve(
        lambda t, y: rate * y,
        y0,
        [0.0, 0.5, 2.0],
        solver(method, 1e-9, adjoint="gauss"),
        params=[rate],
    )
    t = torch.tensor([0.0, 0.5, 2.0], dtype=F64)[:, None]
    exact = y0 * torch.exp(rate * t)
    found, wanted = (
        torch.autograd.grad((y.real.square() + y.imag).sum(), [y0, rate]) for y in (sol.y, exact)
    )
    assert relative_error(list(found), list(wanted)) < 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_gradients_of_tuple_states(method, dtype):
    """An oscillator x' = v, v' = -x by parts: x(1) = cos 1 x0 + sin 1 v0."""
    x = torch.ones(2, dtype=dtype, requires_grad=True)
    v = torch.zeros(3, dtype=dtype, requires_grad=True)

    def func(t, state):
        x, v = state
        return torch.cat([v[:1], -x[1:] * 0 - v[1:2]]), torch.cat([-x[:1], v[1:] * 0])

    s = solver(method, 1e-5 if dtype is torch.float32 else 1e-8, adjoint="gauss")
    sol = pjo.solve(func, (x, v), [0.0, 1.0], s, params=[])
    assert sol.y[0].dtype == dtype
    found = torch.autograd.grad(sol.y[0][-1].sum(), [x, v])
    wanted = [
        torch.tensor([math.cos(1), 1.0], dtype=dtype),
        torch.tensor([math.sin(1), -1.0, 0.0], dtype=dtype),
    ]
    assert relative_error(found, wanted) < (3e-4 if dtype is torch.float32 else 1e-5)


def test_no_warning_is_given_without_need():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        func, y0 = Decay(), torch.ones(1, dtype=F64, requires_grad=True)
        for method in METHODS:
            pjo.solve(func, y0, [0.0, 1.0], solver(method, 1e-6)).y.sum().backward()
