"""torch.compile, torch.export, torch.jit: a solve is opaque to them, or followed, or refused."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from problems import F64
from torch import nn

import pyjuliaode as pjo

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, while it traces


@pytest.fixture(autouse=True)
def _fresh_dynamo(caplog):
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    logging.getLogger("torch").setLevel(logging.ERROR)


def field(width=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, width))


class Net(nn.Module):
    def __init__(self, solver, dynamics=pjo.HBNODE):
        super().__init__()
        self.before, self.after = nn.Linear(3, 3), nn.Linear(3, 1)
        self.ode = pjo.NeuralODE(dynamics(field()), solver=solver)

    def forward(self, x):
        return self.after(self.ode(torch.relu(self.before(x))))


SOLVERS = {
    "direct": pjo.Solver(),
    "replay": pjo.Solver(options={"checkpoint": True}),
    "gauss": pjo.Solver("dopri5", adjoint="gauss"),
    "pan": pjo.Solver("pan"),
    "fixed": pjo.Solver("rk4", dt=0.25),
    "per sample": pjo.Solver(options={"per_sample": True}),
}


def compiled_calls(model, calls):
    """Losses and gradients of a compiled model, and what dynamo did for the calls after three."""
    compiled, counters = torch.compile(model, backend="eager"), torch._dynamo.utils.counters
    sizes = (3, 5, 7, 9, 2)
    for i in range(calls):
        if i == 3:
            after = dict(counters["frames"]), counters["stats"]["unique_graphs"]
        x = torch.randn(sizes[i % 5], 3, generator=torch.Generator().manual_seed(i))
        model.zero_grad()
        loss = compiled(x).square().mean()
        loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    again = model(x).square().mean()
    again.backward()
    assert torch.allclose(loss, again, rtol=1e-6)
    for a, p in zip(found, model.parameters(), strict=True):
        assert torch.allclose(a, p.grad, rtol=1e-5, atol=1e-7)
    assert (dict(counters["frames"]), counters["stats"]["unique_graphs"]) == after
    return sum(counters["graph_break"].values())


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_compiled_model_breaks_once_and_is_never_compiled_again(solver):
    """Batches of changing size: after dynamo has made the batch dynamic nothing is recompiled."""
    breaks = compiled_calls(Net(SOLVERS[solver]), 20)
    assert breaks == 2  # one, of the first size and of the dynamic one


@pytest.mark.slow
def test_a_hundred_calls_by_inductor_cost_what_eager_ones_do():
    """The solve is opaque to the default backend too; its code is compiled in the first calls."""
    model = Net(SOLVERS["direct"])
    compiled = torch.compile(model)
    for i in range(100):
        compiled(torch.randn(3 + i % 5, 3)).sum().backward()
        if i == 5:
            frames = dict(torch._dynamo.utils.counters["frames"])
    assert dict(torch._dynamo.utils.counters["frames"]) == frames


def test_a_compiled_layer_is_called_as_it_is():
    layer = pjo.NeuralODE(pjo.NODE(field()))
    x = torch.randn(4, 3)
    assert torch.equal(torch.compile(layer)(x), layer(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda y: pjo.odeint(lambda t, y: -y, y, torch.tensor([0.0, 1.0])),
        lambda y: pjo.odeint_adjoint(pjo.NODE(field()), y, torch.tensor([0.0, 1.0])),
        lambda y: pjo.solve(lambda t, y: -y, y, [0.0, 1.0]).y,
        lambda y: pjo.odeint_event(lambda t, y: -y, y, 0.0, event_fn=lambda t, y: y.sum() - 3)[1],
        lambda y: pjo.MomentumNet([field()] * 3, gamma=0.5, mode="reversible")(y),
    ],
)
def test_functions_are_opaque_too(call):
    y = torch.ones(2, 3, requires_grad=True)
    wanted = call(y)
    found = torch.compile(lambda y: 2 * call(y), backend="eager")(y) / 2
    assert torch.equal(found, wanted)
    found.sum().backward()
    assert y.grad is not None


def test_a_compiled_field_stays_compiled():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    inner = torch.compile(field(), backend=backend)
    model = Net(SOLVERS["direct"], lambda _: pjo.HBNODE(inner))
    compiled = torch.compile(model, backend="eager")
    compiled(torch.randn(4, 3))
    before = len(graphs)
    compiled(torch.randn(4, 3))
    assert len(graphs) == before > 0


def test_fullgraph_says_what_to_do():
    model = Net(SOLVERS["direct"])
    with pytest.raises(Exception, match=r"Leave out fullgraph=True.*compile the field alone"):
        torch.compile(model, fullgraph=True, backend="eager")(torch.randn(4, 3))
    with pytest.raises(Exception, match=r"use torch\.export with strict=False"):
        torch.export.export(model, (torch.randn(4, 3),), strict=True)
    net = pjo.MomentumNet([field()], gamma=0.5, mode="reversible")
    with pytest.raises(Exception, match=r"Leave out fullgraph=True, or use mode='backprop'"):
        torch.compile(net, fullgraph=True, backend="eager")(torch.randn(4, 3))


@pytest.mark.parametrize("method", ["rk4", "euler", "midpoint", "heun3"])
@pytest.mark.parametrize("adjoint", ["auto", "gauss", "backsolve"])
@pytest.mark.parametrize("dynamics", [pjo.NODE, pjo.HBNODE, pjo.GHBNODE])
def test_fixed_steps_are_exported_with_any_batch(method, adjoint, dynamics):
    solver = pjo.Solver(method, dt=0.25, adjoint=adjoint, backend="torch")
    model = Net(solver, dynamics).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (torch.randn(4, 3),), dynamic_shapes=({0: batch},), strict=False
    )
    for n in (4, 9):
        x = torch.randn(n, 3)
        # the exported steps are those of the graph, which round otherwise than the buffered ones
        assert torch.allclose(program.module()(x), model(x), atol=1e-6)
    with torch.no_grad():
        traced = torch.jit.trace(model, (torch.randn(4, 3),), check_trace=False)
    x = torch.randn(4, 3)
    assert torch.allclose(traced(x), model(x), atol=1e-6)


@pytest.mark.parametrize("called", [False, True])
def test_a_layer_by_itself_is_exported_without_a_warning(called):
    """torch warns of tensors that are assigned to attributes of the exported module."""
    model = pjo.NeuralODE(field(), solver=pjo.Solver("rk4", dt=0.25, backend="torch")).eval()
    x = torch.randn(4, 3)
    y = model(x) if called else None
    program = torch.export.export(model, (x,), strict=False)
    assert torch.allclose(program.module()(x), model(x) if y is None else y, atol=1e-6)


@pytest.mark.parametrize("solver", ["direct", "replay", "gauss", "pan", "per sample"])
def test_what_cannot_be_exported_says_what_can(solver):
    model = Net(SOLVERS[solver])
    x = torch.randn(4, 3)
    words = r"values that are not there while a model is exported or traced: use a Runge-Kutta"
    with pytest.raises(pjo.UnsupportedError, match=words):
        torch.export.export(model, (x,), strict=False)
    with pytest.raises(pjo.UnsupportedError, match=words):
        torch.jit.trace(model, (x,))


def test_torchscript_is_refused_in_a_sentence():
    with pytest.raises(
        pjo.UnsupportedError, match=r"torch\.jit\.script cannot compile a NeuralODE"
    ):
        torch.jit.script(nn.Sequential(nn.Linear(3, 3), pjo.NeuralODE(field())))


def test_an_ensemble_of_layers_is_the_members_one_by_one():
    """torch.func.stack_module_state: times that are not learned are no state to be stacked."""
    solver = pjo.Solver("rk4", dt=0.1, backend="torch")
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        inner = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
        members.append(pjo.NeuralODE(pjo.HBNODE(inner), (0.0, 1.0), solver))
    parameters, buffers = torch.func.stack_module_state(members)
    x = torch.randn(5, 4)

    def one(p, b):
        return torch.func.functional_call(members[0], (p, b), (x,))

    found = torch.vmap(one)(parameters, buffers)
    assert torch.allclose(found, torch.stack([m(x) for m in members]), atol=1e-6)


def test_images_keep_their_memory_format():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    layer = pjo.NeuralODE(conv.to(memory_format=torch.channels_last), solver=pjo.Solver("rk4"))
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y, layer(x.contiguous()), atol=1e-6)
    assert layer(x.contiguous()).is_contiguous()


def test_times_of_a_layer_live_on_the_host_and_can_be_replaced():
    layer = pjo.NeuralODE(pjo.NODE(nn.Identity()), (0.0, 1.0)).to(F64)
    assert layer.t.device.type == "cpu"
    assert not dict(layer.named_buffers())
    x = torch.ones(1, 1, dtype=F64)
    one = layer(x)
    layer.t = torch.tensor([0.0, 2.0], dtype=F64)
    assert abs(float(layer(x).detach()) - float(one.detach()) ** 2) < 1e-4


def test_importing_the_package_does_not_import_the_compiler():
    code = "import sys, pyjuliaode; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
