"""Events: what counts as one, where it is found, and its derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from problems import F64
from torch import nn

import pyjuliaode as pjo

METHODS = {"dopri5": {}, "tsit5": {}, "dopri8": {}, "pan": {}, "rk4": {"step_size": 0.05}}


def decay(t, y):
    return -y


def one(x=1.0):
    return torch.tensor([x], dtype=F64)


def time_of(event_fn, method="dopri5", func=decay, y0=None, **keywords):
    y0 = one() if y0 is None else y0
    return pjo.odeint_event(
        *(func, y0, torch.tensor(0.0, dtype=F64)),
        event_fn=event_fn,
        method=method,
        options=METHODS[method],
        rtol=1e-9,
        atol=1e-9,
        **keywords,
    )


FLAT = {
    "difference": lambda t, y: y - 0.01,
    "comparison": lambda t, y: y > 0.01,
    "its number": lambda t, y: (y > 0.01).double(),
    "relu": lambda t, y: torch.relu(y - 0.01),
    "clamp": lambda t, y: (y - 0.01).clamp(min=0),
    "the other way": lambda t, y: torch.relu(0.01 - y) - 1e-12,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", FLAT)
def test_a_function_that_is_flat_on_one_side_of_its_root(kind, method):
    """y = e^-t falls below 0.01 at ln 100; 1e-6: a thousand tolerances, rk4's error is 1e-7."""
    with torch.no_grad():
        t, y = time_of(FLAT[kind], method)
    assert abs(float(t) - math.log(100)) < 1e-6
    assert abs(float(y[-1]) - 0.01) < 1e-8


@pytest.mark.parametrize("kind", ["difference", "relu", "clamp"])
@pytest.mark.parametrize("interface", [pjo.odeint, pjo.odeint_adjoint])
def test_its_gradient_is_that_of_the_side_that_is_not_flat(kind, interface):
    """y = y0 e^-t: dt*/dy0 = 1 / y0."""
    y0 = one(2.0).requires_grad_()
    t, _ = pjo.odeint_event(
        *(pjo.NODE(nn.Identity()), -y0, torch.tensor(0.0, dtype=F64)),
        event_fn=lambda t, y: FLAT[kind](t, 1 / -y),
        odeint_interface=interface,
        rtol=1e-9,
        atol=1e-9,
    )
    (found,) = torch.autograd.grad(t, y0)
    assert abs(float(t.detach()) - math.log(50)) < 1e-7  # 2 e^t = 100
    assert abs(float(found) + 0.5) < 1e-6


def test_a_comparison_has_a_time_and_no_gradient_of_it():
    y0 = one().requires_grad_()
    with pytest.warns(pjo.GradientWarning, match="no derivative at the event"):
        t, y = time_of(FLAT["comparison"], y0=y0)
    assert abs(float(t) - math.log(100)) < 1e-7
    assert not t.requires_grad
    assert y.requires_grad


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("heights", [[2.0, 1.0], [0.0, 2.0, 1.0], [2.0, 0.0, 1.0, 0.0]])
def test_an_element_that_rests_at_zero_hides_no_other(heights, method):
    """Falling bodies, and some that lie on the floor: sqrt(2 h / g) of the lowest that falls."""
    g = 9.81

    def fall(t, s):
        lies = (s[0] == 0) & (s[1] == 0)
        return torch.stack([s[1], torch.where(lies, 0.0, -g * torch.ones_like(s[0]))])

    y0 = torch.tensor([heights, [0.0] * len(heights)], dtype=F64)
    t, _ = time_of(lambda t, s: s[0], method, fall, y0)
    assert abs(float(t) - math.sqrt(2 / g)) < 1e-6


def test_nan_and_a_gate_that_opens_later_are_no_events():
    event = lambda t, y: torch.cat([y - 0.5, torch.relu(0.2 - y), y * math.nan])  # noqa: E731
    assert abs(float(time_of(event)[0]) - math.log(2)) < 1e-7


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4"])
def test_a_restart_at_a_root_finds_the_next_one(method, dtype):
    """A ball that bounces: no time is found twice, whatever side of the floor it is returned on."""
    g, t, s, times = 9.8, torch.tensor(0.0, dtype=dtype), torch.tensor([5.0, 0.0], dtype=dtype), []
    tol = 1e-9 if dtype is F64 else 1e-6
    for _ in range(6):
        t, ss = pjo.odeint_event(
            *(lambda t, s: torch.stack([s[1], torch.full_like(s[1], -g)]), s, t),
            event_fn=lambda t, s: s[0],
            method=method,
            options=METHODS[method],
            rtol=tol,
            atol=tol,
        )
        times.append(float(t))
        s = torch.stack([ss[-1][0], -0.9 * ss[-1][1]])
    wanted, speed = [math.sqrt(10 / g)], g * math.sqrt(10 / g)
    for _ in range(5):
        speed *= 0.9
        wanted.append(wanted[-1] + 2 * speed / g)
    # float32 resolves heights of 5 to 5e-7, and 6 flights add up
    assert max(abs(a - b) for a, b in zip(times, wanted, strict=True)) < 1e3 * tol


ELEMENTS = {
    "alone": lambda y: y[:1] - 0.5,
    "beside one that decays": lambda y: torch.stack([y[0] - 0.5, y[1]]),
    "after one that decays": lambda y: torch.stack([y[1], y[0] - 0.5]),
    "beside a small constant": lambda y: torch.stack([y[0] - 0.5, 1e-14 + 0 * y[1]]),
    "beside a large and a small": lambda y: torch.stack([1e6 * (y[0] - 0.5), 1e-9 * (y[1] + 1)]),
}


@pytest.mark.parametrize("adjoint", ["direct", "gauss", "interpolating", "backsolve"])
@pytest.mark.parametrize("elements", ELEMENTS)
def test_the_gradient_is_of_the_element_that_crossed(elements, adjoint):
    """u = e^-at crosses 1/2 at ln 2 / a; v = e^-40bt may be nearer to zero then.

    Solved backward the latter does not come back, which backsolve says: there e^-4bt.
    """
    decay = 4 if adjoint == "backsolve" else 40
    a, b = (torch.tensor(1.0, dtype=F64, requires_grad=True) for _ in range(2))
    solver = pjo.Solver("tsit5", 1e-10, 1e-10, adjoint=adjoint)
    sol = pjo.solve(
        lambda t, y: torch.stack([-a * y[0], -decay * b * y[1]]),
        torch.ones(2, dtype=F64),
        [0.0, 5.0],
        solver,
        event_fn=lambda t, y: ELEMENTS[elements](y),
        params=(a, b),
    )
    assert sol.retcode is pjo.Retcode.TERMINATED
    assert abs(float(sol.event_t.detach()) - math.log(2)) < 1e-9
    for value, wanted in ((sol.event_t, (-math.log(2), 0.0)), (sol.y[-1, 0], (0.0, 0.0))):
        found = torch.autograd.grad(value, (a, b), retain_graph=True, allow_unused=True)
        for g, w in zip(found, wanted, strict=True):
            assert abs((0.0 if g is None else float(g)) - w) < 1e-7


def test_second_derivatives_of_an_events_time_and_state():
    """y' = a y from 1 to 2, then z = 3 t there: t* = ln 2 / a."""
    a = torch.tensor(1.3, dtype=F64, requires_grad=True)

    def run(a, level):
        return pjo.odeint_event(
            *(lambda t, y: torch.stack([a * y[0], 3 * t]), torch.tensor([1.0, 0.0], dtype=F64)),
            torch.tensor(0.0, dtype=F64),
            event_fn=lambda t, y: y[0] ** 2 - level,
            rtol=1e-11,
            atol=1e-11,
        )

    t, y = run(a, 4.0)
    ln2 = math.log(2)
    for value, first, second in (
        (t, -ln2 / 1.3**2, 2 * ln2 / 1.3**3),
        (t**2, -2 * ln2**2 / 1.3**3, 6 * ln2**2 / 1.3**4),
        (y[-1, 1], -3 * ln2**2 / 1.3**3, 9 * ln2**2 / 1.3**4),  # 3 t^2 / 2
    ):
        (g,) = torch.autograd.grad(value, a, create_graph=True)
        (h,) = torch.autograd.grad(g, a, retain_graph=True)
        assert abs(float(g.detach()) - first) < 1e-8
        assert abs(float(h) - second) < 1e-7
    level = torch.tensor(4.0, dtype=F64, requires_grad=True)  # t* = ln(level) / 2a
    t, _ = run(a, level)
    (g,) = torch.autograd.grad(t, level, create_graph=True)
    mixed, second = torch.autograd.grad(g, (a, level), create_graph=True)
    assert abs(float(mixed.detach()) + 1 / (2 * 1.3**2 * 4)) < 1e-8
    assert abs(float(second.detach()) + 1 / (2 * 1.3 * 16)) < 1e-8
    with pytest.raises(pjo.UnsupportedError, match="no third"):
        torch.autograd.grad(second, level)


@pytest.mark.parametrize("adjoint", ["gauss", "interpolating", "backsolve"])
def test_second_derivatives_are_refused_by_an_adjoint(adjoint):
    level = torch.tensor(4.0, dtype=F64, requires_grad=True)
    t, _ = pjo.odeint_event(
        *(pjo.NODE(nn.Identity()), one(), torch.tensor(0.0, dtype=F64)),
        event_fn=lambda t, y: y**2 - level,
        odeint_interface=pjo.odeint_adjoint,
        adjoint_params=(),
        adjoint_options={"adjoint": adjoint},
    )
    (g,) = torch.autograd.grad(t, level, create_graph=True)
    with pytest.raises(pjo.UnsupportedError, match=r"event's time cannot be differentiated again"):
        torch.autograd.grad(g, level)


def turning(t, y, w):
    return 1j * w * y


TURNING = {  # adjoint and options; with "direct" the event's time has second derivatives
    "direct": {},
    "replay": {"options": {"checkpoint": True}},
    "gauss": {"adjoint": "gauss"},
    "interpolating": {"adjoint": "interpolating"},
    "backsolve": {"adjoint": "backsolve"},
}


@pytest.mark.parametrize("way", TURNING)
def test_events_of_complex_states(way):
    """y = y0 e^(iwt), Re y = 0 at (pi/2 - arg y0) / w, y = i |y0| there.

    The gradient of arg y0 is i at y0 = 1, that of |y0| is 1. 1e-8: a hundred tolerances.
    """
    w = torch.tensor(1.0, dtype=F64, requires_grad=True)
    y0 = torch.tensor([1.0], dtype=torch.complex128, requires_grad=True)
    solver = pjo.Solver("dopri5", rtol=1e-10, atol=1e-10, backend="torch", **TURNING[way])
    sol = pjo.solve(
        *(lambda t, y: turning(t, y, w), y0, [0.0, 3.0], solver),
        event_fn=lambda t, y: y.real,
        params=[w],
    )
    assert abs(float(sol.event_t.detach()) - math.pi / 2) < 1e-8
    assert abs(complex(sol.y[-1].detach()) - 1j) < 1e-8
    for value, of_w, of_y0 in ((sol.event_t, -math.pi / 2, -1j), (sol.y[-1].abs().sum(), 0.0, 1.0)):
        g, z = torch.autograd.grad(value, (w, y0), retain_graph=True)
        assert abs(float(g) - of_w) < 1e-8
        assert abs(complex(z) - of_y0) < 1e-8


@pytest.mark.parametrize("interface", [pjo.odeint, pjo.odeint_adjoint])
def test_events_of_complex_states_by_torchdiffeqs_function(interface):
    w = torch.tensor(2.0, dtype=F64, requires_grad=True)
    t, y = pjo.odeint_event(
        *(lambda t, y: turning(t, y, w), torch.ones(1, dtype=torch.complex128)),
        torch.tensor(0.0, dtype=F64),
        event_fn=lambda t, y: y.real,
        odeint_interface=interface,
        **({"adjoint_params": (w,)} if interface is pjo.odeint_adjoint else {}),
    )
    assert abs(float(t.detach()) - math.pi / 4) < 1e-6
    assert abs(complex(y[-1].detach()) - 1j) < 1e-6
    (g,) = torch.autograd.grad(t, w)
    assert abs(float(g) + math.pi / 8) < 1e-6


def test_derivatives_of_complex_events_by_finite_differences():
    """Of complex parameters and states, an event that is not holomorphic and depends on t."""

    def event(w, y0):
        return pjo.odeint_event(
            *(lambda t, y: turning(t, y, w) - 0.1 * y * y.abs(), y0),
            torch.tensor(0.0, dtype=F64),
            event_fn=lambda t, y: y.real + 0.1 * y.imag**2 + 0.05 * t,
        )

    w = torch.tensor(1.1 + 0.1j, dtype=torch.complex128, requires_grad=True)
    y0 = torch.tensor([1.0], dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(event, (w, y0), fast_mode=True)
    # the first derivatives are right to the tolerance of the solve, and differenced again
    assert torch.autograd.gradgradcheck(
        lambda w: event(w, y0.detach()), (w,), atol=1e-4, fast_mode=True
    )


def test_values_do_not_depend_on_whether_gradients_are_wanted():
    y0 = one().requires_grad_()
    wanted = time_of(FLAT["difference"], y0=y0)
    with torch.no_grad():
        plain = time_of(FLAT["difference"], y0=y0)
    # the steps of the two differ by rounding; the event's time is that of one of them
    assert abs(float(wanted[0].detach()) - float(plain[0])) < 1e-12


def test_an_event_is_searched_once():
    """With gradients too, where the graph of the steps is kept; torchdiffeq does so as well."""
    calls = []

    def counted(t, y):
        calls.append(t)
        return -y

    with torch.no_grad():
        time_of(FLAT["difference"], func=counted)
    alone = len(calls)
    calls.clear()
    t, _ = time_of(FLAT["difference"], func=counted, y0=one().requires_grad_())
    assert t.requires_grad
    assert len(calls) <= alone + 5  # those of the second derivative


@pytest.mark.parametrize("method", ["dopri5", "rk4", "dopri8"])
def test_an_event_that_never_comes_ends(method):
    """In bounded work, with the time reached; also where the time would overflow."""
    options = {**METHODS[method], "max_num_steps": 300}
    still = {"func": decay, "event_fn": lambda t, y: y - 1}  # which is zero at the start, and after
    grows = {"func": lambda t, y: torch.ones_like(y), "event_fn": lambda t, y: y + 100}
    for case in (still, grows):
        with pytest.raises(
            pjo.SolverError, match=r"without an event at t = |there is no event"
        ) as e:
            pjo.odeint_event(
                case["func"],
                torch.ones(3, 2),
                0.0,
                event_fn=case["event_fn"],
                method=method,
                options=options,
            )
        assert isinstance(e.value, AssertionError)
        assert "give the solve an end, solve(func, y0, [t0, t1], event_fn=...)" in str(e.value)
        assert "implicit method" not in str(e.value)


def test_event_times_have_the_dtype_of_the_times():
    for dtype in (torch.float32, F64):
        t, _ = pjo.odeint_event(
            decay, torch.ones(2), torch.tensor(0.0, dtype=dtype), event_fn=lambda t, y: y - 0.5
        )
        assert t.dtype is dtype


def test_dense_output_ends_at_the_event():
    for dense in ("steps", True):
        sol = pjo.solve(
            decay,
            one(),
            [0.0, 5.0],
            pjo.Solver(options={"dense": dense}),
            event_fn=lambda t, y: y - 0.5,
        )
        assert abs(float(sol(float(sol.event_t))) - 0.5) < 1e-6
        with pytest.raises(pjo.InvalidArgumentError, match="outside the solved span"):
            sol(1.0)


# ------------------------------------------------------------------------- jumps through zero


def turn(t, y):
    return torch.stack([-y[1], y[0]])


def rise(t, y):
    return torch.ones_like(y)


START = {"turn": [math.cos(1.0), math.sin(1.0)], "rise": [0.1]}
# event_fn, field, its time, forward and backward in time
JUMPS = {
    "a wrapped angle": (lambda t, y: torch.atan2(y[1], y[0]), turn, math.pi - 1, -1.0),
    "an angle wrapped elsewhere": (
        lambda t, y: (torch.atan2(y[1], y[0]) - 0.5) % math.pi - 1.0,
        *(turn, 0.5, -0.5),
    ),
    "a modulo of the time": (lambda t, y: (t + 0.6) % 1 - 0.5, rise, 0.4, -0.1),
    "pieces": (lambda t, y: torch.where(y < 0.7, 1 + y, y - 2), rise, 0.6, -1.1),
    "pieces, one of them flat": (lambda t, y: torch.where(y < 0.7, 1 + y, -1.0), rise, 0.6, -1.1),
    "a pole": (lambda t, y: 1 / (y - 0.7), rise, 0.6, None),
}


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", JUMPS)
def test_an_event_where_event_fn_jumps(kind, method, dtype):
    """At the jump, not at the root of a piece that is far away."""
    event_fn, func, ahead, behind = JUMPS[kind]
    y0 = torch.tensor(START[func.__name__], dtype=dtype)
    tol = 1e-9 if dtype is F64 else 1e-6
    for reverse, wanted in ((False, ahead), (True, behind)):
        if wanted is None:
            continue
        t, y = pjo.odeint_event(
            *(func, y0, torch.tensor(0.0, dtype=dtype)),
            event_fn=event_fn,
            reverse_time=reverse,
            method=method,
            # which looks at the ends of its steps alone
            options={"max_step": 0.3} if method == "dopri8" else METHODS[method],
            rtol=tol,
            atol=tol,
        )
        assert abs(float(t) - wanted) < 1e3 * tol  # rk4's error is 1e-7
        exact = y0 + wanted
        if func is turn:
            exact = torch.tensor([math.cos(1 + wanted), math.sin(1 + wanted)], dtype=dtype)
        assert float((y[-1] - exact).abs().max()) < 1e3 * tol


@pytest.mark.parametrize("adjoint", ["direct", "gauss", "backsolve"])
def test_the_time_of_a_jump_is_taken_as_a_constant(adjoint):
    y0 = one(0.1).requires_grad_()
    with pytest.warns(pjo.GradientWarning, match="jumps over zero at the event"):
        sol = pjo.solve(
            *(rise, y0, [0.0, 5.0], pjo.Solver(adjoint=adjoint, backend="torch")),
            event_fn=JUMPS["pieces"][0],
        )
    assert not sol.event_t.requires_grad
    (found,) = torch.autograd.grad(sol.y[-1, 0], y0)
    assert abs(float(found) - 1) < 1e-9  # of the state at that time: dy/dy0


def test_a_steep_root_and_a_pole_are_no_jumps():
    for event_fn in (lambda t, y: torch.tanh(1e9 * (y - 0.7)), lambda t, y: 1 / (y - 0.7)):
        y0 = one(0.1).requires_grad_()
        t, _ = time_of(event_fn, func=rise, y0=y0)
        (found,) = torch.autograd.grad(t, y0)
        assert abs(float(t.detach()) - 0.6) < 1e-9
        assert abs(float(found) + 1) < 1e-6


def test_an_event_stays_within_the_span():
    """y = e^-t is 1/2 at ln 2, beyond the end by less than the error of the steps."""
    end = math.log(2) * (1 - 1e-12)
    sol = pjo.solve(
        decay, one(), [0.0, end], pjo.Solver("rk4", dt=0.2), event_fn=lambda t, y: y - 0.5
    )
    assert sol.event_t is None or float(sol.event_t) <= end


# ---------------------------------------------------------- crossings of an interpolant alone

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.complex128])
@pytest.mark.parametrize("method", FIXED)
def test_a_side_is_left_by_the_states_not_by_their_interpolant(method, dtype):
    """y' = y^2 + y from 1 grows; a cubic through such a step swings below -1."""
    sol = pjo.solve(
        *(lambda t, y: y**2 + y, torch.ones(1, dtype=dtype), [0.0, 3.0]),
        pjo.Solver(method, dt=0.1, backend="torch"),
        event_fn=lambda t, y: torch.view_as_real(y)[0, 0] + 1 if y.is_complex() else y[0] + 1,
        throw=False,
    )
    assert sol.event_t is None
    assert sol.retcode is not pjo.Retcode.TERMINATED


@pytest.mark.parametrize("method", FIXED[:-1])  # implicit_adams does not converge then
def test_an_event_beside_an_element_that_only_the_interpolant_sees(method):
    """u = 0.05 t reaches 0.0372 while v blows up."""
    sol = pjo.solve(
        lambda t, y: torch.stack([0.05 * torch.ones_like(y[0]), y[1] ** 2 + y[1]]),
        torch.tensor([0.0, 1.0], dtype=F64),
        [0.0, 1.0],
        pjo.Solver(method, dt=0.1, backend="torch"),
        event_fn=lambda t, y: torch.stack([y[1] + 1, y[0] - 0.0372]),
        throw=False,
    )
    assert abs(float(sol.event_t) - 0.744) < 1e-12


# ------------------------------------------------------------------------------ multiple roots

MULTIPLE = {
    "double": lambda t, y: (y - 0.5) * (y - 0.5).abs(),
    "triple": lambda t, y: (y - 0.5) ** 3,
    "fivefold": lambda t, y: (y - 0.5) ** 5,
    "of the time too": lambda t, y: (torch.log(y) + math.log(2)) ** 3,
}


@pytest.mark.parametrize("interface", [pjo.odeint, pjo.odeint_adjoint])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MULTIPLE)
def test_the_gradient_at_a_multiple_root(kind, method, interface):
    """y0 e^-t = 1/2: dt*/dy0 = 1 / y0, and the state there does not move."""
    y0 = one().requires_grad_()
    adjoint = {"adjoint_params": ()} if interface is pjo.odeint_adjoint else {}
    t, y = time_of(MULTIPLE[kind], method, y0=y0, odeint_interface=interface, **adjoint)
    (of_t,) = torch.autograd.grad(t, y0, retain_graph=True, create_graph=interface is pjo.odeint)
    (of_y,) = torch.autograd.grad(y[-1, 0], y0, retain_graph=True)
    assert abs(float(of_t.detach()) - 1) < 1e-5  # rk4's error is 1e-7, at t as at t*
    assert abs(float(of_y)) < 1e-5
    if interface is pjo.odeint and method != "pan":
        with pytest.raises(pjo.UnsupportedError, match="a simple root"):
            torch.autograd.grad(of_t, y0)


# ------------------------------------------------------------------- searches without an end


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_search_by_pan_ends(dtype):
    """By the number of its intervals; or, in float32, where the time would overflow."""
    for func in (lambda t, y: 0 * y, lambda t, y: 0.01 * torch.ones_like(y)):
        with pytest.raises(pjo.SolverError, match="event_fn keeps its sign up to there"):
            pjo.odeint_event(
                *(func, torch.ones(1, dtype=dtype), 0.0),
                event_fn=lambda t, y: y + 1,
                method="pan",
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("method", ["rk4", "explicit_adams"])
def test_a_search_by_large_steps_ends_where_the_time_overflows(method, dtype):
    with pytest.raises(pjo.SolverError, match="there is no event at t = "):
        pjo.odeint_event(
            *(lambda t, y: 0 * y, torch.ones(1, dtype=dtype), 0.0),
            event_fn=lambda t, y: y + 1,
            method=method,
            options={"step_size": 0.03 * torch.finfo(dtype).max},
        )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of jvp
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("transform", ["grad", "jacrev", "jvp", "vmap"])
def test_transforms_are_refused(transform, method):
    def event_t(y0):
        return pjo.odeint_event(
            *(decay, y0, 0.0),
            event_fn=lambda t, y: y[0] - 0.5,
            method=method,
            options=METHODS[method],
        )[0]

    run = {
        "jvp": lambda f: lambda y: torch.func.jvp(f, (y,), (y,)),
        "vmap": lambda f: lambda y: torch.func.vmap(f)(y[None]),
    }.get(transform) or getattr(torch.func, transform)
    with pytest.raises(pjo.UnsupportedError, match="do not pass through an event"):
        run(event_t)(one())
