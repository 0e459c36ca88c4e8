"""What users hand over wrongly is answered in the words of what they handed over."""

from __future__ import annotations

import functools
import math
import sys

import numpy as np
import pytest
import torch
from problems import F64, Field
from torch import nn

import pyjuliaode as pjo
from pyjuliaode.backends.julia.plan import _KNOWN as JULIA_OPTIONS
from pyjuliaode.backends.julia.plan import _NO_MEANING, REFUSED
from pyjuliaode.backends.torch.plan import _KNOWN, _SHARED
from pyjuliaode.solver import OPTIONS

LIN = nn.Linear(2, 2)
Y0, T = torch.ones(3, 2), torch.linspace(0, 1, 5)


def decay(t, y):
    return -y


def through(**keywords):
    return lambda: pjo.odeint(decay, Y0, T, **keywords)


def with_options(**options):
    return through(options=options)


WRONG = {
    # func
    "a module of one argument": (lambda: pjo.odeint(LIN, Y0, T), r"one argument \(input\).*NODE"),
    "a lambda of one argument": (lambda: pjo.solve(lambda y: -y, Y0, T), r"one argument \(y\)"),
    "a bound method of none": (lambda: pjo.solve(Plain().nothing, Y0, T), "takes no argument"),
    "a class": (lambda: pjo.odeint(nn.Linear, Y0, T), r"the class Linear: pass an instance"),
    "a field of (x, t)": (lambda: pjo.odeint(lambda x, t: x, Y0, T), r"func\(x, t\).*time first"),
    "a module of (x, t)": (lambda: pjo.solve(Swapped(), Y0, T), r"func\(x, time\).*time first"),
    "a model's field of (x, t)": (lambda: pjo.HBNODE(lambda x, t: x), r"f\(x, t\).*time first"),
    "a tuple for a model": (
        lambda: pjo.solve(pjo.HBNODE(LIN), (Y0, Y0), T),
        r"state of HBNODE is one tensor.*initial_state",
    ),
    "a batch for a model": (
        lambda: pjo.solve(pjo.HBNODE(LIN), Y0, T),
        r"shape \(2, \*h.shape\), y0 has \(3, 2\).*NeuralODE",
    ),
    "a batch for an augmented one": (
        lambda: pjo.odeint(pjo.ANODE(nn.Linear(3, 3)), Y0, T),
        r"state of ANODE has shape \(1, \*h.shape\)",
    ),
    # solver
    "a number as solver": (lambda: pjo.solve(decay, Y0, T, 3), "solver must be a Solver or the"),
    "method of solve": (
        lambda: pjo.solve(decay, Y0, T, method="rk4"),
        r"solve has no argument 'method'.*solver=Solver\(method='dopri5'\)",
    ),
    "rtol of solve": (lambda: pjo.solve(decay, Y0, T, rtol=1), r"solver=Solver\(rtol=...\)"),
    "step_size of solve": (
        lambda: pjo.solve(decay, Y0, T, step_size=1),
        r"solver=Solver\(options=\{'step_size': ...\}\)",
    ),
    "method of a layer": (lambda: pjo.NeuralODE(LIN, method="rk4"), "NeuralODE has no argument"),
    "a misspelt name": (lambda: pjo.NeuralODE(LIN, metod="rk4"), "Did you mean 'method'"),
    "tol of a Solver": (lambda: pjo.Solver(tol=1e-3), "Solver has no argument 'tol'.*rtol=.*atol="),
    "an option of a Solver": (lambda: pjo.Solver(step_size=1), r"options=\{'step_size': ...\}"),
    "tol of odeint": (through(tol=1e-3), "odeint has no argument 'tol'.*rtol="),
    "solver of odeint": (through(solver="rk4"), "method='dopri5'"),
    "adjoint_rtol of odeint": (through(adjoint_rtol=1e-3), "it is odeint_adjoint's"),
    "a Solver as method": (through(method=pjo.Solver()), "method must be a name"),
    "a list as method": (through(method=["rk4"]), "method must be a name"),
    "a list as adjoint": (lambda: pjo.Solver(adjoint=["gauss"]), "unknown adjoint"),
    # numbers
    "text as rtol": (through(rtol="1e-3"), r"rtol must be finite and >= 0, got '1e-3'"),
    "nothing as rtol": (lambda: pjo.Solver(rtol=None), "rtol must be finite"),
    "a negative rtol": (lambda: pjo.Solver(rtol=-torch.ones(2)), "rtol must be >= 0 in every"),
    "a learned rtol": (through(rtol=torch.tensor(1e-3, requires_grad=True)), "rtol.detach"),
    "a learned dt": (lambda: pjo.Solver(dt=torch.ones(1, requires_grad=True)), "dt.detach"),
    "a vector as dt": (lambda: pjo.Solver(dt=torch.ones(3)), r"dt must be.*tensor of shape \(3,\)"),
    "half a step": (lambda: pjo.Solver(max_steps=1.5), "max_steps must be an integer"),
    "text as step_size": (with_options(step_size="a"), None),
    "text as safety": (with_options(safety="a"), r"safety must lie in \(0, 1\], got 'a'"),
    "NaN as max_step": (with_options(max_step=math.nan), "max_step must lie in"),
    "true as first_step": (with_options(first_step=True), "first_step must lie in"),
    "text as jump_t": (with_options(jump_t="a"), "jump_t must be finite times, got 'a'"),
    "NaN as step_t": (with_options(step_t=[math.nan]), "step_t must be finite times"),
    "text as per_sample": (with_options(per_sample="yes"), "per_sample must be True or False"),
    "a number as norm": (with_options(norm=3), "norm must be a function, got 3"),
    "a norm of a vector": (
        with_options(norm=lambda x: x),
        r"norm must return one number.*\(3, 2\)",
    ),
    "nothing of a grid": (
        through(method="rk4", options={"grid_constructor": lambda f, y, t: None}),
        r"grid_constructor must return times",
    ),
    "text of a grid": (
        through(method="rk4", options={"grid_constructor": lambda f, y, t: "abc"}),
        "what grid_constructor returns must be finite times",
    ),
    "a solver of SciPy": (
        through(method="scipy_solver", options={"solver": "bdf"}),
        "unknown solver of SciPy 'bdf'",
    ),
    # y0 and t
    "a sparse y0": (lambda: pjo.odeint(decay, torch.eye(2).to_sparse(), T), r"to_dense\(\)"),
    "a meta y0": (lambda: pjo.odeint(decay, torch.ones(2, device="meta"), T), "holds no numbers"),
    "an array as y0": (lambda: pjo.odeint(decay, Y0.numpy(), T), "y0 must be a tensor"),
    "numbers as t": (lambda: pjo.odeint(decay, Y0, ["a", "b"]), "t must be a 1-d tensor or"),
    "integers as t": (
        lambda: pjo.odeint(decay, Y0, torch.tensor([0, 1])),
        r"t.to\(torch.float64\)",
    ),
    "times that turn round": (lambda: pjo.NeuralODE(LIN, (0.0, 1.0, 0.5)), r"t\[2\] = 0.5"),
    "one time at a call": (lambda: pjo.NeuralODE(LIN)(Y0, t=3.0), "t must be a 1-d tensor or"),
    "no scale": (through(rtol=0.0, atol=0.0), "tolerance is 0.*atol > 0"),
    "no scale where y0 is 0": (
        lambda: pjo.odeint(decay, torch.tensor([0.0, 1.0]), T, atol=0.0),
        "tolerance is 0 where y0 is 0",
    ),
    # torchdiffeq's other arguments
    "a number as adjoint_params": (
        lambda: pjo.odeint_adjoint(decay, Y0, T, adjoint_params=3),
        "adjoint_params must be a sequence of tensors.*got int",
    ),
    "a tensor as adjoint_params": (
        lambda: pjo.odeint_adjoint(decay, Y0, T, adjoint_params=torch.ones(2)),
        "adjoint_params must be a sequence.*got Tensor",
    ),
    "a module as params": (
        lambda: pjo.solve(decay, Y0, T, params=LIN),
        r"^params must be a sequence.*got Linear",
    ),
    "a number as adjoint_method": (
        lambda: pjo.odeint_adjoint(pjo.NODE(LIN), Y0, T, adjoint_method=3),
        "adjoint_method must be the name",
    ),
    "a number as adjoint_options": (
        lambda: pjo.odeint_adjoint(pjo.NODE(LIN), Y0, T, adjoint_options=3),
        "adjoint_options must be a dict",
    ),
    "a number as event_fn": (
        lambda: pjo.odeint(decay, Y0, T[[0, -1]], event_fn=3),
        "event_fn must be callable",
    ),
    "text as t0": (
        lambda: pjo.odeint_event(decay, Y0, "a", event_fn=decay),
        "t0 must be finite, got 'a'",
    ),
    # dense output
    "text for sol": (lambda: pjo.solve(decay, Y0, T)("a"), "t must be finite times, got 'a'"),
    "nothing for sol": (lambda: pjo.solve(decay, Y0, T)(None), "t must be a number"),
    "NaN for sol": (lambda: pjo.solve(decay, Y0, T)(math.nan), "nan lies outside"),
    "integers for sol": (
        lambda: pjo.solve(decay, Y0, T)(torch.tensor(1)),
        "floating point, got.*torch.int64",
    ),
}


class Plain:
    def nothing(self):
        return 0


class Swapped(nn.Module):
    def forward(self, x, time):
        return x


@pytest.mark.parametrize("call", WRONG)
def test_a_wrong_argument_is_named(call):
    run, words = WRONG[call]
    if words is None:  # of another method: told, and left alone
        with pytest.warns(UserWarning, match="does not use the option"):
            run()
        return
    with pytest.raises(pjo.InvalidArgumentError, match=words):
        run()


def test_names_are_taken_where_a_thing_is_meant():
    by_name = pjo.solve(decay, Y0, T, "dopri5").y
    assert torch.equal(by_name, pjo.solve(decay, Y0, T, pjo.Solver("dopri5")).y)
    layer = pjo.NeuralODE(LIN, solver="rk4")
    assert layer.solver.method == "rk4"
    assert layer(Y0).shape == Y0.shape


def test_a_node_is_a_function_of_time_and_state():
    """What the error about a field of one argument recommends."""
    torch.manual_seed(0)
    node = pjo.NODE(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)))
    layer = pjo.NeuralODE(node, solver="dopri5")
    for batch in (1, 2, 3):
        y0 = torch.randn(batch, 2)
        assert torch.equal(pjo.solve(node, y0, [0.0, 1.0], "dopri5").y[-1], layer(y0))
        assert pjo.odeint_adjoint(node, y0, T).shape == (5, batch, 2)


def test_a_vector_that_may_be_a_batch_is_warned_of():
    model = pjo.HBNODE(LIN)
    with pytest.warns(UserWarning, match=r"2 components of one vector.*not as a batch of 2"):
        pjo.solve(model, torch.ones(2, 2), T)
    pjo.solve(model, model.initial_state(torch.ones(2)), T)  # known to be a state: no warning
    pjo.NeuralODE(model)(torch.ones(2))


@pytest.mark.parametrize(
    "func",
    [
        lambda t, y: -y,
        lambda *args: -args[1],
        lambda t, y, scale=1.0: -scale * y,
        lambda _, y: -y,
        functools.partial(lambda scale, t, y: -scale * y, 2.0),
        Field().float(),
        torch.compile(Field().float(), backend="eager"),
    ],
)
def test_functions_that_can_be_called_are_called(func):
    with torch.no_grad():  # with gradients dynamo raises a warning of its own
        assert pjo.odeint(func, Y0, T).shape == (5, 3, 2)


def test_an_error_inside_the_field_says_what_it_was_called_with():
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        pjo.odeint(lambda t, y: LIN(y), torch.ones(3, 4), T)
    assert _notes(caught.value) == [
        "(func was called with t = 0 (torch.float32) and y of shape (3, 4) torch.float32)"
    ]
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        pjo.NeuralODE(pjo.SONODE(LIN))(Y0)
    assert "SONODE called its field with an input of shape (3, 4)" in _notes(caught.value)[0]
    with pytest.raises(RuntimeError) as caught:
        pjo.NeuralODE(pjo.HBNODE(LIN))(Y0.double())
    assert any("torch.float64" in note for note in _notes(caught.value))
    with pytest.raises(ZeroDivisionError) as caught:
        pjo.odeint(lambda t, y: (y, 1 / 0), (Y0, Y0), T)
    assert "(3, 2) torch.float32, (3, 2) torch.float32" in _notes(caught.value)[0]


def _notes(error):
    return getattr(error, "__notes__", None) or str(error).splitlines()[1:]


def test_the_nearest_option_is_named():
    with pytest.warns(UserWarning, match=r"stepsize \(Did you mean 'step_size'"):
        pjo.odeint(decay, Y0, T, method="rk4", options={"stepsize": 0.1})


def test_every_option_of_a_method_is_known_to_the_solver():
    """What a keyword error calls an option is one."""
    torch_options = set(_SHARED).union(*_KNOWN.values())
    assert torch_options | JULIA_OPTIONS | _NO_MEANING | set(REFUSED) == OPTIONS


def test_numbers_of_any_kind_are_numbers():
    for one in (1e-3, np.float32(1e-3), torch.tensor(1e-3), torch.tensor([1e-3]), np.array(1e-3)):
        y = pjo.odeint(decay, Y0, T, rtol=one, options={"first_step": one, "jump_t": one})
        assert y.shape == (5, 3, 2)
    each = np.full((3, 2), 1e-3)
    assert pjo.odeint(decay, Y0, T, rtol=each).shape == (5, 3, 2)


def test_dense_output_takes_sequences():
    sol = pjo.solve(decay, Y0, T)
    assert torch.equal(sol([0.25, 0.5]), sol(torch.tensor([0.25, 0.5])))


def test_a_step_size_that_never_ends_is_refused():
    with pytest.raises(pjo.InvalidArgumentError, match=r"1e-09 makes 1e\+09 steps"):
        pjo.odeint(decay, Y0, T, method="rk4", options={"step_size": 1e-9})


def test_grids_always_run():
    """torchdiffeq has no limit for them, and max_steps is of adaptive methods."""
    t = torch.linspace(0, 1, 10_002, dtype=F64)
    y = pjo.solve(decay, torch.ones(1, dtype=F64), t, pjo.Solver("euler", max_steps=10)).y
    assert abs(float(y[-1]) - math.exp(-1)) < 1e-4  # error of Euler's method: h / 2 · e^-1
    y = pjo.odeint(decay, torch.ones(1), T[[0, -1]], method="euler", options={"step_size": 1e-3})
    assert y.shape == (2, 1)


def test_stiffness_ends_in_bounded_work(monkeypatch):
    """An explicit method on a stiff problem would need millions of steps, and stops early."""
    from pyjuliaode.backends.torch import adaptive

    monkeypatch.setattr(adaptive, "PACE", 200)  # 5,000: the same, slower
    calls = 0

    def stiff(t, y):
        nonlocal calls
        calls += 1
        return -1e6 * (y - torch.cos(t))

    with pytest.raises(pjo.SolverError, match=r"grow no longer, and .* more would be needed"):
        pjo.odeint(stiff, torch.ones(1, dtype=F64), torch.tensor([0.0, 10.0], dtype=F64))
    assert calls < 5_000
    # where the end is within reach of max_steps the solve goes on
    short = torch.tensor([0.0, 2e-3], dtype=F64)
    y = pjo.odeint(stiff, torch.ones(1, dtype=F64), short)
    assert abs(float(y[-1]) - 1.0) < 1e-5


def test_what_is_not_finite_is_said_of_y0():
    with pytest.raises(pjo.SolverError, match=r"y0 is not finite \(NaN or Inf\) at t = 0\.$"):
        pjo.solve(decay, torch.tensor([1.0, math.nan]), T)
    with pytest.raises(
        pjo.SolverError, match=r"too small to measure y0 in, of dtype torch\.float32"
    ):
        pjo.solve(decay, Y0, T, pjo.Solver(rtol=1e-20, atol=1e-20))


@pytest.mark.parametrize("solver", ["pan", pjo.Solver(options={"per_sample": True})])
def test_a_tolerance_of_nothing_is_refused_by_all(solver):
    solver = pjo.Solver("pan", atol=0.0) if solver == "pan" else solver
    solver = pjo.Solver(solver.method, atol=0.0, options=solver.options)
    with pytest.raises(pjo.InvalidArgumentError, match="tolerance is 0 where y0 is 0"):
        pjo.solve(decay, torch.tensor([[0.0, 1.0]]), T, solver)


@pytest.mark.parametrize("adjoint", ["direct", "gauss", "interpolating", "backsolve"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dopri5", {}),
        ("dopri5", {"checkpoint": True}),
        ("pan", {}),
        ("dopri5", {"per_sample": True}),
    ],
)
def test_empty_batches_are_solved_and_differentiated(method, options, adjoint):
    if adjoint != "direct" and (options or (method == "pan" and adjoint != "gauss")):
        pytest.skip("this adjoint does not go with these options")
    y0 = torch.ones(0, 2, requires_grad=True)
    solver = pjo.Solver(method, adjoint=adjoint, options=options)
    node = pjo.NODE(LIN)
    node.zero_grad()
    pjo.solve(
        lambda t, y: node(t, y), y0, T, solver, params=tuple(LIN.parameters())
    ).y.sum().backward()
    assert y0.grad.shape == (0, 2)


def test_scipy_s_methods_without_scipy_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.integrate", None)
    with pytest.raises(
        pjo.UnsupportedError, match=r"needs SciPy: pip install -c constraints.txt -e"
    ):
        pjo.solve(decay, torch.ones(1), [0.0, 1.0], "scipy_solver")
