"""What a function is below its wrappers, and what a wrong one, or a wrong number, is told."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from torch import nn

import pyjuliaode as pjo

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning"),
]
F64 = torch.float64
T = torch.linspace(0, 1, 5)
Y0 = torch.ones(2)


def decay(t, y):
    return -y


def swapped(x, t):
    return -x


class Swapped(nn.Module):
    def forward(self, x, t):
        return -x


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, t, y):
        return self.linear(y)


class OwnCall(nn.Module):
    def forward(self, y):
        return -y

    def __call__(self, t, y):
        return self.forward(y)


def compiled(module):
    torch._dynamo.reset()
    return torch.compile(module, backend="eager")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch's compiler
@pytest.mark.parametrize("batch", [2, 3])
def test_a_compiled_dynamics_is_one(batch):
    dynamics, x = pjo.HBNODE(nn.Linear(3, 3)), torch.randn(batch, 3)
    found = pjo.NeuralODE(compiled(dynamics))(x)
    assert torch.equal(found, pjo.NeuralODE(dynamics)(x))


@pytest.mark.parametrize("wrap", [lambda h: h, compiled, nn.DataParallel, partial])
def test_a_dynamics_is_no_field(wrap):
    with pytest.raises(pjo.InvalidArgumentError, match="is itself a dynamics, HBNODE"):
        pjo.NODE(wrap(pjo.HBNODE(nn.Linear(3, 3))))


def test_a_wrapper_that_hides_a_dynamics_goes_around_the_layer():
    with pytest.raises(pjo.InvalidArgumentError, match=r"DataParallel\(NeuralODE\(HBNODE"):
        pjo.NeuralODE(nn.DataParallel(pjo.HBNODE(nn.Linear(3, 3))))


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda h: h.forward])
@pytest.mark.parametrize("shape", [(2, 2)])
def test_a_batch_in_place_of_a_state_is_warned_of(wrap, shape):
    func = wrap(pjo.HBNODE(nn.Linear(2, 2)))
    with pytest.warns(UserWarning, match="not as a batch of 2"):
        pjo.solve(func, torch.ones(shape), [0.0, 1.0])


def test_a_state_that_was_made_is_not_warned_of():
    dynamics = pjo.HBNODE(nn.Linear(2, 2))
    for h in (torch.ones(2), torch.ones(3, 2), torch.ones(4, 3, 2)):
        pjo.solve(dynamics, dynamics.initial_state(h), [0.0, 1.0])


def test_the_mass_matrix_of_a_compiled_system_is_not_lost():
    dae = pjo.SemiExplicitDAE(lambda t, y: torch.stack((-y[0], y[0] - y[1])), torch.eye(2)[0])
    with pytest.raises(pjo.UnsupportedError, match="mass matrix"):
        pjo.solve(compiled(dae), Y0, [0.0, 1.0], pjo.Solver("dopri5", backend="torch"))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch's compiler
def test_the_callbacks_of_a_compiled_module_are_called():
    class Told(Linear):
        steps = 0

        def callback_step(self, t, y, dt):
            self.steps += 1

    func = Told()
    pjo.odeint(compiled(func), Y0, T, method="rk4")
    assert func.steps == 4


WRAPPED = {
    "partial": lambda: partial(swapped),
    "no_grad": lambda: torch.no_grad()(swapped),
    "lru_cache": lambda: lru_cache(swapped),
    "script": lambda: torch.jit.script(swapped),
    "scripted module": lambda: torch.jit.script(Swapped()),
    "DataParallel": lambda: nn.DataParallel(Swapped()),
    "compile": lambda: compiled(Swapped()),
    "bound": lambda: Swapped().forward,
    "partial of a module": lambda: partial(Swapped()),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_swapped_arguments_are_seen_below_a_wrapper(wrapped):
    with pytest.raises(pjo.InvalidArgumentError, match=r"written as func\(x, t\)"):
        pjo.odeint(WRAPPED[wrapped](), Y0, T)


def test_event_fn_is_read_as_func_is():
    def find(event_fn):
        return pjo.odeint_event(decay, torch.ones(1, dtype=F64), 0.0, event_fn=event_fn)[0]

    with pytest.raises(pjo.InvalidArgumentError, match=r"written as event_fn\(y, t\)"):
        find(lambda y, t: y.sum() - 0.5)
    with pytest.raises(pjo.InvalidArgumentError, match="event_fn takes one argument"):
        find(lambda y: y.sum() - 0.5)
    found = find(lambda t, y: y.sum() - 0.5)
    assert float(found) == pytest.approx(math.log(2), abs=1e-6)  # default tolerances


@pytest.mark.parametrize(
    "func",
    [
        OwnCall(),
        lambda s, t: -t,
        lambda T, t: -t,
        lambda t0, t: -t,
        lambda tt, tau: -tau,
        partial(lambda a, t, y: -y, 1.0),
        partial(lambda t, y, a: -y, a=1.0),
    ],
)
def test_what_is_right_is_not_refused(func):
    assert torch.equal(pjo.odeint(func, Y0, T), pjo.odeint(decay, Y0, T))


def test_a_hook_may_change_the_arguments():
    func = nn.Linear(2, 2)
    wanted = pjo.odeint(lambda t, y: func(y), Y0, T).detach()
    func.register_forward_pre_hook(lambda module, args: args[1:])
    assert torch.equal(pjo.odeint(func, Y0, T).detach(), wanted)


@pytest.mark.parametrize("kind", ["script", "trace", "freeze"])
def test_torchscript_modules_are_fields(kind):
    func = Linear().to(F64).eval()
    y0, t = Y0.to(F64), T.to(F64)
    scripted = torch.jit.script(func)
    if kind == "trace":
        scripted = torch.jit.trace(func, (t[0], y0))
    if kind == "freeze":
        scripted = torch.jit.freeze(scripted)
    wanted = pjo.odeint(func, y0, t)
    # the same operations, which TorchScript may fuse: rounding alone
    for found in (pjo.odeint(scripted, y0, t), pjo.odeint_adjoint(scripted, y0, t)):
        torch.testing.assert_close(found.detach(), wanted.detach(), rtol=1e-6, atol=1e-8)
    assert pjo.NeuralODE(pjo.NODE(scripted, time_dependent=True))(y0[None]).shape == (1, 2)
    if kind != "freeze":  # which makes constants of the parameters
        wanted[-1].sum().backward()
        pjo.odeint(scripted, y0, t)[-1].sum().backward()
        of_script = [p.grad for p in scripted.parameters()]
        for p, grad in zip(func.parameters(), of_script, strict=True):
            both = p.grad if p.grad is not grad else p.grad / 2  # a script shares its parameters
            torch.testing.assert_close(both, grad if p.grad is not grad else grad / 2)
        with pytest.raises(pjo.UnsupportedError, match=r"torch\.jit"):
            pjo.solve(scripted, y0, t, pjo.Solver(options={"compile": True}, backend="torch"))


@pytest.mark.parametrize("call", ["solve", "odeint", "layer"])
def test_times_in_a_list_keep_their_gradient(call):
    end = torch.tensor(1.0, dtype=F64, requires_grad=True)
    y0 = torch.ones(1, 2, dtype=F64)
    if call == "solve":
        out = pjo.solve(decay, y0, [0.0, end]).y[-1]
    elif call == "odeint":
        out = pjo.odeint(decay, y0, [0.0, end])[-1]
    else:
        out = pjo.NeuralODE(pjo.NODE(lambda h: -h))(y0, t=[0.0, end])
    out.sum().backward()
    assert float(end.grad) == pytest.approx(-2 * math.exp(-1.0), rel=1e-5)  # default tolerances


def test_a_gradient_in_a_list_of_jumps_is_refused():
    jump = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(pjo.InvalidArgumentError, match=r"jump_t\[0\] requires a gradient"):
        pjo.odeint(decay, Y0, T, options={"jump_t": [jump]})


TOLERANCES = {
    "negative": np.full(2, -1e-3),
    "nan": np.array([1e-3, math.nan]),
    "inf": np.full(2, math.inf),
    "a tensor of inf": torch.full((2,), math.inf),
    "text": np.array(["a", "b"]),
    "objects": np.array([None, 1], dtype=object),
    "meta": torch.ones(2, device="meta"),
    "one of meta": torch.ones((), device="meta"),
    "too large": 10**400,
    "a bool": True,
}


@pytest.mark.parametrize("name", ["rtol", "atol", "adjoint_rtol"])
@pytest.mark.parametrize("value", TOLERANCES)
def test_tolerances_of_every_kind_are_checked(name, value):
    with pytest.raises(pjo.InvalidArgumentError, match=f"{name} must be .*>= 0"):
        pjo.Solver(**{name: TOLERANCES[value]})


@pytest.mark.parametrize("value", [Fraction(1, 1000), np.full(2, 1e-3), np.array([1e-3])])
def test_tolerances_that_are_numbers_are_taken(value):
    wanted = pjo.odeint(decay, Y0, T, rtol=1e-3)
    assert torch.equal(pjo.odeint(decay, Y0, T, rtol=value), wanted)


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (lambda t, y: -y * (1 + 1j), "got torch.complex64"),
        (lambda t, y: -y.double(), "got torch.float64"),
        (lambda t, y: torch.ones(2, dtype=torch.long), "got torch.int64"),
        (lambda t, y: None, "it returned NoneType"),
        (lambda t, y: (-y,), "it returned tuple"),
    ],
)
def test_autocast_hides_no_wrong_output(func, words):
    for enabled in (False, True):
        wrong = pytest.raises(pjo.InvalidArgumentError, match=words)
        with torch.autocast("cpu", enabled=enabled), wrong:
            pjo.solve(func, Y0, [0.0, 1.0])


def test_autocast_counts_the_parts_of_a_tuple():
    with torch.autocast("cpu"), pytest.raises(pjo.InvalidArgumentError, match="the shape of its"):
        pjo.solve(lambda t, y: (-y[0],), (Y0, Y0), [0.0, 1.0])


HUGE, META = 10**400, torch.ones((), device="meta")
REFUSED = {
    "max_steps inf": (lambda: pjo.Solver(max_steps=math.inf), "max_steps must be an integer"),
    "max_steps True": (lambda: pjo.Solver(max_steps=torch.tensor(True)), "max_steps must be"),
    "options": (lambda: pjo.Solver(options={1: 2, "a": 1}), "options must be a dict of names"),
    "backend": (lambda: pjo.Solver(backend=[]), "backend must be a name"),
    "by position": (lambda: pjo.odeint(decay, Y0, T, 1e-3), "at most 3 arguments by position"),
    "event by position": (lambda: pjo.odeint_event(decay, Y0, 0.0, 1), "at most 3 arguments"),
}
for _x in (HUGE, META):
    _name = "meta" if _x is META else "huge"
    REFUSED |= {
        f"dt {_name}": (lambda x=_x: pjo.Solver(dt=x), "dt must be positive"),
        f"t {_name}": (lambda x=_x: pjo.odeint(decay, Y0, [0.0, x]), "t must be a 1-d tensor"),
    }
    for _option in ("first_step", "step_t", "jump_t", "max_num_steps"):
        REFUSED[f"{_option} {_name}"] = (
            lambda x=_x, o=_option: pjo.odeint(decay, Y0, T, options={o: x}),
            f"{_option} must",
        )
for _t in ("01", {0.0, 1.0}, {0.0: 1, 1.0: 2}, ["0", "1"], [False, True], None, 5):
    REFUSED[f"t = {_t}"] = (lambda t=_t: pjo.odeint(decay, Y0, t), "t must be a 1-d tensor")
for _what, _norm in {
    "negative": lambda y: -1.0,
    "nan": lambda y: math.nan,
    "complex": lambda y: 1j,
    "no argument": lambda: 1.0,
    "two arguments": lambda a, b: 1.0,
}.items():
    REFUSED[f"norm {_what}"] = (
        lambda n=_norm: pjo.odeint(decay, Y0, T, options={"norm": n}),
        "norm (must return one number >= 0|is called as)",
    )


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_argument_is_refused_in_a_sentence(case):
    call, words = REFUSED[case]
    with pytest.raises(pjo.InvalidArgumentError, match=words):
        call()


def test_an_error_within_norm_or_grid_constructor_says_what_was_called():
    def broken(*args):
        raise KeyError("mine")

    for name, method in (("norm", "dopri5"), ("grid_constructor", "rk4")):
        with pytest.raises(KeyError) as caught:
            pjo.odeint(decay, Y0, T, method=method, options={name: broken})
        if hasattr(caught.value, "__notes__"):
            assert f"{name} was called with" in caught.value.__notes__[-1]


@pytest.mark.parametrize("method", ["rk4", "dopri5", "implicit_adams"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_outputs_that_broadcast_are_torchdiffeqs(method, shape):
    y0 = torch.ones(3, 2, dtype=F64)
    wanted = pjo.odeint(lambda t, y: t.cos() * torch.ones_like(y), y0, T, method=method)
    found = pjo.odeint(lambda t, y: t.cos() * torch.ones(shape, dtype=F64), y0, T, method=method)
    assert torch.equal(found, wanted)
    with pytest.raises(pjo.InvalidArgumentError, match="the shape of its state"):
        pjo.solve(lambda t, y: torch.ones(shape, dtype=F64), y0, [0.0, 1.0])


@pytest.mark.parametrize("shape", [(2, 3), (6,)])
def test_parts_of_a_tuple_may_have_another_shape_as_in_torchdiffeq(shape):
    y0 = torch.arange(6.0, dtype=F64).reshape(3, 2)
    found = pjo.odeint(lambda t, y: (-y[0].reshape(shape),), (y0,), T)[0]
    assert torch.equal(found, pjo.odeint(lambda t, y: (-y[0],), (y0,), T)[0])


def test_outputs_that_do_not_fit_stay_refused():
    for out in (torch.ones(2, 3), torch.ones(1, 3, 2), torch.ones(3, 1)):
        with pytest.raises(pjo.InvalidArgumentError, match="the shape of its state"):
            pjo.odeint(lambda t, y, out=out: out, torch.ones(3, 2), T)
