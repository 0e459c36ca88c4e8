"""What holds for every adjoint with every method: one grid, a property a function."""

from __future__ import annotations

import gc
import math
import warnings
import weakref

import pytest
import torch
from problems import F64, methods
from torch import nn

import pyjuliaode as pjo
from pyjuliaode import adjoints
from pyjuliaode.backends.torch.plan import Plan

ADAPTIVE = ("dopri5", "tsit5", "bosh3", "dopri8", "adaptive_heun")
FIXED = ("rk4", "midpoint", "heun3", "explicit_adams", "implicit_adams")
WAYS = {
    "graph": adjoints.Direct(checkpoint=False),
    "replay": adjoints.Direct(checkpoint=True),
    "outgrown": adjoints.Auto(graph_memory=1.0),
    "gauss": adjoints.Gauss(),
    "interpolating": adjoints.Interpolating(),
    "backsolve": adjoints.Backsolve(),
}


def _exists(method: str, way: str) -> bool:
    if method == "pan" and way in ("replay", "outgrown"):
        return False  # both are "graph" there
    if method.endswith("adams") and way == "outgrown":
        return False  # a history cannot be replayed: the graph has no limit
    try:
        WAYS[way].check(Plan.build(method, 1e-6, 1e-6).abilities)
    except pjo.UnsupportedError:
        return False
    return True


def _combinations() -> list[object]:
    found = []
    for method in (*ADAPTIVE, *FIXED, "pan"):
        marks = getattr(*methods(method), "marks", ())
        for way in WAYS:
            if _exists(method, way):
                found.append(pytest.param(method, way, marks=marks, id=f"{method}-{way}"))
    return found


grid = pytest.mark.parametrize(("method", "way"), _combinations())


def solver(method: str, way: str, tol: float = 1e-9, **options) -> pjo.Solver:
    if method == "bosh3" or method == "adaptive_heun":
        tol = max(tol, 1e-7)  # of order 3 and 2: thousands of steps otherwise
    dt = 0.02 if method in FIXED else None
    return pjo.Solver(
        method, tol, tol, WAYS[way], "torch", dt=dt, max_steps=100_000, options=options
    )


def close(found: float, wanted: float, method: str) -> None:
    """1e-5: steps of 0.02 err by 0.02^3 where a method is of third order or more, and the others
    by the tolerance; midpoint by 0.02^2."""
    assert found == pytest.approx(wanted, rel=1e-3 if method == "midpoint" else 1e-5)


class Decay(nn.Module):
    """y' = -a s y, with a parameter, a buffer and an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7, dtype=F64))
        self.register_buffer("scale", torch.tensor(1.0, dtype=F64))
        self.factor = 1.0

    def forward(self, t, y, *args):
        rate = self.a * self.scale * self.factor
        for x in args:
            rate = rate * x
        return -rate * y


def start() -> torch.Tensor:
    return torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)


WANTED = -3.0 * math.exp(-0.7)  # d/da of the sum of y(1) = (1 + 2) exp(-a)


@grid
def test_gradients_of_state_parameters_args_and_times(method, way):
    field, y0 = Decay(), start()
    c = torch.tensor(2.0, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=F64, requires_grad=True)
    y = pjo.solve(field, y0, t, solver(method, way), args=(c * 0.5,)).y
    y[-1].sum().backward()
    e = math.exp(-0.7)
    close(y0.grad[0].item(), e, method)
    close(field.a.grad.item(), WANTED, method)
    close(c.grad.item(), 0.5 * 0.7 * WANTED, method)
    close(t.grad[2].item(), -0.7 * 3 * e, method)
    close(t.grad[0].item(), 0.7 * 3 * e, method)
    assert abs(t.grad[1].item()) < 1e-6  # y(1) does not depend on what else is asked for


@grid
def test_args_are_kept_where_an_attribute_that_changes_is_refused(method, way):
    """Two conditions, one backward: their sum as args; an error, or the sum, as an attribute."""
    total, field = 0.0, Decay()
    for c in (1.0, 2.0):
        total = total + pjo.solve(field, start(), [0.0, 1.0], solver(method, way), args=(c,)).y[-1]
    total.sum().backward()
    wanted = WANTED - 6.0 * math.exp(-1.4)
    close(field.a.grad.item(), wanted, method)

    total, field = 0.0, Decay()
    for field.factor in (1.0, 2.0):
        total = total + pjo.solve(field, start(), [0.0, 1.0], solver(method, way)).y[-1]
    if way == "graph" and method != "pan":
        total.sum().backward()
        close(field.a.grad.item(), wanted, method)
    else:
        with pytest.raises(pjo.UnsupportedError, match=r"factor was replaced.*args="):
            total.sum().backward()


def _mode(field):
    field.drop.eval()


def _buffer(field):
    field.scale.mul_(3.0)


def _weight(field):
    field.a.data = field.a.data + 0.1


def _switched(field):
    field.a.requires_grad_(False)


@grid
@pytest.mark.parametrize("change", [_mode, _buffer, _weight, _switched])
def test_what_changes_before_backward_is_told(method, way, change):
    """Never the gradient of another field."""

    class Mode(Decay):
        def __init__(self):
            super().__init__()
            self.drop = nn.Identity()

        def forward(self, t, y):
            return super().forward(t, y) * (1.0 if self.drop.training else 0.5)

    field = Mode()
    a = field.a
    y = pjo.solve(field, start(), [0.0, 1.0], solver(method, way)).y[-1].sum()
    change(field)
    if way == "graph" and method != "pan":
        if change is _switched:
            return  # torch.autograd's own matter
        if change is _buffer:
            with pytest.raises(RuntimeError, match="inplace operation"):
                y.backward()
            return
        (found,) = torch.autograd.grad(y, a)
        close(found.item(), WANTED, method)
        return
    said = {
        _mode: "drop.training was switched",
        _buffer: "scale was written to",
        _weight: "a was written to",
        _switched: "required a gradient",
    }
    with pytest.raises(pjo.UnsupportedError, match=said[change]):
        y.backward()


@grid
def test_hooks_of_tensors_act_once_on_the_whole_gradient(method, way):
    field, y0 = Decay(), start()
    c = torch.tensor(1.0, dtype=F64, requires_grad=True)
    calls = []
    for x in (field.a, y0, c):
        x.register_hook(lambda g: calls.append(1) or 2 * g)
    pjo.solve(field, y0, [0.0, 1.0], solver(method, way), args=(c,)).y[-1].sum().backward()
    assert len(calls) == 3
    close(field.a.grad.item(), 2 * WANTED, method)
    close(y0.grad[0].item(), 2 * math.exp(-0.7), method)


@grid
def test_what_was_computed_of_parameters_before_the_solve(method, way):
    """Its graph is shared by all products, and goes on to the parameters of which it was made."""
    weight = torch.tensor([0.35], dtype=F64, requires_grad=True)

    class Prepared(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.35, dtype=F64))
            self.once = self.w.exp().log()  # made of the parameter, in a graph of its own

        def forward(self, t, y, extra):
            return -(self.once + extra.sum()) * y

    field = Prepared()
    args = (weight.exp().log(),)
    y = pjo.solve(field, start(), [0.0, 1.0], solver(method, way), args=args).y[-1].sum()
    y.backward(retain_graph=True)
    close(field.w.grad.item(), WANTED, method)
    close(weight.grad.item(), WANTED, method)
    y.backward()  # once more, through the same graphs
    close(field.w.grad.item(), 2 * WANTED, method)


@grid
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_gradient_is_linear_in_the_loss(method, way, scale):
    """Of a float32 solve: squares of such gradients have no number in float32."""
    field = Decay().float()
    y0 = torch.tensor([1.0, 2.0])
    y = pjo.solve(field, y0, [0.0, 1.0], solver(method, way, 1e-5)).y[-1]
    (y * scale).sum().backward()
    # float32's rounding in some hundred steps, and tolerances of 1e-5
    assert field.a.grad.item() / scale == pytest.approx(WANTED, rel=2e-3)


@grid
def test_equal_times_have_a_gradient_each(method, way):
    t = torch.tensor([0.2, 0.2, 0.9, 0.9, 0.9], dtype=F64, requires_grad=True)
    w = torch.tensor([0.3, -1.1, 0.7, 2.0, 0.4], dtype=F64)
    y = pjo.solve(Decay(), start(), t, solver(method, way)).y[:, 0]
    (found,) = torch.autograd.grad((w * y).sum(), t)
    exact = torch.exp(-0.7 * (t - t[0]))
    (wanted,) = torch.autograd.grad((w * exact).sum(), t)
    for a, b in zip(found.tolist(), wanted.tolist(), strict=True):
        close(a, b, method)


@grid
def test_a_field_may_differentiate_by_its_state_within_itself(method, way):
    """Gradient flow of V = a y²/2, by autograd.grad; solved in whatever mode the solver is in."""

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.7, dtype=F64))

        def forward(self, t, y):
            (g,) = torch.autograd.grad(0.5 * self.a * y.square().sum(), y, create_graph=True)
            return -g

    field = Flow()
    y = pjo.solve(field, start(), [0.0, 1.0], solver(method, way)).y[-1].sum()
    y.backward()
    close(field.a.grad.item(), WANTED, method)
    with torch.no_grad():
        again = pjo.solve(field, start(), [0.0, 1.0], solver(method, way)).y[-1].sum()
    assert again.item() == pytest.approx(y.item(), rel=1e-12)


@grid
def test_a_field_that_keeps_its_own_solution_is_freed(method, way):
    field = Decay()
    field.kept = pjo.solve(field, start(), [0.0, 1.0], solver(method, way)).y
    watch = weakref.ref(field)
    del field
    gc.collect()
    assert watch() is None


@grid
def test_a_field_that_does_not_read_its_state(method, way):
    class Drift(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = nn.Parameter(torch.tensor(1.5, dtype=F64))
            self.unused = nn.Parameter(torch.tensor(1.0, dtype=F64))

        def forward(self, t, y):
            return (self.k * torch.cos(t)).expand_as(y)

    field, y0 = Drift(), start()
    pjo.solve(field, y0, [0.0, 1.0], solver(method, way)).y[-1].sum().backward()
    close(field.k.grad.item(), 2 * math.sin(1.0), method)
    assert y0.grad.tolist() == pytest.approx([1.0, 1.0], rel=1e-12)
    assert field.unused.grad is None or field.unused.grad.item() == 0.0


@grid
def test_a_dependence_that_begins_later_is_not_lost_in_silence(method, way):
    """From t = 1/2 on the field reads a tensor that is none of its parameters."""

    class Later(Decay):
        def forward(self, t, y):
            return -(self.held[0] if t >= 0.5 else self.a) * y

    a, field = torch.tensor(0.7, dtype=F64, requires_grad=True), Later()
    field.held = [a]
    options = {} if method in FIXED else {"jump_t": [0.5]}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            y = pjo.solve(field, start(), [0.0, 1.0], solver(method, way, 1e-7, **options)).y[-1]
            y.sum().backward()
        except pjo.PyJuliaODEError:
            return
    if not any(isinstance(w.message, pjo.GradientWarning) for w in said):
        assert a.grad.item() == pytest.approx(0.5 * WANTED, rel=0.05)  # one step beside the jump


@grid
def test_nan_in_the_incoming_gradient_comes_out(method, way):
    field, y0 = Decay(), start()
    y = pjo.solve(field, y0, [0.0, 1.0], solver(method, way, 1e-6)).y[-1]
    y.backward(torch.full_like(y, torch.nan))
    assert bool(field.a.grad.isnan())
    assert bool(y0.grad.isnan().all())


@grid
@pytest.mark.parametrize("when", ["forward", "backward"])
def test_an_error_of_the_fields_own_comes_out_as_it_is(method, way, when):
    class Lost(Exception):
        pass

    class Fails(Decay):
        fails = False

        def forward(self, t, y):
            if type(self).fails:
                raise Lost("no connection")
            return super().forward(t, y)

    field = Fails()
    Fails.fails = when == "forward"
    if when == "backward" and way == "graph" and method != "pan":
        pytest.skip("backward does not call the field")

    def run():
        y = pjo.solve(field, start(), [0.0, 1.0], solver(method, way, 1e-6)).y[-1]
        Fails.fails = True
        y.sum().backward()

    with pytest.raises(Lost, match="no connection"):
        run()


@grid
def test_statistics_of_backward(method, way):
    s = pjo.solve(Decay(), start(), [0.0, 1.0], solver(method, way, 1e-6))
    assert (s.stats.nfe_backward, s.stats.seconds_backward) == (0, None)
    s.y[-1].sum().backward()
    assert s.stats.nfe_backward > 0
    own = way != "graph" or method == "pan"
    assert (s.stats.seconds_backward is not None) == own


@grid
def test_tuple_states_and_a_part_of_the_gradients(method, way):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.7, dtype=F64))

        def forward(self, t, y):
            return -self.a * y[0], y[0].sum().reshape(())

    field, h0 = Pair(), start()
    y = pjo.solve(field, (h0, torch.zeros((), dtype=F64)), [0.0, 1.0], solver(method, way)).y
    (found,) = torch.autograd.grad(y[1][-1], field.a)
    a = 0.7  # the integral of 3 exp(-a t) over [0, 1], by a
    wanted = 3 * (math.exp(-a) * (a + 1) - 1) / a**2
    close(found.item(), wanted, method)


def test_backsolve_that_does_not_come_back_says_so():
    """A contraction by e^-40 is an expansion by e^40 backward."""

    class Stiff(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = nn.Parameter(torch.tensor(40.0, dtype=F64))

        def forward(self, t, y):
            return -self.k * (y - torch.cos(t))

    solver = pjo.Solver("dopri5", 1e-6, 1e-6, "backsolve", "torch")
    y = pjo.solve(Stiff(), start(), [0.0, 1.0], solver).y[-1].sum()
    with pytest.raises(pjo.SolverError, match="came back"):
        y.backward()
    shorter = pjo.solve(Stiff(), start(), [0.0, 0.2], solver).y[-1].sum()
    with pytest.warns(pjo.GradientWarning, match="came back"):
        shorter.backward()


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "pan"])
def test_the_integral_over_parameters_has_an_error_control_of_its_own(method):
    """y' = -y/2 + a cos²(20 t): λ is smooth, ∂f/∂a is not.

    dy(3)/da = ∫ e^(-(3 - t)/2) (1 + cos 40 t)/2 dt, in closed form.
    """

    class Forced(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(1.0, dtype=F64))

        def forward(self, t, y):
            return -0.5 * y + self.a * torch.cos(20 * t) ** 2

    field = Forced()
    solver = pjo.Solver(method, 1e-6, 1e-8, "gauss", "torch", max_steps=100_000)
    pjo.solve(field, torch.zeros(1, dtype=F64), [0.0, 3.0], solver).y[-1].sum().backward()
    c, w = 0.5, 40.0
    smooth = (1 - math.exp(-3 * c)) / c
    wave = (c * math.cos(3 * w) + w * math.sin(3 * w) - c * math.exp(-3 * c)) / (c * c + w * w)
    # the tolerance, times what adds up over a few hundred panels
    assert field.a.grad.item() == pytest.approx(0.5 * (smooth + wave), abs=2e-5)


def test_an_adjoint_is_a_value():
    gauss = adjoints.Gauss(rtol=1e-5)
    assert pjo.Solver(adjoint=gauss).gradient == gauss
    assert pjo.Solver(adjoint="gauss", adjoint_rtol=1e-5).gradient == gauss
    assert pjo.Solver(options={"checkpoint": True}).gradient == adjoints.Auto(checkpoint=True)
    with pytest.raises(pjo.InvalidArgumentError, match="rtol is said by the adjoint"):
        pjo.Solver(adjoint=gauss, adjoint_rtol=1e-6)
    with pytest.raises(pjo.InvalidArgumentError, match="adjoint_method must be the name"):
        adjoints.Gauss(method=3)
    with pytest.raises(pjo.InvalidArgumentError, match="gauss"):
        pjo.Solver(adjoint="gaus")


def test_options_of_a_solver_do_not_change_in_place():
    solver = pjo.Solver(options={"max_step": 0.1})
    with pytest.raises(pjo.InvalidArgumentError, match="make another one"):
        solver.options["max_step"] = 0.2


def test_args_must_be_a_tuple():
    with pytest.raises(pjo.InvalidArgumentError, match=r"args=\(c,\)"):
        pjo.solve(Decay(), start(), [0.0, 1.0], args=torch.ones(1))


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "rk4", "pan"])
@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_watch_is_told_of_the_nodes_of_the_quadrature(method, scale):
    """Their weighted sums are integrals: of one, and of λᵀ ∂f/∂a = -λ y, the gradient itself."""
    nodes = []
    adjoint = pjo.Gauss(watch=lambda *node: nodes.append(node))
    dt = 0.02 if method == "rk4" else None
    solver = pjo.Solver(method, 1e-9, 1e-9, adjoint, "torch", dt=dt)
    field = Decay()
    y = pjo.solve(field, start(), [0.0, 0.4, 1.0], solver).y
    (scale * y[-1].sum()).backward()
    assert all(weight > 0 for _, weight, _, _ in nodes)
    assert sum(weight for _, weight, _, _ in nodes) == pytest.approx(1.0, rel=1e-12)
    # rounding alone: the same terms in another order
    found = sum(weight * float((-adj * y).sum()) for _, weight, y, adj in nodes)
    assert found == pytest.approx(field.a.grad.item(), rel=1e-9)
    assert nodes[0][0] > nodes[-1][0]
    assert nodes[0][2].shape == nodes[0][3].shape == (2,)
