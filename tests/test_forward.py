"""Forward solves: the times that steps end on, success that is none, and what a solution keeps."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from problems import F64, methods
from torch import Tensor, nn

import pyjuliaode as pjo
from pyjuliaode.backends.torch.fixed import adams_weights, ending_on, largest_rate

ADAPTIVE = ["dopri5", "tsit5", "bosh3", "fehlberg2", "adaptive_heun", "dopri8"]
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
ADAMS = ["explicit_adams", "implicit_adams"]
OWN = ["dopri5 own", "tsit5 own", "bosh3 own"]  # with steps of their own for every sample
METHODS = [*ADAPTIVE, *FIXED, *ADAMS, *OWN, "pan"]
EXACT = ["dopri5", "tsit5", "bosh3", "dopri8", "rk4", *ADAMS, *OWN, "pan"]  # to 1e-5 or better here
SHIFT = "since the start"


def solver(name: str, tol: float = 1e-7, dt: float = 0.05, **options) -> pjo.Solver:
    method, _, own = name.partition(" ")
    if own:
        options["per_sample"] = True
    step = dt if method in (*FIXED, *ADAMS) else None
    return pjo.Solver(method, tol, tol, dt=step, backend="torch", options=options)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


class Decay(nn.Module):
    def __init__(self, rate: float = 1.0, dtype: torch.dtype = F64):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=dtype))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * y


# ----------------------------------------------------------------------------- the times of steps

TIMES = {
    "rounded": [0.0, 0.7],
    "rows": [0.0, 0.35, 0.7, 1.9],
    "backwards": [1.0, 0.9, 0.3],
    "repeated": [0.1, 0.1, 0.6, 0.6, 1.3, 1.3],
    "undivided": [2.0, 2.611],
}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", methods(*EXACT))
def test_every_row_is_reached(method, dtype, times):
    """y' = -y of a batch: y0 exp(t0 - t) in every row, and as the gradient of the last.

    1e-5: a hundred times the tolerance, which is some units in the last place of float32.
    """
    t = torch.tensor(TIMES[times], dtype=F64)
    y0 = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=dtype, requires_grad=True)
    exact = torch.exp(t[0] - t)
    for given in (t, t.to(torch.float32), t.tolist()):
        sol = pjo.solve(decay, y0, given, solver(method))
        assert sol.retcode is pjo.Retcode.SUCCESS
        torch.testing.assert_close(
            sol.y.detach().double(), exact[:, None, None] * y0.detach(), rtol=1e-5, atol=1e-5
        )
        (grad,) = torch.autograd.grad(sol.y[-1].sum(), y0)
        torch.testing.assert_close(grad, exact[-1].expand(2, 2).to(dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", [(1e6, 1e-4), (1e9, 1e-3), (1.7e9, 1.0), (-1e9, 1e-3)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "method", methods("dopri5", "tsit5", "dopri8", "rk4", *ADAMS, "tsit5 own", "pan")
)
@pytest.mark.filterwarnings("ignore::pyjuliaode.AccuracyWarning")
def test_steps_add_up_to_a_span_that_is_short_beside_its_times(method, sign, where):
    """y' = -k y over 1/k: exp(-k (t1 - t0)), whose difference is exact; 1e-7, the tolerance 1e-10.

    The Adams methods take 100 steps of order 4.
    """
    t0, span = where
    t1 = t0 + sign * span
    field = Decay(sign / span)
    y0 = torch.ones(1, 1, dtype=F64)
    y = pjo.solve(field, y0, [t0, t1], solver(method, 1e-10, span / 100)).y[-1].sum()
    y.backward()
    exact = math.exp(-(t1 - t0) * sign / span)
    assert abs(y.item() / exact - 1) < 1e-7
    assert abs(field.rate.grad.item() / (-(t1 - t0) * exact) - 1) < 1e-7


@pytest.mark.parametrize("method", methods(*FIXED, *ADAMS))
def test_a_step_size_below_the_resolution_of_the_times_is_refused(method):
    t = [1e9, 1e9 + 1e-3]
    with pytest.raises(pjo.InvalidArgumentError, match=f"1.2e-07 apart.*{SHIFT}"):
        pjo.solve(decay, torch.ones(1, dtype=F64), t, solver(method, dt=1e-7))


@pytest.mark.parametrize("method", methods("dopri5", "tsit5", "dopri8", "tsit5 own"))
@pytest.mark.filterwarnings("ignore::pyjuliaode.AccuracyWarning")
def test_steps_below_the_resolution_of_the_times_are_refused(method):
    field = lambda t, y: -1e9 * y  # noqa: E731  # at a rate that no step at these times resolves
    sol = pjo.solve(
        field, torch.ones(1, 1, dtype=F64), [1e9, 1e9 + 1e-3], solver(method), throw=False
    )
    assert sol.retcode is pjo.Retcode.DT_LESS_THAN_MIN
    assert "1.2e-07 apart" in sol.message
    assert SHIFT in sol.message


@pytest.mark.parametrize("method", methods("dopri5", "tsit5", "rk4", "tsit5 own", "pan"))
@pytest.mark.parametrize("t0", [1e4, 1e8])
def test_times_that_the_dtype_of_the_state_rounds_are_told_of(method, t0):
    """Once a solve; and the steps themselves are right: a field that does not read t is."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sol = pjo.solve(decay, torch.ones(1, 1), [t0, t0 + 0.5, t0 + 1.0], solver(method, 1e-6))
    assert [w.category for w in said] == [pjo.AccuracyWarning]
    assert "float64" in str(said[0].message)
    assert SHIFT in str(said[0].message)
    exact = torch.tensor([1.0, math.exp(-0.5), math.exp(-1.0)])
    torch.testing.assert_close(sol.y[:, 0, 0], exact, rtol=0, atol=1e-5)  # 10 tol


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_times_of_ordinary_size_are_not(dtype):
    for t in ([0.0, 1.0], [100.0, 101.0], [-5.0, 5.0], [3.0, 0.0]):
        pjo.solve(decay, torch.ones(1, dtype=dtype), t, solver("tsit5"))
    times = torch.tensor([1e5, 1e5 + 1], dtype=F64)
    if dtype == F64:
        pjo.odeint(decay, torch.ones(1, dtype=dtype), times, backend="torch")


@pytest.mark.parametrize("method", methods("dopri5", "tsit5", "rk4", "explicit_adams", "dopri8"))
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.filterwarnings("ignore::pyjuliaode.AccuracyWarning")
def test_events_in_float32_at_large_times(method, sign):
    """y' = -y from 1 to 1/2, or backwards to 2: log 2 away, in digits that float32 has not."""
    rate = torch.tensor(1.0, requires_grad=True)
    sol = pjo.solve(
        lambda t, y: -rate * y,
        torch.ones(1),
        [1e8, 1e8 + 3 * sign],
        solver(method, 1e-6, 0.05),
        event_fn=lambda t, y: y - 0.5**sign,
    )
    assert abs(float(sol.event_t.detach()) - 1e8 - sign * math.log(2)) < 3e-5
    (grad,) = torch.autograd.grad(sol.event_t, rate)
    assert abs(float(grad) + sign * math.log(2)) < 1e-4


@pytest.mark.parametrize("method", methods(*FIXED, *ADAMS))
@pytest.mark.filterwarnings("ignore::pyjuliaode.AccuracyWarning")
def test_states_between_steps_at_large_times_with_gradients_of_the_times(method):
    """The value is the same as without, though float32 has no digits for the place in a step."""
    t = torch.tensor([1e8, 1e8 + 0.27, 1e8 + 1.0], dtype=F64)
    plain = pjo.solve(decay, torch.ones(1), t, solver(method, dt=0.1)).y
    learned = pjo.solve(decay, torch.ones(1), t.clone().requires_grad_(), solver(method, dt=0.1)).y
    # the same sums; rounding of float32
    torch.testing.assert_close(learned.detach(), plain, rtol=0, atol=3e-7)


# ------------------------------------------------------------------------------------------ jumps


def doses(t: Tensor, y: Tensor) -> Tensor:
    """0 before 0.25, 10 from there to 0.6, -4 after."""
    return torch.where(t < 0.25, 0.0, torch.where(t < 0.6, 10.0, -4.0)) * torch.ones_like(y)


def total(t: Tensor) -> Tensor:
    return 10 * (t.clamp(max=0.6) - 0.25).clamp(min=0) - 4 * (t - 0.6).clamp(min=0)


SPANS = {
    "forwards": [0.0, 1.0],
    "backwards": [1.0, 0.0],
    "rows between": [0.0, 0.3, 0.5, 1.0],
    "rows backwards": [1.0, 0.61, 0.59, 0.25, 0.1],
    "a row at a jump": [0.0, 0.25, 0.6, 1.0],
    "from a jump": [0.25, 0.7],
    "to a jump": [0.0, 0.6],
    "between two": [0.6, 0.25],
    "outside": [0.7, 1.0],
}


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", methods(*ADAPTIVE, *FIXED, *ADAMS, "pan"))
def test_a_piecewise_constant_field_is_integrated_exactly(method, dtype, span):
    """By every method that ends its steps on the jumps, and looks at the right side of them."""
    t = torch.tensor(SPANS[span], dtype=F64)
    y0, jumps = total(t[:1]).to(dtype), [0.25, 0.6, 7.0]
    sol = pjo.solve(doses, y0, t, solver(method, 1e-5, 0.1, jump_t=jumps))
    # sums of some tens of steps, in units of the largest state
    bound = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(sol.y[:, 0].double(), total(t), rtol=bound, atol=4 * bound)
    inside = {x for x in jumps if min(SPANS[span]) < x < max(SPANS[span])}
    assert inside <= set(sol.step_t)


@pytest.mark.parametrize("method", methods(*FIXED, *ADAMS))
def test_a_jump_within_rounding_of_a_step_makes_no_step_of_no_length(method):
    """3 x 0.1 is not 0.3: the boundary gives way."""
    sol = pjo.solve(
        decay, torch.ones(1, dtype=F64), [0.0, 1.0], solver(method, dt=0.1, jump_t=[0.3, 0.7])
    )
    assert len(sol.step_t) == 11
    assert {0.3, 0.7} <= set(sol.step_t)


@pytest.mark.parametrize("method", methods(*ADAPTIVE, *FIXED, *ADAMS))
def test_steps_end_on_step_t(method):
    options = {"step_t": torch.tensor([0.33, 0.77, 3.0])}
    sol = pjo.solve(decay, torch.ones(1, dtype=F64), [1.0, 0.0], solver(method, 1e-3, **options))
    assert {float(torch.tensor(x)) for x in (0.33, 0.77)} <= set(sol.step_t)


def test_jumps_while_an_event_is_searched_without_end():
    for method in ("rk4", "explicit_adams"):
        found, _ = pjo.odeint_event(
            doses,
            torch.zeros(1, dtype=F64),
            torch.tensor(0.0, dtype=F64),
            event_fn=lambda t, y: y + 1.0,
            method=method,
            options={"step_size": 0.1, "jump_t": [0.25, 0.6]},
            backend="torch",
        )
        assert abs(float(found) - 1.725) < 1e-9  # 3.5 - 4 (t - 0.6) = -1


def test_marks_are_met_in_either_direction():
    grid = [0.0, 0.1, 0.2, 0.1 + 0.2, 0.4]
    assert list(ending_on([0.3, 0.25, 9.0, 0.0], grid)) == [0.0, 0.1, 0.2, 0.25, 0.3, 0.4]
    assert list(ending_on([0.3, 0.05], grid[::-1])) == [0.4, 0.3, 0.2, 0.1, 0.05, 0.0]
    assert list(ending_on([], grid)) == grid
    assert list(ending_on([0.4], grid)) == grid


# ------------------------------------------------------------------------------------------ Adams


@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
@pytest.mark.parametrize("rate", [5.0, 20.0, 30.0, 40.0, 60.0, 200.0])
@pytest.mark.parametrize("iterations", [2, 4, 20])
def test_implicit_adams_is_right_or_fails(rate, iterations, adjoint):
    """y' = -k (y - cos t): right to 0.01, or its iteration does not converge; never 1e30."""
    k, t = rate, 2.0
    exact = (k * k * math.cos(t) + k * math.sin(t) + math.exp(-t * k)) / (k * k + 1)
    s = pjo.Solver(
        "implicit_adams",
        1e-8,
        1e-8,
        dt=0.05,
        adjoint=adjoint,
        backend="torch",
        options={"max_iters": iterations},
    )
    y0 = torch.ones(1, dtype=F64, requires_grad=True)
    sol = pjo.solve(lambda t, y: -k * (y - torch.cos(t)), y0, [0.0, t], s, throw=False)
    if sol.retcode.successful:
        assert abs(float(sol.y[-1].detach()) - exact) < 0.01
    else:
        assert k * s.dt > 1  # shorter steps are stable, by iterations of any number
        assert sol.retcode is pjo.Retcode.CONVERGENCE_FAILURE
        assert "shorter steps" in sol.message


def test_implicit_adams_raises_through_torchdiffeqs_functions():
    with pytest.raises(pjo.SolverError, match="does not converge"):
        pjo.odeint(
            lambda t, y: -200 * y,
            torch.ones(1, dtype=F64),
            torch.tensor([0.0, 2.0], dtype=F64),
            method="implicit_adams",
            options={"step_size": 0.05},
            backend="torch",
        )


def test_the_largest_rate_is_that_of_the_formulas():
    """Iterated to the end the limit is Adams-Moulton's: on (-90/49, 0) for order 5, b0 251/720."""
    assert abs(largest_rate(4, 200) - 90 / 49 * 251 / 720) < 0.01
    assert largest_rate(1, 4) == 1.0  # the trapezoidal rule is stable for all


NEARLY = {
    "a pair": [0.4, 0.4 + 1e-12],
    "five": [0.4 + k * 1e-12 for k in range(5)],
    "every time": [x for i in range(1, 10) for x in (0.1 * i, 0.1 * i + 1e-12)],
    "two of next": [0.4, math.nextafter(0.4, 1.0)],
    "closer and closer": [0.5 - 0.1**k for k in range(2, 13)],
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("near", NEARLY)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", ADAMS)
def test_adams_with_times_that_nearly_coincide(method, dtype, near, sign):
    """One step between two times: as accurate as with equal steps of 0.1, 1e-4 and better."""
    t = sorted({*(0.1 * i for i in range(11)), *NEARLY[near]}, reverse=sign < 0)
    t = torch.tensor(t, dtype=F64)
    exact = torch.exp(torch.sin(t))
    y = pjo.odeint(lambda t, y: y * torch.cos(t), exact[:1].to(dtype), t, method=method)[:, 0]
    assert float((y - exact).abs().max()) < 2e-4


def test_weights_of_equal_steps():
    assert [round(24 * w) for w in adams_weights((0.0, -1.0, -2.0, -3.0))] == [55, -59, 37, -9]


# ----------------------------------------------------------------------------- success that is none


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", methods(*METHODS))
def test_an_overflow_is_no_success(method, dtype, grad):
    """y' = c from a large state: beyond the largest number at t = 2.4, by finite slopes."""
    most = torch.finfo(dtype).max
    y0 = torch.full((12, 2), 0.4 * most, dtype=dtype, requires_grad=grad)
    field = lambda t, y: torch.full_like(y, 0.25 * most) + 0 * y  # noqa: E731
    way = replace(solver(method, 1e-3, 0.25), max_steps=100)  # who never gives up ends there
    sol = pjo.solve(field, y0, [0.0, 1.0, 8.0], way, throw=False)
    assert not sol.retcode.successful
    assert bool(sol.y.isfinite().all())
    assert len(sol.t) < 3


@pytest.mark.parametrize("method", methods("dopri5", "tsit5", "dopri8", "pan"))
def test_an_overflow_raises_through_torchdiffeqs_functions(method):
    y0 = torch.full((3,), 1e308, dtype=F64)
    with pytest.raises(pjo.SolverError):
        pjo.odeint(
            lambda t, y: torch.full_like(y, 1e307),
            y0,
            torch.tensor([0.0, 20.0], dtype=F64),
            rtol=1e-3,
            method=method,
            backend="torch",
        )


@pytest.mark.parametrize("when", ["y0", "start", "later"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("method", OWN)
def test_a_sample_that_fails_is_named_in_bounded_work(method, grad, when):
    """Of four the third; the rows that all have reached are kept, and right."""
    calls = 0

    def field(t, y):
        nonlocal calls
        calls += 1
        third = torch.arange(4)[:, None] == 2
        bad = third & {"start": t >= 0, "later": t > 0.6}.get(when, torch.tensor(False))
        return torch.where(bad, math.nan, -y)

    y0 = torch.ones(4, 1, dtype=F64)
    if when == "y0":
        y0[2] = math.nan
    sol = pjo.solve(field, y0.requires_grad_(grad), [0.0, 0.5, 4.0], solver(method), throw=False)
    assert sol.retcode is pjo.Retcode.UNSTABLE
    assert "sample 2" in sol.message
    assert calls < 3000  # not 10,000 steps of six
    if when == "later":
        assert sol.t.tolist() == [0.0, 0.5]
        # 100 tol
        assert float((sol.y[1] - math.exp(-0.5)).abs().max().detach()) < 1e-5


# ------------------------------------------------------------------------- what a solution keeps

DENSE = {
    "tsit5": solver("tsit5", 1e-9),
    "tsit5, polynomials": solver("tsit5", 1e-9, dense=True),
    "dopri8": solver("dopri8", 1e-9),
    "dopri8, True": solver("dopri8", 1e-9, dense=True),
    "rk4": solver("rk4", dt=0.05),
    "rk4, polynomials": solver("rk4", dt=0.05, dense=True),
    "adams, polynomials": solver("implicit_adams", dt=0.05, dense=True),
    "gauss": pjo.Solver("tsit5", 1e-9, 1e-9, adjoint="gauss", backend="torch"),
    "replay": solver("tsit5", 1e-9, checkpoint=True),
    "pan": solver("pan", 1e-9),
}


def changed_y0(field: Decay, y0: Tensor, sol: pjo.Solution) -> None:
    with torch.no_grad():
        y0.fill_(7.0)


def optimized(field: Decay, y0: Tensor, sol: pjo.Solution) -> None:
    if sol.y.requires_grad:
        sol.y[-1].sum().backward()
        torch.optim.SGD(field.parameters(), lr=1.0).step()


@pytest.mark.parametrize("change", [changed_y0, optimized])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", DENSE)
def test_a_solution_is_what_was_solved(kind, grad, change):
    """exp(-t) after y0 or the weights were changed in place, or an error that says so; 1e-6 is the
    accuracy of rk4 and Adams with these steps."""
    field, y0, first = Decay(), torch.ones(2, dtype=F64), torch.ones(2, dtype=F64)
    with torch.set_grad_enabled(grad):
        sol = pjo.solve(field, y0, [0.0, 0.5, 1.0], DENSE[kind])
    change(field, y0, sol)
    for t in (0.0, 0.03, 0.55, 1.0):
        try:
            found = sol(t)
        except pjo.UnsupportedError:  # see the next test
            assert change is optimized
            assert grad
            continue
        assert float((found - math.exp(-t) * first).abs().max()) < 1e-6
    exact = torch.exp(-torch.tensor([0.0, 0.5, 1.0], dtype=F64))
    assert float((sol.y[:, 0].detach() - exact).abs().max()) < 1e-6


def test_a_field_that_changes_for_a_part_of_the_span_is_found_there():
    """Each step is compared with what it was; those that are the same are read."""
    field, late = nn.Module(), [-1.0]
    field.forward = lambda t, y: torch.where(t < 0.5, -1.0, late[0]) * y
    sol = pjo.solve(field, torch.ones(1, dtype=F64), [0.0, 1.0], solver("rk4", dt=0.1))
    late[0] = -2.0
    assert abs(float(sol(0.23)) - math.exp(-0.23)) < 1e-6
    with pytest.raises(pjo.UnsupportedError, match="another than it was"):
        sol([0.23, 0.83])


@pytest.mark.parametrize("method", methods(*METHODS[:-1]))
def test_a_field_may_write_its_output_into_one_buffer(method):
    """Where no graph is kept: the result is that of a field that returns new tensors."""
    out = torch.empty(3, 1, dtype=F64)

    def field(t, y):
        return torch.mul(y, -1.0, out=out)

    with torch.no_grad():
        y0 = torch.ones(3, 1, dtype=F64)
        found = pjo.solve(field, y0, [0.0, 0.5, 1.0], solver(method)).y
        wanted = pjo.solve(lambda t, y: y * -1.0, y0, [0.0, 0.5, 1.0], solver(method)).y
    assert torch.equal(found, wanted)


# ------------------------------------------------------------------------------- samples of a batch


def oscillators(size: int, fast: float = 10.0) -> tuple[nn.Module, Tensor]:
    """One of frequency ``fast`` among slow ones; the first component is cos(k t)."""
    k = torch.full((size,), 0.01, dtype=F64)
    k[size // 2] = fast
    field = lambda t, y: torch.stack([y[:, 1], -(k**2) * y[:, 0]], 1)  # noqa: E731
    return field, torch.eye(2, dtype=F64)[:1].expand(size, 2).contiguous()


@pytest.mark.parametrize("size", [1, 8, 50, 100, 10_000])
def test_a_sample_that_its_batch_hides_is_told_of(size):
    """Error below a hundred tolerances, or a warning that names the sample and the way out."""
    field, y0 = oscillators(size)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        y = pjo.solve(field, y0, [0.0, 10.0], solver("dopri5", 1e-4)).y[-1, size // 2, 0]
    if abs(float(y) - math.cos(100.0)) < 1e-2:
        assert not said
        return
    assert [w.category for w in said] == [pjo.AccuracyWarning]
    assert f"sample {size // 2} of {size}" in str(said[0].message)
    assert "per_sample" in str(said[0].message)


def test_steps_of_its_own_and_a_norm_of_the_largest_error_are_the_way_out():
    field, y0 = oscillators(100)
    norm = lambda x: x.abs().max()  # noqa: E731
    for way in (solver("dopri5 own", 1e-4), solver("dopri5", 1e-4, norm=norm)):
        y = pjo.solve(field, y0, [0.0, 10.0], way).y[-1, 50, 0]
        # of 160 steps, each with an error below the tolerance
        assert abs(float(y) - math.cos(100.0)) < 1e-3


@pytest.mark.parametrize("name", ["node", "anode", "hbnode", "gnesterovnode"])
def test_ordinary_batches_are_not_told_of(name):
    from problems import models

    layer = pjo.NeuralODE(models()[name], (1.0, 4.0), solver("dopri5", 1e-6))
    layer(torch.randn(256, 2, dtype=F64)).square().sum().backward()  # warnings are errors
