"""The command line: what it prints, its exit statuses, and Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import pyjuliaode
from pyjuliaode import plotting
from pyjuliaode.bench.competitors import PACKAGES
from pyjuliaode.bench.problems import MAKERS
from pyjuliaode.cli import app
from pyjuliaode.errors import InvalidArgumentError
from pyjuliaode.experiments import get, names
from pyjuliaode.experiments.trainer import Trainer

QUICK = ["--model", "node", "--tol", "1e-3", "--epochs", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch):
    for name in ("training", "comparison", "point_cloud", "point_cloud_evolution"):
        monkeypatch.setattr(plotting, name, lambda *data: None)
    monkeypatch.setattr(plotting, "save", lambda figure, path: path.touch())


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_list_names_every_experiment_with_its_defaults():
    result = invoke("list")
    assert result.exit_code == 0
    for name in names():
        assert f"{name}:" in result.stdout
    assert "--model hbnode --epochs 300" in result.stdout


COMMANDS = ["run", "list", "compare", "crosscheck", "bench", "doctor", "setup-julia"]


def test_there_are_the_commands_that_are_tested_here():
    assert [command.name for command in app.registered_commands] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    assert "Options" in result.stdout


def test_the_help_of_bench_names_what_it_measures():
    options = {p.name: p.help for p in get_command(app).commands["bench"].params}
    assert options["problems"] == f"Some of {', '.join(MAKERS)}."
    assert options["competitors"] == f"Some of {', '.join(PACKAGES)}."


def test_the_version_is_said():
    assert invoke("--version").stdout == f"pyjuliaode {pyjuliaode.__version__}\n"


def test_the_package_can_be_run():
    command = [sys.executable, "-m", "pyjuliaode", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout.startswith("pyjuliaode ")


def test_run_prints_the_final_numbers_and_the_folder(tmp_path):
    result = invoke("run", "point-cloud", *QUICK, "--out", tmp_path / "r", "--set", "lr=0.02")
    assert result.exit_code == 0, result.stderr
    assert "test_accuracy" in result.stdout
    files = "checkpoint.pt, evolution.png, metrics.json, training.png"
    assert result.stdout.splitlines()[-1] == f"written to {tmp_path / 'r'}: {files}"
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert metrics["config"]["settings"]["lr"] == 0.02


def test_run_writes_to_a_folder_named_after_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke("run", "point-cloud", *QUICK, "--seed", 3).exit_code == 0
    assert (tmp_path / "runs" / "point-cloud-node-seed3" / "metrics.json").exists()


def test_run_resumes_and_overwrites(tmp_path):
    command = ["run", "point-cloud", *QUICK, "--out", tmp_path]
    assert invoke(*command).exit_code == 0
    refused = invoke(*command)
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    assert invoke(*command, "--resume").exit_code == 0
    assert invoke(*command, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["run", "point-clod"], "point-cloud"),
        (["run", "digits", "--model", "hbnod"], "'hbnode'"),
        (["run", "digits", "--set", "learning=1"], "lr"),
        (["run", "digits", "--set", "lr"], "NAME=VALUE"),
        (["run", "optimizers", "--epochs", "3"], "no epochs"),
        (["run", "point-cloud", "--backend", "torsh", "--epochs", "1"], "torch"),
        (["run", "point-cloud", "--method", "dopri6", "--epochs", "1"], "dopri5"),
        (["run", "point-cloud", "--adjoint", "gaus", "--epochs", "1"], "gauss"),
        (["run", "digits", "--set", "lr=1", "--set", "lr=2"], "'lr' twice"),
        (["run", "digits", "--input", "duffing"], "unknown setting 'input'"),
        (["run", "digits", "--resume", "--overwrite"], "exclude each other"),
        (["compare", "digits", "--models", "node,hb"], "hbnode"),
        (["compare", "digits", "--models", ""], "names with commas between them"),
        (["compare", "digits", "--models", "node,,hbnode"], "got 'node,,hbnode'"),
        (["compare", "digits", "--models", "node,node"], "'node' twice"),
        (["compare", "digits", "--seeds", "0"], "seeds must be a whole number from 1"),
        (["compare", "digits", "--jobs", "0"], "jobs must be a whole number from 1"),
        (["compare", "momentum-digits", "--set", "limit=2000"], "1437"),
        (["run", "momentum-digits", "--set", "gamma=0"], "use mode='backprop'"),
    ],
)
def test_an_error_is_one_clean_line_and_status_2(tmp_path, monkeypatch, arguments, hint):
    monkeypatch.chdir(tmp_path)
    assert_refused(invoke(*arguments), hint)
    assert not list(tmp_path.iterdir())


def assert_refused(result, hint):
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith("threads:"))
    assert line.startswith("error: ")
    assert hint in line


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--epochs", "0"], "epochs must be a whole number from 1"),
        (["--epochs", "-1"], "got -1"),
        (["--tol", "nan"], "tol must be a number from 1e-15 to 1, got nan"),
        (["--tol", "0"], "got 0"),
        (["--method", "unknown"], "unknown method 'unknown'"),
        (["--method", "dopry5"], "Did you mean 'dopri5' or 'dopri8'?"),
        (["--device", "bogus"], "device must be cpu, cuda"),
        (["--device", "meta"], "device must be cpu, cuda"),
        (["--device", "cuda:99"], "is not here"),
        (["--threads", "0"], "threads must be a whole number from 1"),
        (["--out", "file"], "is a file"),
        (["--out", "file/folder"], "cannot write to file/folder"),
        (["--out", "x" * 300], "cannot write to x"),
        (["--out", "/proc/no"], "cannot write to /proc/no"),
    ],
)
def test_wrong_options_are_refused_before_a_folder_is_made(
    tmp_path, monkeypatch, command, arguments, hint
):
    if arguments[1].startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("no folder here is closed to everyone")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert_refused(invoke(command, "point-cloud", *arguments), hint)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


NONSENSE = ["", "abc", "nan", "inf", "-inf", "-3", "1e300", "1e400", "9" * 400, "true", "[1]"]


@pytest.mark.parametrize("name", names())
def test_no_setting_takes_nonsense(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    experiment = get(name)
    for setting in experiment.defaults.settings:
        for value in NONSENSE:
            with pytest.raises(InvalidArgumentError, match=setting):
                experiment.configure(settings={setting: value})
        assert_refused(invoke("run", name, "--set", f"{setting}=nan"), "'nan'")
        assert_refused(invoke("run", name, "--set", f"{setting}s=1"), f"Did you mean '{setting}")
    assert_refused(invoke("run", name, "--seed", -1), "seed must be a whole number from 0")
    assert not list(tmp_path.iterdir())


# where 0 means something; everywhere else it is refused
ZEROS = {"clip", "data_seed", "gamma", "gammas", "limit", "noise"}


@pytest.mark.parametrize("name", names())
def test_zero_is_refused_where_it_means_nothing(name):
    experiment = get(name)
    for setting in experiment.defaults.settings.keys() - ZEROS:
        with pytest.raises(InvalidArgumentError, match=setting):
            experiment.configure(settings={setting: 0})


def test_silverbox_without_its_record_says_where_it_is_public(tmp_path, monkeypatch):
    monkeypatch.delenv("PYJULIAODE_DATA", raising=False)
    result = invoke("run", "silverbox-init", "--out", tmp_path)
    assert result.exit_code == 2
    assert "nonlinearbenchmark.org" in result.stderr


def test_compare_prints_the_table(tmp_path):
    command = ["compare", "point-cloud", "--models", "node,anode", "--seeds", 2, "--epochs", 1]
    result = invoke(*command, "--tol", "1e-3", "--threads", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    *table, last = result.stdout.splitlines()
    assert table == (tmp_path / "comparison.md").read_text().splitlines()
    files = "comparison.csv, comparison.json, comparison.md, comparison.png"
    assert last == f"written to {tmp_path}: {files}, and a folder of every run"
    assert "| ANODE" in result.stdout
    assert "±" in result.stdout


def test_doctor_prints_its_report():
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "torch" in result.stdout
    lacking = pyjuliaode.backends()["julia"]["missing"]
    assert lacking is None or result.stdout.count(lacking.partition(":")[0]) == 1


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_file_instead_of_a_terminal_is_told_how_far_it_is(tmp_path, command):
    choices = ["--model", "node"] if command == "run" else ["--models", "node", "--seeds", 1]
    more = ["--tol", "1e-3", "--epochs", 1, "--out", tmp_path]
    result = invoke(command, "point-cloud", *choices, *more)
    lines = result.stderr.splitlines()
    assert lines[0] == "node, seed 0: 0 of 1 epochs, 0:00"
    assert lines[-1].startswith("node, seed 0: 1 of 1 epochs")
    assert "test acc" in lines[-1]


@pytest.mark.parametrize("command", ["run", "compare"])
def test_the_choice_of_threads_is_one_line(tmp_path, monkeypatch, two_threads, command):
    more = ["--tol", "1e-3", "--epochs", 1, "--out", tmp_path]
    if command == "compare":
        more += ["--models", "node,hbnode", "--seeds", 2]
    first, second, *_ = invoke(command, "point-cloud", *more).stderr.splitlines()
    assert first.startswith("threads: 1 of 2 (small network: ")
    assert first.endswith("multiply-adds in its largest layer; --threads changes it)")
    assert not second.startswith("threads")
    asked = invoke(command, "point-cloud", *more, "--overwrite", "--threads", 2)
    assert "threads:" not in asked.stderr
    (metrics, *_) = tmp_path.rglob("metrics.json")
    assert json.loads(metrics.read_text())["environment"]["threads"] == 2


def test_ctrl_c_says_how_to_resume_and_the_command_it_prints_works(tmp_path, monkeypatch):
    step, calls = Trainer._step, []

    def interrupted(self, x, y):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(self, x, y)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    out = tmp_path / "a run"
    result = invoke("run", "point-cloud", *QUICK, "--out", out, "--set", "lr=0.02")
    assert result.exit_code == 130
    assert "1 complete epochs" in result.stderr
    command = shlex.split(result.stderr.split("to continue: ")[1])
    assert command[0] == "pyjuliaode"
    assert invoke(*command[1:]).exit_code == 0
    assert json.loads((out / "metrics.json").read_text())["status"] == "finished"


def test_ctrl_c_in_a_comparison_exits_with_130(tmp_path, monkeypatch):
    def interrupted(self, x, y):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_step", interrupted)
    result = invoke("compare", "point-cloud", "--models", "node", "--out", tmp_path)
    assert result.exit_code == 130
    assert (tmp_path / "comparison.json").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_real_sigint_keeps_what_was_done(tmp_path, command):
    out, epochs = tmp_path / "out", ["--tol", "1e-3", "--epochs", "100000", "--threads", "1"]
    more = (
        ["--model", "node"]
        if command == "run"
        else ["--models", "node", "--seeds", "1", "--jobs", "2"]
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pyjuliaode", command, "point-cloud", *epochs, *more]
        + ["--out", str(out)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_for_epochs(next_metrics(out, command), process)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "--resume" in stderr
    metrics = json.loads(next_metrics(out, command).read_text())
    assert metrics["status"] == "interrupted"
    assert metrics["epochs"]
    assert (next_metrics(out, command).parent / "training.png").stat().st_size > 10_000


def next_metrics(out, command):
    return (out if command == "run" else out / "node-seed0") / "metrics.json"


def _wait_for_epochs(path, process, seconds=60):
    """Until the metrics hold an epoch."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and json.loads(path.read_text())["epochs"]:
            return
        time.sleep(0.05)
    pytest.fail(f"no epoch was complete: {process.communicate()[1]}")


BARE = """
import sys
for name in ("matplotlib", "numpy", "scipy", "sklearn"):
    sys.modules[name] = None  # which makes its import fail
from pyjuliaode.cli import main
sys.argv = ["pyjuliaode", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["list"], 0, "silverbox-init"),
        (["run", "pan-spiral"], 2, "error: the experiments draw with matplotlib: pip install -c"),
        (["compare", "digits"], 2, "error: the experiments draw with matplotlib: pip install -c"),
        (["bench", "--problems", "nothing"], 2, "error: unknown problem 'nothing'"),
    ],
)
def test_a_bare_installation_says_what_to_install(tmp_path, arguments, status, said):
    command = [sys.executable, "-W", "ignore", "-c", BARE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == (status == 2)
    assert not list(tmp_path.iterdir())
