"""What programs written for torchdiffeq do with odeint and its relatives, beside torchdiffeq."""

from __future__ import annotations

import sys

import pytest
import torch
import torchdiffeq
from problems import F64, Field
from torch import nn

import pyjuliaode as pjo

T = torch.linspace(0, 1, 5)
BOTH = (pjo, torchdiffeq)
INTERFACES = ("odeint", "odeint_adjoint")


class Tanh(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 2)

    def forward(self, t, y):
        return torch.tanh(self.linear(y))


def close(ours, theirs, tolerance=1e-4):
    """To the methods' own errors: the two take other steps, and interpolate otherwise."""
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    return all(a.dtype == b.dtype and torch.allclose(a, b, atol=tolerance) for a, b in pairs)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "dopri8", "implicit_adams"])
@pytest.mark.parametrize("interface", INTERFACES)
def test_results_can_be_changed_in_place(interface, method):
    y0 = torch.ones(3, 2, requires_grad=True)
    wanted = getattr(pjo, interface)(Tanh(), y0, T, method=method)
    out = getattr(pjo, interface)(Tanh(), y0, T, method=method)
    out += 1
    out[0] = 0.0
    assert torch.equal(out[1:], wanted[1:] + 1)
    found = torch.autograd.grad(out.square().sum(), y0)
    assert torch.allclose(found[0], torch.autograd.grad((wanted[1:] + 1).square().sum(), y0)[0])
    with torch.no_grad():
        out = getattr(pjo, interface)(Tanh(), y0, T[:1], method=method)
        out += 1
    assert torch.equal(y0.detach(), torch.ones(3, 2))


@pytest.mark.parametrize("interface", INTERFACES)
def test_parts_of_a_tuple_can_be_changed_in_place(interface):
    class Pair(nn.Module):
        def forward(self, t, y):
            return -y[0], y[1].sin()

    y0 = torch.ones(3, 2, requires_grad=True)
    a, b = getattr(pjo, interface)(Pair(), (y0, torch.ones(4)), T)
    a += 1
    b.mul_(2)
    (a.sum() + b.sum()).backward()
    assert y0.grad is not None


@pytest.mark.parametrize("interface", INTERFACES)
def test_graphs_that_were_made_before_the_solve_are_shared(interface):
    """Weights, or a control path's coefficients, computed once of the parameters."""
    y0, t = torch.tensor([1.0, -0.5], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    found = []
    for module in BOTH:
        u = torch.tensor([0.3, -0.2], dtype=F64, requires_grad=True)
        v = torch.tensor([0.5, 0.7], dtype=F64, requires_grad=True)
        weight = 2 * torch.outer(torch.tanh(u), v)
        keywords = {"adjoint_params": (u, v)} if interface == "odeint_adjoint" else {}
        y = getattr(module, interface)(
            lambda t, y, weight=weight: torch.tanh(weight @ y), y0, t, **keywords
        )
        y[-1].sum().backward()
        found.append(torch.cat([u.grad, v.grad]))
    assert torch.allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("adjoint", ["gauss", "interpolating", "backsolve", "direct"])
def test_graphs_that_were_made_before_are_shared_by_every_adjoint(adjoint):
    u = torch.tensor([0.3, -0.2], dtype=F64, requires_grad=True)
    weight = torch.outer(torch.tanh(u), u)
    solver = pjo.Solver("dopri5", 1e-9, 1e-9, adjoint=adjoint, options={"checkpoint": True})
    y = pjo.solve(
        lambda t, y: torch.tanh(weight @ y),
        torch.ones(2, dtype=F64),
        [0.0, 1.0],
        solver,
        params=[u],
    ).y
    (found,) = torch.autograd.grad(y[-1].sum(), u, retain_graph=True)
    y = pjo.odeint(lambda t, y: torch.tanh(weight @ y), torch.ones(2, dtype=F64), T.double())
    assert torch.allclose(found, torch.autograd.grad(y[-1].sum(), u)[0], rtol=1e-5)


def test_older_names_of_methods():
    y0, options = torch.ones(2), {"step_size": 0.05}
    ours = pjo.odeint(lambda t, y: -y, y0, T, method="fixed_adams", options=options)
    assert torch.equal(
        ours, pjo.odeint(lambda t, y: -y, y0, T, method="implicit_adams", options=options)
    )


@pytest.mark.parametrize("interface", INTERFACES)
def test_failures_are_assertion_errors_that_begin_with_torchdiffeqs_words(interface):
    class Field(nn.Module):
        def forward(self, t, y):
            return y**2  # y = 1 / (1 - t)

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

    solve = getattr(pjo, interface)
    y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 2.0], dtype=F64)
    with pytest.raises(AssertionError, match=r"^underflow in dt") as caught:
        solve(Field(), y0, t)
    assert isinstance(caught.value, pjo.SolverError)
    with pytest.raises(AssertionError, match=r"^max_num_steps exceeded"):
        solve(Field(), y0, t, options={"max_num_steps": 3})
    if interface == "odeint_adjoint":
        y = solve(Poison(), y0.clone().requires_grad_(), t)
        with pytest.raises(AssertionError, match=r"^underflow in dt.*adjoint failed going back"):
            y[-1].sum().backward()
    with pytest.raises(pjo.SolverError) as caught:  # of solve, which torchdiffeq does not have
        pjo.solve(Field(), y0, t)
    assert not isinstance(caught.value, AssertionError)


def test_max_num_steps_is_of_an_interval_between_two_times():
    field, y0 = Field(), torch.ones(2, 2, dtype=F64)
    t = torch.linspace(0, 6, 13, dtype=F64)
    keywords = {"rtol": 1e-9, "atol": 1e-9, "options": {"max_num_steps": 12}}
    for module in BOTH:
        module.odeint(field, y0, t, **keywords)
        with pytest.raises(AssertionError, match=r"^max_num_steps exceeded"):
            module.odeint(field, y0, t[[0, -1]], **keywords)


@pytest.mark.parametrize("method", ["euler", "rk4", "midpoint", "explicit_adams"])
def test_methods_without_error_control_pass_nan_through(method):
    field = lambda t, y: torch.log(0.6 - t) * y  # noqa: E731
    for module in BOTH:
        y = module.odeint(field, torch.ones(2), T, method=method)
        assert y.isnan().any()
        assert not y[0].isnan().any()
    with pytest.raises(pjo.SolverError, match="Unstable"):
        pjo.solve(field, torch.ones(2), T, method)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("interface", INTERFACES)
def test_half_precision_takes_fixed_steps(interface, dtype):
    field = Tanh().to(dtype)
    y0, t = torch.ones(3, 2, dtype=dtype, requires_grad=True), T.to(dtype)
    found = []
    for module in BOTH:
        y = getattr(module, interface)(field, y0, t, method="rk4")
        assert y.dtype is dtype
        found += [y.float(), torch.autograd.grad(y.float().sum(), y0)[0].float()]
    # of numbers of order 10, to a few units in the last of 8 bits
    assert torch.allclose(found[0], found[2], rtol=0.03)
    assert torch.allclose(found[1], found[3], rtol=0.03)
    with pytest.raises(pjo.UnsupportedError, match=r"cannot control its steps.*method='rk4'"):
        getattr(pjo, interface)(field, y0, t)


RETURNS = {
    "another precision": (torch.ones(3, 2), lambda t, y: -y.double()),
    "half precision": (torch.ones(3, 2), lambda t, y: -y.bfloat16()),
    "integers": (torch.ones(3, 2), lambda t, y: torch.ones(3, 2, dtype=torch.long)),
    "one number for one": (torch.ones(1), lambda t, y: -y.sum()),
    "one of a dimension for none": (torch.tensor(1.0), lambda t, y: -y.reshape(1)),
    "a column flat, in a tuple": (
        (torch.ones(3, 2), torch.zeros(3, 1)),
        lambda t, y: (-y[0], y[0].sum(1)),
    ),
    "a list": ((torch.ones(2), torch.ones(2)), lambda t, y: [-y[0], y[1]]),
    "parts of other precision": (
        (torch.ones(2), torch.ones(2, dtype=F64)),
        lambda t, y: (-y[0], y[1]),
    ),
}


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("kind", RETURNS)
def test_what_a_field_may_return(kind, method):
    y0, field = RETURNS[kind]
    with torch.no_grad():
        ours, theirs = (m.odeint(field, y0, T, method=method) for m in BOTH)
    assert close(ours, theirs, 0.02 if kind == "half precision" else 1e-4)


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_field_under_its_own_autocast(interface):
    class Mixed(Tanh):
        def forward(self, t, y):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.linear(y)

    found = []
    for module in BOTH:
        y0 = torch.ones(3, 2, requires_grad=True)
        y = getattr(module, interface)(Mixed(), y0, T, rtol=1e-3, atol=1e-3)
        y.sum().backward()
        found += [y.detach(), y0.grad]
    assert close(found[0], found[2], 0.02)  # bfloat16: 8 bits
    assert torch.allclose(found[1], found[3], rtol=0.03)


@pytest.mark.parametrize("adjoint", ["direct", "gauss", "backsolve"])
def test_of_solve_a_wider_field_is_an_error_and_half_precision_is_not(adjoint):
    y0 = torch.ones(3, 2, requires_grad=True)
    solver = pjo.Solver(rtol=1e-2, atol=1e-2, adjoint=adjoint)
    pjo.solve(lambda t, y: -y.bfloat16(), y0, T, solver, params=()).y.sum().backward()
    with pytest.raises(
        pjo.InvalidArgumentError, match=r"wanted torch\.float32.*got torch\.float64"
    ):
        pjo.solve(lambda t, y: -y.double(), y0, T, solver, params=())


def test_copies_that_data_parallel_made_have_parameters():
    """A replica's parameters are plain tensors that carry gradients to the original's."""
    module = Tanh()
    replica = module._replicate_for_data_parallel()
    inner = module.linear._replicate_for_data_parallel()
    for name, p in module.linear.named_parameters():
        setattr(inner, name, p * 1.0)
    replica._modules["linear"] = inner
    y0 = torch.ones(3, 2)
    assert not list(replica.parameters())
    pjo.odeint_adjoint(replica, y0, T).sum().backward()
    found = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    pjo.odeint_adjoint(module, y0, T).sum().backward()
    for a, p in zip(found, module.parameters(), strict=True):
        assert torch.allclose(a, p.grad)


def test_the_compat_module_goes_by_the_name_of_torchdiffeq(monkeypatch):
    import pyjuliaode.compat as compat

    assert compat.odeint is pjo.odeint
    for name in [n for n in sys.modules if n.split(".")[0] == "torchdiffeq"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchdiffeq", compat)
    scope: dict = {}
    exec(
        "from torchdiffeq import odeint, odeint_adjoint, odeint_event, odeint_dense\n"
        "from torchdiffeq._impl.odeint import SOLVERS\n"
        "from torchdiffeq._impl.adjoint import find_parameters\n"
        "import torchdiffeq._impl as impl\n",
        scope,
    )
    assert scope["odeint"] is scope["impl"].odeint is pjo.odeint
    assert set(scope["SOLVERS"]) == set(torchdiffeq._impl.odeint.__globals__["SOLVERS"])
    module = Tanh()
    assert scope["find_parameters"](module) == list(module.parameters())
    for name in [n for n in sys.modules if n.startswith("torchdiffeq.")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("adjoint", ["auto", "gauss", "interpolating", "backsolve"])
def test_a_layer_in_a_trainers_mixed_precision(adjoint):
    """The state comes of an earlier layer in bfloat16, and is solved in float32."""
    torch.manual_seed(0)
    before, after = nn.Linear(4, 4), nn.Linear(4, 1)
    inner = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
    solver = pjo.Solver("dopri5", 1e-4, 1e-4, adjoint=adjoint)
    model = nn.Sequential(before, pjo.NeuralODE(pjo.HBNODE(inner), solver=solver), after)
    x, found = torch.randn(8, 4), []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            h = before(x)
            assert h.dtype is (torch.bfloat16 if enabled else torch.float32)
            assert model[1](h).dtype is torch.float32
            loss = model(x).float().square().mean()
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    # bfloat16 rounds every number of the network to 8 bits
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.03
    with pytest.raises(pjo.UnsupportedError, match=r"torch\.autocast"):
        model[1](x.bfloat16())
