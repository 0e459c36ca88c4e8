"""Method "pan": against closed forms, SciPy, a Taylor series in long arithmetic, and gradcheck."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import F64, Field, gradients, models, relative_error
from scipy.integrate import solve_ivp
from torch import nn

import pyjuliaode as pjo
from pyjuliaode.backends.torch.pan.basis import basis, chebyshev
from pyjuliaode.backends.torch.pan.krylov import gmres
from pyjuliaode.experiments import pan_scaling, run


def pan(tol=1e-8, adjoint="auto", **options):
    return pjo.Solver("pan", tol, tol, adjoint=adjoint, backend="torch", options=options)


# ------------------------------------------------------------------------------------------ basis


@pytest.mark.parametrize(("n", "m"), [(6, 5), (12, 15), (50, 300)])
def test_the_maps_are_exact_for_polynomials(n, m):
    """y = the integral of p, p of degree n - 2 given at the nodes: to rounding."""
    b = basis(n, m, F64, torch.device("cpu"))
    torch.manual_seed(0)
    coefficients = torch.randn(n - 1, dtype=F64)
    p = chebyshev(b.x, n - 1) @ coefficients
    d = b.fit @ (p - p[0])
    torch.testing.assert_close(d, coefficients[1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(p[0] + b.slope @ d, p, rtol=0, atol=1e-12)
    wanted = np.polynomial.chebyshev.Chebyshev(coefficients.numpy()).integ(lbnd=-1)
    rise = p[0] * (b.x + 1) + b.rise @ d
    torch.testing.assert_close(rise, torch.from_numpy(wanted(b.x.numpy())), rtol=0, atol=1e-12)
    torch.testing.assert_close(b.integrals @ p, rise, rtol=0, atol=1e-12)
    x = torch.linspace(-1, 1, 7, dtype=F64)
    torch.testing.assert_close(
        b.integrals_at(x) @ p, torch.from_numpy(wanted(x.numpy())), rtol=0, atol=1e-12
    )
    assert float(b.weights @ p) == pytest.approx(wanted(1.0), abs=1e-12)


def test_gmres_solves_what_a_dense_solver_does():
    torch.manual_seed(0)
    a = torch.eye(12, dtype=F64) + 0.2 * torch.randn(12, 12, dtype=F64)
    b = torch.randn(12, dtype=F64)
    found = gmres(lambda x: a @ x, b, 1e-13, 12)
    torch.testing.assert_close(found, torch.linalg.solve(a, b), rtol=1e-11, atol=0)
    assert not gmres(lambda x: a @ x, torch.zeros_like(b), 1e-13, 12).any()


# ---------------------------------------------------------------------------------- what it claims


class Spiral(nn.Module):
    """y' = tanh(P y), of the paper's experiments (with the sign of its code)."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([[-0.4, 1.0], [-1.0, -0.4]], dtype=F64))

    def forward(self, t, y):
        return torch.tanh(y @ self.p.T)


def lorenz(t, y):
    a, b, c = y.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


# by Taylor series of order 40 in arithmetic of 40 digits
LORENZ_AT_15 = torch.tensor([-10.441890423247967, 1.0346389813180587, 39.32883655398128], dtype=F64)


def reference(func, y0, span):
    def field(t, y):
        with torch.no_grad():
            out = func(torch.tensor(t, dtype=F64), torch.from_numpy(y).view(y0.shape))
        return out.reshape(-1).numpy()

    sol = solve_ivp(field, span, y0.reshape(-1).numpy(), method="DOP853", rtol=2.3e-14, atol=1e-16)
    return torch.from_numpy(sol.y[:, -1]).view(y0.shape)


# tighter tolerances than the coefficients can meet, as in the paper
@pytest.mark.filterwarnings("ignore:the interval of length")
@pytest.mark.parametrize(("n", "error"), [(50, 2e-10), (100, 5e-15)])
def test_the_spiral_with_a_fixed_number_of_coefficients(n, error):
    """The paper's table: 1.9e-10 with 50, 2.3e-15 with 100, in 42 and 60 batched evaluations."""
    y0 = torch.tensor([2.0, 1.0], dtype=F64)
    with torch.no_grad():
        sol = pjo.solve(Spiral(), y0, [0.0, 10.0], pan(1e-12, num_coeffs=n, step_size=10.0))
    assert float((sol.y[-1] - reference(Spiral(), y0, (0, 10))).norm()) < error
    assert sol.stats.sequential_forward <= 45


# tighter tolerances than the coefficients can meet, as in the paper
@pytest.mark.filterwarnings("ignore:the interval of length")
def test_the_lorenz_system_to_15():
    """It multiplies rounding errors by 1e5 and more: errors of 3e-12 to 4e-10 were seen as the
    last digits of y0 and the processor were changed (SciPy's DOP853 at 2.3e-14: 2.4e-10).
    """
    y0, errors = torch.tensor([2.0, 1.0, 1.0], dtype=F64), []
    for n, m in ((50, 64), (50, 100), (64, 80)):
        fixed = {"num_coeffs": n, "num_points": m, "step_size": 0.3}
        sol = pjo.solve(lorenz, y0, [0.0, 15.0], pan(1e-13, **fixed))
        errors.append(float((sol.y[-1] - LORENZ_AT_15).norm()))
        assert sol.stats.sequential_forward <= 1400
        assert sol.stats.n_accepted in range(50, 56)
    assert max(errors) < 5e-9
    free = pjo.solve(lorenz, y0, [0.0, 15.0], pan(1e-11))
    assert float((free.y[-1] - LORENZ_AT_15).norm()) < 1e-7
    assert free.stats.sequential_forward < 1400


def kepler(eccentricity):
    def func(t, y):
        r3 = y[:2].norm() ** 3
        return torch.cat([y[2:], -y[:2] / r3])

    e = eccentricity
    return func, [1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))]


def rotation(t, y):
    r = y[:2].norm()
    return torch.stack([-y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r])


# Of Hull, Enright, Fellen & Sedgwick 1972 (DETEST), each to t = 20.
DETEST = {
    "A1": (lambda t, y: -y, [1.0]),
    "A2": (lambda t, y: -(y**3) / 2, [1.0]),
    "A3": (lambda t, y: y * torch.cos(t), [1.0]),
    "A4": (lambda t, y: y / 4 * (1 - y / 20), [1.0]),
    "A5": (lambda t, y: (y - t) / (y + t), [4.0]),
    "B1": (lambda t, y: torch.stack([2 * y[0] * (1 - y[1]), y[1] * (y[0] - 1)]), [1.0, 3.0]),
    "B3": (lambda t, y: torch.stack([-y[0], y[0] - y[1] ** 2, y[1] ** 2]), [1.0, 0.0, 0.0]),
    "B4": (rotation, [3.0, 0.0, 0.0]),
    "B5": (
        lambda t, y: torch.stack([y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]]),
        [0.0, 1.0, 1.0],
    ),
    "D1": kepler(0.1),
    "D3": kepler(0.5),
    "D5": kepler(0.9),
    "E2": (lambda t, y: torch.stack([y[1], (1 - y[0] ** 2) * y[1] - y[0]]), [2.0, 0.0]),
    "E3": (
        lambda t, y: torch.stack([y[1], y[0] ** 3 / 6 - y[0] + 2 * torch.sin(2.78535 * t)]),
        [0.0, 0.0],
    ),
    "E4": (lambda t, y: torch.stack([y[1], 0.032 - 0.4 * y[1] ** 2]), [30.0, 0.0]),
}


@pytest.mark.parametrize("name", DETEST)
def test_tolerances_are_obeyed_within_a_factor_of_ten(name):
    func, y0 = DETEST[name]
    y0 = torch.tensor(y0, dtype=F64)
    wanted = reference(func, y0, (0, 20))
    for tol in (1e-4, 1e-7, 1e-10):
        sol = pjo.solve(func, y0, [0.0, 20.0], pan(tol))
        assert float(((sol.y[-1] - wanted) / (tol + tol * wanted.abs())).abs().max()) < 10


@pytest.mark.parametrize("name", models())
def test_all_dynamics_obey_their_tolerance_and_have_right_gradients(name):
    dynamics = models()[name]
    h0 = torch.randn(4, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([1.0, 1.7, 3.0], dtype=F64)
    inputs = [h0, *dynamics.parameters()]
    tight = pjo.Solver("dopri8", 1e-13, 1e-13, backend="torch")
    exact = pjo.solve(dynamics, dynamics.initial_state(h0, t0=1.0), t, tight).y
    wanted = gradients(exact, inputs)
    for tol in (1e-5, 1e-9):
        for adjoint in ("auto", "gauss"):
            sol = pjo.solve(dynamics, dynamics.initial_state(h0, t0=1.0), t, pan(tol, adjoint))
            off = (sol.y - exact).abs() / (tol + tol * exact.abs())
            assert float(off.detach().max()) < 10
            assert relative_error(gradients(sol.y, inputs), wanted) < 10 * tol


def test_second_order_systems_are_collocated_on_their_second_derivative(monkeypatch):
    """The same solution in fewer calls than as a first-order system."""
    dynamics = models()["hbnode"]
    y0 = dynamics.initial_state(torch.randn(20, 2, dtype=F64)).detach()
    tight = pjo.Solver("dopri8", 1e-13, 1e-13, backend="torch")
    with torch.no_grad():
        twice = pjo.solve(dynamics, y0, [0.0, 2.0], pan(1e-8))
        exact = pjo.solve(dynamics, y0, [0.0, 2.0], tight).y[-1]
        monkeypatch.setattr(type(dynamics), "position_first", False)
        once = pjo.solve(dynamics, y0, [0.0, 2.0], pan(1e-8))
    assert float((twice.y[-1] - exact).abs().max()) < 1e-7
    assert float((once.y[-1] - exact).abs().max()) < 1e-7
    assert twice.stats.sequential_forward < once.stats.sequential_forward


# ---------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
def test_gradcheck_of_state_times_and_parameters(adjoint):
    field = Field()
    y0 = torch.randn(2, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.4, 0.5, 1.3], dtype=F64, requires_grad=True)
    weights = [p.detach().clone().requires_grad_() for p in field.parameters()]
    names = [name for name, _ in field.named_parameters()]

    def solve(y0, t, *weights):
        with torch.no_grad():
            for p, w in zip(field.parameters(), weights, strict=True):
                p.copy_(w)
        return pjo.solve(field, y0, t, pan(1e-12, adjoint)).y

    def plain(y0, t):
        return pjo.solve(field, y0, t, pan(1e-12, adjoint)).y

    assert torch.autograd.gradcheck(plain, (y0, t), atol=1e-6)
    y = plain(y0, t)
    found = torch.autograd.grad(y.square().sum(), list(field.parameters()))
    for name, w, g in zip(names, weights, found, strict=True):
        direction, h = torch.randn_like(w), 1e-5
        values = []
        for sign in (1, -1):
            moved = [x + sign * h * direction if x is w else x for x in weights]
            values.append(float(solve(y0, t, *moved).detach().square().sum()))
        slope = (values[0] - values[1]) / (2 * h)
        assert float((g * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-8), name


@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
def test_float32_tuples_and_decreasing_times(adjoint):
    net = nn.Linear(3, 3)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, y):
            a, b = y
            out = torch.tanh(self.net(torch.cat([a, b], -1))) * torch.cos(t)
            return out[..., :2], out[..., 2:]

    y0 = (torch.randn(5, 2, requires_grad=True), torch.randn(5, 1, requires_grad=True))
    found = []
    for solver in (pan(1e-5, adjoint), pjo.Solver("dopri5", 1e-7, 1e-7, backend="torch")):
        a, b = pjo.solve(Pair(), y0, [1.0, 0.6, -0.5], solver).y
        grads = torch.autograd.grad(a.square().sum() + b.sum(), [*y0, *net.parameters()])
        found.append([a, b, *grads])
    assert relative_error(*found) < 1e-4  # single precision sums


def test_large_states_take_krylov_s_method_and_gradients_follow():
    """70 numbers a state: no Jacobian is formed. Fast rotations, over many of their periods."""
    turn = torch.linspace(1.0, 30.0, 35, dtype=F64)

    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(turn.clone())

        def forward(self, t, y):
            return torch.stack([-self.rate * y[1], self.rate * y[0]])

    func = Turning()
    y0 = torch.stack([torch.ones(35), torch.zeros(35)]).to(F64)
    y = pjo.solve(func, y0, [0.0, 2.0], pan(1e-9)).y[-1]
    torch.testing.assert_close(y[0].detach(), torch.cos(2 * turn), rtol=0, atol=1e-7)
    (grad,) = torch.autograd.grad(y[0].sum(), func.rate)
    torch.testing.assert_close(grad, -2 * torch.sin(2 * turn), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------- counts, dense, events


def test_calls_are_counted_one_after_another_and_all_together():
    field, calls = Field(), 0

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = field

        def forward(self, t, y):
            nonlocal calls
            calls += 1
            return self.field(t, y)

    y0 = torch.randn(3, 2, dtype=F64)
    with torch.no_grad():
        sol = pjo.solve(Counted(), y0, [0.0, 2.0], pan(1e-9))
    assert sol.stats.sequential_forward == calls
    assert sol.stats.nfe_forward > 10 * calls
    before, calls = calls, 0
    with torch.no_grad():
        chunks = pjo.solve(Counted(), y0, [0.0, 2.0], pan(1e-9, chunk_size=7))
    assert chunks.stats.sequential_forward == calls > 2 * before
    assert chunks.stats.nfe_forward == sol.stats.nfe_forward
    torch.testing.assert_close(chunks.y, sol.y, rtol=1e-11, atol=1e-11)  # rounding of other sums
    with torch.no_grad():
        other = pjo.solve(Counted(), y0, [0.0, 2.0], pjo.Solver("dopri5", backend="torch"))
    assert other.stats.sequential_forward == other.stats.nfe_forward


def test_a_field_that_cannot_be_batched_is_called_for_one_time_after_another():
    def branching(t, y):
        return -y if float(t) < 10 else y

    y0 = torch.ones(2, dtype=F64)
    sol = pjo.solve(branching, y0, [0.0, 1.0], pan(1e-9))
    torch.testing.assert_close(sol.y[-1], y0 * math.exp(-1), rtol=1e-8, atol=0)
    assert sol.stats.sequential_forward == sol.stats.nfe_forward


def test_dense_output_is_the_polynomial():
    y0, t = torch.tensor([2.0, 1.0], dtype=F64), torch.linspace(0, 10, 23).to(F64)
    tight = pjo.Solver("dopri8", 1e-13, 1e-13, backend="torch")
    with torch.no_grad():
        sol = pjo.solve(Spiral(), y0, [0.0, 10.0], pan(1e-9))
        assert float((sol(t) - pjo.solve(Spiral(), y0, t, tight).y).abs().max()) < 1e-8


def test_events():
    """Free fall from 10: it lands at sqrt(20 / 9.81)."""

    def fall(t, y):
        return torch.stack([y[1], torch.full_like(y[1], -9.81)])

    y0 = torch.tensor([10.0, 0.0], dtype=F64)
    t, _ = pjo.odeint_event(
        fall, y0, torch.zeros((), dtype=F64), event_fn=lambda t, y: y[0], method="pan"
    )
    assert float(t) == pytest.approx(math.sqrt(20 / 9.81), rel=1e-9)


# -------------------------------------------------------------------------------------- experiments


def rows_of(name, folder):
    found = run(name, out=folder, tol=1e-6, progress=False)
    figure = (folder / f"{name}.png").read_bytes()
    assert figure.startswith(b"\x89PNG")
    assert len(figure) > 20_000
    return found, {(row["solver"], round(-math.log10(row["tol"]))): row for row in found["rows"]}


def test_the_spiral_s_table_is_the_paper_s(tmp_path):
    """Evaluations and errors of SciPy's solvers, to all digits that are printed."""
    found, rows = rows_of("pan-spiral", tmp_path)
    wanted = reference(Spiral(), torch.tensor([2.0, 1.0], dtype=F64), (0, 10))
    assert found["reference"] == pytest.approx(wanted.tolist(), abs=1e-13)
    paper = {"RK45": (212, 4.14e-07), "Radau": (599, 6.97e-08), "BDF": (250, 4.56e-06)}
    for name, (evaluations, error) in paper.items():
        row = rows[f"SciPy {name}", 6]
        assert row["total"] == row["sequential"] == evaluations
        assert row["error"] == pytest.approx(error, rel=5e-3)
    for name in ("pan", "pan N = 50", "pan N = 100"):
        assert rows[name, 6]["error"] < 1e-6
        assert rows[name, 6]["sequential"] < 60 < rows[name, 6]["total"]


@pytest.mark.slow
def test_lorenz_s_table(tmp_path):
    found, rows = rows_of("pan-lorenz", tmp_path)
    # here beta is 8/3 as float64 has it, there the fraction
    assert found["reference"] == pytest.approx(LORENZ_AT_15.tolist(), abs=1e-11)
    assert rows["SciPy RK45", 6]["total"] == 5174
    assert rows["SciPy RK45", 6]["error"] == pytest.approx(5.75e-2, rel=5e-3)
    assert rows["pan", 6]["sequential"] < 1400
    assert rows["pan", 6]["error"] < rows["dopri5", 6]["error"]


def test_moons_are_learned_through_it(tmp_path):
    small = {"points": 640, "batch_size": 64, "lr": 0.02}
    found = run("pan-moons", out=tmp_path, epochs=4, settings=small, backend="auto", progress=False)
    final = found["final"]
    assert final["test_accuracy"] > 0.75  # chance: 0.5
    assert final["sequential_forward"] < final["nfe_forward"] / 5
    assert found["config"]["method"] == "pan"


def test_scaling_compares_at_equal_error(tmp_path, monkeypatch):
    monkeypatch.setattr(pan_scaling, "BATCHES", (1, 3))
    monkeypatch.setattr(pan_scaling, "WIDTHS", (8,))
    rows = run("pan-scaling", out=tmp_path, progress=False)["rows"]
    assert [row["method"] for row in rows] == ["dopri5", "dopri8", "pan"] * 2
    assert all(row["error"] <= 1e-9 for row in rows)
    of = {(row["method"], row["batch"]): row for row in rows}
    assert of["pan", 3]["sequential"] < of["dopri8", 3]["sequential"]
    assert of["pan", 3]["total"] > of["dopri5", 3]["total"]
    assert (tmp_path / "pan-scaling.png").stat().st_size > 20_000


# ----------------------------------------------------------------------------------- hard and wrong


def test_a_stiff_relaxation_and_a_stiff_oscillator():
    """Newton's steps on the collocation equations, which are those of an implicit method."""
    y0 = torch.zeros(1, dtype=F64)
    sol = pjo.solve(lambda t, y: -1e4 * (y - torch.cos(t)), y0, [0.0, 2.0], pan(1e-7))
    # cos t + sin t / 1e4 + O(1e-8)
    assert float(sol.y[-1]) == pytest.approx(math.cos(2) + math.sin(2) / 1e4, abs=1e-6)
    assert sol.stats.sequential_forward < 1000  # an explicit method needs 6000 for stability


@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
def test_gradients_of_a_stiff_relaxation(adjoint):
    """y' = -a (y - cos t): y = (a^2 cos t + a sin t) / (a^2 + 1) + c e^(-a t)."""

    class Relaxation(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(2000.0, dtype=F64))

        def forward(self, t, y):
            return -self.a * (y - torch.cos(t))

    f, y0 = Relaxation(), torch.tensor([1.5, 0.5], dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1e-3, 1.0], dtype=F64)
    sol = pjo.solve(f, y0, t, pan(1e-9, adjoint=adjoint))
    s = t[1:, None]
    forced = (f.a**2 * torch.cos(s) + f.a * torch.sin(s)) / (f.a**2 + 1)
    expected = forced + (y0 - f.a**2 / (f.a**2 + 1)) * torch.exp(-f.a * s)
    torch.testing.assert_close(sol.y[1:], expected, rtol=1e-8, atol=0)  # ten times the tolerance
    found = torch.autograd.grad(sol.y[1:].sum(), (y0, f.a))
    wanted = torch.autograd.grad(expected.sum(), (y0, f.a))
    # of the size of 1e-4 is the second: 1e-9 of the state, times the time scale 1 / a
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-8)
    torch.testing.assert_close(found[1], wanted[1], rtol=0, atol=1e-10)
    assert sol.stats.sequential_backward < 500  # the explicit iteration alone takes thousands


class Switched(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.3, dtype=F64))

    def forward(self, t, y):
        return torch.where(t < 0.5, self.a * y, -2 * self.a * y * y)


@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
def test_intervals_end_on_discontinuities(adjoint):
    """y = y0 e^(a t), then y' = -2 a y^2: y = 1 / (e^(-a/2) / y0 + 2 a (t - 1/2))."""
    f, t = Switched(), torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=F64)
    y0 = torch.tensor([0.7, 1.0], dtype=F64, requires_grad=True)
    jump = {"jump_t": [0.5], "step_t": [0.8]}
    sol = pjo.solve(f, y0, t, pan(1e-11, adjoint=adjoint, **jump))
    expected = 1 / (torch.exp(-f.a / 2) / y0 + f.a)
    torch.testing.assert_close(sol.y[-1], expected, rtol=1e-10, atol=0)
    found = torch.autograd.grad(sol.y[-1].sum(), (y0, f.a))
    wanted = torch.autograd.grad(expected.sum(), (y0, f.a))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=0)  # ten times the tolerance and more
    assert {0.5, 0.8} <= set(sol.step_t)
    plain = pjo.solve(f, y0.detach(), t, pan(1e-11))
    assert plain.stats.sequential_forward > 5 * sol.stats.sequential_forward
    back = pjo.solve(f, sol.y[-1].detach(), t.flip(0), pan(1e-11, jump_t=[0.5]))
    torch.testing.assert_close(back.y[-1], y0.detach(), rtol=1e-9, atol=0)


def test_what_has_no_solution_is_an_error():
    y0 = torch.ones(1, dtype=F64)
    with pytest.raises(pjo.SolverError, match=r"ConvergenceFailure.* at t = (1\b|0\.999)"):
        pjo.solve(lambda t, y: y * y, y0, [0.0, 0.5, 2.0], pan(1e-6))
    sol = pjo.solve(lambda t, y: y * y, y0, [0.0, 0.5, 2.0], pan(1e-6), throw=False)
    assert float(sol.y[-1]) == pytest.approx(2.0, rel=1e-5)  # what was reached
    with pytest.raises(pjo.SolverError, match="not finite"):
        pjo.solve(lambda t, y: y / 0.0, y0, [0.0, 1.0], pan(1e-6))
    few = pjo.Solver("pan", 1e-9, 1e-9, max_steps=3, backend="torch")
    with pytest.raises(pjo.SolverError, match="MaxIters"):
        pjo.solve(lorenz, torch.ones(3, dtype=F64), [0.0, 15.0], few)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_coeffs": 3}, "num_coeffs must be an integer of at least 6, got 3"),
        ({"num_coeffs": 8.5}, "num_coeffs"),
        ({"num_points": 20}, "goes with num_coeffs"),
        ({"num_coeffs": 20, "num_points": 10}, "at least num_coeffs - 1, 19, got 10"),
        ({"step_size": -1.0}, "step_size must be positive"),
        ({"max_iters": 0}, "max_iters"),
        ({"chunk_size": 0}, "chunk_size must be an integer of at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_named(options, said):
    y0 = torch.ones(1, dtype=F64)
    with pytest.raises(pjo.InvalidArgumentError, match=said):
        pjo.solve(lambda t, y: -y, y0, [0.0, 1.0], pan(1e-6, **options))


def test_what_it_cannot_do_is_refused():
    y0, t = torch.ones(2, dtype=F64), [0.0, 1.0]
    with pytest.raises(pjo.UnsupportedError, match="real states"):
        pjo.solve(lambda t, y: -y, y0.to(torch.complex128), t, pan())
    for adjoint in ("backsolve", "interpolating"):
        with pytest.raises(pjo.UnsupportedError, match="'direct' and 'gauss'"):
            pjo.solve(Field(), y0.requires_grad_(), t, pan(adjoint=adjoint))
    weight = torch.ones(2, dtype=F64, requires_grad=True)
    with pytest.raises(pjo.InvalidArgumentError, match=r"nn\.Module"):
        pjo.solve(lambda t, y: weight * y, y0, t, pan())
    y = pjo.solve(lambda t, y: weight * y, y0, t, pan(), params=[weight]).y
    torch.testing.assert_close(
        torch.autograd.grad(y[-1].sum(), weight)[0], torch.full((2,), math.e, dtype=F64)
    )
