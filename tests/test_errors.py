"""Bad input gets a typed error that names the argument, before anything runs."""

from __future__ import annotations

import itertools

import pytest
import torch
from problems import F64, Field
from torch import nn

import pyjuliaode as pjo
from pyjuliaode.backends import registered

Y0 = torch.ones(2, 2, dtype=F64)
T = torch.tensor([0.0, 1.0], dtype=F64)


def decay(t, y):
    return -y


class NeverCalled(nn.Module):
    def forward(self, t, y):
        raise AssertionError("the field was evaluated")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"t": [0.0, 1.0, 0.5]}, r"increasing or decreasing.*t\[1\] = 1 and t\[2\] = 0.5"),
        ({"t": [0.0, 0.0]}, "two different times"),
        ({"t": [0.0]}, "at least 2 times, got 1"),
        ({"t": torch.zeros(2, 2)}, r"one dimension, got shape \(2, 2\)"),
        ({"t": torch.tensor([0, 1])}, "real floating dtype, got torch.int64"),
        ({"t": "soon"}, "t must be a 1-d tensor or a sequence"),
        ({"t": [0.0, float("nan")]}, "finite"),
        ({"y0": torch.ones(2, dtype=torch.int64)}, r"y0 must be floating.*int64.*y0\.float\(\)"),
        ({"y0": [1.0, 2.0]}, r"y0\[0\] must be a tensor, got float"),
        ({"y0": (torch.ones(1), torch.ones(1, dtype=F64))}, r"y0\[1\] is torch.float64"),
        ({"y0": ()}, "non-empty"),
        ({"func": 3}, "callable"),
    ],
)
def test_problems_are_checked_before_the_field_is_called(arguments, match):
    call = {"func": NeverCalled(), "y0": Y0, "t": T, **arguments}
    with pytest.raises(pjo.InvalidArgumentError, match=match):
        pjo.solve(**call)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"method": "dopri"}, "unknown method 'dopri'. Did you mean 'dopri8' or 'dopri5'"),
        ({"adjoint": "backslove"}, "unknown adjoint 'backslove'. Did you mean 'backsolve'"),
        ({"backend": "pytorch"}, "unknown backend 'pytorch'. Did you mean 'torch'"),
        ({"rtol": -1.0}, "rtol must be finite and >= 0"),
        ({"dt": 0.0}, "dt must be positive"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1, got 0"),
        ({"options": [1]}, "options must be a dict"),
        ({"rtol": torch.ones(3, dtype=F64)}, r"rtol has shape \(3,\)"),
        ({"atol": (1e-3, 1e-3)}, "atol has 2 entries"),
        ({"method": "rk4", "options": {"step_size": -0.1}}, "step_size must be positive"),
        ({"method": "rk4", "options": {"interp": "cubik"}}, "unknown interp 'cubik'.*'cubic'"),
        ({"method": "explicit_adams", "options": {"max_order": 40}}, "max_order"),
        ({"options": {"first_step": -1.0}}, r"first_step must lie in \(0, inf\]"),
        ({"options": {"safety": 1.5}}, r"safety must lie in \(0, 1\]"),
        ({"options": {"ifactor": 0.5}}, r"ifactor must lie in \(1, inf\]"),
    ],
)
def test_solver_settings_are_checked_before_the_field_is_called(settings, match):
    with pytest.raises(pjo.InvalidArgumentError, match=match):
        pjo.solve(NeverCalled(), Y0, T, pjo.Solver(**settings))


def test_half_precision_is_refused_with_advice():
    with pytest.raises(pjo.UnsupportedError, match="autocast"):
        pjo.odeint(decay, torch.ones(2, dtype=torch.float16), T)


def test_a_field_of_another_shape_dtype_or_structure_is_named():
    with pytest.raises(pjo.InvalidArgumentError, match=r"wanted \(2, 2\), got \(2, 1\)"):
        pjo.odeint(lambda t, y: y[:, :1], Y0, T)
    with pytest.raises(pjo.InvalidArgumentError, match=r"wanted torch.float64.*got torch.float32"):
        pjo.solve(lambda t, y: -y.float(), Y0, T)
    with pytest.raises(pjo.InvalidArgumentError, match="a tensor, like y0; it returned tuple"):
        pjo.odeint(lambda t, y: (y, y), Y0, T)
    with pytest.raises(pjo.InvalidArgumentError, match="a tuple of tensors, like y0"):
        pjo.odeint(lambda t, y: y[0], (Y0, Y0), T)


def test_a_field_that_writes_into_its_state_is_refused():
    with pytest.raises(pjo.InvalidArgumentError, match="in place"):
        pjo.odeint(lambda t, y: y.mul_(-1.0), Y0.clone(), T)


def test_the_julia_backend_says_what_is_missing():
    with pytest.raises(pjo.BackendUnavailableError, match="backend 'julia' cannot be used"):
        pjo.solve(NeverCalled(), Y0, T, pjo.Solver(backend="julia"))
    report = pjo.backends()
    assert report["torch"]["ready"]
    assert "dopri5" in report["torch"]["capabilities"].methods


def test_a_method_that_only_julia_spells_so_names_that_of_torch(monkeypatch):
    julia = registered()["julia"]
    monkeypatch.setattr(julia, "missing", lambda: "it is not here")
    monkeypatch.delenv("PYJULIAODE_BACKEND", raising=False)
    with pytest.raises(
        pjo.BackendUnavailableError, match=r"not here; the torch backend has 'tsit5'"
    ):
        pjo.solve(NeverCalled(), Y0, T, "Tsit5")
    with pytest.raises(pjo.BackendUnavailableError, match=r"not here$"):
        pjo.solve(NeverCalled(), Y0, T, "Rodas5P")


def test_odeint_adjoint_needs_to_know_the_parameters():
    with pytest.raises(pjo.InvalidArgumentError, match="adjoint_params"):
        pjo.odeint_adjoint(decay, Y0, T)
    assert pjo.odeint_adjoint(decay, Y0, T, adjoint_params=()).shape == (2, 2, 2)
    with pytest.raises(pjo.InvalidArgumentError, match="adjoint_options"):
        pjo.odeint_adjoint(
            Field(), Y0, T, method="dopri5", options={"first_step": 0.1}, adjoint_method="rk4"
        )


def test_combinations_that_do_not_exist_name_one_that_does():
    y0 = Y0.clone().requires_grad_()
    high = pjo.Solver("explicit_adams", adjoint="gauss", dt=0.1, options={"max_order": 6})
    with pytest.raises(pjo.UnsupportedError, match="method='dopri5'"):
        pjo.solve(Field(), y0, T, high)
    with pytest.raises(pjo.UnsupportedError, match="'gauss' computes the same"):
        pjo.solve(Field(), y0, T, pjo.Solver(adjoint="quadrature"))
    with pytest.raises(pjo.UnsupportedError, match="adjoint='gauss'"):
        pjo.solve(Field(), y0, T, pjo.Solver("scipy_solver", adjoint="direct"))
    with pytest.raises(pjo.UnsupportedError, match="history"):
        pjo.solve(
            Field(),
            y0,
            T,
            pjo.Solver("explicit_adams", adjoint="direct", dt=0.1, options={"checkpoint": True}),
        )
    rate = torch.ones((), dtype=F64, requires_grad=True)
    with pytest.raises(pjo.InvalidArgumentError, match=r"torch\.nn\.Module"):
        pjo.solve(
            lambda t, y: -rate * y,
            y0,
            T,
            pjo.Solver(adjoint="direct", options={"checkpoint": True}),
        )


def test_a_non_finite_field_is_reported_with_its_time():
    def explodes(t, y):
        return y**2  # y = 1 / (1 - t): no solution beyond t = 1

    with pytest.raises(pjo.SolverError) as caught:
        pjo.odeint(explodes, torch.ones(1, dtype=F64), torch.tensor([0.0, 0.5, 2.0], dtype=F64))
    error = caught.value
    assert error.retcode in (
        pjo.Retcode.DT_LESS_THAN_MIN,
        pjo.Retcode.UNSTABLE,
        pjo.Retcode.MAX_ITERS,
    )
    assert "at t = " in str(error)
    assert error.solution.t.tolist() == [0.0, 0.5]
    assert abs(float(error.solution.y[-1]) - 2.0) < 1e-5


def test_nan_at_the_start_is_unstable_at_once():
    calls = []

    def nan(t, y):
        calls.append(t)
        return y * float("nan")

    with pytest.raises(pjo.SolverError, match="the field at y0 is not finite at t = 0"):
        pjo.odeint(nan, Y0, T)
    assert len(calls) == 1
    with pytest.raises(pjo.SolverError, match="y0 is not finite"):
        pjo.odeint(decay, Y0 * float("inf"), T)


def test_nan_after_the_start_is_unstable_with_the_time_reached():
    def late(t, y):
        return -y if float(t) < 0.5 else y * float("nan")

    with pytest.raises(pjo.SolverError, match="Unstable") as caught:
        pjo.odeint(late, Y0, T)
    assert 0.49 < caught.value.solution.step_t[-1] <= 0.5


def test_fixed_steps_report_a_non_finite_state():
    with pytest.raises(pjo.SolverError, match="Unstable"):
        pjo.solve(lambda t, y: y**3, 1e3 * Y0, torch.arange(0.0, 40.0, 5.0), "euler")


def test_too_many_steps_are_reported_and_the_partial_solution_is_kept():
    solver = pjo.Solver("dopri5", 1e-9, 1e-9, max_steps=5)
    fast = lambda t, y: torch.cos(50 * t) * y  # noqa: E731
    s = pjo.solve(fast, Y0, [0.0, 0.01, 10.0], solver, throw=False)
    assert s.retcode is pjo.Retcode.MAX_ITERS
    assert "5 steps were attempted" in s.message
    assert "max_steps" in s.message
    assert s.t.numel() == s.y.shape[0] == 2
    with pytest.raises(pjo.SolverError, match="MaxIters"):
        pjo.odeint(fast, Y0, [0.0, 10.0], options={"max_num_steps": 5})
    dropped = lambda t, y: nn.functional.dropout(-y, 0.5)  # noqa: E731
    few = pjo.Solver("dopri5", 1e-9, 1e-9, max_steps=50)
    with pytest.raises(pjo.SolverError, match=r"MaxIters.*as with dropout, needs fixed steps"):
        pjo.solve(dropped, torch.ones(30, dtype=F64), T, few)


def test_step_size_underflow_is_reported_with_advice():
    jump = lambda t, y: torch.where(t < 0.3, torch.zeros_like(y), 1e12 * torch.ones_like(y))  # noqa: E731
    s = pjo.solve(jump, Y0, T, pjo.Solver("dopri5", 1e-14, 1e-14), throw=False)
    assert s.retcode is pjo.Retcode.DT_LESS_THAN_MIN
    assert "jump_t" in s.message
    assert abs(s.step_t[-1] - 0.3) < 1e-6


def test_an_exception_of_the_field_comes_out_as_itself():
    class Broken(nn.Module):
        def forward(self, t, y):
            raise ZeroDivisionError("in the field")

    for adjoint in ("direct", "gauss"):
        with pytest.raises(ZeroDivisionError, match="in the field"):
            pjo.solve(Broken(), Y0, T, pjo.Solver(adjoint=adjoint))


def test_a_failing_adjoint_is_never_silent():
    """Forward is smooth; backward the products are NaN."""

    class Poisoned(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return -y

        @staticmethod
        def backward(ctx, g):
            return g * float("nan")

    class Poison(nn.Module):
        def forward(self, t, y):
            return Poisoned.apply(y)

    y0 = Y0.clone().requires_grad_()
    for adjoint in ("backsolve", "gauss", "interpolating"):
        y = pjo.solve(Poison(), y0, T, pjo.Solver("dopri5", adjoint=adjoint)).y
        with pytest.raises(pjo.SolverError, match="adjoint failed going back from t = 1"):
            y[-1].sum().backward()


def test_events_need_a_tensor_and_two_times():
    with pytest.raises(pjo.InvalidArgumentError, match="event_fn must return a real tensor"):
        pjo.odeint_event(decay, Y0, 0.0, event_fn=lambda t, y: 1.0)
    with pytest.raises(pjo.InvalidArgumentError, match="2 times"):
        pjo.odeint(decay, Y0, [0.0, 1.0, 2.0], event_fn=lambda t, y: y[0, 0])


def test_dense_output_is_refused_outside_the_span_and_where_it_was_not_kept():
    dense = pjo.odeint_dense(decay, Y0, 0.0, 1.0)
    with pytest.raises(pjo.InvalidArgumentError, match=r"t = 2 lies outside.*\[0, 1\]"):
        dense(2.0)
    with pytest.raises(pjo.UnsupportedError, match="'dense': False"):
        pjo.solve(decay, Y0, T, pjo.Solver(options={"dense": False}))(0.5)


@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
@pytest.mark.parametrize("method", ["tsit5", "rk4", "implicit_adams", "pan"])
def test_a_stop_iteration_of_the_field_comes_out_as_itself(method, adjoint):
    """Within a generator it would become a RuntimeError (PEP 479)."""

    class Fed(nn.Module):
        def __init__(self, samples):
            super().__init__()
            self.a, self.samples = nn.Parameter(torch.ones((), dtype=F64)), samples

        def forward(self, t, y):
            return -self.a * y * next(self.samples)

    options = {"step_size": 0.1} if method in ("rk4", "implicit_adams") else {}
    adjoint = "direct" if method == "implicit_adams" else adjoint
    solver = pjo.Solver(method, adjoint=adjoint, backend="torch", options=options)
    with pytest.raises(StopIteration):
        pjo.solve(Fed(iter([0.1] * 4)), Y0, T, solver)
    fed = Fed(itertools.repeat(0.1))
    y = pjo.solve(fed, Y0, T, solver).y
    fed.samples = iter([0.1])
    if adjoint == "gauss":  # else the graph is there already, or no step is taken again
        with pytest.raises(StopIteration):
            y[-1].sum().backward()


def test_a_generator_of_the_field_s_own_keeps_its_error():
    def func(t, y):
        def scaled():
            yield -y * next(iter(()))

        return next(scaled())

    with pytest.raises(RuntimeError, match="generator raised StopIteration"):
        pjo.solve(func, Y0, T, pjo.Solver("tsit5", backend="torch"))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_field_that_changes_its_state_in_place_is_told_so(requires_grad, parts):
    """Autograd's own words for it are of leaves and views."""

    def func(t, y):
        z = tuple(-x for x in y) if parts == 2 else -y
        (y[0] if parts == 2 else y).zero_()
        return z

    y0 = Y0.clone().requires_grad_(requires_grad)
    for adjoint in ("direct", "gauss"):
        with pytest.raises(pjo.InvalidArgumentError, match="in place"):
            pjo.solve(func, (y0, y0) if parts == 2 else y0, T, pjo.Solver(adjoint=adjoint))
