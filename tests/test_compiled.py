"""options={"compile": True}: the same numbers as without it, and refusals with reasons.

Compiling takes seconds; so few programs are compiled here, of methods with few stages, and most
of these tests are marked slow.
"""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import threading
import warnings

import pytest
import torch
from torch import nn

import pyjuliaode as pjo
from pyjuliaode.backends.torch.compiled import program
from pyjuliaode.errors import UnsupportedError

D = torch.float64
needs_compiler = pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")),
    reason="torch's inductor needs a C++ compiler",
)
# rounding in another order, of steps of size one
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


class Settings:
    scale = 1.0


class Timed(nn.Module):
    """A small field with all that a researcher may change between two solves."""

    def __init__(self, dtype=D):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
        self.register_buffer("gain", torch.ones((), dtype=dtype))
        self.scale, self.scales, self.settings = 1.0, [1.0], Settings()

    def forward(self, t, y):
        out = self.net(torch.cat((y, t.expand(*y.shape[:-1], 1)), -1))
        if "SWITCHED" in os.environ:
            out = out + torch.relu(t - 0.7)
        return out * self.gain * (self.scale * self.scales[0] * self.settings.scale)


class Plain(nn.Module):
    """What is made of a function is in this way a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, t, y):
        return self.function(t, y)


def solver(method="midpoint", adjoint="direct", **options):
    options = {"step_size": 0.25, **options} if method in ("midpoint", "rk4", "euler") else options
    return pjo.Solver(method, 1e-4, 1e-4, adjoint=adjoint, backend="torch", options=options)


def solution_and_gradient(func, y0, t, given, weight, **kwargs):
    y0 = y0.clone().requires_grad_()
    solution = pjo.solve(func, y0, t, given, **kwargs)
    wanted = [y0, *(p for p in func.parameters() if p.requires_grad)]
    loss = (solution.y * weight).sum()
    return solution, torch.autograd.grad(loss, wanted, materialize_grads=True)


def assert_same(func, y0, t=(0.0, 1.0), method="midpoint", adjoint="direct", **options):
    """Values, gradients and counts with and without the option."""
    reference = {"checkpoint": True} if adjoint == "direct" else {}
    weight = torch.randn(len(t), *y0.shape, dtype=y0.dtype)
    runs = [
        solution_and_gradient(func, y0, t, solver(method, adjoint, **extra, **options), weight)
        for extra in ({"compile": True}, reference)
    ]
    (found, grads), (wanted, true) = runs
    assert found.stats.compiled
    assert not wanted.stats.compiled
    close = CLOSE if y0.dtype == D else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found.y, wanted.y, **close)
    for a, b in zip(grads, true, strict=True):
        torch.testing.assert_close(a, b, **close)
    for name in ("nfe_forward", "nfe_backward", "n_accepted", "n_rejected", "adjoint"):
        assert getattr(found.stats, name) == getattr(wanted.stats, name), name
    return found


@needs_compiler
@pytest.mark.timeout(300)
def test_a_compiled_solve_follows_the_module(monkeypatch):
    field, y0 = Timed(), torch.randn(3, 2, dtype=D)
    assert_same(field, y0)
    with torch.no_grad():  # a step of an optimizer
        for p in field.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
        field.gain.mul_(2)
    found = assert_same(field, y0)
    torch.testing.assert_close(found(0.3), pjo.solve(field, y0, (0.0, 1.0), solver())(0.3))
    assert_same(field, y0[:1].expand(3, 2))  # compiled for contiguous states
    # nothing tells of a change outside of Python but the values at the start and the end
    monkeypatch.setenv("SWITCHED", "1")
    with pytest.raises(UnsupportedError, match="gives other values"):
        pjo.solve(field, y0, (0.0, 1.0), solver(compile=True))
    monkeypatch.delenv("SWITCHED")
    hook = field.net.register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(UnsupportedError, match="hooks"):
        pjo.solve(field, y0, (0.0, 1.0), solver(compile=True))
    hook.remove()
    again = pickle.loads(pickle.dumps(copy.deepcopy(field)))
    assert torch.equal(
        pjo.solve(field, y0, (0.0, 1.0), solver(compile=True)).y,
        pjo.solve(again, y0, (0.0, 1.0), solver(compile=True)).y,
    )


class Drops(nn.Module):
    def forward(self, t, y):
        return nn.functional.dropout(y, 0.5)


class Branches(nn.Module):
    def forward(self, t, y):
        return y if t > 0.5 else -y


class Counts(nn.Module):
    calls = 0

    def forward(self, t, y):
        self.calls += 1
        return -y


@pytest.mark.parametrize(
    ("func", "options", "reason"),
    [
        (lambda t, y: -y, {}, "no torch.nn.Module"),
        (Drops(), {}, "random numbers"),
        (Branches(), {}, "tracing it raised"),
        (Plain(torch.compile(Timed(), backend="eager")), {}, "torch.compile|tracing"),
        (torch.compile(Timed(), backend="eager"), {}, "the module itself"),
        (Timed(), {"checkpoint": False}, "checkpoint"),
        (Timed(), {"per_sample": True, "method": "dopri5"}, "per_sample|these options"),
        (Timed(), {"method": "explicit_adams", "step_size": 0.1}, "explicit_adams"),
        (Timed(), {"method": "scipy_solver"}, "scipy_solver"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_its_reason(func, options, reason):
    options = {"method": "midpoint", **options}
    given = solver(options.pop("method"), "auto", compile=True, **options)
    with pytest.raises(UnsupportedError, match=reason) as error:
        pjo.solve(func, torch.randn(3, 2, dtype=D), (0.0, 1.0), given)
    assert "'compile': True" in str(error.value)


def test_surroundings_that_cannot_be_compiled_are_refused():
    field, y0 = Timed(), torch.randn(3, 2, dtype=D)
    with torch.autocast("cpu"), pytest.raises(UnsupportedError, match=r"autocast.*compile"):
        pjo.solve(field, y0, (0.0, 1.0), solver(compile=True))
    with pytest.raises(UnsupportedError, match="compile"):
        torch.func.jacrev(lambda y: pjo.solve(field, y, (0.0, 1.0), solver(compile=True)).y)(y0)
    with pytest.raises(UnsupportedError, match="complex128"):
        pjo.solve(Plain(torch.neg), y0 + 0j, (0.0, 1.0), solver(compile=True))


# dynamo looks at the gradient of a state that is no leaf, and hides its warning unless it raises
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_the_users_own_torch_compile_passes_through():
    """What a user of torch.compile gives is solved like any module; "eager" compiles nothing."""
    field, y0 = Timed(), torch.randn(3, 2, dtype=D)
    weight = torch.randn(2, 3, 2, dtype=D)
    found, grads = solution_and_gradient(
        torch.compile(field, backend="eager"), y0, (0.0, 1.0), solver(), weight
    )
    wanted, true = solution_and_gradient(field, y0, (0.0, 1.0), solver(), weight)
    torch.testing.assert_close(found.y, wanted.y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, true, rtol=1e-12, atol=1e-12)


def test_auto_is_torch_where_compiled_steps_are_asked_for(monkeypatch):
    monkeypatch.delenv("PYJULIAODE_BACKEND")
    with pytest.raises(UnsupportedError, match="so changes of what it uses"):
        pjo.solve(lambda t, y: -y, torch.ones(2), (0.0, 1.0), pjo.Solver(options={"compile": True}))


# ------------------------------------------------------------------------------------------- slow


def field_of(width, out, dtype=D):
    return nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, out)).to(dtype)


DYNAMICS = {
    "node": lambda: pjo.NODE(field_of(2, 2)),
    "anode": lambda: pjo.ANODE(field_of(3, 3), augment=1),
    "sonode": lambda: pjo.SONODE(field_of(4, 2)),
    "hbnode": lambda: pjo.HBNODE(field_of(2, 2)).to(D),
    "ghbnode": lambda: pjo.GHBNODE(field_of(2, 2)).to(D),
    "nesterovnode": lambda: pjo.NesterovNODE(field_of(2, 2)).to(D),
    "gnesterovnode": lambda: pjo.GNesterovNODE(field_of(2, 2)).to(D),
}


@needs_compiler
@pytest.mark.parametrize("name", DYNAMICS)
@pytest.mark.slow
@pytest.mark.timeout(900)
class TestModels:
    def test_every_model(self, name):
        model = DYNAMICS[name]()
        y0 = model.initial_state(torch.randn(3, 2, dtype=D), t0=0.5).detach()
        # states between the steps too
        assert_same(model, y0, torch.linspace(0.5, 1.5, 9, dtype=D), method="bosh3")


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
class TestSlow:
    @pytest.mark.parametrize(
        "method", ["adaptive_heun", "fehlberg2", "bosh3", "tsit5", "dopri5", "dopri8", "rk4"]
    )
    def test_every_kind_of_method(self, method):
        field, y0 = Timed(), torch.randn(3, 2, dtype=D)
        assert_same(field, y0, torch.linspace(0, 1, 7, dtype=D), method)
        assert_same(field, y0, (1.0, 0.0), method)

    def test_the_extra_stages_of_dopri8(self):
        field, y0 = Timed(), torch.randn(3, 2, dtype=D)
        options = {"dense": True}
        found, plain = (
            pjo.solve(field, y0, (0.0, 1.0), solver("dopri8", **options, **more))
            for more in ({"compile": True}, {})
        )
        t = torch.linspace(0, 1, 9, dtype=D)
        assert float((found(t) - plain(t)).abs().max()) < 1e-12
        assert found.stats.nfe_forward == plain.stats.nfe_forward

    @pytest.mark.parametrize("adjoint", ["gauss", "interpolating", "backsolve"])
    def test_continuous_adjoints(self, adjoint):
        field, y0 = Timed(), torch.randn(3, 2, dtype=D)
        assert_same(field, y0, (0.0, 0.4, 1.0), "bosh3", adjoint)

    def test_gradcheck(self):
        field, y0 = Timed(), torch.randn(2, 2, dtype=D, requires_grad=True)

        def end(y, *params):
            return pjo.solve(field, y, (0.0, 0.3, 1.0), solver("rk4", compile=True)).y

        assert torch.autograd.gradcheck(end, (y0, *field.parameters()))

    def test_options_of_the_solve(self):
        field, y0 = Timed(), torch.randn(3, 2, dtype=D)
        given = [
            {"jump_t": [0.3]},
            {"perturb": True},
            {"first_step": 0.1},
            {"norm": lambda x: x.abs().max()},
            {"dense": True},
        ]
        for options in given:
            assert_same(field, y0, (0.0, 0.37, 1.0), "bosh3", **options)
        assert_same(field, y0, torch.linspace(0, 1, 7), "rk4", interp="linear", step_size=0.3)

    def test_an_event(self):
        field, y0 = Timed(), torch.randn(3, 2, dtype=D)
        runs = []
        rate = field(torch.zeros((), dtype=D), y0)[0, 0].detach()
        for options in ({"compile": True}, {}):
            start = y0.clone().requires_grad_()
            given = solver("bosh3", **options)
            found = pjo.solve(
                *(field, start, (0.0, 1.0), given),
                event_fn=lambda t, y: (y[0, 0] - y0[0, 0]) / rate - 0.1,
            )
            runs.append((found.event_t, torch.autograd.grad(found.event_t, start)[0]))
        torch.testing.assert_close(runs[0], runs[1], **CLOSE)

    def test_gradients_of_times_and_of_parameters_by_name(self):
        field, y0 = Timed(), torch.randn(3, 2, dtype=D)
        t = torch.linspace(0, 1, 4, dtype=D, requires_grad=True)
        bias = field.net[0].bias
        for params in (None, [bias]):
            grads = []
            for options in ({"compile": True}, {"checkpoint": True}):
                found = pjo.solve(field, y0, t, solver("bosh3", **options), params=params)
                grads.append(torch.autograd.grad(found.y.square().sum(), [t, bias]))
            torch.testing.assert_close(grads[0], grads[1], **CLOSE)

    def test_a_tuple_and_single_precision(self):
        class Pair(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = field_of(2, 2)

            def forward(self, t, y):
                return self.net(y[0]), -t * y[1]

        field, y0 = Pair(), (torch.randn(3, 2, dtype=D), torch.ones(4, dtype=D))
        runs = []
        for options in ({"compile": True}, {"checkpoint": True}):
            found = pjo.solve(field, y0, (0.0, 1.0), solver("bosh3", **options))
            loss = found.y[0].sum() + found.y[1].sum()
            runs.append((found.y, torch.autograd.grad(loss, list(field.parameters()))))
        torch.testing.assert_close(runs[0], runs[1], **CLOSE)
        assert_same(Timed(torch.float32), torch.randn(3, 2), method="rk4")

    def test_changes_of_the_module_are_noticed(self):
        field, y0 = Timed(), torch.randn(3, 2, dtype=D)

        def replace_weight():
            field.net[0].weight = nn.Parameter(torch.randn(4, 3, dtype=D))

        def replace_data():
            field.net[0].weight.data = torch.randn(3, 4, dtype=D).t()

        changes = [
            lambda: None,
            lambda: setattr(field, "scale", 0.5),
            lambda: field.scales.__setitem__(0, 0.7),
            lambda: setattr(field.settings, "scale", 0.5),
            replace_weight,
            replace_data,
            lambda: field.net[0].weight.requires_grad_(False),
            lambda: field.net.append(nn.Tanh()),
        ]
        for change in changes:
            change()
            assert_same(field, y0)

    def test_modules_that_change_when_called(self):
        y0 = torch.randn(3, 2, dtype=D)
        for func in (Counts(), Plain(nn.BatchNorm1d(2).to(D))):
            if isinstance(func, Plain):
                norm = func.function
                func.forward = lambda t, y, norm=norm: norm(y)
            with pytest.raises(UnsupportedError, match="changes its attributes or buffers"):
                pjo.solve(func, y0, (0.0, 1.0), solver(compile=True))

    def test_too_many_shapes_run_uncompiled(self):
        field = Plain(torch.mul)
        ran = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for n in range(1, 11):
                y0 = torch.randn(n, 2, dtype=D)
                found = pjo.solve(field, y0, (0.0, 1.0), solver(compile=True))
                ran.append(found.stats.compiled)
        assert ran == [True] * 8 + [False] * 2
        assert [str(w.message) for w in caught if "compiled 8 times" in str(w.message)]

    def test_threads(self):
        field, y0 = Timed(), torch.randn(3, 2, dtype=D)
        wanted, found = pjo.solve(field, y0, (0.0, 1.0), solver()).y, []

        def work():
            for _ in range(20):
                found.append(pjo.solve(field, y0, (0.0, 1.0), solver(compile=True)).y)

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(found) == 80
        for y in found:
            torch.testing.assert_close(y, wanted, **CLOSE)

    def test_inference_mode(self):
        field = Timed()
        with torch.inference_mode():
            y0 = torch.randn(3, 2, dtype=D)
            found = pjo.solve(field, y0, (0.0, 1.0), solver(compile=True)).y
            torch.testing.assert_close(found, pjo.solve(field, y0, (0.0, 1.0), solver()).y)

    def test_without_a_compiler(self):
        from torch._inductor import config

        field = Plain(lambda t, y: torch.sin(3.25 * y))
        without = config.patch({"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True})
        with without, pytest.raises(UnsupportedError, match=r"inductor.*compile"):
            pjo.solve(field, torch.randn(3, 2, dtype=D), (0.0, 1.0), solver(compile=True))

    def test_a_training_run_compiles_once(self, monkeypatch):
        made = []
        compiled = program._compile
        monkeypatch.setattr(program, "_compile", lambda *args: made.append(1) or compiled(*args))
        layer = pjo.NeuralODE(pjo.HBNODE(field_of(2, 2)).to(D), solver=solver(compile=True))
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        h0, losses = torch.randn(6, 2, dtype=D), []
        for _ in range(10):
            optimizer.zero_grad()
            loss = layer(h0).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert layer.stats.compiled
        assert losses[-1] < losses[0]
        assert len(made) == 2  # the step, and the product through it
