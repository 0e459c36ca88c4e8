"""odeint and its relatives: torchdiffeq's conventions, beside torchdiffeq itself."""

from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq
from problems import F64, Field, gradients, relative_error
from torch import nn

import pyjuliaode as pjo


def test_switching_is_one_import_line():
    """The same call of both: same shape, same numbers to the tolerance."""
    field, y0, t = Field(), torch.randn(5, 2, dtype=F64), torch.linspace(0, 1, 6, dtype=F64)
    for name in ("odeint", "odeint_adjoint"):
        ours = getattr(pjo, name)(field, y0, t, rtol=1e-8, atol=1e-8)
        theirs = getattr(torchdiffeq, name)(field, y0, t, rtol=1e-8, atol=1e-8)
        assert ours.shape == theirs.shape == (6, 5, 2)
        assert torch.equal(ours[0], y0)
        # 2e-6: torchdiffeq interpolates past its last step and is two digits off there
        assert float((ours - theirs).abs().max().detach()) < 2e-6


def test_one_time_returns_the_initial_state():
    y0 = torch.randn(3, 2, dtype=F64)
    y = pjo.odeint(lambda t, y: -y, y0, torch.tensor([0.3]))
    assert torch.equal(y, y0[None])
    assert torch.equal(pjo.odeint_adjoint(Field(), y0, torch.tensor([0.3])), y0[None])


def test_tuple_states_go_in_and_come_out_as_tuples():
    def f(t, state):
        x, v = state
        return v, -x.sum() * torch.ones_like(v)

    y0 = (torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64))
    x, v = pjo.odeint(f, y0, torch.tensor([0.0, 1.0], dtype=F64))
    assert x.shape == v.shape == (2, 3)
    w = math.sqrt(3)
    assert abs(float(x[-1, 0]) - math.sin(w) / w) < 1e-6
    assert abs(float(v[-1, 0]) - math.cos(w)) < 1e-6


@pytest.mark.parametrize("interface", [pjo.odeint, pjo.odeint_adjoint])
def test_tuple_states_of_any_shapes_are_differentiated(interface):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.5, dtype=F64))

        def forward(self, t, state):
            x, v = state
            return self.a * x * v.sum(), -v * x.mean()

    x0 = torch.tensor(0.3, dtype=F64, requires_grad=True)
    v0 = torch.rand(2, 2, dtype=F64, requires_grad=True)
    t, pair = torch.tensor([0.0, 1.0], dtype=F64), Pair()

    def run(x0, v0, a):
        x, v = interface(pair, (x0, v0), t, rtol=1e-9, atol=1e-9)
        return x[-1], v[-1]

    assert torch.autograd.gradcheck(run, (x0, v0, pair.a), eps=1e-5, atol=1e-4)


def test_tolerances_per_part_of_a_tuple_state():
    def f(t, state):
        return -state[0], torch.cos(50 * t).expand_as(state[1])

    y0 = (torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64))
    t = torch.tensor([0.0, 1.0], dtype=F64)
    solver = pjo.Solver("dopri5", rtol=(1e-6, 1.0), atol=(1e-6, 1.0))
    loose = pjo.solve(f, y0, t, solver)
    strict = pjo.solve(f, y0, t, pjo.Solver("dopri5", 1e-6, 1e-6))
    assert loose.stats.nfe_forward < strict.stats.nfe_forward
    assert abs(float(loose.y[0][-1]) - math.exp(-1)) < 1e-5


def test_a_user_norm_is_called_on_the_state_as_the_user_shapes_it():
    shapes = set()

    def norm(state):
        shapes.add(tuple(state.shape))
        return state.abs().max()

    y0 = torch.randn(4, 2, dtype=F64)
    pjo.odeint(lambda t, y: -y, y0, torch.tensor([0.0, 1.0]), options={"norm": norm})
    assert shapes == {(4, 2)}


def test_an_adjoint_norm_sees_the_parts_of_the_backsolved_state():
    seen = []

    def norm(parts):
        seen.append([tuple(p.shape) for p in parts])
        return max(p.abs().max() for p in parts)

    field = Field()
    y0 = torch.randn(4, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    y = pjo.odeint_adjoint(field, y0, t, adjoint_options={"norm": norm})
    y.sum().backward()
    assert seen[0] == [(), (4, 2), (4, 2), *[tuple(p.shape) for p in field.parameters()]]


def test_seminorm_takes_the_parameters_out_of_the_error_norm():
    torch.manual_seed(1)
    field = Field(width=64)
    y0 = torch.randn(64, 2, dtype=F64)
    t = torch.tensor([0.0, 3.0], dtype=F64)
    nfe = {}
    for norm in (None, "seminorm"):
        evaluations = 0

        class Counted(nn.Module):
            def __init__(self):
                super().__init__()
                self.field = field

            def forward(self, t, y):
                nonlocal evaluations
                evaluations += 1
                return self.field(t, y)

        y = pjo.odeint_adjoint(
            Counted(),
            y0,
            t,
            rtol=1e-6,
            atol=1e-6,
            adjoint_options={"adjoint": "backsolve", "norm": norm},
        )
        evaluations = 0
        y.square().sum().backward()
        nfe[norm] = evaluations
    assert nfe["seminorm"] < nfe[None]


def test_callbacks_count_the_steps_forward_and_backward():
    class Watched(Field):
        def __init__(self):
            super().__init__()
            self.count = {}

        def _add(self, name):
            self.count[name] = self.count.get(name, 0) + 1

        def callback_step(self, t, y, dt):
            assert y.shape == (3, 2)
            self._add("step")

        def callback_accept_step(self, t, y, dt):
            self._add("accept")

        def callback_reject_step(self, t, y, dt):
            self._add("reject")

        def callback_accept_step_adjoint(self, t, z, dt):
            self._add("accept_adjoint")

    field, y0 = Watched(), torch.randn(3, 2, dtype=F64)
    s = pjo.solve(
        field,
        y0,
        torch.tensor([0.0, 2.0], dtype=F64),
        pjo.Solver("dopri5", 1e-9, 1e-9, adjoint="gauss"),
    )
    assert field.count["accept"] == s.stats.n_accepted
    assert field.count.get("reject", 0) == s.stats.n_rejected
    assert field.count["step"] == s.stats.n_accepted + s.stats.n_rejected
    s.y.sum().backward()
    assert field.count["accept_adjoint"] > 0


def test_grid_constructor_and_step_size_choose_the_steps():
    times = []

    def f(t, y):
        times.append(float(t))
        return -y

    y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    pjo.odeint(f, y0, t, method="euler", options={"step_size": 0.25})
    assert times == [0.0, 0.25, 0.5, 0.75]
    times.clear()
    grid = lambda f, y, t: torch.tensor([0.0, 0.1, 1.0], dtype=F64)  # noqa: E731
    pjo.odeint(f, y0, t, method="euler", options={"grid_constructor": grid})
    assert times == [0.0, 0.1]


def test_perturb_keeps_the_field_off_the_boundaries():
    times = []

    def f(t, y):
        times.append(float(t))
        return -y

    y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    pjo.odeint(f, y0, t, method="heun2", options={"step_size": 0.5, "perturb": True})
    assert not {0.0, 0.5, 1.0} & set(times)


def test_unknown_options_are_warned_of():
    y0, t = torch.ones(1), torch.tensor([0.0, 1.0])
    with pytest.warns(UserWarning, match="stepsize") as caught:
        pjo.odeint(lambda t, y: -y, y0, t, method="euler", options={"stepsize": 0.1})
    assert caught[0].filename == __file__  # it points at the user's line


def bouncing_ball(t, state):
    height, speed = state
    return speed, torch.full_like(height, -9.8)


@pytest.mark.parametrize("interface", [pjo.odeint, pjo.odeint_adjoint])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4"])
def test_event_time_and_its_gradient(interface, method):
    """A falling ball: t* = sqrt(2 h / g); dt*/dh = t* / (2 h)."""

    class Fall(nn.Module):
        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(torch.tensor(9.8, dtype=F64))

        def forward(self, t, state):
            return state[1], -self.g.expand_as(state[0])

    fall = Fall()
    h = torch.tensor([10.0], dtype=F64, requires_grad=True)
    level = torch.tensor(1.0, dtype=F64, requires_grad=True)
    options = {"step_size": 0.05} if method == "rk4" else None
    t_event, (height, speed) = pjo.odeint_event(
        fall,
        (h, torch.zeros(1, dtype=F64)),
        0.0,
        event_fn=lambda t, state: state[0] - level,
        odeint_interface=interface,
        method=method,
        options=options,
    )
    exact = math.sqrt(2 * 9.0 / 9.8)
    assert abs(float(t_event.detach()) - exact) < 1e-6
    assert height.shape == (2, 1)
    assert abs(float(speed[-1].detach()) + 9.8 * exact) < 1e-5
    grads = torch.autograd.grad(t_event, [h, fall.g, level], retain_graph=True)
    wanted = [exact / 18.0, -exact / 19.6, -exact / 18.0]
    for g, w in zip(grads, wanted, strict=True):
        assert abs(float(g) - w) < 1e-6
    (at_ground,) = torch.autograd.grad(height[-1].sum(), h)
    assert abs(float(at_ground)) < 1e-6  # the height at the event is the level, whatever h


def test_the_first_of_several_events_ends_the_solve():
    event = lambda t, y: torch.stack([y[0] - 0.5, y[0] - 0.8, t - 5.0])  # noqa: E731
    t_event, y = pjo.odeint_event(lambda t, y: -y, torch.ones(1, dtype=F64), 0.0, event_fn=event)
    assert abs(float(t_event) + math.log(0.8)) < 1e-7
    assert abs(float(y[-1]) - 0.8) < 1e-7


def test_events_backward_in_time():
    t_event, _ = pjo.odeint_event(
        lambda t, y: -y,
        torch.ones(1, dtype=F64),
        0.0,
        event_fn=lambda t, y: y - 2.0,
        reverse_time=True,
    )
    assert abs(float(t_event) + math.log(2.0)) < 1e-7


def test_solve_ends_at_an_event_within_the_times_or_at_the_last_of_them():
    y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=F64)
    s = pjo.solve(lambda t, y: -y, y0, t, event_fn=lambda t, y: y - 0.8)
    assert s.retcode is pjo.Retcode.TERMINATED
    assert s.t.tolist()[:2] == [0.0, 0.1]
    assert s.t.numel() == 3
    assert abs(float(s.event_t) + math.log(0.8)) < 1e-5
    s = pjo.solve(lambda t, y: -y, y0, t, event_fn=lambda t, y: y - 0.1)
    assert s.retcode is pjo.Retcode.SUCCESS
    assert s.y.shape == (4, 1)


def test_odeint_adjoint_of_every_kind_of_method():
    field = Field()
    y0 = torch.randn(2, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    found = {}
    for method in ("dopri5", "dopri8", "scipy_solver", "implicit_adams"):
        options = {"step_size": 0.01} if method == "implicit_adams" else None
        y = pjo.odeint_adjoint(field, y0, t, rtol=1e-9, atol=1e-9, method=method, options=options)
        found[method] = gradients(y, [y0, *field.parameters()])
    for grads in found.values():
        assert relative_error(grads, found["dopri5"]) < 1e-6


def test_adjoint_settings_of_their_own():
    field = Field()
    y0 = torch.randn(2, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    y = pjo.odeint_adjoint(
        field,
        y0,
        t,
        rtol=1e-9,
        atol=1e-9,
        adjoint_method="rk4",
        adjoint_options={"step_size": 0.01},
        adjoint_rtol=1e-8,
    )
    found = gradients(y, [y0, *field.parameters()])
    wanted = gradients(pjo.odeint(field, y0, t, rtol=1e-9, atol=1e-9), [y0, *field.parameters()])
    assert relative_error(found, wanted) < 1e-7


@pytest.mark.parametrize("dt", [None, 0.1, 2.0])
def test_an_event_that_starts_on_its_root_is_found_at_the_next_crossing(dt):
    """A ball thrown up from height 0 lands at 2 v / g, also where one step spans the flight."""
    start = (torch.zeros(1, dtype=F64), torch.full((1,), 5.0, dtype=F64))
    solver = pjo.Solver("dopri5", 1e-8, 1e-8, dt=dt)
    s = pjo.solve(bouncing_ball, start, [0.0, 3.0], solver, event_fn=lambda t, state: state[0])
    assert s.retcode is pjo.Retcode.TERMINATED
    assert abs(float(s.event_t) - 10 / 9.8) < 1e-9


@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
def test_repeated_times_are_the_same_row_and_their_gradients_add_up(adjoint):
    field = Field()
    y0 = torch.ones(3, 2, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0], dtype=F64)
    y = pjo.solve(field, y0, t, pjo.Solver(rtol=1e-9, atol=1e-9, adjoint=adjoint)).y
    assert y.shape == (5, 3, 2)
    assert torch.equal(y[3], y[4])
    once = pjo.solve(field, y0, [0.0, 0.5, 1.0], pjo.Solver(rtol=1e-9, atol=1e-9)).y
    assert torch.allclose(y, once[[0, 0, 1, 2, 2]], rtol=1e-12)
    (found,) = torch.autograd.grad((y[3] + 2 * y[4]).sum(), y0)
    (wanted,) = torch.autograd.grad(3 * once[2].sum(), y0)
    assert torch.allclose(found, wanted, rtol=1e-6)
