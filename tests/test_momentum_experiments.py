"""The studies of the Momentum ResNet paper: nested rings, the cubic map, the Lasso."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyjuliaode.errors import InvalidArgumentError
from pyjuliaode.experiments import get, run
from pyjuliaode.experiments.cubic import FLOOR
from pyjuliaode.experiments.descent import descend
from pyjuliaode.experiments.lasso import duality_gap, fista, lipschitz, objective, soft_threshold
from pyjuliaode.experiments.lista import Iteration, network, samples
from pyjuliaode.experiments.revnet import RevNet
from pyjuliaode.experiments.rings import rings
from pyjuliaode.experiments.tied import Field, leaps, path
from pyjuliaode.experiments.tied import network as network_of_tied
from pyjuliaode.momentum import MomentumNet

QUICK = {
    "rings": {"points": 40, "iterations": 5, "hidden": 4, "depth": 6},
    "cubic": {"batch_size": 20, "iterations": 5, "hidden": 4, "depth": 6},
    "lista": {"depths": "1,2", "gammas": "0.1", "iterations": 5, "batch_size": 16},
}


@pytest.fixture(autouse=True)
def _without_figures(skip_figures):
    skip_figures("separation", "descent", "crossing", "excess_loss")


def quick(name, out, **choices):
    settings = QUICK[name] | choices.pop("settings", {})
    return run(name, out=out, progress=False, settings=settings, **choices)


def without_seconds(metrics):
    if isinstance(metrics, dict):
        return {k: without_seconds(v) for k, v in metrics.items() if k != "seconds"}
    return [without_seconds(v) for v in metrics] if isinstance(metrics, list) else metrics


class Scale(nn.Module):
    """f(x) = a x."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x):
        return self.a * x


# ---------------------------------------------------------------- every one of them


@pytest.mark.parametrize("name", QUICK)
def test_equal_configs_give_equal_numbers_and_another_seed_others(tmp_path, name):
    first, again, other = (
        without_seconds(quick(name, tmp_path / f"{i}", seed=seed))
        for i, seed in enumerate((0, 0, 1))
    )
    assert first == again
    assert first["final"] != other["final"]


@pytest.mark.parametrize("name", QUICK)
def test_figures_are_drawn(tmp_path, drawn, name):
    quick(name, tmp_path)
    figures = sorted(figure.name for figure in tmp_path.glob("*.png"))
    assert figures == (["lista.png"] if name == "lista" else sorted([f"{name}.png", "losses.png"]))
    for figure in figures:
        written = (tmp_path / figure).read_bytes()
        assert written.startswith(b"\x89PNG")
        assert len(written) > 20_000


@pytest.mark.parametrize("name", ["rings", "cubic"])
def test_a_model_alone_is_what_it_is_among_the_others(tmp_path, name):
    everything = quick(name, tmp_path / "all")["models"]
    for model, found in everything.items():
        alone = quick(name, tmp_path / model, model=model)["models"]
        assert without_seconds(alone) == without_seconds({model: found})


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("rings", {"rings": 1}, "'rings' must be a whole number from 2 to 1000, got 1"),
        ("rings", {"depth": 0}, "'depth' must be a whole number from 1 to 10000, got 0"),
        ("rings", {"mode": "backward"}, "backprop"),
        ("cubic", {"gamma": 1.5}, "gamma"),
        ("lista", {"depths": "2,x"}, "'depths' must be numbers with commas between them, got '2"),
        ("lista", {"depths": "2,0"}, "'depths' must be a whole number from 1 to 10000, got '0'"),
        ("lista", {"penalty": -1.0}, "'penalty' must be a number above 0 and up to 1000, got -1"),
    ],
)
def test_wrong_settings_are_named(tmp_path, name, settings, said):
    with pytest.raises(InvalidArgumentError, match=said):
        quick(name, tmp_path, settings=settings)
    assert not (tmp_path / "metrics.json").exists()


# ---------------------------------------------------------------- what they share


def test_the_path_holds_x_before_every_layer_and_after_the_last():
    x = torch.tensor([[1.0], [-3.0]])
    net = MomentumNet([Scale(0.5)] * 2, gamma=0.5)
    # v = 0.5 * 0.5 x = x/4; x = 5/4; v = 1/8 + 5/16 = 7/16; x = 27/16
    assert torch.equal(path(net, x), torch.stack([x, 1.25 * x, 1.6875 * x]))
    assert not net.functions[0]._forward_pre_hooks


def test_leaps_are_the_points_where_a_layer_reverses_orientation():
    x = torch.randn(50, 1)
    assert leaps(MomentumNet([Scale(-2.5)] * 3, gamma=0), x) == 1
    assert leaps(MomentumNet([Scale(-0.5)] * 3, gamma=0), x) == 0
    # in the plane x -> -1.5 x is a rotation and a stretch
    assert leaps(MomentumNet([Scale(-2.5)], gamma=0), torch.randn(50, 2)) == 0

    class Square(nn.Module):
        def forward(self, x):
            return x**2  # 1 + 2 x < 0 left of -1/2

    assert leaps(MomentumNet([Square()], gamma=0), x) == float((x < -0.5).float().mean())


def test_a_contracting_field_is_one_whatever_its_weights():
    free, bound = Field(2, 8), Field(2, 8, contract=True)
    for field in (free, bound):
        nn.init.normal_(field.inner.weight, std=0.5)
        nn.init.normal_(field.outer.weight, std=5.0)
    largest = {
        field: torch.linalg.matrix_norm(
            torch.func.vmap(torch.func.jacrev(field))(0.3 * torch.randn(200, 2)), 2
        ).max()
        for field in (free, bound)
    }
    assert largest[free] > 2
    assert largest[bound] < 1


def test_a_descent_clips_follows_its_rate_and_ends_where_the_loss_does():
    class Bar:
        steps = 0

        def update(self):
            self.steps += 1

    x, bar = nn.Parameter(torch.tensor([30.0, 40.0])), Bar()
    optimizer = torch.optim.SGD([x], lr=1.0)
    rate = lambda progress: 1.0 if progress < 0.5 else 0.1  # noqa: E731
    losses = descend(lambda: x.square().sum() / 2, optimizer, 2, bar, clip=5.0, rate=rate)
    # steps of length 5 and 0.5 towards 0, rounded in float32
    assert losses == pytest.approx([1250.0, 45**2 / 2], rel=1e-6)
    assert x.tolist() == pytest.approx([0.6 * 44.5, 0.8 * 44.5], rel=1e-6)
    assert bar.steps == 2
    losses = descend(lambda: x.sum() * math.nan, optimizer, 9, bar)
    assert len(losses) == 1
    assert bar.steps == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("model", ["resnet", "iresnet", "momentum"])
@pytest.mark.parametrize(("name", "number"), [("cubic", "mse"), ("rings", "accuracy")])
def test_a_training_that_breaks_down_is_told_from_a_poor_one(
    tmp_path, monkeypatch, drawn, name, number, model, bad
):
    study, steps = type(get(name)), []
    loss = study.loss

    def overflowing(self, net, config):
        steps.append(None)
        if len(steps) == 3:
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.fill_(bad)
        return loss(self, net, config)

    monkeypatch.setattr(study, "loss", overflowing)
    final = quick(name, tmp_path, model=model)["final"][model]
    assert final[number] is None
    assert final["steps"] == 3
    assert (tmp_path / f"{name}.png").exists()


# ---------------------------------------------------------------- rings


def test_rings_have_their_radii_and_alternate():
    points, classes = rings(300, 4)
    k = torch.arange(1, 5).repeat_interleave(300)
    noise = points.norm(dim=1) / 3 - k / 2
    # 1e-6: rounding of r = 6 in float32
    assert -1e-6 < noise.min() < 0.01
    assert 0.19 < noise.max() < 0.2 + 1e-6
    assert torch.equal(classes, (k + 1) % 2)
    assert points.view(4, 300, 2).mean(1).norm(dim=1).max() < 1.5  # all around: no half ring


def test_momentum_separates_two_rings(tmp_path):
    settings = {"rings": 2, "points": 100, "hidden": 16, "depth": 10, "iterations": 100}
    final = quick("rings", tmp_path, model="momentum", settings=settings)["final"]["momentum"]
    assert final["accuracy"] > 0.9  # chance: 0.5
    assert "leaps" not in final


def test_an_invertible_resnet_leaps_nowhere(tmp_path):
    settings = {"resnet_lr": 0.3}  # steps that take the ResNet far
    final = quick("rings", tmp_path, settings=settings)["final"]
    assert final["iresnet"]["leaps"] == 0
    assert final["resnet"]["leaps"] > 0


def test_reversible_mode_trains_to_the_same(tmp_path):
    config = get("rings").configure(settings={"mode": "reversible"})
    assert network_of_tied("momentum", 2, config).mode == "reversible"
    assert network_of_tied("resnet", 2, config).mode == "backprop"
    plain, reversible = (
        quick("rings", tmp_path / mode, model="momentum", settings={"mode": mode})["models"]
        for mode in ("backprop", "reversible")
    )
    # gradients agree to rounding of float32, and 5 steps of Adam add little to that
    assert plain["momentum"]["losses"] == pytest.approx(reversible["momentum"]["losses"], rel=1e-4)


# ---------------------------------------------------------------- cubic


def test_momentum_passes_the_floor_of_increasing_maps(tmp_path):
    settings = {"batch_size": 100, "hidden": 16, "iterations": 300}
    final = quick("cubic", tmp_path, settings=settings)["final"]
    assert final["floor"] == FLOOR == 1 / 7
    assert final["momentum"]["mse"] < 0.6 * FLOOR
    # E (g + x^3)^2 = E g^2 + 2 E g x^3 + 1/7, and E g x^3 >= 0 where g increases; 1e-6: the sum
    assert final["iresnet"]["mse"] > FLOOR - 1e-6


# ---------------------------------------------------------------- the Lasso


@pytest.fixture
def problem():
    """(y, D) as in the study, 20 samples."""
    dictionary = torch.randn(16, 32)
    dictionary /= dictionary.norm(dim=0)
    return samples(20, dictionary), dictionary


def test_fista_finds_what_scikit_learn_finds(problem):
    from sklearn.linear_model import Lasso

    y, dictionary = (part.double() for part in problem)
    x = fista(y, dictionary, 0.1)
    # its objective is |y - D x|^2 / (2 m) + alpha |x|_1
    model = Lasso(alpha=0.1 / 16, fit_intercept=False, tol=1e-14, max_iter=100_000)
    theirs = torch.tensor(model.fit(dictionary.numpy(), y.T.numpy()).coef_)
    ours, wanted = (objective(one, y, dictionary, 0.1) for one in (x, theirs))
    # the duality gap that FISTA is stopped at
    assert torch.allclose(ours, wanted, rtol=0, atol=1e-9)
    # F grows at least like the square of the distance here
    assert torch.allclose(x, theirs, rtol=0, atol=1e-3)


def test_the_duality_gap_bounds_the_excess_and_vanishes(problem):
    y, dictionary = (part.double() for part in problem)
    best = fista(y, dictionary, 0.1)
    for x in (torch.zeros_like(best), 0.9 * best, best + 0.01):
        excess = objective(x, y, dictionary, 0.1) - objective(best, y, dictionary, 0.1)
        assert (duality_gap(x, y, dictionary, 0.1) >= excess - 1e-9).all()
    assert duality_gap(best, y, dictionary, 0.1).max() <= 1e-9


def test_samples_have_the_solution_0_from_a_penalty_of_1_on(problem):
    y, dictionary = problem
    assert fista(y, dictionary, 1.001).abs().max() == 0
    assert fista(y, dictionary, 0.99).abs().amax(1).min() > 0


def test_untrained_networks_are_steps_of_ista(problem):
    y, dictionary = problem
    step, x = 1 / lipschitz(dictionary), torch.zeros(20, 32)
    for _ in range(3):
        moved = x + step * (y - x @ dictionary.T) @ dictionary
        x = nn.functional.softshrink(moved, 0.1 * step)
    for name in ("ista", "lista"):
        net = network(name, 3, 0.9, dictionary, 0.1)
        # another order of the same float32 sums
        torch.testing.assert_close(net(torch.zeros(20, 32), y), x, rtol=1e-4, atol=1e-6)


def test_soft_thresholding_is_torchs():
    x = torch.linspace(-2, 2, 41)
    assert torch.allclose(soft_threshold(x, 0.3), nn.functional.softshrink(x, 0.3))


def test_a_revnet_moves_one_half_by_the_other():
    f, g = Scale(3.0), Scale(1.5)  # x + 2 x, x + x / 2
    x = torch.tensor([1.0, -2.0])
    # x1 = 1 + 2 = 3, x2 = 1 + 3/2 = 5/2
    assert torch.equal(RevNet([f, g])(x), 2.75 * x)
    # x1 = 3 + 5 = 8, x2 = 5/2 + 4 = 13/2
    assert torch.equal(RevNet([f, g, f, g])(x), 7.25 * x)
    with pytest.raises(InvalidArgumentError, match="pairs of modules, got 1"):
        RevNet([f])


def test_a_revnet_has_twice_the_parameters(problem):
    _, dictionary = problem
    counts = {
        name: sum(p.numel() for p in network(name, 4, 0.1, dictionary, 0.1).parameters())
        for name in ("lista", "momentum", "revnet")
    }
    assert counts["lista"] == counts["momentum"] == 4 * (32 * 32 + 32 * 16)
    assert counts["revnet"] == 2 * counts["lista"]


def test_momentum_passes_the_speed_on_between_iterations(problem):
    y, dictionary = problem
    first, second = (Iteration(dictionary, 0.1) for _ in range(2))
    x0 = torch.randn(20, 32)
    v1 = 0.5 * (first(x0, y) - x0)
    x1 = x0 + v1
    x2 = x1 + 0.5 * v1 + 0.5 * (second(x1, y) - x1)
    net = network("momentum", 2, 0.5, dictionary, 0.1)
    torch.testing.assert_close(net(x0, y), x2)


def test_learning_brings_the_loss_nearer_to_its_minimum(tmp_path):
    settings = {"depths": "3", "iterations": 60, "batch_size": 64}
    found = quick("lista", tmp_path, settings=settings)
    excess = {row["series"]: row["excess"] for row in found["rows"]}
    assert list(excess) == ["ISTA", "LISTA", "RevNet", "momentum, γ = 0.1"]
    assert all(value > 0 for value in excess.values())
    assert excess["LISTA"] < 0.6 * excess["ISTA"]
    assert excess["momentum, γ = 0.1"] < 0.6 * excess["ISTA"]
    assert found["optimum"] < found["loss_of_0"]
    assert found["final"]["LISTA"] == {"depth 3": excess["LISTA"]}


def test_every_study_says_what_it_can_train():
    assert get("rings").models == get("cubic").models == ("all", "resnet", "iresnet", "momentum")
    with pytest.raises(InvalidArgumentError, match="solves no ODE"):
        get("rings").configure(tol=1e-3)
