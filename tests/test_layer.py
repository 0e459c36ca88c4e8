"""NeuralODE, SolveStats, Solution, and per-sample stepping."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from problems import F64, Field, gradients, models, relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyjuliaode as pjo


class Decay(nn.Module):
    def forward(self, h):
        return -h


@pytest.mark.parametrize("name", models())
def test_every_model_trains_as_a_layer(name):
    """Ten steps of Adam lower the loss, with statistics of both directions."""
    dynamics = models()[name]
    model = pjo.NeuralODE(dynamics, (1.0, 2.0), pjo.Solver("dopri5", 1e-5, 1e-5))
    h0, target = torch.randn(16, 2, dtype=F64), torch.randn(16, 2, dtype=F64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (model(h0)[:, :2] - target).square().mean()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        assert model.stats.nfe_forward > 0
        assert model.stats.nfe_backward > 0
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_two_times_return_the_last_state_and_more_return_all():
    model = pjo.NeuralODE(pjo.HBNODE(Field()).to(F64))
    h0 = torch.randn(5, 2, dtype=F64)
    assert model(h0).shape == (5, 2)
    assert model(h0, t=[0.0, 0.5, 1.0]).shape == (3, 5, 2)
    assert torch.allclose(model(h0, t=[0.0, 0.5, 1.0])[-1], model(h0), atol=1e-5)


def test_a_bare_field_becomes_a_node():
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    model = pjo.NeuralODE(net)
    assert isinstance(model.dynamics, pjo.NODE)
    assert model(torch.randn(3, 2)).dtype == torch.float32


def test_initial_velocity_and_time_can_be_given_at_the_call():
    model = pjo.NeuralODE(pjo.HBNODE(Field()).to(F64))
    h0 = torch.randn(5, 2, dtype=F64)
    dh0 = torch.randn(5, 2, dtype=F64, requires_grad=True)
    h1 = model(h0, dh0=dh0)
    assert not torch.allclose(h1, model(h0))
    h1.sum().backward()
    assert float(dh0.grad.abs().max()) > 0


def test_layers_are_copied_pickled_and_restored():
    model = pjo.NeuralODE(pjo.HBNODE(Field()).to(F64))
    h0 = torch.randn(5, 2, dtype=F64)
    with torch.no_grad():
        wanted = model(h0)
    other = pjo.NeuralODE(pjo.HBNODE(Field()).to(F64))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(h0), wanted)
        assert torch.equal(copy.deepcopy(model)(h0), wanted)
        assert torch.equal(pickle.loads(pickle.dumps(model))(h0), wanted)
    assert "dopri5" in repr(pjo.NeuralODE(Field(), solver=pjo.Solver("dopri5")))


def test_fewer_than_two_times_are_refused():
    with pytest.raises(pjo.InvalidArgumentError, match="at least 2 times"):
        pjo.NeuralODE(Field(), t=[0.0])


@pytest.mark.parametrize("name", ["hbnode", "nesterovnode", "gnesterovnode"])
def test_times_are_differentiated_through_initial_state_and_readout(name):
    """Of the Nesterov family both depend on the time; finite differences with step 1e-5."""
    dynamics = models()[name]
    h0 = torch.randn(2, 2, dtype=F64)
    t = torch.tensor([1.0, 1.3, 2.0], dtype=F64, requires_grad=True)
    model = pjo.NeuralODE(dynamics, (1.0, 2.0), pjo.Solver("dopri5", 1e-10, 1e-10))
    assert torch.autograd.gradcheck(lambda t: model(h0, t), (t,), eps=1e-5, atol=1e-5)


def test_a_learned_end_time_is_a_parameter():
    t = nn.Parameter(torch.tensor([0.0, 1.0], dtype=F64))
    model = pjo.NeuralODE(pjo.HBNODE(Field()).to(F64), t)
    model(torch.randn(2, 2, dtype=F64)).sum().backward()
    assert float(t.grad.abs().max()) > 0
    with pytest.raises(pjo.InvalidArgumentError, match=r"nn\.Parameter"):
        pjo.NeuralODE(Field(), t=torch.tensor([0.0, 1.0], requires_grad=True))


def test_times_that_are_not_learned_are_those_that_were_loaded():
    """y = y0 e^-t, to the last time that the module's state has; 1e-6: ten tolerances."""
    t = nn.Parameter(torch.tensor([0.0, 1.0], dtype=F64), requires_grad=False)
    model = pjo.NeuralODE(Decay(), t, pjo.Solver("dopri5", 1e-7, 1e-7))
    one = torch.ones(1, 1, dtype=F64)
    model(one)
    model.load_state_dict({"t": torch.tensor([0.0, 2.0], dtype=F64)})
    assert abs(float(model(one)) - math.exp(-2.0)) < 1e-6


def test_statistics_are_printed_where_they_are_not_at_their_defaults():
    stats = pjo.SolveStats(nfe_forward=32, n_accepted=5, method="dopri5", seconds=0.03583)
    shown = "nfe_forward=32, n_accepted=5, method=dopri5, seconds=0.0358"
    assert repr(stats) == str(stats) == f"SolveStats({shown})"
    assert "retcode=MaxIters" in repr(pjo.SolveStats(retcode=pjo.Retcode.MAX_ITERS))


def test_images_of_any_shape_pass_through():
    model = pjo.NeuralODE(pjo.SONODE(nn.Conv2d(4, 2, 3, padding=1)))
    x = torch.randn(3, 2, 8, 8, requires_grad=True)
    y = model(x)
    assert y.shape == x.shape
    y.square().mean().backward()
    assert x.grad.shape == x.shape


def test_statistics_of_a_solve():
    calls = 0

    def f(t, y):
        nonlocal calls
        calls += 1
        return torch.sin(20 * t) * y

    t = torch.tensor([0.0, 3.0], dtype=F64)
    s = pjo.solve(f, torch.ones(1, dtype=F64), t, pjo.Solver("dopri5", 1e-8, 1e-8))
    stats = s.stats
    assert stats.nfe_forward == calls == 2 + 6 * (stats.n_accepted + stats.n_rejected)
    assert (stats.method, stats.adjoint, stats.backend) == ("dopri5", "direct", "torch")
    assert stats.retcode is s.retcode is pjo.Retcode.SUCCESS
    assert len(s.step_t) == stats.n_accepted + 1
    assert stats.seconds > 0


def test_per_sample_steps_are_as_accurate_and_independent_of_the_company():
    """A sample's result does not depend on a stiff neighbour; its gradient agrees with direct."""
    rate = torch.tensor([[-1.0], [-60.0], [0.5]], dtype=F64)

    def f(t, y):
        return rate[: y.shape[0]] * y + torch.sin(t)

    t = torch.tensor([0.0, 0.4, 1.0], dtype=F64)
    y0 = torch.ones(3, 1, dtype=F64, requires_grad=True)
    own = pjo.Solver("dopri5", 1e-8, 1e-8, options={"per_sample": True})
    joint = pjo.Solver("dopri5", 1e-10, 1e-10)
    together = pjo.solve(f, y0, t, own).y
    alone = pjo.solve(f, y0[:1], t, own).y
    # another batch may be rounded in another way; a common step would be off by the tolerance
    torch.testing.assert_close(together[:, :1], alone, rtol=1e-12, atol=0)
    exact = pjo.solve(f, y0, t, joint).y
    assert float((together - exact).abs().max().detach()) < 1e-6  # 100 tol
    error = relative_error(gradients(together, [y0]), gradients(exact, [y0]))
    assert error < 1e-6


@pytest.mark.parametrize("name", ["hbnode", "sonode", "nesterovnode", "gnesterovnode"])
def test_per_sample_stepping_works_for_dynamics(name):
    dynamics = models()[name]
    h0 = torch.randn(6, 2, dtype=F64)
    joint = pjo.NeuralODE(dynamics, (1.0, 2.0), pjo.Solver("tsit5", 1e-9, 1e-9))
    options = {"per_sample": True}
    own = pjo.NeuralODE(dynamics, (1.0, 2.0), pjo.Solver("tsit5", 1e-9, 1e-9, options=options))
    assert float((joint(h0) - own(h0)).abs().max().detach()) < 1e-7


def test_per_sample_backward_in_time_and_its_refusals():
    y0 = torch.ones(4, 1, dtype=F64)
    own = pjo.Solver("tsit5", 1e-9, 1e-9, options={"per_sample": True})
    y = pjo.solve(lambda t, y: y * torch.cos(t), y0, torch.tensor([2.0, 1.0, 0.0]), own).y
    exact = torch.exp(torch.sin(torch.tensor([2.0, 1.0, 0.0], dtype=F64)))
    exact = exact / exact[0]
    assert float((y[:, 0, 0] - exact).abs().max()) < 1e-7
    with pytest.raises(pjo.UnsupportedError, match="adaptive method"):
        pjo.solve(
            lambda t, y: y, y0, [0.0, 1.0], pjo.Solver("rk4", dt=0.1, options={"per_sample": True})
        )
    with pytest.raises(pjo.InvalidArgumentError, match="batch_dim 3"):
        pjo.solve(
            lambda t, y: y, y0, [0.0, 1.0], pjo.Solver(options={"per_sample": True, "batch_dim": 3})
        )


def test_no_reference_cycle_keeps_solutions_alive():
    """Memory of a finished solve goes with its last reference, not with the garbage collector."""
    import gc
    import weakref

    field = Field()
    y0 = torch.randn(2, 2, dtype=F64, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        for adjoint in ("direct", "gauss", "backsolve"):
            for options in (None, {"checkpoint": True}):
                solver = pjo.Solver("dopri5", adjoint=adjoint, options=options)
                s = pjo.solve(field, y0, torch.tensor([0.0, 1.0], dtype=F64), solver)
                s.y.sum().backward()
                watch = weakref.ref(s.y)
                del s
                assert watch() is None, adjoint
                assert gc.collect() == 0, adjoint
    finally:
        gc.enable()


@pytest.mark.parametrize("adjoint", ["direct", "replay", "gauss", "backsolve", "interpolating"])
def test_the_host_waits_for_the_device_at_most_once_in_a_step(adjoint):
    """Counts reads of a tensor's value on the host: one a step, and four to choose the first.

    Backward: one a step of the adjoint's own, and three: the size of the gradient in two norms, and
    whether the field is what it was; by backsolve also whether the state is.
    """
    reads = 0

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal reads
            reads += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    options = {"checkpoint": True} if adjoint == "replay" else None
    kind = "direct" if adjoint == "replay" else adjoint
    solver = pjo.Solver("dopri5", 1e-9, 1e-9, adjoint=kind, options=options)
    field, y0 = Field(), torch.randn(4, 2, dtype=F64, requires_grad=True)
    problem = ([0.0, 3.0], solver)
    with Reads():
        s = pjo.solve(field, y0, *problem)
        attempts = s.stats.n_accepted + s.stats.n_rejected
        assert attempts > 8
        assert attempts <= reads <= attempts + 4
        reads = 0
        s.y[-1].square().sum().backward()
    steps_back = {"direct": 0, "replay": 0}.get(adjoint, s.stats.nfe_backward // 6)
    assert reads <= steps_back + 6 + (adjoint == "backsolve")


def test_per_sample_gradients_are_finite_in_float32():
    field = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    solver = pjo.Solver("dopri5", 1e-4, 1e-4, options={"per_sample": True})
    own = pjo.NeuralODE(field, solver=solver)
    h0 = 3 * torch.randn(32, 2)
    own(h0).square().sum().backward()
    found = field[0].weight.grad.clone()
    field.zero_grad()
    pjo.NeuralODE(field, solver=pjo.Solver("dopri5", 1e-5, 1e-5))(h0).square().sum().backward()
    assert relative_error([found], [field[0].weight.grad]) < 1e-3


def test_a_rejected_nan_trial_does_not_reach_per_sample_gradients():
    w = torch.tensor(1.0, dtype=F64, requires_grad=True)
    options = {"per_sample": True, "first_step": 0.5}
    y0 = torch.tensor([[1.0], [2.0]], dtype=F64, requires_grad=True)
    f = lambda t, y: -w * torch.sqrt(y - 0.3)  # noqa: E731
    s = pjo.solve(f, y0, [0.0, 1.4], pjo.Solver("dopri5", 1e-6, 1e-6, options=options))
    s.y.sum().backward()
    assert s.stats.n_rejected > 0
    assert bool(y0.grad.isfinite().all())


@pytest.mark.parametrize(
    "options", [{"jump_t": [0.5]}, {"step_t": [0.5]}, {"perturb": True}, {"dense": True}]
)
def test_per_sample_refuses_what_it_does_not_support(options):
    solver = pjo.Solver("dopri5", options={"per_sample": True, **options})
    with pytest.raises(pjo.UnsupportedError, match="joint solve"):
        pjo.solve(lambda t, y: -y, torch.ones(2, 1), [0.0, 1.0], solver)


def test_per_sample_refuses_events():
    solver = pjo.Solver("dopri5", options={"per_sample": True})
    with pytest.raises(pjo.UnsupportedError, match="events"):
        pjo.solve(
            lambda t, y: -y, torch.ones(2, 1), [0.0, 1.0], solver, event_fn=lambda t, y: y[0] - 0.5
        )
