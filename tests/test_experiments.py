"""The experiments: what a run leaves behind, and that nothing of it is lost or overwritten."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from pyjuliaode import plotting
from pyjuliaode.errors import InvalidArgumentError, SolverError, UnsupportedError
from pyjuliaode.experiments import compare, get, names, run, settings
from pyjuliaode.experiments.digits import DigitsExperiment
from pyjuliaode.experiments.folder import RunFolder
from pyjuliaode.experiments.models import MODELS
from pyjuliaode.experiments.momentum_finetune import MomentumFinetune, Pretrained
from pyjuliaode.experiments.optimizers import PROBLEMS
from pyjuliaode.experiments.silverbox_init import Driven, summarise
from pyjuliaode.experiments.threads import choose, using
from pyjuliaode.experiments.trainer import Callback, TrainingError

# Paper table A3, with the learned coefficients only: HB and GHB 568 with γ (582 with t in the
# field), Nesterov 581. Their SONODE carries a scalar that nothing uses (528 and 541), ours not.
COUNTS = {
    "heavy-ball": {"node": 525, "anode": 567, "sonode": 527, "hbnode": 568, "ghbnode": 568},
    "nesterov": {
        "node": 545,
        "anode": 587,
        "sonode": 540,
        "hbnode": 582,
        "ghbnode": 582,
        "nesterovnode": 581,
        "gnesterovnode": 581,
    },
}


@pytest.fixture(autouse=True)
def _without_figures(skip_figures):
    skip_figures(
        "training",
        "comparison",
        "point_cloud",
        "point_cloud_evolution",
        "optimizer_paths",
        "momentum_refit",
    )


def quick(out, name="point-cloud", **choices):
    """Two epochs of a cheap model."""
    choices = {"model": "node", "tol": 1e-3, "epochs": 2} | choices
    return run(name, out=out, progress=False, **choices)


def without_times(metrics):
    records = [{k: v for k, v in r.items() if k != "seconds"} for r in metrics["epochs"]]
    final = {k: v for k, v in metrics["final"].items() if k != "seconds"}
    return {**metrics, "epochs": records, "final": final}


def parameters(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def assert_same_run(left, right):
    """Equal parameters, optimizer state and records, bit for bit."""
    read = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (left, right)]
    for key in read[0]["model"]:
        assert torch.equal(read[0]["model"][key], read[1]["model"][key])
    states = [checkpoint["optimizer"]["state"] for checkpoint in read]
    for index in states[0]:
        assert all(torch.equal(states[0][index][k], states[1][index][k]) for k in states[0][index])
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (left, right)]
    assert without_times(metrics[0]) == without_times(metrics[1])


class InterruptAfter(Callback):
    """Raises at the n-th batch, as Ctrl-C in the middle of an epoch does."""

    def __init__(self, batches, error=KeyboardInterrupt):
        self.left, self.error = batches, error

    def on_batch(self, trainer):
        self.left -= 1
        if self.left == 0:
            raise self.error


# ---------------------------------------------------------------- a run


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_on_the_point_cloud(tmp_path, model):
    metrics = quick(tmp_path, model=model)
    assert metrics["status"] == "finished"
    assert [record["epoch"] for record in metrics["epochs"]] == [1, 2]
    assert all(math.isfinite(record["loss"]) for record in metrics["epochs"])
    assert all(record["nfe_forward"] > 0 for record in metrics["epochs"])
    assert all(record["nfe_backward"] > 0 for record in metrics["epochs"])
    if model in COUNTS["heavy-ball"]:
        assert metrics["parameters"] == COUNTS["heavy-ball"][model]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_the_nesterov_papers_size_under_its_protocol(model):
    experiment = get("point-cloud")
    config = experiment.configure(model=model, settings={"protocol": "nesterov"})
    task = experiment.task(config)
    assert sum(p.numel() for p in task.model.parameters()) == COUNTS["nesterov"][model]
    assert task.train[0].shape == (120, 2)
    assert task.train[0].dtype == torch.float64


@pytest.mark.parametrize("variant", ["paper", "published"])
@pytest.mark.parametrize("model", ["nesterovnode", "gnesterovnode"])
def test_both_variants_of_the_nesterov_models_train(tmp_path, model, variant):
    metrics = quick(tmp_path, model=model, settings={"variant": variant, "protocol": "nesterov"})
    assert metrics["status"] == "finished"


@pytest.mark.parametrize("model", MODELS)
def test_every_model_classifies_digits_with_about_as_many_parameters(model):
    task = DigitsExperiment().task(DigitsExperiment().configure(model=model))
    assert 8300 <= sum(p.numel() for p in task.model.parameters()) <= 8700
    x, y = task.train[0][:4], task.train[1][:4]
    output = task.model(x)
    assert output.shape == (4, 10)
    task.loss(output, y).backward()
    assert task.model.stats.nfe_backward > 0
    assert all(p.grad is not None for p in task.model.parameters())


def test_digits_are_learned(tmp_path):
    metrics = run(
        "digits", model="hbnode", epochs=2, out=tmp_path, progress=False, settings={"lr": 0.01}
    )
    assert metrics["final"]["test_accuracy"] > 0.85  # 0.1 is chance; 0.9 was seen


# ---------------------------------------------------------------- without an ODE

TINY = {"width": 2, "blocks": 1, "batch_size": 512}


def quick_twins(out, **choices):
    choices = {"epochs": 2, "settings": TINY} | choices
    return compare("momentum-digits", seeds=1, out=out, progress=False, **choices)


def test_the_momentum_twin_begins_with_the_parameters_of_the_residual_network():
    experiment = get("momentum-digits")
    states = []
    for model in experiment.models:
        torch.manual_seed(0)
        task = experiment.task(experiment.configure(model=model, settings=TINY))
        states.append(task.model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_reversible_and_stored_activations_train_alike(tmp_path):
    finals = [
        run("momentum-digits", epochs=2, out=tmp_path / mode, progress=False, settings=settings)
        for mode in ("backprop", "reversible")
        for settings in [{**TINY, "mode": mode}]
    ]
    # gradients differ by the rounding of float32, 1e-7, which six steps of Adam do not amplify
    # a thousandfold
    losses = [metrics["final"]["test_loss"] for metrics in finals]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_solves_no_ode_has_no_evaluations_in_tables_and_figures(tmp_path, drawn):
    summary = quick_twins(tmp_path)
    assert [row["finished"] for row in summary["table"]] == [1, 1]
    text = (tmp_path / "comparison.md").read_text()
    assert "Momentum ResNet" in text
    assert "NFE" not in text
    assert "calls" not in text
    assert_is_figure(tmp_path / "comparison.png")
    metrics = json.loads((tmp_path / "momentum-seed0" / "metrics.json").read_text())
    assert "nfe_forward" not in metrics["final"]
    assert len(plotting.training(metrics["epochs"]).axes) == 4
    assert len(plotting.comparison({"momentum": [metrics["epochs"]]}).axes) == 2


def test_evaluations_have_panels_where_there_are_any(drawn):
    record = {"loss": 1.0, "accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.5}
    record |= {"epoch": 1, "seconds": 1.0, "nfe_forward": 20.0, "nfe_backward": 10.0}
    assert len(plotting.training([record]).axes) == 6
    assert len(plotting.comparison({"node": [[record]]}).axes) == 4


def test_a_limit_takes_so_many_training_images():
    experiment = get("momentum-digits")
    task = experiment.task(experiment.configure(settings={**TINY, "limit": 100}))
    assert task.info["train_samples"] == len(task.train[0]) == len(task.train[1]) == 100
    assert task.info["test_samples"] == 360


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"data": "mnits"}, "mnist"),
        ({"limit": -1}, "limit"),
        ({"limit": 5000}, "1437"),
        ({"width": 0}, "width"),
        ({"mode": "reverse"}, "reversible"),
        ({"gamma": 1.5}, "gamma"),
    ],
)
def test_a_momentum_network_refuses_settings_that_do_not_fit(tmp_path, settings, match):
    with pytest.raises(InvalidArgumentError, match=match):
        run("momentum-digits", out=tmp_path / "out", progress=False, settings=settings)
    assert not (tmp_path / "out").exists()


def test_mnist_is_not_replaced_where_its_files_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYJULIAODE_DATA", str(tmp_path / "nothing"))
    with pytest.raises(InvalidArgumentError, match="train-images-idx3-ubyte"):
        run("momentum-digits", out=tmp_path, progress=False, settings={"data": "mnist"})


def test_a_run_leaves_metrics_checkpoint_and_figures(tmp_path, drawn):
    quick(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["config"]["model"] == "node"
    assert metrics["config"]["seed"] == 0
    assert torch.__version__.startswith(metrics["environment"]["versions"]["torch"])  # but for +cpu
    assert metrics["environment"]["device"].startswith("cpu")
    assert set(metrics["solver"]) == {"method", "adjoint", "backend"}
    for name in ("training.png", "evolution.png", "frames/epoch-0000.png", "frames/epoch-0002.png"):
        assert_is_figure(tmp_path / name)
    leftovers = [path.name for path in tmp_path.rglob(".*")]
    assert not leftovers


def assert_is_figure(path):
    """A PNG with something on it."""
    from matplotlib.image import imread

    pixels = imread(path)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 300
    assert pixels[..., :3].std() > 0.02


def test_a_run_does_not_touch_the_callers_random_numbers(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    quick(tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        quick(tmp_path / name, seed=seed)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(
        parameters(tmp_path / "a")["head.0.weight"], parameters(tmp_path / "c")["head.0.weight"]
    )


# ---------------------------------------------------------------- resuming


# shuffled batches: the generator of their order has to come back too
SHUFFLED = {"protocol": "nesterov", "batch_size": 30}


def test_resuming_continues_bit_for_bit(tmp_path):
    quick(tmp_path / "whole", epochs=4, settings=SHUFFLED)
    quick(tmp_path / "parts", epochs=2, settings=SHUFFLED)
    quick(tmp_path / "parts", epochs=4, settings=SHUFFLED, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_an_interrupted_run_keeps_its_complete_epochs_and_resumes_bit_for_bit(tmp_path):
    quick(tmp_path / "whole", epochs=4, settings=SHUFFLED)
    with pytest.raises(KeyboardInterrupt):  # 4 batches an epoch: in the middle of the third
        quick(tmp_path / "cut", epochs=4, settings=SHUFFLED, callbacks=[InterruptAfter(10)])
    metrics = json.loads((tmp_path / "cut" / "metrics.json").read_text())
    assert metrics["status"] == "interrupted"
    assert len(metrics["epochs"]) == 2
    assert (tmp_path / "cut" / "training.png").exists()
    # without epochs: up to the number that it was started with
    quick(tmp_path / "cut", epochs=None, settings=SHUFFLED, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_interrupted_in_its_first_epoch_resumes(tmp_path):
    quick(tmp_path / "whole", settings=SHUFFLED)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "cut", settings=SHUFFLED, callbacks=[InterruptAfter(1)])
    quick(tmp_path / "cut", settings=SHUFFLED, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = quick(tmp_path)
    again = quick(tmp_path, resume=True)
    assert again["epochs"] == first["epochs"]


def test_a_failing_run_keeps_its_complete_epochs(tmp_path):
    error = SolverError("it stopped", retcode=None)
    with pytest.raises(SolverError):
        quick(tmp_path, settings=SHUFFLED, callbacks=[InterruptAfter(6, error)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["status"], len(metrics["epochs"])) == ("failed", 1)


def test_a_loss_that_is_not_finite_says_what_to_try(tmp_path):
    class Spoil(Callback):
        def on_batch(self, trainer):
            with torch.no_grad():
                trainer.model.head[0].bias.fill_(math.nan)

    with pytest.raises(TrainingError, match="learning rate"):
        quick(tmp_path, callbacks=[Spoil()])


@pytest.mark.parametrize(
    ("name", "settings"),
    [("cubic", {"depth": 0}), ("momentum-digits", {"data": "none"})],
)
def test_a_run_that_cannot_begin_removes_nothing(tmp_path, name, settings):
    (tmp_path / "metrics.json").write_text('{"config": {}, "status": "finished"}')
    (tmp_path / "old.png").touch()
    with pytest.raises(InvalidArgumentError):
        run(name, out=tmp_path, overwrite=True, settings=settings, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "old.png"}


# ---------------------------------------------------------------- refusals


def test_a_folder_that_holds_this_run_is_not_written_without_being_told(tmp_path):
    quick(tmp_path)
    before = (tmp_path / "metrics.json").read_bytes()
    with pytest.raises(InvalidArgumentError, match=r"2 of 2 epochs.*--resume.*--overwrite"):
        quick(tmp_path)
    assert (tmp_path / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("choice", [{"seed": 1}, {"model": "anode"}, {"settings": {"lr": 0.1}}])
def test_a_folder_that_holds_another_run_is_refused(tmp_path, choice, resume):
    quick(tmp_path)
    with pytest.raises(InvalidArgumentError, match="another run"):
        quick(tmp_path, resume=resume, **choice)


def test_a_checkpoint_without_metrics_is_still_a_run(tmp_path):
    quick(tmp_path)
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(InvalidArgumentError, match="already holds this run"):
        quick(tmp_path)


def test_overwriting_removes_the_run_and_nothing_else(tmp_path):
    quick(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    metrics = quick(tmp_path, epochs=1, overwrite=True)
    assert len(metrics["epochs"]) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "frames" / "epoch-0002.png").exists()


def test_a_damaged_checkpoint_is_named(tmp_path):
    quick(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(InvalidArgumentError, match=r"checkpoint\.pt.*--overwrite"):
        quick(tmp_path, epochs=3, resume=True)


def test_damaged_metrics_are_named(tmp_path):
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(InvalidArgumentError, match=r"metrics\.json"):
        quick(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_metrics({"config": {}, "n": 1})

    def fail(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.write("metrics.json", fail)
    assert json.loads((tmp_path / "metrics.json").read_text())["n"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ({"model": "hbnod"}, "hbnode"),
        ({"epochs": 0}, "epochs"),
        ({"tol": -1.0}, "tol"),
        ({"settings": {"learning_rate": 1}}, "lr"),
        ({"settings": {"lr": "fast"}}, "a number above 0 and up to 1000, got 'fast'"),
        ({"settings": {"protocol": "nesterow"}}, "nesterov"),
        ({"device": "gpu7"}, "device"),
        ({"threads": 0}, "threads"),
        ({"resume": True, "overwrite": True}, "exclude"),
    ],
)
def test_wrong_choices_are_refused_before_anything_is_written(tmp_path, choice, match):
    out = tmp_path / "out"
    with pytest.raises(InvalidArgumentError, match=match):
        quick(out, **choice)
    assert not out.exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 36 bytes"),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_sizes_that_do_not_fit_into_memory_are_said_to_be_too_large(tmp_path, monkeypatch, error):
    def task(self, config):
        raise error

    monkeypatch.setattr(DigitsExperiment, "task", task)
    with pytest.raises(InvalidArgumentError, match="digits needs more memory than there is"):
        run("digits", out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_another_error_of_an_experiment_comes_out_as_itself(tmp_path, monkeypatch):
    def task(self, config):
        raise RuntimeError("mine")

    monkeypatch.setattr(DigitsExperiment, "task", task)
    with pytest.raises(RuntimeError, match="mine"):
        run("digits", out=tmp_path, progress=False)


def test_an_unknown_experiment_names_the_nearest():
    with pytest.raises(InvalidArgumentError, match="point-cloud"):
        get("point_cloud")
    with pytest.raises(InvalidArgumentError, match="no epochs"):
        get("optimizers").configure(epochs=3)


DECLARED = {
    "n": settings.whole(1, 1, 9),
    "x": settings.number(0.5, 0.0, 1.0, above=True),
    "s": settings.choice("a", "b"),
    "m": settings.numbers("1,2", settings.whole(1)),
    "f": settings.activation("tanh"),
}


def test_settings_are_read_from_text_and_have_defaults():
    defaults = {"n": 1, "x": 0.5, "s": "a", "m": "1,2", "f": "tanh"}
    assert settings.merge(DECLARED, {}) == defaults
    texts = {"n": "3", "x": "1e-3", "s": "b", "m": "4, 5,6", "f": "hardtanh(2)"}
    read = {"n": 3, "x": 1e-3, "s": "b", "m": "4,5,6", "f": "hardtanh(2)"}
    assert settings.merge(DECLARED, texts) == read
    assert settings.merge(DECLARED, read) == read
    assert settings.merge(DECLARED, {"n": 2.0, "x": 1}) == {**defaults, "n": 2, "x": 1.0}


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("n", 1.5, "setting 'n' must be a whole number from 1 to 9, got 1.5"),
        ("n", "10", "whole number from 1 to 9, got '10'"),
        ("n", True, "got True"),
        ("x", 0, "setting 'x' must be a number above 0 and up to 1, got 0"),
        ("x", math.nan, "got nan"),
        ("x", [1.0], r"got \[1.0\]"),
        ("s", "c", "unknown s 'c'. Valid: a, b."),
        ("m", "1;2", "numbers with commas between them, got '1;2'"),
        ("m", "1,0", "whole number from 1 to .*, got '0'"),
        ("f", "tan", "Did you mean 'tanh'"),
        ("f", "hardtanh(1.2.3)", "unknown activation"),
        ("nn", 1, "unknown setting 'nn'. Did you mean 'n'"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_with_what_is_wanted(name, given, said):
    with pytest.raises(InvalidArgumentError, match=said):
        settings.merge(DECLARED, {name: given})


# ---------------------------------------------------------------- threads


LARGE = {"width": 128, "batch_size": 64}  # of momentum-digits: 600 million multiply-adds


def chosen(name, folder, settings=None, **choices):
    experiment = get(name)
    work = experiment.work(experiment.configure(settings=settings))
    return choose(work, RunFolder(folder), **choices)


def test_small_networks_get_one_thread_and_large_ones_what_torch_has(tmp_path, two_threads):
    for name in set(names()) - {"momentum-finetune"}:
        assert chosen(name, tmp_path).number == 1, name
    assert chosen("momentum-finetune", tmp_path).number == 2
    large = chosen("momentum-digits", tmp_path, LARGE)
    assert large.number == 2
    assert large.line().startswith("threads: 2 of 2 (large network: 603,979,776 multiply-adds")
    assert chosen("momentum-digits", tmp_path, LARGE, jobs=2).number == 1
    assert chosen("momentum-digits", tmp_path, LARGE, asked=3).number == 3


def test_where_there_is_one_thread_nothing_is_said_of_it(tmp_path):
    with using(1):
        assert chosen("digits", tmp_path).line() == ""


def multiply_adds(model, x):
    """Of the largest layer of ``model`` for a batch."""
    seen = []

    def count(module, _, out):
        positions = out.numel() // module.weight.shape[0]
        seen.append(module.weight.numel() * positions)

    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(x)
    return max(seen)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        *(("digits", {"model": model}) for model in MODELS),
        ("point-cloud", {"model": "node"}),
        ("point-cloud", {"settings": {"protocol": "nesterov", "batch_size": 1000}}),
        ("momentum-digits", {"settings": {"width": 4}}),
        ("pan-moons", {"method": "dopri5", "settings": {"hidden": 32}}),
    ],
)
def test_the_work_of_a_training_is_that_of_its_largest_layer(name, choices):
    experiment = get(name)
    config = experiment.configure(**choices)
    task = experiment.task(config)
    work = multiply_adds(task.model, task.train[0][: task.batch_size])
    # the time is one more input of some fields
    assert work <= 1.2 * experiment.work(config)
    assert experiment.work(config) <= 2.5 * work


def test_a_run_uses_the_threads_chosen_and_gives_back_the_callers(tmp_path, two_threads):
    metrics = quick(tmp_path)
    assert metrics["environment"]["threads"] == 1
    assert torch.get_num_threads() == 2


def test_a_resumed_run_has_the_threads_that_it_began_with(tmp_path):
    quick(tmp_path, threads=2)
    assert quick(tmp_path, epochs=3, resume=True)["environment"]["threads"] == 2
    assert quick(tmp_path, epochs=3, overwrite=True)["environment"]["threads"] == 1
    assert quick(tmp_path, epochs=4, resume=True, threads=2)["environment"]["threads"] == 2


def test_a_default_run_resumes_bit_for_bit_where_torch_has_other_threads(tmp_path, two_threads):
    quick(tmp_path / "whole", epochs=3, settings=SHUFFLED)
    quick(tmp_path / "parts", epochs=1, settings=SHUFFLED)
    torch.set_num_threads(1)
    quick(tmp_path / "parts", epochs=3, settings=SHUFFLED, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_every_experiment_has_a_summary():
    assert names() == sorted(names())
    for name in names():
        assert get(name).name == name
        assert get(name).summary


# ---------------------------------------------------------------- studies


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_gradients_of_the_test_functions_are_theirs(problem):
    z = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(problem.value(z).sum(), z)
    assert torch.allclose(problem.gradient(z.detach()), expected)
    minimum = torch.tensor([problem.minimum], dtype=torch.float64)
    assert problem.value(minimum).item() == 0


def test_optimizers_reach_the_points_that_scipy_reaches(tmp_path, drawn):
    final = run("optimizers", out=tmp_path, progress=False)["final"]
    # scipy, rtol 1e-9, of the settings in the heavy-ball paper's appendix E.6; 4 digits are kept
    expected = {
        "Rosenbrock, gradient flow": {"x": 0.6737, "y": 0.4523, "distance": 0.6375, "F": 0.1067},
        "Rosenbrock, heavy ball": {"x": 0.5323, "y": 0.2800, "distance": 0.8586, "F": 0.2199},
        "Beale, gradient flow": {"x": 2.6834, "y": 0.4091, "distance": 0.3294, "F": 0.0233},
        "Beale, heavy ball": {"x": 4.3534, "y": 0.6161, "distance": 1.3584, "F": 0.7369},
    }
    for name, values in expected.items():
        for key, value in values.items():
            assert final[name][key] == pytest.approx(value, abs=6e-5)
    assert final["Beale, heavy ball"]["closest"] == pytest.approx(0.3178, abs=2e-4)
    assert_is_figure(tmp_path / "optimizers.png")


def test_nesterovs_flow_agrees_with_scipy(tmp_path):
    import numpy as np
    from scipy.integrate import solve_ivp

    problem = PROBLEMS[0]

    def rhs(t, state):
        z = torch.tensor(state[None, :2])
        slope = -problem.gradient(z)[0].numpy()
        velocity = state[2:]
        # the limit of -(3/t) v at t = 0, where v = t v'(0)
        return [*velocity, *(slope / 4 if t == 0 else slope - 3 / t * velocity)]

    exact = solve_ivp(rhs, (0, 1), np.zeros(4), rtol=1e-10, atol=1e-12, method="DOP853").y[:2, -1]
    metrics = run("optimizers", out=tmp_path, progress=False, settings={"horizon_factor": 1.0})
    final = metrics["final"]["Rosenbrock, Nesterov"]
    assert [final["x"], final["y"]] == pytest.approx(list(exact), abs=1e-6)


def test_silverbox_init_without_the_record_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("PYJULIAODE_DATA", raising=False)
    with pytest.raises(InvalidArgumentError, match=r"nonlinearbenchmark\.org"):
        run("silverbox-init", out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_growth_on_the_generated_input_bears_its_name_and_is_bounded_for_ghbnode(tmp_path, drawn):
    metrics = run(
        "silverbox-init",
        model="ghbnode",
        tol=1e-4,
        out=tmp_path,
        progress=False,
        settings={"input": "duffing", "inits": 2},
    )
    assert metrics["input"] == "generated Duffing oscillator"
    # |h'| <= 5 for 62 units of time, from |h0| < 1
    assert max(metrics["models"]["ghbnode"]["max"]) < 311
    assert_is_figure(tmp_path / "growth.png")


def test_the_driving_input_is_interpolated_between_its_samples():
    field = Driven(1, 1, torch.tensor([0.0, 1.0, 4.0, 2.0], dtype=torch.float64))
    with torch.no_grad():
        field.map.weight.copy_(torch.tensor([[0.0, 1.0]]))
        field.map.bias.zero_()
    h = torch.zeros(1, 1, dtype=torch.float64)
    values = [field(torch.tensor(t, dtype=torch.float64), h).item() for t in (0.5, 2.0, 2.75)]
    assert values == pytest.approx([0.5, 4.0, 2.5])


def test_a_growth_that_could_not_be_solved_is_not_called_an_explosion():
    nan, inf = math.nan, math.inf
    summary = summarise([8.0, 16.0, 32.0], [[1.0, 2.0, nan], [3.0, inf, 5e3]])
    assert summary["median"][:2] == [2.0, inf]
    assert summary["fraction_large"][:2] == [0.0, 0.5]
    assert math.isnan(summary["fraction_large"][2])
    assert summary["unsolved"] == [0, 0, 1]


def test_nfe_grow_and_errors_fall_with_the_tolerance(tmp_path, drawn):
    rows = run("nfe-vs-tolerance", out=tmp_path, tol=1e-6, progress=False)["rows"]
    for model in MODELS:
        own = [row for row in rows if row["model"] == model]
        assert [row["tol"] for row in own] == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
        assert own[-1]["nfe_forward"] > own[0]["nfe_forward"]
        assert own[-1]["nfe_backward"] > own[0]["nfe_backward"]
        assert own[-1]["error"] < 1e-4
        assert own[-1]["gradient_error"] < 1e-3
    assert_is_figure(tmp_path / "nfe-vs-tolerance.png")


# ---------------------------------------------------------------- comparison


def quick_compare(out, **choices):
    choices = {"models": "node,hbnode", "seeds": 2, "epochs": 2, "tol": 1e-3} | choices
    return compare("point-cloud", out=out, progress=False, **choices)


def test_a_comparison_writes_one_table_and_one_figure(tmp_path, drawn):
    summary = quick_compare(tmp_path)
    assert [row["model"] for row in summary["table"]] == ["node", "hbnode"]
    losses = [
        json.loads((tmp_path / f"node-seed{seed}" / "metrics.json").read_text())["final"]["loss"]
        for seed in (0, 1)
    ]
    row = summary["table"][0]
    assert row["loss"] == pytest.approx(sum(losses) / 2)
    assert row["loss_std"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    text = (tmp_path / "comparison.md").read_text()
    assert "HBNODE" in text
    assert "±" in text
    assert "2/2" in text
    assert len((tmp_path / "comparison.csv").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "comparison.json").read_text()) == summary
    assert_is_figure(tmp_path / "comparison.png")


def test_a_resumed_comparison_skips_what_is_finished(tmp_path):
    quick_compare(tmp_path, seeds=1)
    kept = tmp_path / "node-seed0" / "checkpoint.pt"
    before = kept.stat().st_mtime_ns
    with pytest.raises(InvalidArgumentError, match="--resume"):
        quick_compare(tmp_path)
    summary = quick_compare(tmp_path, resume=True)
    assert kept.stat().st_mtime_ns == before
    assert [row["finished"] for row in summary["table"]] == [2, 2]


def test_a_failed_run_is_counted_and_left_out_of_the_means(tmp_path, monkeypatch):
    from pyjuliaode.experiments import comparison

    execute = comparison.execute

    def fail_once(config, folder, threads, **options):
        if (config.model, config.seed) == ("node", 1):
            raise TrainingError("the loss is nan")
        return execute(config, folder, threads, **options)

    monkeypatch.setattr(comparison, "execute", fail_once)
    summary = quick_compare(tmp_path)
    assert [row["finished"] for row in summary["table"]] == [1, 2]
    assert summary["table"][0]["loss_std"] is None
    failed = [one for one in summary["runs"] if one["status"] == "failed"]
    assert [(one["model"], one["seed"], one["error"]) for one in failed] == [
        ("node", 1, "the loss is nan")
    ]


@pytest.mark.parametrize("anew", [False, True])
def test_an_interrupted_comparison_writes_what_is_finished(tmp_path, monkeypatch, anew):
    """And does not count the runs that it was to overwrite."""
    from pyjuliaode.experiments import comparison

    if anew:
        quick_compare(tmp_path, seeds=1, tol=1e-2)
    execute = comparison.execute

    def interrupt(config, folder, threads, **options):
        if config.model == "hbnode":
            raise KeyboardInterrupt
        return execute(config, folder, threads, **options)

    monkeypatch.setattr(comparison, "execute", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quick_compare(tmp_path, seeds=1, overwrite=anew)
    table = json.loads((tmp_path / "comparison.json").read_text())["table"]
    assert [row["finished"] for row in table] == [1, 0]


def test_another_process_gives_the_same_run(tmp_path):
    quick_compare(tmp_path / "here", models="node", seeds=1, threads=1)
    quick_compare(tmp_path / "there", models="node", seeds=1, threads=1, jobs=2)
    assert_same_run(tmp_path / "here" / "node-seed0", tmp_path / "there" / "node-seed0")


def test_a_comparison_of_what_does_not_train_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="pyjuliaode run optimizers"):
        compare("optimizers", out=tmp_path)
    with pytest.raises(InvalidArgumentError, match="hbnode"):
        compare("digits", models="hbnodes", out=tmp_path)
    with pytest.raises(InvalidArgumentError, match="seeds"):
        compare("digits", seeds=0, out=tmp_path)


# ---------------------------------------------------------------- momentum-finetune


class SmallResNet(nn.Module):
    """Two residual blocks in a list; weights as they are drawn."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 4)
        self.blocks = nn.Sequential(SmallBlock(), SmallBlock())

    def forward(self, x):
        return 3 * self.head(self.blocks(self.stem(x)).mean((2, 3)))


class SmallBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        return x + torch.relu(self.norm(self.conv(x)))


@pytest.fixture
def generated_source(monkeypatch):
    """A network of random weights and pictures of noise in place of the pretrained one."""

    def source(size):
        torch.manual_seed(0)
        pictures = torch.randn(10, 3, 4, 4).repeat_interleave(size // 2, 2)
        pictures = 2 * pictures.repeat_interleave(size // 2, 3)
        labels = torch.arange(10) % 4
        return Pretrained(
            "random network on generated noise", SmallResNet(), None, pictures, labels
        )

    monkeypatch.setattr(MomentumFinetune, "source", staticmethod(source))


SMALL = {"size": 8, "held_out": 4, "views": 4, "steps": 20, "batch": 6, "lr": 1e-2}


def refit(out, **settings):
    return run("momentum-finetune", out=out, progress=False, settings=SMALL | settings)


def test_a_refit_brings_momentum_networks_nearer_to_their_original(
    tmp_path, drawn, generated_source
):
    metrics = refit(tmp_path)
    assert metrics["source"] == "random network on generated noise"
    assert [row["gamma"] for row in metrics["rows"]] == [0.0, 0.5, 0.9]
    unchanged, *refitted = (row["curve"] for row in metrics["rows"])
    assert len(unchanged) == 1
    assert unchanged[0]["KL, held out"] == 0
    assert unchanged[0]["agreement, seen"] == 1
    assert 0 < refitted[0][0]["KL, held out"] < refitted[1][0]["KL, held out"]
    for curve in refitted:
        assert curve[-1]["step"] == SMALL["steps"]
        # measured: 0.27 and 0.28 of what it was
        assert curve[-1]["KL, held out"] < 0.5 * curve[0]["KL, held out"]
    final = metrics["final"]
    assert final["gamma 0, converted"]["correct"] == final["original"]["correct"]
    assert final["gamma 0.9, refitted"] == refitted[1][-1]
    assert_is_figure(tmp_path / "momentum-finetune.png")


def test_a_reversible_refit_is_that_by_backprop(tmp_path, generated_source):
    curves = [
        [
            point["KL, held out"]
            for row in refit(tmp_path / mode, mode=mode, steps=4)["rows"]
            for point in row["curve"]
        ]
        for mode in ("reversible", "backprop")
    ]
    # rounding of float32, 6e-8 relative to logits of about 1, where a KL is 1e-3 and more
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_a_refit_repeats_and_can_take_the_statistics_of_the_batch(tmp_path, generated_source):
    choices = ("frozen", "frozen", "batch")
    runs = [
        refit(tmp_path / str(i), steps=2, batch_norm=choice) for i, choice in enumerate(choices)
    ]
    assert runs[0]["rows"] == runs[1]["rows"]
    assert runs[0]["rows"] != runs[2]["rows"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"steps": 0}, "'steps' must be a whole number from 1"),
        ({"lr": 0.0}, "'lr' must be a number above 0"),
        ({"held_out": 10}, "'held_out' must leave"),
        ({"batch_norm": "freeze"}, "Did you mean 'frozen'"),
        ({"mode": "revertible"}, "Did you mean 'reversible'"),
    ],
)
def test_wrong_settings_of_a_refit_are_refused(tmp_path, generated_source, settings, match):
    with pytest.raises(InvalidArgumentError, match=match):
        refit(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_refit_without_the_pictures_says_what_carries_them(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install --no-deps .* foolbox==3\.3\.4"):
        run("momentum-finetune", out=tmp_path, progress=False)
