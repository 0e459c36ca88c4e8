"""Native mode: modules as tapes, against torch."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from problems import F64, Field, gradients, models, relative_error
from torch import nn

import pyjuliaode as pjo
from pyjuliaode.backends.julia.native.builder import Untranslatable
from pyjuliaode.backends.julia.native.tape import FUNCTIONS, LINEAR
from pyjuliaode.backends.julia.native.translate import translate

CONTINUOUS = ["gauss", "interpolating", "quadrature", "backsolve"]
ADJOINTS = ["direct", *CONTINUOUS]


def julia(native: str = "always", tol: float = 1e-8, adjoint: str = "auto", method: str = "tsit5"):
    return pjo.Solver(method, tol, tol, adjoint=adjoint, backend="julia", native=native)


def of(function) -> nn.Module:
    """A module of a function (module, t, y)."""

    class Func(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.tensor(0.7))
            self.shift = nn.Parameter(torch.tensor([0.3, -0.2]))
            self.register_buffer("held", torch.tensor([1.5, 0.5]))

        def forward(self, t, y):
            return function(self, t, y)

    return Func().to(F64)


# ---------------------------------------------------------------------------------- translation


def test_views_cost_nothing_and_scalars_are_computed_once():
    tape = translate(models()["hbnode"], torch.tensor(0.0, dtype=F64), torch.zeros(2, 5, 2).to(F64))
    assert tape.shape == (2, 5, 2)
    assert [op.code for op in tape.before_time] == [FUNCTIONS["sigmoid"]]
    assert sum(op.code == LINEAR for op in tape.ops) == 2
    assert {op.code for op in tape.timely} <= {
        FUNCTIONS["cos"],
        FUNCTIONS["sin"],
        FUNCTIONS["affine"],
    }
    assert tape.scalars - tape.later == sum(op.n for op in tape.timely)

    def with_time(m, t, y):  # the time spread over the batch is one number
        return m.net(y) * (torch.ones_like(y) * t)

    tape = translate(of(with_time), torch.tensor(0.0, dtype=F64), torch.zeros(7, 2, dtype=F64))
    assert [op.n for op in tape.timely] == [1]
    assert tape.shape == (1, 7, 2)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda m, t, y: torch.softmax(m.net(y), -1), "softmax"),
        (lambda m, t, y: nn.functional.batch_norm(y, None, None, training=True), "call eval"),
        (lambda m, t, y: m.net(y) if t < 1 else -y, "tracing|aten.lt.Scalar"),
        (lambda m, t, y: m.net(y) + torch.randn_like(y), "randn_like"),
        (lambda m, t, y: nn.functional.dropout(m.net(y), 0.5), "dropout"),
        (lambda m, t, y: m.net(y).float().double(), "dtype"),
        (lambda m, t, y: m.net(y) @ m.net(y).T @ y, "product of two tensors"),
    ],
)
def test_what_has_no_native_form_is_named(function, said):
    with pytest.raises(Untranslatable, match=said):
        translate(of(function), torch.tensor(0.0, dtype=F64), torch.zeros(7, 2, dtype=F64))


# --------------------------------------------------------------------------------- against torch


def after_the_net(f):
    return lambda m, t, y: f(m.net(y))


OPERATIONS = {
    **{
        name: after_the_net(f)
        for name, f in {
            "tanh": torch.tanh,
            "sigmoid": torch.sigmoid,
            "relu": torch.relu,
            "elu": nn.functional.elu,
            "elu 0.5": nn.ELU(0.5),
            "leaky_relu": nn.functional.leaky_relu,
            "hardtanh": nn.functional.hardtanh,
            "softplus": nn.functional.softplus,
            "softplus 3": nn.Softplus(3.0, 2.0),
            "silu": nn.functional.silu,
            "gelu": nn.functional.gelu,
            "gelu tanh": nn.GELU("tanh"),
            "exp": torch.exp,
            "sin": torch.sin,
            "cos": torch.cos,
            "abs": torch.abs,
            "cube": lambda x: x**3,
            "square root": lambda x: torch.sqrt(x * x + 1),
            "logarithm": lambda x: torch.log(x * x + 1),
            "reciprocal": lambda x: 1 / (x * x + 1),
            "quotient": lambda x: x / (x.pow(2) + 2),
        }.items()
    },
    "scalars": lambda m, t, y: 2 - m.scale * y + 3 * m.net(y) - y / 4,
    "parameters alone": lambda m, t, y: torch.sigmoid(m.scale) * y + torch.exp(m.shift),
    "time": lambda m, t, y: torch.sin(3 * t) * y + m.net(torch.cos(t) * y) * m.scale / (1 + t),
    "time as an input": lambda m, t, y: m.net(torch.cat([y[:, :1], t.expand(y.shape[0], 1)], 1)),
    "mixed operands": lambda m, t, y: (
        torch.tanh(torch.cat([y[:, :1], t.expand(y.shape[0], 1)], 1) * m.shift) + y
    ),
    "buffers and constants": lambda m, t, y: (
        m.net(y) * m.held + torch.tensor([0.1, 0.2], dtype=y.dtype)
    ),
    "columns": lambda m, t, y: torch.stack([y[:, 1] * m.scale, -y[:, 0] * y[:, 1]], 1),
    "flip": lambda m, t, y: y.flip(1) - m.net(y),
    "matrix": lambda m, t, y: y @ m.net.weight + torch.addcmul(y, y, m.shift, value=0.5),
    "residual": lambda m, t, y: m.net(torch.tanh(m.net(y) + y)) - y,
    "sum": lambda m, t, y: m.net(y) * y.pow(2).sum(1, keepdim=True) - y.sum(-1)[:, None] * t,
    "mean": lambda m, t, y: y - torch.tanh(m.net(y)).mean(1, True) * m.shift.mean(0),
    "sum of scalars": lambda m, t, y: y * torch.sin(t * m.net.weight).sum(),
    "mixed samples": lambda m, t, y: m.net(y) - y.mean(0),
    "layer norm": lambda m, t, y: nn.functional.layer_norm(m.net(y), (2,), m.shift, m.held, 0.1),
    "no state": lambda m, t, y: (m.shift * t).expand(y.shape),
    "over the transposed": lambda m, t, y: (m.net(y).T * 2).T,
}


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([nn.Conv2d(2, 2, 3, stride=2, padding=1)], "stride"),
        ([nn.Conv2d(2, 2, 1, padding=1)], "beyond its kernel"),
        ([nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")], "pad"),
        ([nn.Conv3d(2, 2, 1)], "conv3d"),
    ],
)
def test_convolutions_without_a_native_form_are_named(layers, said):
    y = torch.zeros(3, 2, *[6] * (layers[0].weight.ndim - 2), dtype=F64)
    with pytest.raises(Untranslatable, match=said):
        translate(Images(*layers).to(F64), torch.tensor(0.0, dtype=F64), y)


@pytest.mark.julia
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_and_their_products_are_torch_s(name):
    """The translation is compared with torch before it is used, and here once more: gradients of
    the same steps, by the tape and by autograd, agree to rounding.
    """
    func = of(OPERATIONS[name])
    y0 = (torch.randn(7, 2, dtype=F64) * 0.5).requires_grad_()
    t = torch.tensor([0.1, 0.4, 0.6], dtype=F64)
    inputs = [y0, *func.parameters()]
    for method in ("tsit5", "dopri5"):
        found = {}
        for native in ("always", "never"):
            solver = julia(native, 1e-4, "direct", method)
            sol = pjo.solve(func, y0, t, solver)
            assert sol.stats.native is (native == "always")
            found[native] = [sol.y, *gradients(sol.y, inputs)]
        # steps differ by the rounding of their error estimates
        assert relative_error(found["always"], found["never"]) < 1e-9


class Images(nn.Module):
    """Convolutions one after another, with the time as one more channel where they want it."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, t, y):
        for layer in self.layers:
            if hasattr(layer, "kernel_size"):
                rank = len(layer.kernel_size) + 1
                if layer.in_channels > y.shape[-rank]:
                    y = torch.cat([y, t.expand_as(y.narrow(-rank, 0, 1))], -rank)
            y = torch.tanh(layer(y))
        return y


def _used(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """With statistics of a batch, and no longer in training."""
    norm(torch.randn(50, norm.num_features, 2, 2) * 2 + 1)
    return norm.eval()


CONVOLUTIONS = {
    "1 x 1": lambda: [nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1, bias=False)],
    "3 x 3": lambda: [nn.Conv2d(2, 7, 3, padding=1), nn.Conv2d(7, 2, 3, padding=1)],
    "time": lambda: [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(5, 2, 1)],
    "dilation": lambda: [
        nn.Conv2d(2, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 2, (5, 3), padding=(2, 1)),
    ],
    "same": lambda: [nn.Conv2d(2, 4, 5, padding="same"), nn.Conv2d(4, 2, (3, 1), padding="same")],
    "groups": lambda: [nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.Conv2d(4, 2, 1, groups=2)],
    "group norm": lambda: [nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)],
    "batch norm": lambda: [nn.Conv2d(2, 4, 1), _used(nn.BatchNorm2d(4)), nn.Conv2d(4, 2, 1)],
    "smaller between": lambda: [nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 3, padding=2)],
}


@pytest.mark.julia
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_products_are_torch_s(name):
    """As above; one image, some, and more than a block has lanes."""
    func = Images(*CONVOLUTIONS[name]()).to(F64)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    shapes = [(1, 2, 6, 7), (3, 2, 5, 5), (20, 2, 6, 7), (400, 2, 9, 9)]
    for shape in [*shapes, (2, 6, 7)] if "norm" not in name else shapes:
        y0 = torch.randn(shape, dtype=F64, requires_grad=True)
        inputs, found = [y0, *func.parameters()], []
        for native in ("always", "never"):
            sol = pjo.solve(func, y0, t, julia(native, 1e-5, "direct"))
            found.append([sol.y, *gradients(sol.y, inputs)])
        assert relative_error(*found) < 1e-9


@pytest.mark.julia
@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
def test_convolutions_of_signals_second_order_models_and_float32(adjoint):
    signals = Images(nn.Conv1d(3, 5, 3, padding=1), nn.Conv1d(5, 2, 3, padding=2, dilation=2))
    images = pjo.HBNODE(Images(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)))
    h0 = torch.randn(5, 2, 6, 6)
    for func, y0 in ((signals, torch.randn(6, 2, 11)), (images, images.initial_state(h0))):
        for dtype in (torch.float32, F64):
            func, y0 = func.to(dtype), y0.detach().to(dtype).requires_grad_()
            inputs, found = [y0, *func.parameters()], []
            for native in ("always", "never"):
                sol = pjo.solve(func, y0, [0.0, 1.0], julia(native, 1e-5, adjoint))
                found.append([sol.y, *gradients(sol.y, inputs)])
            # of two adaptive solves at 1e-5; float32 rounds sums of hundreds of numbers
            assert relative_error(*found) < (1e-4 if dtype == F64 else 1e-3)


@pytest.mark.julia
@pytest.mark.timeout(900)
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", models())
def test_models_and_adjoints_agree_with_the_torch_backend(name, adjoint):
    """To 1e-7 at tolerance 1e-10."""
    dynamics = models()[name]
    for shape in ((3, 2), (40, 2), (2,)):
        h0 = torch.randn(shape, dtype=F64, requires_grad=True)
        if name == "anode" and len(shape) == 1:
            continue
        inputs = [h0, *dynamics.parameters()]
        t = (1.0, 1.4, 2.0)
        found = []
        for solver in (julia("always", 1e-10, adjoint), pjo.Solver("dopri5", 1e-11, 1e-11)):
            model = pjo.NeuralODE(dynamics, t=t, solver=solver)
            found.append(gradients(model(h0), inputs))
        assert relative_error(*found) < 1e-7


@pytest.mark.julia
@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_shapes_directions_and_precisions(adjoint, dtype):
    """Against the callbacks: whole blocks, part of one, one sample, more axes, decreasing times."""
    field = Field().to(dtype)
    for shape in ((1, 2), (8, 2), (9, 2), (1000, 2), (3, 4, 2), (2,)):
        y0 = torch.randn(shape, dtype=dtype, requires_grad=True)
        for t in ([0.0, 0.3, 1.0], [1.0, 0.3, 0.0]):
            inputs = [y0, *field.parameters()]
            found = []
            for native in ("always", "never"):
                tol = 1e-9 if dtype == F64 else 1e-5
                sol = pjo.solve(field, y0, t, julia(native, tol, adjoint))
                found.append([sol.y, *gradients(sol.y, inputs)])
            # of two adaptive solves at that tolerance; float32 sums over 1000 samples
            assert relative_error(*found) < (1e-6 if dtype == F64 else 2e-3)


@pytest.mark.julia
def test_stiff_methods_and_second_order_ones_run_natively_too():
    dynamics = models()["hbnode"]
    h0 = torch.randn(3, 2, dtype=F64, requires_grad=True)
    inputs = [h0, *dynamics.parameters()]
    wanted = gradients(
        pjo.NeuralODE(dynamics, solver=pjo.Solver("dopri5", 1e-11, 1e-11))(h0), inputs
    )
    for method in ("Rodas5P", "FineRKN5", "Vern7"):
        model = pjo.NeuralODE(dynamics, solver=julia("always", 1e-9, "gauss", method))
        assert relative_error(gradients(model(h0), inputs), wanted) < 1e-5
        assert model.stats.native


@pytest.mark.julia
def test_what_a_failed_solve_reached_can_be_differentiated():
    """y' = k y^2 blows up at 1; d y(1/2) / dk = t y^2 = 2. The steps near 1 are not finite."""
    func = of(lambda m, t, y: m.scale * y**2)
    with torch.no_grad():
        func.scale.fill_(1.0)
    y0 = torch.ones(3, 2, dtype=F64)
    sol = pjo.solve(func, y0, [0.0, 0.5, 2.0], julia("always", adjoint="direct"), throw=False)
    assert not sol.retcode.successful
    assert sol.stats.native
    sol.y[-1, 0, 0].backward()
    assert float(func.scale.grad) == pytest.approx(2.0, rel=1e-6)


# --------------------------------------------------------------------------- when it is not native


@pytest.mark.julia
def test_auto_falls_back_and_always_says_why():
    y0, t = torch.randn(3, 2, dtype=F64), [0.0, 1.0]
    shares = of(lambda m, t, y: torch.softmax(m.net(y), -1))
    sol = pjo.solve(shares, y0, t, julia("auto"))
    assert not sol.stats.native
    with pytest.raises(pjo.UnsupportedError, match="softmax"):
        pjo.solve(shares, y0, t, julia("always"))
    with pytest.raises(pjo.UnsupportedError, match=r"nn\.Module"), torch.no_grad():
        pjo.solve(lambda t, y: -y, y0, t, julia("always"))
    with pytest.raises(pjo.InvalidArgumentError, match="native"):
        pjo.Solver(native="sometimes")


@pytest.mark.julia
def test_what_calls_change_is_not_native():
    """Statistics of batches, and buffers that count."""
    t, y0 = [0.0, 1.0], torch.randn(3, 2, 4, 4, dtype=F64)
    trained = Images(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).to(F64)
    with pytest.raises(pjo.UnsupportedError, match=r"eval\(\)"), torch.no_grad():
        pjo.solve(trained, y0, t, julia("always"))
    assert trained.layers[1].num_batches_tracked == 0
    assert pjo.solve(trained.eval(), y0, t, julia("always")).stats.native

    def counting(m, t, y):
        m.held.add_(1.0)
        return m.net(y)

    with pytest.raises(pjo.UnsupportedError, match="add_"):
        pjo.solve(of(counting), torch.randn(3, 2, dtype=F64), t, julia("always"))


@pytest.mark.julia
def test_auto_leaves_large_networks_to_torch():
    y0, t = torch.randn(64, 300, dtype=F64), [0.0, 0.1]

    class Wide(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(300, width), nn.Tanh(), nn.Linear(width, 300)).to(
                F64
            )

        def forward(self, t, y):
            return self.net(y)

    assert not pjo.solve(Wide(200), y0, t, julia("auto")).stats.native
    assert pjo.solve(Wide(200), y0, t, julia("always")).stats.native
    assert pjo.solve(Wide(20), y0, t, julia("auto")).stats.native


@pytest.mark.julia
def test_hooks_and_counters_are_kept_alive_by_callbacks():
    """What a module does beside its arithmetic would not happen natively."""
    y0, t = torch.randn(3, 2, dtype=F64), [0.0, 1.0]

    class Counting(Field):
        nfe = 0

        def forward(self, t, y):
            self.nfe += 1
            return super().forward(t, y)

    func = Counting()
    sol = pjo.solve(func, y0, t, julia("auto"))
    assert not sol.stats.native
    assert func.nfe >= sol.stats.nfe_forward
    hooked, calls = Field(), []
    assert pjo.solve(hooked, y0, t, julia("auto")).stats.native
    handle = hooked.net[0].register_forward_hook(lambda *_: calls.append(1))
    assert not pjo.solve(hooked, y0, t, julia("auto")).stats.native
    assert calls
    handle.remove()
    assert pjo.solve(hooked, y0, t, julia("auto")).stats.native


@pytest.mark.julia
def test_a_module_that_changes_is_translated_again():
    y0, t = torch.randn(3, 2, dtype=F64), [0.0, 1.0]
    func = of(lambda m, t, y: torch.tanh(m.net(y)) * m.gain + m.parts[0])
    func.gain, func.parts = 1.0, [1.0]

    def check():
        with torch.no_grad():
            found = pjo.solve(func, y0, t, julia("always"))
            wanted = pjo.solve(func, y0, t, julia("never"))
        assert relative_error([found.y], [wanted.y]) < 1e-9

    check()
    func.gain = 2.0
    check()
    func.parts[0] = 3.0
    check()
    with torch.no_grad():
        func.net.weight.mul_(1.5)
    check()
    func.net.weight.data = torch.randn(2, 2, dtype=F64)
    check()
    func.net = nn.Linear(2, 2).to(F64)
    check()
    func.net.weight.data = torch.randn(2, 2, dtype=F64).T  # no longer contiguous
    check_either = pjo.solve(func, y0, t, julia("auto")).y
    assert relative_error([check_either], [pjo.solve(func, y0, t, julia("never")).y]) < 1e-9


GAIN = 1.0


@pytest.mark.julia
def test_what_its_code_reads_elsewhere_is_translated_again(monkeypatch):
    """A global: seen by no slope before t = 1/2."""

    def late(m, t, y):
        return -m.scale * y + GAIN * torch.relu(t - 0.5)

    func, y0 = of(late), torch.ones(4, 2, dtype=F64)
    for gain in (1.0, 5.0, 1.0):
        monkeypatch.setitem(globals(), "GAIN", gain)
        with torch.no_grad():
            found = pjo.solve(func, y0, [0.0, 2.0], julia())
            wanted = pjo.solve(func, y0, [0.0, 2.0], pjo.Solver("tsit5", 1e-8, 1e-8))
        assert relative_error([found.y], [wanted.y]) < 1e-6


@pytest.mark.julia
def test_frozen_listed_and_foreign_tensors():
    y0, t = torch.randn(3, 2, dtype=F64), [0.0, 1.0]
    func = of(lambda m, t, y: m.net(y) * m.scale + m.held)
    func.scale.requires_grad_(False)
    sol = pjo.solve(func, y0, t, julia("always"))
    sol.y[-1].sum().backward()
    assert func.scale.grad is None
    assert func.net.weight.grad is not None
    # the parameters that the user names, and no others
    listed = (func.net.bias,)
    sol = pjo.solve(func, y0, t, julia("always"), params=listed)
    (g,) = torch.autograd.grad(sol.y[-1].sum(), listed)
    assert relative_error([g], [func.net.bias.grad]) < 1e-9
    # a tensor with a gradient that is no parameter is not lost natively
    func.held = nn.Linear(2, 2).to(F64)(torch.ones(2, dtype=F64))
    sol = pjo.solve(func, y0, t, julia("auto"))
    assert not sol.stats.native
    with pytest.raises(pjo.UnsupportedError, match="among its"):
        sol.y.sum().backward()


@pytest.mark.julia
def test_parameters_changed_after_the_solve_raise():
    field, y0 = Field(), torch.randn(3, 2, dtype=F64, requires_grad=True)
    y = pjo.solve(field, y0, [0.0, 1.0], julia("always")).y
    with torch.no_grad():
        field.net[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


@pytest.mark.julia
def test_two_solves_with_different_parameters_keep_their_own():
    field, y0 = Field(), torch.randn(3, 2, dtype=F64, requires_grad=True)
    grads = []
    for _ in range(2):
        y = pjo.solve(field, y0, [0.0, 1.0], julia("always", adjoint="gauss")).y
        other = pjo.solve(Field(), y0, [0.0, 1.0], julia("always", adjoint="gauss")).y
        grads.append(torch.autograd.grad(y[-1].sum(), [y0, *field.parameters()]))
        del other
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.julia
def test_ctrl_c_stops_a_native_solve():
    field, y0 = Field(), torch.randn(500, 2, dtype=F64)
    solver = pjo.Solver(
        *("DP5", 1e-8, 1e-8),
        backend="julia",
        native="always",
        max_steps=10**9,
        options={"step_size": 2e-6, "dense": False},
    )
    with torch.no_grad():
        pjo.solve(field, y0, [0.0, 1e-6], solver)  # compiled, translated
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pjo.solve(field, y0, [0.0, 10.0], solver)
        assert pjo.solve(field, y0, [0.0, 1e-6], solver).y.isfinite().all()
