"""The Julia backend's forward solves, against closed forms, SciPy and the torch backend."""

from __future__ import annotations

import math
import pickle
import threading

import numpy as np
import pytest
import scipy.integrate
import torch
from problems import F64, Field, linear_matrix, models, relative_error
from torch import nn

import pyjuliaode as pjo

pytestmark = [pytest.mark.julia, pytest.mark.timeout(900)]  # a method is compiled at first use


def julia(method: str = "dopri5", tol: float = 1e-8, **kwargs) -> pjo.Solver:
    """Callbacks; test_native.py has the rest."""
    options = kwargs.pop("options", {})
    return pjo.Solver(method, tol, tol, backend="julia", native="never", options=options, **kwargs)


class Fixed(nn.Module):
    """y' = -y, without parameters."""

    def forward(self, t, y):
        return -y


class Linear(nn.Module):
    """y' = A y."""

    def __init__(self):
        super().__init__()
        self.register_buffer("a", linear_matrix())

    def forward(self, t, y):
        return y @ self.a.to(y.dtype).T


def exact(y0, t):
    return torch.stack([y0 @ torch.linalg.matrix_exp(linear_matrix() * float(x)).T for x in t])


METHODS = {
    # name: (tolerance, bound on the error); at 1e-8 methods of low order take too many steps
    "dopri5": (1e-8, 1e-6),
    "tsit5": (1e-8, 1e-6),
    "bosh3": (1e-6, 1e-3),
    "dopri8": (1e-8, 1e-6),
    "Vern7": (1e-8, 1e-6),
    "BS5": (1e-8, 1e-6),
    "Rosenbrock23": (1e-5, 1e-2),
    "Rodas5P": (1e-8, 1e-6),
    "FBDF": (1e-7, 1e-3),
    "TRBDF2": (1e-5, 1e-2),
    "KenCarp4": (1e-7, 1e-4),
    "RadauIIA5": (1e-7, 1e-4),
    "ROCK2": (1e-5, 1e-2),
    "VCABM": (1e-8, 1e-4),
    "AutoTsit5(Rosenbrock23)": (1e-8, 1e-6),
    "DefaultODEAlgorithm": (1e-8, 1e-5),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_by_name_meet_the_matrix_exponential(method):
    """Bounds are a hundred tolerances and more: local errors add up over the steps."""
    tol, bound = METHODS[method]
    y0 = torch.tensor([[1.0, 0.0, -1.0, 0.5]], dtype=F64)
    t = torch.linspace(0, 2, 5, dtype=F64)
    with torch.no_grad():
        sol = pjo.solve(Linear(), y0, t, julia(method, tol))
    assert sol.retcode is pjo.Retcode.SUCCESS
    assert sol.stats.backend == "julia"
    assert sol.stats.nfe_forward > 0
    assert relative_error([sol.y], [exact(y0, t)]) < bound
    # dense output keeps the accuracy
    at = torch.tensor([0.3, 1.234], dtype=F64)
    assert relative_error([sol(at)], [exact(y0, at)]) < 30 * bound


FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "rk4": 4, "SSPRK33": 3}


@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_have_the_method_s_order(method):
    """Halving the step divides the error by 2^order, to a quarter of an order."""
    y0 = torch.tensor([[1.0, 0.0, -1.0, 0.5]], dtype=F64)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    errors = []
    for n in (40, 80):
        with torch.no_grad():
            y = pjo.solve(Linear(), y0, t, julia(method, options={"step_size": 1 / n})).y
        errors.append(relative_error([y], [exact(y0, t)]))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(FIXED[method], abs=0.25)


def test_a_fixed_step_without_a_size_is_one_step_between_two_times():
    y0 = torch.tensor([[1.0, 0.0, -1.0, 0.5]], dtype=F64)
    t = torch.tensor([0.0, 0.1, 0.3], dtype=F64)
    with torch.no_grad():
        ours = pjo.odeint(Linear(), y0, t, method="euler", backend="julia")
        theirs = pjo.odeint(Linear(), y0, t, method="euler", backend="torch")
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (4,), (3, 4), (2, 3, 4)])
def test_shapes_and_dtypes(shape, dtype):
    """To the tolerance, and to float32's resolution of some 1e-7 times the number of steps."""
    torch.manual_seed(0)
    y0 = torch.randn(shape, dtype=dtype)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=dtype)

    def func(t, y):
        assert y.dtype == dtype
        assert t.dtype == dtype
        assert y.shape == shape
        return -y * torch.cos(t)

    with torch.no_grad():
        y = pjo.solve(func, y0, t, julia(tol=1e-6)).y
    wanted = y0 * torch.exp(-torch.sin(t)).reshape(-1, *[1] * y0.ndim)
    assert y.dtype == dtype
    assert y.shape == (3, *shape)
    assert torch.allclose(y, wanted, rtol=1e-5, atol=1e-5)


def test_decreasing_times_and_tuple_states():
    y0 = (torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([[0.5]], dtype=F64))
    t = torch.tensor([2.0, 1.5, 0.0], dtype=F64)
    with torch.no_grad():
        a, b = pjo.odeint(lambda t, y: (-y[0], t * y[1]), y0, t, backend="julia")
    assert torch.allclose(a, y0[0] * torch.exp(2 - t)[:, None], rtol=1e-6)
    assert torch.allclose(b[:, 0, 0], 0.5 * torch.exp((t**2 - 4) / 2), rtol=1e-6)


def test_one_time_and_repeated_times():
    y0 = torch.ones(2, dtype=F64)
    one = pjo.odeint(lambda t, y: -y, y0, torch.tensor([1.0]), backend="julia")
    assert torch.equal(one, y0[None])
    t = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0, 1.0], dtype=F64)
    y = pjo.odeint(lambda t, y: -y, y0, t, backend="julia")
    assert torch.allclose(y, torch.exp(-t)[:, None].expand(6, 2), rtol=1e-6)


START = {"Unix seconds": 1.7e9, "seconds of a day": 86_400.0}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("start", START.values(), ids=START)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", ["RK4", "ABM43", "Tsit5", "VCABM", "Rodas5P", "FBDF"])
def test_steps_near_a_late_time_are_all_taken(method, dtype, start, backwards):
    """Solvers take a stop within 100 roundings of the time as reached: were that the user's time, a
    second from here would be one step in float32. y' = -y, at every row and between them; to the
    tolerance of 1e-5 times some tens of steps."""
    sign = -1.0 if backwards else 1.0
    s = torch.linspace(0, 1, 5, dtype=F64)
    options = {"step_size": 2.0**-6} if method in ("RK4", "ABM43") else {}
    with torch.no_grad():
        y0, t = torch.ones(1, dtype=dtype), start + sign * s
        sol = pjo.solve(lambda t, y: -sign * y, y0, t, julia(method, 1e-5, options=options))
    assert sol.retcode is pjo.Retcode.SUCCESS
    assert torch.allclose(sol.y[:, 0].to(F64), torch.exp(-s), atol=1e-3)
    assert float(sol(start + sign * 0.3)[0]) == pytest.approx(math.exp(-0.3), abs=1e-3)
    if options:
        assert sol.stats.n_accepted == 64


@pytest.mark.parametrize("method", ["RK4", "Tsit5"])
def test_steps_below_the_field_s_rounding_of_late_times(method):
    """y' = cos(t - start) in float64 from a Unix time on, whose numbers are 2.4e-7 apart, by steps
    of 2^-18 or the method's own: what the field is told is right to that."""
    start, span = 1.7e9, 2.0**-5
    options = {"step_size": 2.0**-18} if method == "RK4" else {}
    t = torch.tensor([start, start + span], dtype=F64)
    with torch.no_grad():
        solver = julia(method, 1e-9, options=options, max_steps=10**5)
        sol = pjo.solve(
            lambda t, y: torch.cos(t - start) * torch.ones_like(y),
            torch.zeros(1, dtype=F64),
            t,
            solver,
        )
    assert float(sol.y[-1, 0]) == pytest.approx(math.sin(span), abs=1e-9)
    assert sol.step_t[:: len(sol.step_t) - 1] == t.tolist() if sol.step_t else True
    with torch.no_grad(), pytest.raises(pjo.InvalidArgumentError, match="resolution of time"):
        pjo.solve(
            lambda t, y: -y, torch.ones(1, dtype=F64), t, julia("RK4", options={"step_size": 1e-8})
        )


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_field_and_events_are_told_the_user_s_time(dtype):
    start, seen = 86_400.0, []

    def func(t, y):
        seen.append((float(t), t.dtype))
        return torch.ones_like(y)

    y0, t = torch.zeros(2, dtype=dtype), [start, start + 8.0]
    with torch.no_grad():
        sol = pjo.solve(func, y0, t, julia("Tsit5", 1e-5), event_fn=lambda t, y: t - (start + 3.0))
    assert {d for _, d in seen} == {dtype}
    assert all(start <= x <= start + 8.0 for x, _ in seen)
    # a float32 time is told to the next 2^-7, and with it the event's
    assert float(sol.event_t) == pytest.approx(
        start + 3.0, abs=2.0**-30 if dtype is F64 else 2.0**-7
    )
    bound = 1e-9 if dtype is F64 else 2.0**-7
    assert float(sol.y[-1, 0]) == pytest.approx(float(sol.event_t) - start, abs=bound)


def test_times_are_told_apart_by_what_has_passed_since_the_first():
    """As float32 numbers they are one, and are solved for all the same; as differences from a first
    time that is far away they cannot be."""
    t = torch.tensor([0.0, 1.0, 1.0 + 1e-10], dtype=F64)
    with torch.no_grad():
        y = pjo.odeint(lambda t, y: -y, torch.ones(2), t, backend="julia")
        assert torch.allclose(y[:, 0].to(F64), torch.exp(-t), rtol=1e-6)
        far = torch.tensor([-1e9, 1e-20, 2e-20], dtype=F64)
        with pytest.raises(pjo.InvalidArgumentError, match=r"t\[1\] and t\[2\]"):
            pjo.odeint(lambda t, y: -y, torch.ones(2), far, backend="julia")


@pytest.mark.parametrize("name", models())
def test_every_model_agrees_with_the_torch_backend(name):
    """Two fifth-order solutions at 1e-9: they differ by some ten tolerances at most."""
    dynamics = models()[name]
    h0 = torch.randn(3, 2, dtype=F64)
    t = torch.tensor([1.0, 1.4, 2.0], dtype=F64)
    with torch.no_grad():
        state = dynamics.initial_state(h0, t0=1.0)
        ours = pjo.solve(dynamics, state, t, julia(tol=1e-9)).y
        theirs = pjo.solve(dynamics, state, t, pjo.Solver("dopri5", 1e-9, 1e-9)).y
    assert relative_error([ours], [theirs]) < 1e-7


class Robertson(nn.Module):
    """Robertson's kinetics with its three rates as parameters; stiffness 1e11."""

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.tensor([0.04, 3e7, 1e4], dtype=F64))

    def forward(self, t, y):
        k1, k2, k3 = self.k
        a, b, c = y.unbind(-1)
        slow, fast, back = k1 * a, k2 * b * b, k3 * b * c
        return torch.stack((back - slow, slow - fast - back, fast), -1)


class VanDerPol(nn.Module):
    def __init__(self, mu: float):
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu, dtype=F64))

    def forward(self, t, y):
        x, v = y.unbind(-1)
        return torch.stack((v, self.mu * ((1 - x * x) * v - x)), -1)


def scipy_radau(func, y0, t):
    def f(s, y):
        with torch.no_grad():
            return func(torch.tensor(s, dtype=F64), torch.from_numpy(y)).numpy()

    found = scipy.integrate.solve_ivp(
        f, (t[0], t[-1]), y0.numpy(), "Radau", t_eval=t, rtol=1e-10, atol=1e-13
    )
    assert found.success
    return torch.from_numpy(np.ascontiguousarray(found.y.T))


@pytest.mark.parametrize("method", ["Rodas5P", "FBDF", "RadauIIA5", "KenCarp4"])
def test_robertson_agrees_with_scipy_s_radau(method):
    """At 1e-8 relative; FBDF is of variable order up to 5 and loses three digits here."""
    y0, t = torch.tensor([1.0, 0.0, 0.0], dtype=F64), [0.0, 1.0, 40.0, 1e3]
    func = Robertson()
    with torch.no_grad():
        solver = pjo.Solver(method, 1e-8, 1e-12, backend="julia")
        sol = pjo.solve(func, y0, t, solver)
    assert relative_error(list(sol.y[1:].T), list(scipy_radau(func, y0, t)[1:].T)) < 3e-5
    assert sol.stats.n_jacobians > 0


def test_stiff_van_der_pol_agrees_with_scipy_s_radau():
    """mu = 1e3 on [0, 1.5], before the jump, where the solution is smooth: to 1e-6."""
    y0, t = torch.tensor([2.0, 0.0], dtype=F64), [0.0, 0.1, 0.8]
    func = VanDerPol(1e3)
    with torch.no_grad():
        ours = pjo.solve(func, y0, t, pjo.Solver("Rodas5P", 1e-9, 1e-9, backend="julia")).y
    assert relative_error([ours], [scipy_radau(func, y0, t)]) < 1e-6


@pytest.mark.parametrize("name", ["nesterovnode", "gnesterovnode"])
@pytest.mark.parametrize("method", ["Rodas5P", "FBDF"])
def test_mass_matrix_form_is_the_eliminated_form(name, method):
    """Same trajectories: to a thousand tolerances of the implicit method."""
    dynamics = models()[name]
    h0 = torch.randn(2, 2, dtype=F64)
    t = torch.tensor([1.0, 1.5, 2.0], dtype=F64)
    tol = 1e-9 if method == "Rodas5P" else 1e-8
    with torch.no_grad():
        state = dynamics.initial_state(h0, t0=1.0)
        eliminated = pjo.solve(dynamics, state, t, pjo.Solver("dopri5", 1e-11, 1e-11)).y
        solver = julia(method, tol, options={"form": "mass_matrix"})
        sol = pjo.solve(dynamics, state, t, solver)
    assert sol.y.shape == eliminated.shape
    assert relative_error([sol.y], [eliminated]) < 1e3 * tol
    assert relative_error([sol(1.5)], [eliminated[1]]) < 1e4 * tol
    model = pjo.NeuralODE(dynamics.as_dae(), t=(1.0, 2.0), solver=julia(method, tol))
    with torch.no_grad():
        h = dynamics.readout(2.0, eliminated[-1])
        assert relative_error([model(h0)], [h]) < 1e3 * tol


def test_a_semi_explicit_system_of_the_user_s_own():
    """y' = -z, 0 = z - y^2: y = 1 / (1 + t)."""
    dae = pjo.SemiExplicitDAE(
        lambda t, y: torch.stack((-y[1], y[1] - y[0] ** 2)), torch.tensor([1.0, 0.0])
    )
    t = torch.tensor([0.0, 1.0, 3.0], dtype=F64)
    with torch.no_grad():
        y = pjo.solve(dae, torch.ones(2, dtype=F64), t, julia("Rodas5P", 1e-9)).y
    assert torch.allclose(y[:, 0], 1 / (1 + t), rtol=1e-7)
    assert torch.allclose(y[:, 1], 1 / (1 + t) ** 2, rtol=1e-6)
    off = torch.tensor([1.0, 3.0], dtype=F64)
    with pytest.raises(pjo.InvalidArgumentError, match="algebraic equations"):
        pjo.solve(dae, off, t, julia("Rodas5P", 1e-9))
    with torch.no_grad():
        options = {"initialization": "brown"}
        found = pjo.solve(dae, off, t, julia("Rodas5P", 1e-9, options=options)).y
    assert torch.allclose(found[1:], y[1:], rtol=1e-6)


def test_mass_matrices_need_julia_and_an_implicit_method():
    dae = pjo.SemiExplicitDAE(lambda t, y: -y, torch.tensor([1.0, 0.0]))
    with pytest.raises(pjo.UnsupportedError, match="Rodas5P"):
        pjo.solve(dae, torch.ones(2), [0.0, 1.0], julia("tsit5"))
    with pytest.raises(pjo.UnsupportedError, match="julia"):
        pjo.solve(dae, torch.ones(2), [0.0, 1.0], pjo.Solver(backend="torch"))


@pytest.mark.parametrize("method", ["FineRKN4", "FineRKN5"])
def test_nystrom_methods_solve_the_heavy_ball_model(method):
    """Against dopri5 at 1e-11; FineRKN5 has order 5 with the damping, FineRKN4 order 4."""
    dynamics = models()["hbnode"]
    state = dynamics.initial_state(torch.randn(3, 2, dtype=F64))
    t = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    with torch.no_grad():
        ours = pjo.solve(dynamics, state, t, julia(method, 1e-9))
        wanted = pjo.solve(dynamics, state, t, pjo.Solver("dopri5", 1e-11, 1e-11)).y
    assert relative_error([ours.y], [wanted]) < 1e-6
    with pytest.raises(pjo.UnsupportedError, match="h'' = f"):
        pjo.solve(models()["ghbnode"], state, t, julia(method))


def test_nystrom_methods_refuse_what_only_says_that_its_position_comes_first():
    class Other(pjo.HBNODE):
        def forward(self, t, state):
            rates = super().forward(t, state)
            return torch.stack((torch.tanh(state[1]), rates[1]))

    class Later(pjo.HBNODE):
        def forward(self, t, state):
            rates = super().forward(t, state)
            return torch.stack((state[1] + torch.relu(t - 0.5), rates[1]))

    hooked = models()["sonode"]
    hooked.register_forward_hook(lambda module, args, out: 2 * out)
    y0 = torch.ones(2, 3, 2, dtype=F64)
    for model in (Other(Field()).to(F64), Later(Field()).to(F64), hooked):
        for native in ("auto", "never"):
            solver = pjo.Solver("FineRKN5", backend="julia", native=native)
            with torch.no_grad(), pytest.raises(pjo.UnsupportedError, match="Nyström"):
                pjo.solve(model, y0, [0.0, 1.0], solver)
    always = pjo.Solver("FineRKN5", backend="julia", native="always")
    with torch.no_grad(), pytest.raises(pjo.UnsupportedError, match="Nyström"):
        pjo.solve(Later(Field()).to(F64), y0, [0.0, 1.0], always)


def test_discontinuities_and_stops_are_met():
    """|cos| has kinks; a step that crosses one without knowing loses its order."""

    def func(t, y):
        return torch.where(t < 0.5, 1.0, -2.0).to(y) * torch.ones_like(y)

    t = torch.tensor([0.0, 1.0], dtype=F64)
    for jumps in ([0.5], [-1.0, 0.5], [0.5, 7.0]):  # also those that another part of a solve meets
        with torch.no_grad():
            solver = julia("Tsit5", options={"jump_t": jumps})
            sol = pjo.solve(func, torch.zeros(1, dtype=F64), t, solver)
        assert float(sol.y[-1]) == pytest.approx(-0.5, abs=1e-7)
        assert sol.stats.n_rejected == 0


@pytest.mark.parametrize("late", [torch.ge, torch.gt])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_a_jump_is_met_whichever_side_it_belongs_to(late, ends):
    """Few steps: a step that sees the other side's slope at the jump is rejected many times."""

    def func(t, y):
        return torch.where(late(t, 0.5), torch.cos(3 * t) * y, 4 - y)

    y0, t = torch.ones(2, dtype=F64), torch.tensor(ends, dtype=F64)
    with torch.no_grad():
        told = pjo.solve(func, y0, t, julia(tol=1e-8, options={"jump_t": torch.tensor([0.5])}))
        tight = pjo.Solver("dopri5", 1e-12, 1e-12, options={"jump_t": torch.tensor([0.5])})
        wanted = pjo.solve(func, y0, t, tight).y
    assert relative_error([told.y], [wanted]) < 1e-7
    assert told.stats.n_rejected <= 2


@pytest.mark.parametrize("method", ["Euler", "AB3", "SSPRK33", "CarpenterKennedy2N54"])
def test_methods_without_an_error_estimate_take_dt_as_their_step(method):
    y0 = torch.tensor([1.0, 0.5, -0.2, 0.1], dtype=F64)
    with torch.no_grad():
        sol = pjo.solve(Linear(), y0, [0.0, 1.0], julia(method, dt=0.01))
    assert sol.stats.n_accepted == 100
    # Euler: (0.01 / 2) |A^2 y| of order one
    assert relative_error([sol.y[-1:]], [exact(y0, [1.0])]) < (0.1 if method == "Euler" else 1e-3)


@pytest.mark.parametrize("method", ["Feagin12", "TanYam7", "RDPK3SpFSAL49"])
def test_rows_are_as_good_as_steps_where_the_interpolant_is_not(method):
    y0, t = torch.tensor([1.0, 0.5, -0.2, 0.1], dtype=F64), [0.0, 0.31, 0.777, 1.0]
    with torch.no_grad():
        sol = pjo.solve(Linear(), y0, t, julia(method, 1e-9))
    assert relative_error([sol.y], [exact(y0, t)]) < 1e-7


@pytest.mark.slow
def test_every_method_of_the_table_solves_a_field_that_depends_on_time():
    """Tolerance 1e-6 and a row inside a step; second-order methods reach 1e-3 with it."""
    from pyjuliaode.backends.julia.methods import table

    field, t = Field(), [0.0, 0.777, 2.0]
    y0 = torch.tensor([[1.0, -0.5], [0.3, 0.8]], dtype=F64)
    with torch.no_grad():
        wanted = pjo.solve(field, y0, t, pjo.Solver("dopri5", 1e-11, 1e-11)).y
        for name, method in table().items():
            if method.kind == "nystrom":
                continue
            dt = 1e-3 if method.fixed else None
            low = name in ("Euler", "ImplicitEuler", "QNDF1", "QBDF1", "ABDF2", "TRBDF2")
            sol = pjo.solve(field, y0, t, julia(name, 1e-6, dt=dt, max_steps=100_000))
            assert relative_error([sol.y], [wanted]) < (1e-2 if low else 1e-3), name


def test_float32_dense_output_reaches_the_end():
    with torch.no_grad():
        sol = pjo.solve(lambda t, y: -y, torch.ones(2), [0.0, 0.7], julia("tsit5", 1e-5))
    assert float(sol(0.7)[0]) == pytest.approx(math.exp(-0.7), rel=1e-4)


def test_dense_output_is_there_where_it_was_asked_for_and_only_there():
    y0 = torch.tensor([1.0, 0.5, -0.2, 0.1], dtype=F64, requires_grad=True)
    for adjoint in ("gauss", "backsolve", "direct"):
        sol = pjo.solve(Linear(), y0, [0.0, 3.0], julia("tsit5", 1e-9, adjoint=adjoint))
        assert relative_error([sol(1.3)[None]], [exact(y0.detach(), [1.3])]) < 1e-6
        options = {"dense": False}
        sol = pjo.solve(Linear(), y0, [0.0, 3.0], julia(adjoint=adjoint, options=options))
        with pytest.raises(pjo.UnsupportedError, match="dense"):
            sol(1.3)
    kept = pjo.solve(Linear(), y0.detach(), [0.0, 3.0], julia("tsit5", 1e-9))
    copied = pickle.loads(pickle.dumps(kept))
    assert torch.equal(copied.y, kept.y)
    assert copied.dense is None


def test_a_default_device_does_not_reach_the_bridge():
    y0, t = torch.tensor([1.0, 0.5, -0.2, 0.1], dtype=F64), torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    func, solver = Linear(), julia("tsit5", adjoint="direct")
    wanted = pjo.solve(func, y0, t, solver).y
    torch.set_default_device("meta")
    try:
        sol = pjo.solve(func, y0.requires_grad_(), t, solver)
        assert torch.equal(sol.y, wanted)
        assert sol(0.3).isfinite().all()
        sol.y.sum().backward()
    finally:
        torch.set_default_device(None)
    assert y0.grad.isfinite().all()


def test_events_of_a_dae():
    """y' = -z, 0 = z - y^2: y = 1 / (1 + t) is 1/2 at t = 1."""

    class Own(nn.Module):
        def forward(self, t, y):
            return torch.stack((-y[1], y[1] - y[0] ** 2))

    dae = pjo.SemiExplicitDAE(Own(), torch.tensor([1.0, 0.0]))
    y0 = torch.ones(2, dtype=F64)
    with torch.no_grad():
        for tol in (1e-8, 1e-10):
            solver = julia("Rodas5P", tol)
            sol = pjo.solve(dae, y0, [0.0, 5.0], solver, event_fn=lambda t, y: y[0] - 0.5)
            assert float(sol.event_t) == pytest.approx(1.0, rel=1e-6)
    with pytest.raises(pjo.UnsupportedError, match="no_grad"):
        pjo.solve(
            dae,
            y0.clone().requires_grad_(),
            [0.0, 5.0],
            solver,
            event_fn=lambda t, y: y[0] - 0.5,
        )


def test_what_events_cannot_have_is_said():
    y0, t = torch.ones(1, dtype=F64), [0.0, 2.0]
    two = {"event_fn": lambda t, y: torch.stack((y[0] - 2, y[0] - 3))}
    with torch.no_grad(), pytest.raises(pjo.UnsupportedError, match="2 values"):
        pjo.solve(lambda t, y: y, y0, t, julia(), **two)
    with torch.no_grad(), pytest.raises(pjo.InvalidArgumentError, match="step_size"):
        pjo.odeint_event(
            *(lambda t, y: y, y0, 0.0),
            event_fn=lambda t, y: y[0] - 2,
            method="rk4",
            backend="julia",
        )


def test_auto_is_torch_where_julia_cannot_be_called(monkeypatch):
    """In a thread that does not own it."""
    monkeypatch.delenv("PYJULIAODE_BACKEND")
    y0, t, found = torch.ones(2, dtype=F64), [0.0, 1.0], []

    def work():
        with torch.no_grad():
            found.append(pjo.solve(lambda t, y: -y, y0, t, pjo.Solver(backend="auto")))

    with torch.no_grad():
        pjo.solve(lambda t, y: -y, y0, t, julia())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].stats.backend == "torch"


def test_a_least_step_is_taken_whatever_its_error():
    """As in torchdiffeq: min_step bounds the steps, it does not end the solve."""
    y0, t = torch.ones(2, dtype=F64), [0.0, 1.0]
    with torch.no_grad():
        sol = pjo.solve(lambda t, y: -50 * y, y0, t, julia(tol=1e-12, options={"min_step": 0.05}))
    assert sol.retcode is pjo.Retcode.SUCCESS
    assert sol.stats.n_accepted <= 21


@pytest.mark.parametrize("method", ["dopri5", "Rodas5P"])
def test_failures_say_how_far_the_solve_came(method):
    """y' = y^2 blows up at t = 1."""
    y0, t = torch.ones(1, dtype=F64), [0.0, 0.5, 2.0]
    with torch.no_grad(), pytest.raises(pjo.SolverError, match="stopped at t = ") as caught:
        pjo.solve(lambda t, y: y**2, y0, t, julia(method, 1e-8))
    partial = caught.value.solution
    assert partial.y.shape[0] == 2
    assert float(partial.y[1, 0]) == pytest.approx(2.0, rel=1e-4)
    with torch.no_grad():
        sol = pjo.solve(
            lambda t, y: -y, y0, [0.0, 50.0], julia(method, 1e-8, max_steps=3), throw=False
        )
    assert sol.retcode is pjo.Retcode.MAX_ITERS
    assert sol.y.shape[0] == 1


def test_an_exception_of_the_field_comes_out_as_itself():
    class Boom(RuntimeError):
        pass

    calls = 0

    def func(t, y):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Boom("here")
        return -y

    for method in ("dopri5", "Rodas5P"):
        calls = 0
        with torch.no_grad(), pytest.raises(Boom, match="here") as caught:
            pjo.solve(func, torch.ones(2, dtype=F64), [0.0, 1.0], julia(method))
        assert "func" in [frame.name for frame in caught.traceback]
    with torch.no_grad():  # and the backend goes on
        assert pjo.solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], julia()).retcode.successful


@pytest.mark.parametrize("method", ["Tsit5", "Rodas5P"])
def test_a_stop_iteration_of_the_field_comes_out_as_itself(method):
    samples = iter([0.1] * 4)
    with torch.no_grad(), pytest.raises(StopIteration):
        pjo.solve(
            lambda t, y: -y * next(samples), torch.ones(2, dtype=F64), [0.0, 1.0], julia(method)
        )


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("method", ["Tsit5", "Rodas5P"])
def test_a_field_that_changes_its_state_in_place_is_told_so(method, grad):
    def func(t, y):
        z = -y
        y.zero_()
        return z

    y0 = torch.ones(2, dtype=F64, requires_grad=grad)
    with torch.set_grad_enabled(grad), pytest.raises(pjo.InvalidArgumentError, match="in place"):
        pjo.solve(func, y0, [0.0, 1.0], julia(method))


def test_a_solve_inside_a_solve():
    inner = julia(tol=1e-6, options={"dense": False})

    def func(t, y):
        return -pjo.solve(lambda s, x: -0.0 * x, y, [0.0, 1.0], inner).y[-1]

    with torch.no_grad():
        y = pjo.solve(func, torch.ones(2, dtype=F64), [0.0, 1.0], julia()).y[-1]
    assert torch.allclose(y, torch.full_like(y, math.exp(-1)), rtol=1e-6)


def test_a_first_solve_in_inference_mode_and_one_after_it():
    field, y0 = Field(), torch.randn(5, 2, dtype=F64)  # a size of its own: a new workspace
    with torch.inference_mode():
        inside = pjo.solve(field, y0, [0.0, 1.0], julia()).y
    with torch.no_grad():
        after = pjo.solve(field, y0, [0.0, 1.0], julia()).y
    assert torch.equal(inside, after)
    with torch.inference_mode():
        stiff = pjo.solve(field, y0, [0.0, 1.0], julia("Rodas5P", 1e-6))
    with torch.no_grad():  # a Jacobian of zeros would cost steps
        again = pjo.solve(field, y0, [0.0, 1.0], julia("Rodas5P", 1e-6))
    assert stiff.stats.n_accepted == again.stats.n_accepted
    assert torch.equal(stiff.y, again.y)


def test_events():
    """A ball from a height of 10 m: on the ground after sqrt(20 / 9.81) s."""

    class Ball(nn.Module):
        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(torch.tensor(9.81, dtype=F64))

        def forward(self, t, y):
            return torch.stack((y[1], -self.g))

    ball, y0 = Ball(), torch.tensor([10.0, 0.0], dtype=F64)
    for method in ("dopri5", "torch"):
        backend = "torch" if method == "torch" else "julia"
        t, y = pjo.odeint_event(
            ball, y0, torch.tensor(0.0), event_fn=lambda t, y: y[0], backend=backend
        )
        assert t.item() == pytest.approx(math.sqrt(20 / 9.81), rel=1e-6)
        assert abs(y[-1, 0].item()) < 1e-6
        (slope,) = torch.autograd.grad(t, ball.g)
        assert float(slope) == pytest.approx(-0.5 * math.sqrt(20) * 9.81**-1.5, rel=1e-5)


EVENTS = {
    "plain": lambda t, y: y[0] - 0.01,
    "bool": lambda t, y: y[0] > 0.01,
    "flat after it": lambda t, y: torch.relu(y[0] - 0.01),
    "in time": lambda t, y: t - math.log(100),
    "one is zero throughout": lambda t, y: torch.stack([0 * y[0], y[0] - 0.01]),
    "one is NaN": lambda t, y: torch.stack([math.nan * y[0], y[0] - 0.01]),
    "one opens later": lambda t, y: torch.stack([y[0] - 0.01, torch.relu(0.3 - y[1])]),
}


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("method", ["Tsit5", "Rodas5P", "FBDF"])
def test_events_that_are_zero_on_one_side(method, name):
    """exp(-t) falls below 0.01 at ln 100, however that is written; as the torch backend has it, to
    a hundred tolerances of the dense output."""
    with torch.no_grad():
        sol = pjo.solve(
            lambda t, y: -y,
            torch.ones(2, dtype=F64),
            [0.0, 8.0],
            julia(method, 1e-9),
            event_fn=EVENTS[name],
        )
    assert sol.retcode is pjo.Retcode.TERMINATED
    assert float(sol.event_t) == pytest.approx(math.log(100), abs=1e-6)


def test_a_ball_that_goes_on_from_where_it_bounced():
    """Restarted from the state that was found, with its velocity turned round: g = 9.8, h = 5."""
    t, s, times = torch.tensor(0.0, dtype=F64), torch.tensor([5.0, 0.0], dtype=F64), []
    for _ in range(4):
        t, states = pjo.odeint_event(
            lambda t, s: torch.stack([s[1], torch.full_like(s[1], -9.8)]),
            *(s, t),
            event_fn=lambda t, s: s[0],
            backend="julia",
        )
        times.append(float(t))
        s = torch.stack([states[-1][0], -0.9 * states[-1][1]])
    fall = math.sqrt(10 / 9.8)
    wanted = [fall + 2 * fall * sum(0.9**k for k in range(1, n + 1)) for n in range(4)]
    assert times == pytest.approx(wanted, abs=1e-6)


def test_an_event_says_which_element_crossed():
    """Not which is nearest to zero, the first: the time moves with y1 alone."""
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    sol = pjo.solve(
        *(Fixed(), y0, [0.0, 5.0], julia("Tsit5", 1e-9)),
        event_fn=lambda t, y: torch.stack([1e-12 * (y[0] - 2), y[1] - 0.5]),
    )
    (g,) = torch.autograd.grad(sol.event_t, y0)
    assert sol.event_t.item() == pytest.approx(math.log(2), abs=1e-7)
    assert g.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


def test_auto_is_julia_where_it_can_and_torch_where_it_cannot(monkeypatch):
    monkeypatch.delenv("PYJULIAODE_BACKEND")
    y0, t = torch.ones(2, dtype=F64), [0.0, 1.0]
    with torch.no_grad():
        assert pjo.solve(lambda t, y: -y, y0, t).stats.backend == "julia"
        complex_state = torch.ones(2, dtype=torch.complex128)
        assert pjo.solve(lambda t, y: 1j * y, complex_state, t).stats.backend == "torch"
        solver = pjo.Solver(options={"per_sample": True})
        assert pjo.solve(lambda t, y: -y, y0[:, None], t, solver).stats.backend == "torch"
    weight = torch.ones(2, dtype=F64, requires_grad=True)
    sol = pjo.solve(lambda t, y: -weight * y, y0, t)
    assert sol.stats.backend == "torch"  # a closure's tensors are known to the graph alone
    assert sol.y.requires_grad
    with pytest.raises(pjo.InvalidArgumentError, match="params"):
        pjo.solve(lambda t, y: -weight * y, y0, t, julia())


def test_the_trajectory_of_tsit5_is_that_of_the_torch_backend_at_equal_steps():
    field = Field()
    y0, t = torch.randn(3, 2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    with torch.no_grad():
        for method, name in (("tsit5", "Tsit5"), ("dopri5", "DP5")):
            ours = pjo.solve(field, y0, t, julia(name, options={"step_size": 0.1})).y
            times = torch.linspace(0, 1, 11, dtype=F64)
            options = {"first_step": 0.1, "max_step": 0.1}
            loose = pjo.Solver(method, 1.0, 1.0, options=options)
            theirs = pjo.solve(field, y0, times, loose).y[[0, -1]]
            assert torch.allclose(ours, theirs, rtol=1e-12)
