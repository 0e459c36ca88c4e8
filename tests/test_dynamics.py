"""The models' equations against closed forms, SciPy, finite differences and published numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.special import gamma as gamma_function
from scipy.special import jv
from torch import Tensor, nn

from pyjuliaode import NeuralODE, Solver, solve
from pyjuliaode.dynamics import (
    ANODE,
    DYNAMICS,
    GHBNODE,
    HBNODE,
    NODE,
    SONODE,
    Dynamics,
    GNesterovNODE,
    NesterovNODE,
)
from pyjuliaode.errors import InvalidArgumentError

# DOP853 at rtol = 1e-12 leaves errors of some 1e-11 on these spans of length at most 3.
TOLERANCE = 1e-9


def integrate(
    model: Dynamics, h0: Tensor, t0: float, t1: float, dh0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h and h' at t1, with the state integrated by SciPy."""
    start = model.initial_state(h0, dh0, t0)

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(y).view(start.shape)
        return model(torch.tensor(t, dtype=state.dtype), state).detach().flatten().numpy()

    y0 = start.detach().flatten().numpy()
    end = solve_ivp(slope, (t0, t1), y0, method="DOP853", rtol=1e-12, atol=1e-13)
    assert end.success
    state = torch.from_numpy(end.y[:, -1].copy()).view(start.shape)
    t = torch.tensor(t1, dtype=state.dtype)
    return model.readout(t, state).detach(), model.velocity(t, state).detach()


def bessel(t: float, r: float) -> tuple[float, float]:
    """h and h' of h'' + (r/t) h' + h = 0 with h(0) = 1, h'(0) = 0."""
    nu = (r - 1) / 2
    scale = gamma_function(nu + 1) * (2 / t) ** nu
    return scale * jv(nu, t), -scale * jv(nu + 1, t)


def identity(h: Tensor) -> Tensor:
    return h


def zero(h: Tensor) -> Tensor:
    return torch.zeros_like(h)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1)


def first_order(augment: int = 0) -> nn.Module:
    return nn.Sequential(nn.Linear(2 + augment, 5), nn.Tanh(), nn.Linear(5, 2 + augment))


class TimeField(nn.Module):
    """f(t, h): a network whose input is h with the time appended."""

    def __init__(self, width: int = 2, out: int = 2):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width + 1, 4), nn.Tanh(), nn.Linear(4, out))

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return self.net(torch.cat((h, t.expand(*h.shape[:-1], 1)), -1))


def all_models(field=TimeField, **kwargs) -> list[Dynamics]:
    """One of every model, form and variant, on h of two features."""
    return [
        NODE(field(2, 2), **kwargs),
        ANODE(field(3, 3), **kwargs),
        SONODE(field(4, 2), **kwargs),
        HBNODE(field(2, 2), **kwargs),
        HBNODE(field(2, 2), gamma=0.3, **kwargs),
        GHBNODE(field(2, 2), **kwargs),
        GHBNODE(field(2, 2), gamma=0.3, xi=0.2, activation="hardtanh(3)", **kwargs),
        NesterovNODE(field(2, 2), **kwargs),
        NesterovNODE(field(2, 2), r=4, exact=True, **kwargs),
        NesterovNODE(field(2, 2), form="second_order", **kwargs),
        NesterovNODE(field(2, 2), variant="published", **kwargs),
        GNesterovNODE(field(2, 2), **kwargs),
        GNesterovNODE(field(2, 2), xi=0.5, activation="hardtanh", r=5, **kwargs),
        GNesterovNODE(field(2, 2), variant="published", sign=-1, **kwargs),
    ]


def label(model: Dynamics) -> str:
    return f"{type(model).__name__}({model.extra_repr()})"


# ------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("r", [3.0, 5.0])
def test_nesterov_second_order_from_t_0_is_the_bessel_function(r):
    model = NesterovNODE(identity, r=r, form="second_order")
    h, v = integrate(model, column(1.0, -2.0), 0.0, 3.0)
    exact_h, exact_v = bessel(3.0, r)
    torch.testing.assert_close(h, column(1, -2) * exact_h, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(v, column(1, -2) * exact_v, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("r", [3.0, 5.0])
@pytest.mark.parametrize("form", ["dae", "second_order"])
def test_both_nesterov_forms_from_t_1_are_the_bessel_function(form, r):
    model = NesterovNODE(identity, r=r, form=form, exact=True)
    h0, v0 = bessel(1.0, r)
    h, v = integrate(model, column(h0), 1.0, 3.0, dh0=column(v0))
    exact_h, exact_v = bessel(3.0, r)
    torch.testing.assert_close(h, column(exact_h), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(v, column(exact_v), rtol=0, atol=TOLERANCE)


def test_nesterov_with_the_bracket_as_field_is_the_exact_form():
    def bracket(t: Tensor, h: Tensor) -> Tensor:  # eq. 12 with r = 3 and gradient h
        linear = (t**2 - 3) / 4 * t ** (-0.5) * torch.exp(-t / 2)
        return linear * h + t**1.5 * torch.exp(-t / 2) * h

    h0, v0 = bessel(1.0, 3)
    h, _ = integrate(NesterovNODE(bracket), column(h0), 1.0, 2.0, dh0=column(v0))
    torch.testing.assert_close(h, column(bessel(2.0, 3)[0]), rtol=0, atol=TOLERANCE)


def test_generalised_nesterov_with_identities_is_nesterov():
    field = TimeField().double()
    h0 = torch.randn(3, 2, dtype=torch.float64)
    plain = integrate(NesterovNODE(field, r=4), h0, 1.0, 2.0)
    model = GNesterovNODE(field, r=4, xi=0, activation="identity")
    torch.testing.assert_close(integrate(model, h0, 1.0, 2.0), plain, rtol=0, atol=TOLERANCE)


def test_hbnode_with_a_linear_field_is_a_matrix_exponential():
    w, gamma = torch.randn(2, 2, dtype=torch.float64), 0.7
    h0, m0 = torch.randn(2, 3, 2, dtype=torch.float64)
    h, v = integrate(HBNODE(lambda h: h @ w.T, gamma=gamma), h0, 0.0, 2.0, dh0=m0)
    check_linear(w.numpy(), gamma, h0, m0, h, v)


def test_ghbnode_with_identity_is_a_matrix_exponential():
    w, gamma, xi = torch.randn(2, 2, dtype=torch.float64), 0.7, 0.4
    h0, m0 = torch.randn(2, 3, 2, dtype=torch.float64)
    model = GHBNODE(lambda h: h @ w.T, gamma=gamma, xi=xi, activation="identity")
    h, v = integrate(model, h0, 0.0, 2.0, dh0=m0)
    check_linear(w.numpy() - xi * np.eye(2), gamma, h0, m0, h, v)


def check_linear(a: np.ndarray, gamma: float, h0: Tensor, m0: Tensor, h: Tensor, v: Tensor) -> None:
    """h'' = a h - gamma h' at t = 2."""
    system = np.block([[np.zeros((2, 2)), np.eye(2)], [a, -gamma * np.eye(2)]])
    exact = torch.cat((h0, m0), 1) @ torch.from_numpy(expm(2.0 * system).T)
    torch.testing.assert_close(torch.cat((h, v), 1), exact, rtol=0, atol=TOLERANCE)


def test_sonode_with_a_linear_field_is_a_matrix_exponential():
    a, b = torch.randn(2, 2, 2, dtype=torch.float64)
    h0, v0 = torch.randn(2, 3, 2, dtype=torch.float64)
    model = SONODE(lambda z: z[:, :2] @ a.T + z[:, 2:] @ b.T)
    h, v = integrate(model, h0, 0.0, 1.0, dh0=v0)
    system = np.block([[np.zeros((2, 2)), np.eye(2)], [a.numpy(), b.numpy()]])
    exact = torch.cat((h0, v0), 1) @ torch.from_numpy(expm(system).T)
    torch.testing.assert_close(torch.cat((h, v), 1), exact, rtol=0, atol=TOLERANCE)


def test_anode_integrates_the_augmented_feature():
    a = torch.randn(3, 3, dtype=torch.float64)
    h0 = torch.randn(4, 2, dtype=torch.float64)
    h, _ = integrate(ANODE(lambda h: h @ a.T), h0, 0.0, 1.0)
    exact = nn.functional.pad(h0, (0, 1)) @ torch.from_numpy(expm(a.numpy()).T)
    torch.testing.assert_close(h, exact, rtol=0, atol=TOLERANCE)


# ------------------------------------------------------------------------- the published variant


def bracket_of_identity(t: Tensor, h: Tensor) -> Tensor:
    """The f of eq. 12 with which the paper's ODE is h'' + 3h'/t + h = 0."""
    return (0.25 - 0.75 / t**2 + 1) * t**1.5 * torch.exp(-t / 2) * h


def test_published_and_paper_nesterov_differ_by_the_recorded_numbers():
    # From h(1) = 2 J_1(1), h'(1) = -2 J_2(1); exact h(2) = J_1(2) = 0.576725. The published
    # code's right-hand side ends elsewhere: 0.744904 (k p) and 0.775087 (p).
    h0, v0 = bessel(1.0, 3)
    paper, _ = integrate(NesterovNODE(bracket_of_identity), column(h0), 1.0, 2.0, column(v0))
    model = NesterovNODE(bracket_of_identity, variant="published", sign=-1)
    published, _ = integrate(model, column(h0), 1.0, 2.0, column(v0))
    k = 2**-1.5 * math.e
    assert paper.item() == pytest.approx(0.576725, abs=5e-7)
    assert published.item() == pytest.approx(0.744904, abs=5e-7)
    assert published.item() / k == pytest.approx(0.775087, abs=5e-7)


def test_published_and_paper_nesterov_differ_even_with_no_field():
    h0, v0 = bessel(1.0, 3)
    paper, _ = integrate(NesterovNODE(zero), column(h0), 1.0, 2.0, column(v0))
    model = NesterovNODE(zero, variant="published")
    published, _ = integrate(model, column(h0), 1.0, 2.0, column(v0))
    assert paper.item() == pytest.approx(0.752635, abs=5e-7)
    assert published.item() == pytest.approx(0.971829, abs=5e-7)


def test_generalised_published_with_identities_is_the_published_nesterov():
    field = TimeField().double()
    t, state = torch.tensor(1.5, dtype=torch.float64), torch.randn(2, 3, 2, dtype=torch.float64)
    plain = NesterovNODE(field, variant="published", sign=-1)
    model = GNesterovNODE(field, xi=0, activation="identity", variant="published", sign=-1)
    torch.testing.assert_close(model(t, state), plain(t, state))
    torch.testing.assert_close(model.readout(t, state), plain.readout(t, state))
    torch.testing.assert_close(model.velocity(t, state), plain.velocity(t, state))


def test_the_published_generalised_equations():
    t, state = torch.tensor(1.5, dtype=torch.float64), torch.randn(2, 3, 2, dtype=torch.float64)
    p, q = state
    model = GNesterovNODE(
        identity,
        xi=0.5,
        activation_velocity="hardtanh(0.2)",
        activation_field="tanh",
        activation_factor="hardtanh(0.5)",
        variant="published",
    )
    mu = (1.5 * t**0.5 - 0.5 * t**1.5) * torch.exp(-t / 2) * p + t**1.5 * torch.exp(-t / 2) * q
    expected = torch.stack((mu.clamp(-0.2, 0.2), torch.tanh(p) - mu - 0.5 * p))
    torch.testing.assert_close(model(t, state), expected)
    torch.testing.assert_close(model.readout(t, state), 0.5 * p)


# ------------------------------------------------------------------------- the equations themselves


def test_ghbnode_equation():
    h, m = state = torch.randn(2, 4, 2, dtype=torch.float64)
    model = GHBNODE(torch.sin, time_dependent=False).double()
    gamma, xi = torch.sigmoid(torch.tensor(-3.0)).double(), math.log(2)
    expected = torch.stack((torch.tanh(m), torch.sin(h) - gamma * m - xi * h))
    torch.testing.assert_close(model(torch.tensor(0.0), state), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(model.velocity(0.0, state), torch.tanh(m))
    assert model.gamma.item() == pytest.approx(0.0474259, abs=1e-7)
    assert model.xi.item() == pytest.approx(xi, abs=1e-7)


def test_gnesterov_equation():
    x, m = state = torch.randn(2, 4, 2, dtype=torch.float64)
    t = torch.tensor(1.7, dtype=torch.float64)
    model = GNesterovNODE(torch.sin, r=4, xi=0.3, time_dependent=False)
    h = torch.tanh(t**-2.0 * torch.exp(t / 2)) * x
    expected = torch.stack((torch.tanh(m), -m - torch.tanh(torch.sin(h)) - 0.3 * h))
    torch.testing.assert_close(model(t, state), expected)
    torch.testing.assert_close(model.readout(t, state), h)
    torch.testing.assert_close(model.constraint_factor(t) * x, h)


# The published code returns a velocity that is no derivative of its read-out.
CONSISTENT = [m for m in all_models() if getattr(m, "variant", "paper") == "paper"]


@pytest.mark.parametrize("model", CONSISTENT, ids=label)
def test_velocity_is_the_time_derivative_of_the_readout(model):
    model = model.double()
    t, step = 1.3, 1e-5
    state = torch.randn(model.K, 3, 2 + isinstance(model, ANODE), dtype=torch.float64)
    with torch.no_grad():
        slope = model(torch.tensor(t, dtype=torch.float64), state)
        ends = [model.readout(t + s, state + s * slope) for s in (-step, step)]
        # Central differences at 1e-5 in float64: truncation and rounding both stay below 1e-8.
        derivative = (ends[1] - ends[0]) / (2 * step)
        torch.testing.assert_close(model.velocity(t, state), derivative, rtol=1e-7, atol=1e-8)


def test_readout_and_velocity_invert_the_initial_state():
    h0, dh0 = torch.randn(2, 3, 2, dtype=torch.float64) / 10
    for model in all_models():
        if model.order == 1:
            continue
        for t0 in (1.0, 2.5):
            state = model.double().initial_state(h0, dh0, t0)
            assert state.shape == (model.K, *h0.shape)
            if getattr(model, "variant", "paper") == "published":
                torch.testing.assert_close(state, torch.stack((h0, dh0)))
                continue
            torch.testing.assert_close(model.readout(t0, state), h0)
            # The heavy-ball models take dh0 as the momentum, and h' = σ(m).
            wanted = model.activation(dh0) if isinstance(model, GHBNODE) else dh0
            torch.testing.assert_close(model.velocity(t0, state), wanted)


@pytest.mark.parametrize("model", all_models(), ids=label)
def test_gradients_in_time_state_and_parameters_are_right(model):
    model = model.double()
    names, parameters = zip(*model.named_parameters(), strict=True)
    shape = (model.K, 2, 2 + isinstance(model, ANODE))
    state = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(1.4, dtype=torch.float64, requires_grad=True)

    def slope(t: Tensor, state: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (t, state))

    assert torch.autograd.gradcheck(slope, (t, state, *parameters), fast_mode=True)


# ------------------------------------------------------------------------- t = 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "model",
    [
        NesterovNODE(TimeField(), form="second_order", r=5),
        GNesterovNODE(TimeField()),
        GNesterovNODE(TimeField(), activation_factor="hardtanh(0.25)"),
    ],
    ids=label,
)
def test_nothing_is_nan_at_t_0_nor_are_gradients_through_t(model, dtype):
    model = model.to(dtype)
    h0 = torch.randn(3, 2, dtype=dtype, requires_grad=True)
    for now in (0.0, 1e-12, 1e-3):
        t = torch.tensor(now, dtype=dtype, requires_grad=True)
        state = model.initial_state(h0, t0=t)
        values = (state, model(t, state), model.readout(t, state), model.velocity(t, state))
        total = sum(v.sum() for v in values)
        gradients = torch.autograd.grad(total, (t, h0, *model.parameters()), allow_unused=True)
        for value in (*values, *gradients):
            assert value is None or bool(torch.isfinite(value).all())


@pytest.mark.parametrize("r", [3.0, 5.0])
def test_second_order_at_t_0_is_the_limit(r):
    model = NesterovNODE(torch.cos, r=r, form="second_order", time_dependent=False)
    h0 = torch.randn(3, 2, dtype=torch.float64)
    at_zero = model(torch.tensor(0.0, dtype=torch.float64), model.initial_state(h0))[1]
    torch.testing.assert_close(at_zero, -torch.cos(h0) / (1 + r), rtol=1e-13, atol=0)
    t = 1e-6  # near zero h' = h''(0) t up to O(t^3)
    nearby = model(torch.tensor(t, dtype=torch.float64), torch.stack((h0, at_zero * t)))[1]
    torch.testing.assert_close(nearby, at_zero, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("activation", "limit"), [("tanh", 1.0), ("hardtanh(0.25)", 0.25)])
def test_gnesterov_from_t_0_starts_where_the_factor_saturates(activation, limit):
    model = GNesterovNODE(zero, xi=0, activation_factor=activation)
    h0, dh0 = torch.randn(2, 3, 2, dtype=torch.float64) / 10
    assert model.constraint_factor(0.0).item() == pytest.approx(limit, abs=1e-13)
    x0, m0 = model.initial_state(h0, dh0, 0.0)
    torch.testing.assert_close(x0, h0 / limit)
    torch.testing.assert_close(torch.tanh(m0), dh0 / limit)


def test_the_factor_near_saturation_is_not_changed_by_the_clamp_on_time():
    t = torch.linspace(0.1, 4, 200, dtype=torch.float64)
    k = t**-1.5 * torch.exp(t / 2)
    for activation, expected in [("tanh", torch.tanh(k)), ("hardtanh(3)", k.clamp(max=3))]:
        model = GNesterovNODE(zero, activation_factor=activation)
        torch.testing.assert_close(model.constraint_factor(t), expected, rtol=1e-12, atol=0)


# ------------------------------------------------------------------------- shapes, dtypes, states


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 3, 5, 5)], ids=str)
def test_every_model_keeps_shape_and_dtype(shape, dtype):
    def field(width: int, out: int) -> nn.Module:
        return nn.Conv2d(width, out, 3, padding=1) if len(shape) == 4 else nn.Linear(width, out)

    h0 = torch.randn(shape, dtype=dtype) / 10
    dim = 1 if h0.dim() > 1 else 0
    n = shape[dim]
    models = [NODE(field(n, n)), ANODE(field(n + 2, n + 2), augment=2), SONODE(field(2 * n, n))]
    models += [make(field(n, n)) for name, make in DYNAMICS.items() if "b" in name or "g" in name]
    models += [NesterovNODE(field(n, n), form="second_order")]
    t = torch.tensor(1.0, dtype=dtype)
    for model in models:
        model = model.to(dtype)
        state = model.initial_state(h0, t0=1.0)
        wide = list(shape)
        wide[dim] += 2 * isinstance(model, ANODE)
        out = model(t, state)
        assert state.shape == out.shape == (model.n_components, *wide)
        assert model.readout(t, state).shape == model.velocity(t, state).shape == tuple(wide)
        values = (state, out, model.readout(1.0, state), model.velocity(1.0, state))
        assert {v.dtype for v in values} == {dtype}


def test_one_time_per_sample_gives_what_each_sample_gives_alone():
    times = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    for model in all_models():
        model = model.double()
        state = torch.randn(model.K, 4, 2 + isinstance(model, ANODE), dtype=torch.float64)
        start = int(getattr(model, "form", "") == "dae" or model.extra_repr().count("published"))
        together = model(times[start:, None], state[:, start:])
        for i in range(start, 4):
            alone = model(times[i], state[:, i : i + 1])
            torch.testing.assert_close(together[:, i - start : i - start + 1], alone)


def test_times_may_be_numbers_where_the_field_takes_tensors():
    for model in all_models():
        state = model.initial_state(torch.randn(3, 2) / 10, t0=1)
        for value in (model.velocity(1, state), model.readout(1.5, state)):
            assert value.dtype == torch.float32


def test_anode_pads_zeros_behind_the_feature_and_reads_all_of_it():
    model = ANODE(nn.Identity(), augment=2)
    h0 = torch.randn(3, 2)
    expected = torch.cat((h0, torch.zeros(3, 2)), 1)
    assert torch.equal(model.readout(0.0, model.initial_state(h0)), expected)
    assert torch.equal(ANODE(nn.Identity()).initial_state(h0[0])[0, :2], h0[0])


def test_coefficients_are_learned_unless_given():
    learned = {name for name, _ in GHBNODE(zero).named_parameters()}
    assert learned == {"omega", "chi"}
    assert not list(GHBNODE(zero, gamma=0.1, xi=0.2).parameters())
    assert [name for name, _ in GNesterovNODE(zero).named_parameters()] == ["chi"]
    assert not list(NesterovNODE(zero).parameters())
    half = HBNODE(zero, epsilon=0.5).gamma
    assert half.item() == pytest.approx(0.5 * 0.0474259, abs=1e-7)


def test_a_fixed_coefficient_is_exact_whatever_the_dtype_was():
    # A float32 buffer would turn 0.9 into 0.89999998 and keep that error in float64.
    state = torch.ones(2, 1, 1, dtype=torch.float64)
    for model in (HBNODE(zero, gamma=0.9), HBNODE(zero, gamma=0.9).float().double()):
        assert model(torch.tensor(0.0), state)[1].item() == -0.9
        assert model.gamma.item() == 0.9
    assert HBNODE(identity, gamma=0)(torch.tensor(0.0), state)[1].item() == 1.0


def test_a_model_survives_saving_and_copying(tmp_path):
    h0 = torch.randn(3, 2) / 10
    for model in all_models():
        torch.save(model, tmp_path / "model.pt")
        copy = torch.load(tmp_path / "model.pt", weights_only=False)
        state = model.initial_state(h0, t0=1.0)
        assert torch.equal(copy(torch.tensor(1.0), state), model(torch.tensor(1.0), state))


# ------------------------------------------------------------------------- initial velocity


def test_initial_velocity_from_a_module_a_parameter_a_tensor_a_number_or_the_call():
    h0 = torch.randn(3, 2)
    net = nn.Linear(2, 2)
    constant = nn.Parameter(torch.randn(2))
    sources = {
        None: (torch.zeros(3, 2), 0),
        net: (net(h0), 2),
        constant: (constant.expand(3, 2), 1),
        torch.ones(2): (torch.ones(3, 2), 0),
        0.5: (torch.full((3, 2), 0.5), 0),
        torch.sin: (torch.sin(h0), 0),
    }
    for source, (expected, n_parameters) in sources.items():
        model = SONODE(zero, initial_velocity=source)
        assert torch.equal(model.initial_state(h0)[1], expected)
        assert len(list(model.parameters())) == n_parameters
        dh0 = torch.randn(3, 2)
        assert torch.equal(model.initial_state(h0, dh0)[1], dh0)


def test_a_learned_initial_velocity_gets_a_gradient_in_every_model():
    h0 = torch.randn(3, 2) / 10
    for make in (SONODE, HBNODE, GHBNODE, NesterovNODE, GNesterovNODE):
        velocity = nn.Parameter(torch.zeros(2))
        make(zero, initial_velocity=velocity).initial_state(h0, t0=1.0).sum().backward()
        assert bool((velocity.grad != 0).all())


@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(2, 3, 2), nn.Linear(2, 1)])
def test_an_initial_velocity_of_a_wrong_shape_names_both_shapes(value):
    with pytest.raises(InvalidArgumentError, match=r"shape .* does not fit h0 of shape \(3, 2\)"):
        HBNODE(zero, initial_velocity=value).initial_state(torch.zeros(3, 2))


# ------------------------------------------------------------------------- activations


def square_sign(x: Tensor) -> Tensor:
    return x * x.abs()


def square_sign_inverse(y: Tensor) -> Tensor:
    return torch.sign(y) * y.abs().sqrt()


@pytest.mark.parametrize(
    ("activation", "same"),
    [
        (nn.Tanh(), "tanh"),
        (torch.tanh, "tanh"),
        (nn.Hardtanh(-2, 2), "hardtanh(2)"),
        (nn.Identity(), "identity"),
        (lambda x: torch.tanh(x), "tanh"),
    ],
)
def test_activations_by_name_and_by_callable_agree(activation, same):
    state = torch.randn(2, 3, 2)
    one, other = (GHBNODE(zero, activation=a) for a in (activation, same))
    assert torch.equal(one(torch.tensor(0.0), state), other(torch.tensor(0.0), state))
    factors = [GNesterovNODE(zero, activation_factor=a) for a in (activation, same)]
    t = torch.linspace(0.5, 4, 20)
    slopes = [m._kappa_slope(t).detach() for m in factors]
    # 1 - tanh^2 in float32, where tanh is nearly 1
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)


class Steeper(nn.Tanh):
    def forward(self, x):
        return torch.tanh(3 * x)


def hooked_tanh():
    module = nn.Tanh()
    module.register_forward_hook(lambda module, args, out: 2 * out)
    return module


def patched_identity():
    module = nn.Identity()
    module.forward = lambda x: 2 * x
    return module


@pytest.mark.parametrize("make", [Steeper, hooked_tanh, patched_identity])
def test_an_activation_is_what_it_does_whatever_its_class(make):
    activation, state = make(), torch.randn(2, 3, 2)
    found = GHBNODE(zero, activation=activation)(torch.tensor(0.0), state)[0]
    assert torch.equal(found, activation(state[1]))


def test_the_factor_of_a_callable_activation_needs_no_autograd_around_it():
    h0 = torch.randn(3, 2) / 10
    model = GNesterovNODE(zero, activation_factor=lambda k: torch.tanh(k))
    expected = model.initial_state(h0, t0=1.0)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            state = model.initial_state(h0, t0=1.0)
            assert torch.equal(state, expected)
            assert not state.requires_grad


def test_a_callable_activation_needs_its_inverse_for_a_momentum_that_is_not_zero():
    h0 = torch.randn(3, 2)
    with pytest.raises(InvalidArgumentError, match="inverse="):
        GNesterovNODE(zero, activation_velocity=square_sign).initial_state(h0, t0=1.0)
    # From t0 = 0 with h'(0) = 0 the momentum is zero, and so is the callable's value there.
    start = GNesterovNODE(zero, activation_velocity=square_sign).initial_state(h0)
    assert torch.equal(start[1], torch.zeros(3, 2))
    model = GNesterovNODE(zero, activation_velocity=square_sign, inverse=square_sign_inverse)
    state = model.initial_state(h0, torch.ones(3, 2), 1.0)
    torch.testing.assert_close(model.velocity(1.0, state), torch.ones(3, 2))


@pytest.mark.parametrize("activation", ["tanh", "hardtanh(1)"])
def test_a_momentum_out_of_range_is_refused_with_a_remedy(activation):
    model = GNesterovNODE(zero, activation_velocity=activation)
    with pytest.raises(InvalidArgumentError, match="activation_velocity"):
        model.initial_state(torch.full((1, 2), 10.0), t0=1.0)


# ------------------------------------------------------------------------- fields and errors


class Optional(nn.Module):
    def forward(self, h: Tensor, scale: float = 1.0) -> Tensor:
        return scale * h


@pytest.mark.parametrize(
    ("field", "timed"),
    [
        (nn.Sequential(nn.Linear(2, 2)), False),
        (nn.Linear(2, 2), False),
        (TimeField(), True),
        (Optional(), False),
        (lambda h: h, False),
        (lambda t, h: h, True),
        (lambda t, h, scale=1.0: h, True),
    ],
)
def test_whether_the_field_takes_time_is_read_from_its_signature(field, timed):
    assert NODE(field).time_dependent is timed


def test_a_compiled_field_is_what_was_compiled():
    for field, timed in ((TimeField(), True), (nn.Linear(2, 2), False)):
        assert NODE(torch.compile(field, backend="eager")).time_dependent is timed


@pytest.mark.parametrize(
    "field", [torch.tanh, lambda *args: args[-1], lambda a, b, c: a, lambda: 0]
)
def test_an_ambiguous_field_has_to_be_declared(field):
    with pytest.raises(InvalidArgumentError, match="time_dependent="):
        HBNODE(field)


def test_time_dependent_overrides_the_signature():
    h = torch.randn(3, 2)
    model = NODE(lambda *args: args[-1], time_dependent=True)
    assert torch.equal(model(torch.tensor(0.0), model.initial_state(h))[0], h)
    assert torch.equal(NODE(torch.tanh, time_dependent=False)(None, h[None])[0], torch.tanh(h))
    with pytest.raises(InvalidArgumentError, match="field"):
        NODE("net", time_dependent=True)


def test_a_field_of_a_wrong_output_names_the_shapes():
    h0 = torch.randn(3, 2)
    for model in (NODE(nn.Linear(2, 3)), HBNODE(nn.Linear(2, 3)), GNesterovNODE(nn.Linear(2, 3))):
        with pytest.raises(InvalidArgumentError, match=r"\(3, 2\).*it returned shape \(3, 3\)"):
            model(torch.tensor(1.0), model.initial_state(h0, t0=1.0))
    model = SONODE(nn.Linear(4, 4))
    with pytest.raises(InvalidArgumentError, match=r"\(3, 2\) for an input of shape \(3, 4\)"):
        model(torch.tensor(1.0), model.initial_state(h0))
    with pytest.raises(InvalidArgumentError, match="it returned a tuple"):
        NODE(lambda h: (h, h))(torch.tensor(1.0), h0[None])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NesterovNODE(zero, r=2.9), "r must be"),
        (lambda: NesterovNODE(zero, r=math.nan), "r must be"),
        (lambda: GNesterovNODE(zero, r=2), "r must be"),
        (lambda: NesterovNODE(zero, form="ode"), "unknown form 'ode'"),
        (lambda: NesterovNODE(zero, variant="code"), "unknown variant 'code'"),
        (lambda: GNesterovNODE(zero, variant="code"), "unknown variant 'code'"),
        (lambda: NesterovNODE(zero, variant="published", exact=True), "one fixed system"),
        (lambda: NesterovNODE(zero, sign=1), "variant="),
        (lambda: NesterovNODE(zero, variant="published", sign=2), "sign must be"),
        (lambda: HBNODE(zero, gamma=-0.1), "gamma must be"),
        (lambda: HBNODE(zero, gamma="0.1"), "gamma must be"),
        (lambda: HBNODE(zero, epsilon=-1), "epsilon must be"),
        (lambda: GHBNODE(zero, xi=-1), "xi must be"),
        (lambda: GNesterovNODE(zero, xi=math.inf), "xi must be"),
        (lambda: GHBNODE(zero, activation="relu"), "unknown activation 'relu'"),
        (lambda: GHBNODE(zero, activation=3), "activation must be"),
        (lambda: GHBNODE(zero, activation="hardtanh(0)"), "bound"),
        (lambda: GHBNODE(zero, activation="hardtanh(1.2.3)"), "unknown activation"),
        (lambda: ANODE(zero, augment=0), "augment"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_construction(make, words):
    with pytest.raises(InvalidArgumentError, match=words):
        make()


@pytest.mark.parametrize(
    ("model", "kwargs", "words"),
    [
        (NesterovNODE(zero), {"t0": 0.0}, 'form="second_order".*t0 = 1'),
        (NesterovNODE(zero), {"t0": -1.0}, "t0 > 0"),
        (NesterovNODE(zero, variant="published"), {"t0": 0.0}, "t0 = 1"),
        (NesterovNODE(zero, form="second_order"), {"t0": -1.0}, "t0 >= 0"),
        (NesterovNODE(zero, form="second_order"), {"dh0": torch.ones(3, 2)}, "singular at t = 0"),
        (GNesterovNODE(zero, activation="identity"), {"t0": 0.0}, "t0 > 0"),
        (GNesterovNODE(zero, variant="published"), {"t0": 0.0}, "t0 = 1"),
        (GNesterovNODE(zero), {"t0": -1.0}, "t0 > 0"),
        (NODE(zero), {"dh0": torch.ones(3, 2)}, "first order"),
        (ANODE(zero, dim=2), {}, "no dimension 2"),
    ],
    ids=str,
)
def test_starts_that_do_not_fit_are_refused(model, kwargs, words):
    with pytest.raises(InvalidArgumentError, match=words):
        model.initial_state(torch.randn(3, 2), **kwargs)


def test_an_initial_feature_of_integers_is_refused():
    for make in DYNAMICS.values():
        with pytest.raises(InvalidArgumentError, match="floating point"):
            make(zero).initial_state(torch.ones(3, 2, dtype=torch.long), t0=1.0)


def test_only_systems_with_a_constraint_have_a_constraint_factor():
    assert NesterovNODE(zero).constraint_factor(1.0).item() == pytest.approx(math.exp(0.5))
    assert GNesterovNODE(zero).constraint_factor(1.0).item() == pytest.approx(
        math.tanh(math.exp(0.5))
    )
    for model in (
        NesterovNODE(zero, form="second_order"),
        NesterovNODE(zero, variant="published"),
        GNesterovNODE(zero, variant="published"),
    ):
        with pytest.raises(InvalidArgumentError, match="constraint"):
            model.constraint_factor(1.0)


def test_the_models_are_listed_by_their_lower_case_names():
    names = {"node", "anode", "sonode", "hbnode", "ghbnode", "nesterovnode", "gnesterovnode"}
    assert set(DYNAMICS) == names
    assert all(issubclass(model, Dynamics) for model in DYNAMICS.values())
    assert {name: model.K for name, model in DYNAMICS.items()} == dict.fromkeys(names, 2) | {
        "node": 1,
        "anode": 1,
    }


def test_the_representation_shows_the_arguments():
    text = repr(NesterovNODE(nn.Linear(2, 2), r=4, form="second_order"))
    assert "r=4" in text
    assert "form='second_order'" in text
    assert "gamma=learned" in repr(HBNODE(nn.Linear(2, 2)))
    assert "gamma=0.5" in repr(GHBNODE(nn.Linear(2, 2), gamma=0.5))
    assert "augment=3" in repr(ANODE(nn.Linear(2, 2), augment=3))


# ------------------------------------------------------------------- tolerances are those of h


def bracket_of(r: float):
    """The f of eq. 12 with which eq. 14 is h'' + (r/t) h' + h = 0."""

    def f(t: Tensor, h: Tensor) -> Tensor:
        return (1.25 + 0.25 * r * (2 - r) / t**2) * torch.exp(-0.5 * (t - r * torch.log(t))) * h

    return f


def forms_of(r: float) -> dict[str, Dynamics]:
    """Every way to write h'' + (r/t) h' + h = 0."""
    plain = {"r": r, "xi": 0, "activation": "identity"}
    return {
        "dae": NesterovNODE(bracket_of(r), r=r),
        "exact": NesterovNODE(identity, r=r, exact=True),
        "second_order": NesterovNODE(identity, r=r, form="second_order"),
        "generalised": GNesterovNODE(bracket_of(r), **plain),
        "callable": GNesterovNODE(bracket_of(r), **plain, activation_factor=lambda k: 1.0 * k),
        "hardtanh": GNesterovNODE(
            bracket_of(r), **plain, activation_factor=nn.Hardtanh(-1e30, 1e30)
        ),
    }


# k is at most 1.7 in the first; 2e10 at the end of the second, 1e15 at the start of the last
@pytest.mark.parametrize(
    ("r", "t0", "t1"), [(3, 1, 3), (3, 1, 60), (10, 1e-3, 2), (10, 1, 30), (100, 0.5, 2)]
)
@pytest.mark.parametrize("form", forms_of(3))
def test_tolerances_are_those_of_h_in_every_form(form, r, t0, t1):
    h0, dh0 = bessel(t0, r)
    for method in ("tsit5",) if form == "callable" else ("tsit5", "dopri8"):
        solver = Solver(method, rtol=1e-6, atol=1e-6, backend="torch")
        model = NeuralODE(forms_of(r)[form], t=(t0, t1), solver=solver)
        h = model(column(h0), dh0=column(dh0))
        assert abs(h.item() - bessel(t1, r)[0]) < 1e-4  # a hundred tolerances: 1e-5 was seen


@pytest.mark.parametrize("form", ["exact", "second_order"])
def test_float32_needs_no_k_that_float32_cannot_hold(form):
    """k falls from 1 to 1e-47, below the smallest number of float32."""
    solver = Solver("tsit5", rtol=1e-5, atol=1e-5, backend="torch")
    h0, dh0 = bessel(1.0, 100)
    model = NeuralODE(forms_of(100)[form], t=(1.0, 10.0), solver=solver)
    h = model(column(h0).float(), dh0=column(dh0).float())
    assert abs(h.item() - bessel(10.0, 100)[0]) < 1e-3


@pytest.mark.parametrize("options", [{"per_sample": True}, {}], ids=["per_sample", "pan"])
def test_batches_and_parallel_steps_hold_h_too(options):
    method = "tsit5" if options else "pan"
    solver = Solver(method, rtol=1e-6, atol=1e-6, backend="torch", options=options)
    h0, dh0 = bessel(0.5, 20)
    model = NeuralODE(forms_of(20)["exact"], t=(0.5, 2.0), solver=solver)
    h = model(column(h0, 2 * h0), dh0=column(dh0, 2 * dh0))
    wanted = bessel(2.0, 20)[0]
    torch.testing.assert_close(h, column(wanted, 2 * wanted), rtol=0, atol=1e-4)


def test_an_event_of_a_nesterov_model_sees_h():
    h0, dh0 = bessel(1.0, 3)
    model = forms_of(3)["exact"]
    solution = solve(
        *(model, model.initial_state(column(h0), column(dh0), 1.0), [1.0, 6.0]),
        Solver("tsit5", rtol=1e-8, atol=1e-8, backend="torch"),
        event_fn=lambda t, state: state[0],
    )
    assert float(solution.t[-1]) == pytest.approx(3.8317059702, abs=1e-6)  # J_1's first zero


def test_a_factor_of_a_callable_passes_through_transforms():
    model = GNesterovNODE(nn.Linear(2, 2), activation_factor=lambda k: 2 * torch.tanh(k)).double()
    t = torch.tensor(1.3, dtype=torch.float64)
    state = torch.randn(2, 3, 2, dtype=torch.float64)
    wanted = model(t, state)
    per_sample = torch.func.vmap(model, (None, 1), 1)(t, state)
    torch.testing.assert_close(per_sample, wanted)
    tied = torch.func.functional_call(model, dict(model.named_parameters()), (t, state))
    torch.testing.assert_close(tied, wanted)
    assert torch.autograd.gradcheck(model, (t.requires_grad_(), state.requires_grad_()))
