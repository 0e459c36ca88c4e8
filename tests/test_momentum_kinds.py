"""Momentum networks where a mode, a batch, a thread, a hook or a change could lead astray."""

import copy
import threading

import pytest
import torch
from torch import nn

import pyjuliaode as pjo
from pyjuliaode.momentum.exact import ExactState

F64 = torch.float64
MODES = ["backprop", "reversible"]


def block(dtype=F64, seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)).to(dtype)


def net(functions, mode="reversible", gamma=0.9, **choices):
    return pjo.MomentumNet(functions, gamma, mode=mode, **choices)


def unrolled(functions, x, gamma=0.9):
    v = torch.zeros_like(x)
    for f in functions:
        v = gamma * v + (1 - gamma) * f(x)
        x = x + v
    return x


def randn(*shape, dtype=F64, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradients(model, x):
    x = x.detach().requires_grad_()
    y = model(x)
    return y.detach(), torch.autograd.grad(y.square().sum(), [x, *model.parameters()])


# --------------------------------------------------------------------------- modes of autograd


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_inference_mode_has_the_numbers_of_no_grad(mode, training):
    torch.manual_seed(0)
    resnet = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(*(Residual() for _ in range(3))))
    models = [
        (net([block(seed=k) for k in range(3)], mode), randn(5, 4)),
        (net([block()] * 3, mode, residual=False), randn(5, 4)),
        (net([block()] * 3, mode, init_speed=block(seed=7)), randn(5, 4)),
        (pjo.to_momentum(resnet, mode=mode), randn(2, 3, 4, 4, dtype=torch.float32)),
    ]
    if mode == "backprop":
        models.append((pjo.to_momentum(resnet, gamma=0.0), randn(2, 3, 4, 4, dtype=torch.float32)))
    for model, x in models:
        model.train(training)
        other = copy.deepcopy(model)
        with torch.no_grad():
            wanted = model(x)
        with torch.inference_mode():
            assert torch.equal(other(x), wanted)
            assert torch.equal(
                copy.deepcopy(other).eval()(x.clone()), copy.deepcopy(model).eval()(x)
            )
        for (name, a), b in zip(other.named_buffers(), model.buffers(), strict=True):
            assert torch.equal(a, b), name


def test_inference_mode_undoes_layers_and_its_tensors_are_taken_outside():
    model, x = net([block(seed=k) for k in range(3)]), randn(5, 4)
    with torch.inference_mode():
        assert torch.equal(model.reconstruct(x)[0], x)
        made = x.clone()
    y = model(made)
    y.sum().backward()
    torch.testing.assert_close(y, unrolled(model.functions, x), rtol=0, atol=1e-12)


def test_an_in_place_function_is_refused_or_does_no_harm():
    functions = [nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)).double()] * 3
    with torch.no_grad(), pytest.raises(pjo.InvalidArgumentError, match="in place"):
        net(functions)(randn(5, 4))
    x = randn(5, 4)
    with torch.inference_mode():
        given = x.clone()
        y = net(functions)(given)
        assert torch.equal(given, x)
    with torch.no_grad():
        wanted = unrolled([nn.Sequential(nn.ReLU(), functions[0][1])] * 3, x)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jvp
def test_transforms_and_tangents_are_refused_in_a_sentence():
    model, x = net([block()] * 3), randn(5, 4)
    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.vmap):
        with pytest.raises(pjo.UnsupportedError, match="use mode='backprop'"):
            transform(lambda x: model(x).sum())(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(pjo.UnsupportedError, match="use mode='backprop'"):
            model(dual)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(model)(x), model(x), rtol=0, atol=1e-12)


# ------------------------------------------------------------- one row does not disturb another


ROUNDING = {torch.float32: 1e-5, F64: 1e-13, torch.bfloat16: 0.1}


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 5, 4), (5, 3, 4), (3, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("outlier", [1e4, 1e20, -1e30, float("inf"), float("nan")])
def test_an_outlier_leaves_the_other_samples_as_they_are(shape, dtype, outlier):
    functions = [nn.Tanh()] * 6 if len(shape) == 1 else [block(dtype, k) for k in range(6)]
    x = randn(*shape, dtype=dtype)
    batch = 1 if shape[0] == 5 else 0  # of sequences, the second
    bad = x.clone()
    bad.select(batch, 1)[...] = outlier
    others = torch.tensor([0, 2])

    def run(x):
        x = x.detach().requires_grad_()
        y = net(functions)(x).index_select(batch, others)
        return y.detach(), torch.autograd.grad(y.sum(), x)[0].index_select(batch, others)

    for found, wanted in zip(run(bad), run(x), strict=True):
        error = (found - wanted).abs().max() / wanted.abs().max()
        assert float(error) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e20])
def test_rows_of_any_sizes_are_right_and_come_back(dtype, size):
    """A batch of a tiny, a common, a huge and a zero sample; a linear network."""
    torch.manual_seed(0)
    f = nn.Linear(4, 4, bias=False).to(dtype)
    x = randn(4, 4, dtype=dtype)
    x *= torch.tensor([[size], [1.0], [1e10], [0.0]], dtype=dtype)
    for gamma in (0.9, 0.5, 0.999999):
        assert torch.equal(net([f] * 20, gamma=gamma).reconstruct(x)[0], x)
        found = [linear_loss(net([f] * 20, mode, gamma), x) for mode in MODES]
        (wanted, wx, ww), (y, gx, gw) = found
        near = 20 * ROUNDING[dtype]  # 20 layers, each of which rounds
        scale = wanted.abs().amax(1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
        torch.testing.assert_close(y / scale, wanted / scale, rtol=0, atol=near)
        torch.testing.assert_close(gx, wx, rtol=near, atol=near)
        assert float((gw.double() - ww.double()).norm() / ww.double().norm()) < near


def linear_loss(model, x):
    """Output, and the gradients of its sum: those of squares of 1e20 are infinite in float32."""
    x = x.detach().requires_grad_()
    y = model(x)
    return y.detach(), *torch.autograd.grad(y.sum(), [x, *model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("gamma", [0.9, 0.1234567, 0.999999])
def test_rows_that_grow_and_start_from_nothing_come_back(dtype, gamma):
    """Every row multiplies by another factor, and some begin at zero: digits go row by row."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=generator, dtype=dtype)
    x[:3] *= torch.tensor([[0.0], [1e-25], [1e-8]], dtype=dtype)
    factors = torch.tensor([[1.0], [30.0], [3.0], [1.5], [0.0], [-2.0]], dtype=dtype)
    state = ExactState(x, torch.zeros_like(x), gamma)
    first = state.x.clone(), state.v.clone()
    seen = []
    for k in range(30):
        seen.append(state.value())
        state.advance(factors * seen[-1] + (0.5 if k == 3 else 0.0))
    assert state.lost
    assert int(state.x.abs().max()) < 2**state.whole.bits
    back = copy.copy(state)
    for before in reversed(seen):
        assert torch.equal(back.retreat(), before)
        k = back.layers - 1
        back.undo(factors * before + (0.5 if k == 3 else 0.0))
    assert torch.equal(back.x, first[0])
    assert torch.equal(back.v, first[1])


def test_a_row_that_ceases_to_be_finite_is_nan_from_there_on_and_alone():
    class Log(nn.Module):
        def forward(self, x):
            return torch.log(x)

    x = torch.tensor([[0.4, 0.9], [2.0, 3.0], [3.0, 5.0]], dtype=F64)  # log 0.4 leads below 0
    wanted, found = (gradients(net([Log()] * 4, mode, 0.2), x) for mode in MODES)
    assert wanted[0][0].isnan().any()
    assert found[0][0].isnan().all()
    torch.testing.assert_close(found[0][1:], wanted[0][1:], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1][0][1:], wanted[1][0][1:], rtol=1e-12, atol=0)


def test_a_function_that_shuffles_rows_does_not_pass_for_itself():
    """Sums over the batch do not see it."""

    class Rolled(nn.Module):
        calls = 0

        def forward(self, x):
            Rolled.calls += 1
            return torch.tanh(x.roll(Rolled.calls, 0))

    y = net([Rolled()] * 5)(randn(6, 4).requires_grad_())
    with pytest.raises(pjo.SolverError, match="did not repeat"):
        y.sum().backward()


# ------------------------------------------------------------------------------------- threads


def in_threads(work, n=4):
    errors = []

    def guarded(i):
        try:
            work(i)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


@pytest.mark.parametrize("kind", ["plain", "norm", "dropout", "hooked"])
def test_threads_share_a_network(kind):
    last = {"norm": lambda: nn.BatchNorm1d(4), "dropout": lambda: nn.Dropout(0.3)}.get(
        kind, nn.Tanh
    )
    functions = [nn.Sequential(nn.Linear(4, 4), last(), nn.Tanh()).double() for _ in range(4)]
    model, calls = net(functions), 5
    if kind == "hooked":
        functions[0][0].weight.register_hook(lambda g: 2 * g)
    x = randn(6, 4)
    first = model if kind == "hooked" else copy.deepcopy(model)  # copies have no hooks
    wanted = None if kind == "dropout" else gradients(first, x)

    def work(i):
        for _ in range(calls):
            _, found = gradients(model, x)
            if wanted is not None:
                # the order of sums alone differs
                torch.testing.assert_close(found, wanted[1], rtol=1e-9, atol=1e-12)

    in_threads(work)
    if kind == "norm":
        assert all(abs(int(f[1].num_batches_tracked) - 4 * calls) <= 1 for f in functions)
        assert all(f[1].running_mean.abs().sum() > 0 for f in functions)


def test_backward_may_run_in_another_thread():
    functions = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double() for _ in range(3)]
    model, x = net(functions), randn(6, 4)
    wanted = gradients(copy.deepcopy(model), x)[1][1:]
    y = model(x)
    in_threads(lambda i: y.square().sum().backward(), n=1)
    found = [p.grad for p in model.parameters()]
    torch.testing.assert_close(found, list(wanted), rtol=1e-12, atol=1e-13)
    assert all(int(f[1].num_batches_tracked) == 1 for f in functions)


# --------------------------------------------------------------------------------------- hooks


@pytest.mark.parametrize("tied", [True, False])
def test_hooks_of_tensors_see_the_whole_gradient_once(tied):
    found = {}
    for mode in MODES:
        functions = [block()] * 3 if tied else [block(seed=k) for k in range(3)]
        model, seen = net(functions, mode), []
        weight = functions[0][0].weight
        weight.register_hook(lambda g, seen=seen: seen.append(g) or 2 * g)
        weight.register_post_accumulate_grad_hook(lambda p, seen=seen: seen.append(p.grad.clone()))
        x = randn(5, 4).requires_grad_()
        x.register_hook(lambda g, seen=seen: seen.append(g) or 3 * g)
        model(x).square().sum().backward()
        assert len(seen) == 3
        found[mode] = [x.grad, *(p.grad for p in model.parameters()), *seen]
    torch.testing.assert_close(found["reversible"], found["backprop"], rtol=1e-11, atol=1e-12)


def test_backward_hooks_of_blocks_see_what_they_see_in_backpropagation():
    found = {}
    for mode in MODES:
        functions, seen = [block(seed=k) for k in range(3)], []
        for f in functions:
            f.register_full_backward_pre_hook(lambda m, g, seen=seen: seen.append(g[0]))
            f[0].register_full_backward_hook(lambda m, i, o, seen=seen: seen.extend((*i, *o)))
        net(functions, mode)(randn(5, 4).requires_grad_()).square().sum().backward()
        assert len(seen) == 9
        found[mode] = seen
    torch.testing.assert_close(found["reversible"], found["backprop"], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_forward_hooks_would_run_twice_and_are_refused(register):
    for choose in (lambda f: f, lambda f: f[1]):
        f, calls = block(), []
        getattr(choose(f), register)(lambda *_, calls=calls: calls.append(1))
        with pytest.raises(pjo.InvalidArgumentError, match=r"functions\[0\] .* forward hook"):
            net([f] * 3)(randn(5, 4))
        assert not calls
        net([f] * 3, "backprop")(randn(5, 4))
        with torch.no_grad():
            net([f] * 3)(randn(5, 4))
        assert len(calls) == 6


# torch's old weight_norm is a forward pre-hook of its own, and is called again
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "normed", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm], ids=["new", "old"]
)
def test_weights_that_the_function_computes(normed):
    found = []
    for mode in MODES:
        torch.manual_seed(0)
        f = nn.Sequential(normed(nn.Linear(4, 4)), nn.Tanh()).double()
        found.append(gradients(net([f] * 4, mode), randn(5, 4))[1])
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-12)


def test_tensors_computed_before_the_call_are_right_or_refused():
    class Closed(nn.Module):
        def __init__(self, make):
            super().__init__()
            self.weight = nn.Parameter(randn(4, 4) / 4)
            self.made = make(self.weight)

        def forward(self, x):
            return torch.tanh(x @ self.made)

    right = [gradients(net([Closed(lambda w: w + 1)] * 3, mode), randn(5, 4))[1] for mode in MODES]
    torch.testing.assert_close(right[1], right[0], rtol=1e-11, atol=1e-12)
    # of a product the graph keeps the factors, and for one pass
    with pytest.raises(pjo.InvalidArgumentError, match="computed from its parameters before"):
        net([Closed(lambda w: w @ w)] * 3)(randn(5, 4))
    f = block()
    f.scale = None
    model = net([f, Late(f)])
    model(randn(5, 4)).sum().backward()
    f.scale = torch.ones(4, dtype=F64, requires_grad=True)  # seen although the first call was good
    with pytest.raises(pjo.InvalidArgumentError, match=r"functions\[1\] .* neither one of its"):
        model(randn(5, 4))


class Late(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x) if self.f.scale is None else self.f(x) * self.f.scale


# --------------------------------------------------------- changes between forward and backward


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("shift", torch.zeros(4))
        self.factor = 0.5

    def forward(self, x):
        return self.dropout(torch.tanh(self.linear(x) * self.frozen + self.shift)) * self.factor


def step(m):
    optimizer = torch.optim.SGD(m.parameters(), 0.1)
    m.linear.weight.grad = torch.ones_like(m.linear.weight)
    optimizer.step()


CHANGES = {
    "step": (step, r"functions\[0\].linear.weight has been modified by an inplace operation"),
    "frozen": (lambda m: m.frozen.mul_(2), "functions.0..frozen has been modified"),
    "buffer": (lambda m: m.shift.add_(1), "functions.0..shift has been modified"),
    "rebound": (
        lambda m: setattr(m.linear, "bias", nn.Parameter(torch.ones(4, dtype=F64))),
        "functions.0..linear.bias is another tensor",
    ),
    "eval": (lambda m: m.eval(), "functions.0..dropout.training was True, is False"),
    "attribute": (lambda m: setattr(m, "factor", 0.6), "functions.0..factor was 0.5, is 0.6"),
    "data": (lambda m: m.linear.weight.data.mul_(2), "did not repeat"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_before_backward_is_named(name):
    change, said = CHANGES[name]
    torch.manual_seed(0)
    f = Scaled().double()
    y = net([f] * 5)(randn(5, 4))
    with torch.no_grad():
        change(f)
    with pytest.raises(RuntimeError, match=said):
        y.sum().backward()


def test_changes_that_change_nothing_are_none():
    """eval() where the mode plays no part; parameters that need no gradient any more."""
    f, x = block(), randn(5, 4)
    _, wanted = gradients(net([f] * 3, "backprop"), x)
    x.requires_grad_()
    params = list(f.parameters())
    y = net([f] * 3)(x)
    f.eval()
    params[0].requires_grad_(False)
    y.square().sum().backward()
    params[0].requires_grad_(True)
    torch.testing.assert_close(x.grad, wanted[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        [p.grad for p in params[1:]], list(wanted[2:]), rtol=1e-11, atol=1e-12
    )


def test_statistics_of_a_later_pass_are_no_change():
    """Two passes in training, then their gradients: statistics play no part in either."""
    functions = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double() for _ in range(3)]
    model = net(functions)
    wanted = gradients(copy.deepcopy(model), randn(6, 4))[1]
    x = randn(6, 4).requires_grad_()
    y = model(x)
    model(randn(6, 4, seed=5))
    found = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("cast", [False, True])
def test_dropout_under_autocast_is_drawn_again(cast):
    functions = [nn.Sequential(block(torch.float32, k), nn.Dropout(0.3)) for k in range(4)]
    found = []
    for mode in MODES:
        torch.manual_seed(7)
        x = randn(5, 4, dtype=torch.float32).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            y = net(functions, mode)(x)
        torch.rand(3)  # the generator has moved on
        found.append(torch.autograd.grad(y.sum(), [x, *functions[0].parameters()]))
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
    assert error < (2e-2 if cast else 1e-5)  # bfloat16 has 8 bits, float32 has 24
