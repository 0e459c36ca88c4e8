"""Method "pan" and the fields that users write: kinds of them, against closed forms and dopri8."""

from __future__ import annotations

import itertools
import math
import types

import pytest
import torch
from problems import F64, relative_error
from torch import nn
from torch.nn.utils import parametrize

import pyjuliaode as pjo
from pyjuliaode.rhs import _one_by_one

ADJOINTS = ["direct", "gauss"]
TIGHT = pjo.Solver("dopri8", 1e-12, 1e-12, backend="torch")


def pan(tol=1e-9, adjoint="auto", **options):
    return pjo.Solver("pan", tol, tol, adjoint=adjoint, backend="torch", options=options)


class Of(nn.Module):
    """A field of a function (k, t, y), k learned."""

    def __init__(self, function, k=2.0, dtype=F64):
        super().__init__()
        self.function, self.k = function, nn.Parameter(torch.full((3,), k, dtype=dtype))

    def forward(self, t, y):
        return self.function(self.k, t, y)


# ------------------------------------------------------------------------- fields without the state

# name: field, and y(t) - y(0); all of three numbers
STATELESS = {
    "integral": (lambda k, t, y: k * torch.cos(t), lambda k, t: k * torch.sin(t)),
    "drift": (lambda k, t, y: k, lambda k, t: k * t),
    "expanded": (lambda k, t, y: k[:1].expand(3), lambda k, t: (k * t)[:1].expand(3)),
    "time alone": (lambda k, t, y: torch.cos(t) * torch.ones(3).to(y), lambda k, t: torch.sin(t)),
    "constant": (lambda k, t, y: torch.ones(3).to(y), lambda k, t: t),
    "spread time": (lambda k, t, y: t.expand(3), lambda k, t: t * t / 2),
    "nothing": (lambda k, t, y: torch.zeros_like(y), lambda k, t: 0 * t),
    "one of three": (
        lambda k, t, y: torch.cat([k[:2] * torch.cos(t), -y[2:]]),
        lambda k, t: torch.sin(t) * torch.cat([k[:2], k[:1] * 0]),
    ),
}


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize(("t0", "t1", "dtype"), [(0.2, 1.2, F64), (1.2, 0.2, torch.float32)])
def test_a_field_that_does_not_depend_on_the_state(name, adjoint, t0, t1, dtype):
    function, rise = STATELESS[name]
    field = Of(function, dtype=dtype)
    y0 = torch.tensor([0.3, -0.4, 0.5], dtype=dtype, requires_grad=True)
    tol = 1e-9 if dtype == F64 else 1e-6
    y = pjo.solve(field, y0, [t0, t1], pan(tol, adjoint)).y[-1]
    first, last = torch.tensor([t0, t1], dtype=dtype)
    wanted = y0 + rise(field.k, last) - rise(field.k, first)
    if name == "one of three":
        wanted = torch.cat([wanted[:2], y0[2:] * torch.exp(first - last)])
    close = {"rtol": 10 * tol, "atol": 10 * tol}  # ten times the tolerance of the solve
    torch.testing.assert_close(y, wanted, **close)
    inputs = (y0, field.k)
    found, right = (
        torch.autograd.grad(x.sum(), inputs, allow_unused=True, materialize_grads=True)
        for x in (y, wanted)
    )
    torch.testing.assert_close(found, right, **close)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_no_memory_of_the_field_is_written_to(adjoint):
    """A field may return its parameter, its buffer, or its state."""
    field = Of(lambda k, t, y: k)
    y = pjo.solve(field, torch.zeros(3, dtype=F64), [0.0, 1.0], pan(adjoint=adjoint)).y[-1]
    before = field.k.detach().clone()
    y.sum().backward()
    assert torch.equal(field.k, before)
    with torch.no_grad():
        y = pjo.solve(lambda t, y: y, torch.ones(3, dtype=F64), [0.0, 1.0], pan()).y[-1]
    torch.testing.assert_close(y, torch.full_like(y, math.e), rtol=1e-8, atol=0)


def test_newton_s_steps_of_a_large_state_on_which_nothing_depends():
    """70 numbers, by products: a stiff part beside one that does not depend on the state."""
    rate = torch.cat([torch.zeros(69), torch.tensor([500.0])]).to(F64)

    def field(t, y):
        return torch.cos(t) - rate * y

    y = pjo.solve(field, torch.zeros(70, dtype=F64), [0.0, 2.0], pan(1e-7)).y[-1]
    assert float((y[:69] - math.sin(2)).abs().max()) < 1e-6
    integral = pjo.solve(lambda t, y: torch.cos(50 * t).expand(70), y, [0.0, 2.0], pan(1e-7)).y
    assert float((integral[-1] - y - math.sin(100) / 50).abs().max()) < 1e-6


# ----------------------------------------------------------------------- what a class does not say


def stretch(m):
    return 2 * m


class Wrapped(pjo.HBNODE):
    def forward(self, t, state):
        rates = super().forward(t, state)
        return torch.stack((torch.tanh(state[1]), rates[1]))


class Later(pjo.SONODE):
    """h' = v until t = 1/2 only."""

    def forward(self, t, state):
        rates = super().forward(t, state)
        return torch.stack((torch.where(t < 0.5, 1.0, 2.0) * rates[0], rates[1]))


class Limited(pjo.HBNODE):
    """h' = v where v is small only."""

    def forward(self, t, state):
        rates = super().forward(t, state)
        return torch.stack((rates[0].clamp(max=0.5) + 0.1 * (rates[0] - 0.5).relu(), rates[1]))


def heavy(kind=pjo.HBNODE):
    return kind(lambda h: -0.5 * h, gamma=0.1, time_dependent=False)


def second(kind=pjo.SONODE):
    return kind(lambda z: -z[..., :1] - 0.1 * z[..., 1:], time_dependent=False)


def hooked(model):
    model.register_forward_hook(lambda m, args, out: torch.stack((stretch(out[0]), out[1])))
    return model


def hooked_before(model):
    model.register_forward_pre_hook(lambda m, args: (args[0], args[1] * torch.tensor(2.0)))
    return model


def patched(model):
    plain = model.forward

    def forward(self, t, state):
        rates = plain(t, state)
        return torch.stack((stretch(rates[0]), rates[1]))

    model.forward = types.MethodType(forward, model)
    return model


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def parametrised():
    model = pjo.HBNODE(nn.Linear(1, 1)).to(F64)
    parametrize.register_parametrization(model, "omega", Doubled())
    parametrize.register_parametrization(model.field, "weight", Doubled())
    return model


MODELS = {
    "subclass": lambda: heavy(Wrapped),
    "later": lambda: second(Later),
    "limited": lambda: heavy(Limited),
    "hook": lambda: hooked(heavy()),
    "hook of another": lambda: hooked(second()),
    "hook before": lambda: hooked_before(heavy()),
    "forward of its own": lambda: patched(second()),
    "parametrised": parametrised,
    "plain": heavy,
}


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", MODELS)
def test_what_forward_does_is_solved_whatever_the_class_says(name, adjoint):
    model = MODELS[name]()
    y0 = torch.tensor([[[1.0]], [[2.0]]], dtype=F64, requires_grad=True)
    jump = {"jump_t": [0.5]} if name == "later" else {}
    found, grads = [], []
    for solver in (pan(1e-9, adjoint, **jump), TIGHT):
        y = pjo.solve(model, y0, [0.0, 1.5], solver).y[-1]
        found.append(y.detach())
        grads.append(torch.autograd.grad(y.sum(), [y0, *model.parameters()]))
    # of a kink inside an interval the error falls slowly
    close = 1e-6 if name == "limited" else 1e-7
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=close)
    assert relative_error(*grads) < (1e-4 if name == "limited" else 1e-6)


def test_forward_of_a_class_that_was_replaced(monkeypatch):
    plain = pjo.HBNODE.forward

    def forward(self, t, state):
        rates = plain(self, t, state)
        return torch.stack((stretch(rates[0]), rates[1]))

    monkeypatch.setattr(pjo.HBNODE, "forward", forward)
    y0 = torch.tensor([[[1.0]], [[2.0]]], dtype=F64)
    y = [pjo.solve(heavy(), y0, [0.0, 1.5], solver).y[-1] for solver in (pan(), TIGHT)]
    torch.testing.assert_close(*y, rtol=0, atol=1e-7)


# ------------------------------------------------------------------------------- the user's errors


class BudgetSpent(RuntimeError):
    pass


class Raises(nn.Module):
    """Raises in its call number ``at``, once."""

    def __init__(self, error=None, at=0, size=2):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(3.0, dtype=F64))
        self.error, self.at, self.calls, self.size = error, at, 0, size

    def forward(self, t, y):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return -self.w * torch.sin(y + t)


def whole(field, adjoint, size=2):
    y0 = torch.ones(size, dtype=F64)
    pjo.solve(field, y0, [0.0, 2.0], pan(1e-8, adjoint)).y[-1].sum().backward()


ERRORS = [
    BudgetSpent("spent"),
    RuntimeError("vmap: as torch would say it"),
    ValueError("table"),
    TypeError("type"),
    KeyError("key"),
    NotImplementedError("not yet"),
    AssertionError("so not"),
    OSError("no connection"),
]


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("size", [2, 70])  # by Jacobians, by products
def test_an_error_of_the_field_comes_out_as_it_is(adjoint, size):
    field = Raises()
    whole(field, adjoint, size)
    calls, errors = field.calls, itertools.cycle(ERRORS)
    for at in range(1, calls + 1, max(1, calls // 12)):
        error = next(errors)
        field = Raises(error, at)
        with pytest.raises(type(error)) as caught:
            whole(field, adjoint, size)
        assert caught.value is error
        whole(field, adjoint, size)  # and nothing is remembered against it
        assert field.calls < at + calls + 2


def test_an_error_that_an_operation_raises_is_the_field_s_too():
    with pytest.raises(RuntimeError, match="size") as caught:
        pjo.solve(
            lambda t, y: y + torch.ones(5).to(y)[: 2 if t.shape else 5],
            torch.ones(2, dtype=F64),
            [0.0, 1.0],
            pan(),
        )
    assert "vmap" not in str(caught.value)


def test_an_error_of_a_library_that_wraps_torch_s():
    """The batching broke the operation: the field is called for one time after another."""

    def field(t, y):
        try:
            scale = float(t)
        except RuntimeError as error:
            raise ValueError("the library cannot do that") from error
        return -y * (1 + 0 * scale)

    y = pjo.solve(field, torch.ones(2, dtype=F64), [0.0, 1.0], pan()).y[-1]
    torch.testing.assert_close(y, torch.full_like(y, math.exp(-1)), rtol=1e-8, atol=0)


def test_within_the_handling_of_another_error():
    error = BudgetSpent("spent")
    try:
        raise RuntimeError("before")
    except RuntimeError:
        with pytest.raises(BudgetSpent) as caught:
            whole(Raises(error, 4), "direct")
    assert caught.value is error


def test_one_failure_of_an_operation_is_no_mark_for_ever():
    class Once(Raises):
        def forward(self, t, y):
            self.calls += 1
            if self.calls == 4:  # as memory that was short
                torch.ones(2) + torch.ones(3)
            return -self.w * torch.sin(y + t)

    field = Once()
    with torch.no_grad():
        sol = pjo.solve(field, torch.ones(2, dtype=F64), [0.0, 2.0], pan(1e-8))
    assert sol.stats.sequential_forward < sol.stats.nfe_forward / 2

    class Branching(Raises):
        def forward(self, t, y):
            self.calls += 1
            return -self.w * y if not self.training or float(t) < 10 else y

    field = Branching()
    for _ in range(2):
        with torch.no_grad():
            sol = pjo.solve(field, torch.ones(2, dtype=F64), [0.0, 2.0], pan(1e-8))
        assert sol.stats.sequential_forward == sol.stats.nfe_forward
    assert field.calls < 2.1 * sol.stats.nfe_forward  # batching was tried twice, and Jacobians
    field.eval()  # another code: it is tried again
    with torch.no_grad():
        sol = pjo.solve(field, torch.ones(2, dtype=F64), [0.0, 2.0], pan(1e-8))
    assert sol.stats.sequential_forward < sol.stats.nfe_forward / 2
    assert _one_by_one._facts.get(field) is not None


# --------------------------------------------------------------------------------- what it promises


def turning(t, y):
    return 20 * torch.stack([-y[1], y[0]])


TURNED = torch.tensor([math.cos(60), math.sin(60)], dtype=F64)


@pytest.mark.parametrize("options", [{"num_coeffs": 8}, {"num_coeffs": 16}, {"step_size": 1.0}])
def test_what_is_not_fixed_follows_the_tolerances(options):
    y0 = torch.tensor([1.0, 0.0], dtype=F64)
    for tol in (1e-4, 1e-7):
        y = pjo.solve(turning, y0, [0.0, 3.0], pan(tol, **options)).y[-1]
        assert float((y - TURNED).abs().max()) < 10 * tol


def test_where_all_is_fixed_a_warning_says_that_tolerances_are_not_met():
    y0 = torch.tensor([1.0, 0.0], dtype=F64)
    with pytest.warns(UserWarning, match=r"estimated error of .* times the tolerance"):
        y = pjo.solve(turning, y0, [0.0, 3.0], pan(1e-9, num_coeffs=8, step_size=0.5)).y[-1]
    assert float((y - TURNED).abs().max()) > 1e-8
    y = pjo.solve(turning, y0, [0.0, 3.0], pan(1e-5, num_coeffs=32, step_size=0.5)).y[-1]
    assert float((y - TURNED).abs().max()) < 1e-5


@pytest.mark.parametrize("direction", [1, -1])
def test_many_and_repeated_times_cost_no_more_calls(direction):
    field = Of(lambda k, t, y: -k * torch.sin(y + t))
    y0 = torch.ones(3, dtype=F64, requires_grad=True)
    inside = torch.linspace(0.0, 2.0, 400, dtype=F64)
    t = torch.cat([inside[:1], inside[1:200].repeat_interleave(3), inside[200:]])
    t = t if direction > 0 else t.flip(0)
    sol = pjo.solve(field, y0, t, pan(1e-9))
    ends = pjo.solve(field, y0, t[[0, -1]], pan(1e-9))
    assert sol.stats.nfe_forward == ends.stats.nfe_forward
    assert torch.equal(sol.y[-1], ends.y[-1])
    some = [0, *range(1, 700, 100), len(t) - 1]
    exact = pjo.solve(field, y0, t[some], TIGHT).y
    torch.testing.assert_close(sol.y[some], exact, rtol=0, atol=1e-8)
    found = torch.autograd.grad(sol.y[some].sum(), (y0, field.k))
    wanted = torch.autograd.grad(exact.sum(), (y0, field.k))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("options", [{}, {"step_size": 0.1}, {"num_coeffs": 12}, {"first_step": 1}])
def test_a_field_that_is_not_finite_is_called_so(bad, options):
    y0 = torch.ones(2, dtype=F64)
    for begin in (-1.0, 0.5):
        sol = pjo.solve(
            lambda t, y, begin=begin: torch.where(t > begin, bad * y, -y),
            *(y0, [0.0, 0.25, 1.0], pan(1e-6, **options)),
            throw=False,
        )
        assert sol.retcode is pjo.Retcode.UNSTABLE
        assert "not finite" in sol.message
        assert len(sol.y) == (1 if begin < 0 else 2)  # up to what was reached


def test_tolerances_below_rounding_end_where_rounding_does():
    """As accurate as single precision: 60 radians multiply its rounding by as much."""
    y0 = torch.tensor([1.0, 0.0])
    for tol in (1e-8, 1e-12):
        sol = pjo.solve(turning, y0, [0.0, 3.0], pan(tol))
        assert float((sol.y[-1] - TURNED).abs().max()) < 60 * 4e-7
        assert sol.stats.n_accepted < 50


@pytest.mark.filterwarnings("ignore::pyjuliaode.AccuracyWarning")
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("t0", [1e3, 1e6])
def test_far_times_in_single_precision(t0, adjoint):
    """Only the field sees rounded times: one that does not look at them is solved as at zero."""
    grads = []
    for start, dtype in ((t0, torch.float32), (0.0, F64)):
        field = Of(lambda k, t, y: -k * torch.sin(y), k=1.0, dtype=dtype)
        y0 = torch.ones(3, dtype=dtype, requires_grad=True)
        t = torch.tensor([start, start + 1.0, start + 3.0], dtype=F64)
        y = pjo.solve(field, y0, t, pan(1e-6, adjoint)).y
        grads.append([y.double(), *torch.autograd.grad(y.square().sum(), (y0, field.k))])
    assert relative_error([g.double() for g in grads[0]], grads[1]) < 1e-5  # of the tolerance
