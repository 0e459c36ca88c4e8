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
from typer.testing import CliRunner

from pyjuliaode import plotting
from pyjuliaode.cli import app
from pyjuliaode.experiments import names
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


@pytest.mark.parametrize("command", ["run", "compare", "list", "doctor"])
def test_every_command_has_help(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_run_prints_the_final_numbers_and_the_folder(tmp_path):
    result = invoke("run", "point-cloud", *QUICK, "--out", tmp_path / "r", "--set", "lr=0.02")
    assert result.exit_code == 0, result.stderr
    assert "test_accuracy" in result.stdout
    assert str(tmp_path / "r") in result.stdout
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
        (["compare", "digits", "--models", "node,hb"], "hbnode"),
    ],
)
def test_an_error_is_one_clean_line_and_status_2(tmp_path, monkeypatch, arguments, hint):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert hint in result.stderr


def test_silverbox_without_its_record_says_where_it_is_public(tmp_path, monkeypatch):
    monkeypatch.delenv("PYJULIAODE_DATA", raising=False)
    result = invoke("run", "silverbox-init", "--out", tmp_path)
    assert result.exit_code == 2
    assert "nonlinearbenchmark.org" in result.stderr


def test_compare_prints_the_table(tmp_path):
    command = ["compare", "point-cloud", "--models", "node,anode", "--seeds", 2, "--epochs", 1]
    result = invoke(*command, "--tol", "1e-3", "--threads", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (tmp_path / "comparison.md").read_text()
    assert "| ANODE" in result.stdout
    assert "±" in result.stdout


def test_doctor_prints_its_report():
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "torch" in result.stdout


def test_bench_passes_its_arguments_on(monkeypatch):
    from pyjuliaode import bench

    seen = []
    monkeypatch.setattr(bench, "main", seen.append)
    assert invoke("bench", "--quick", "--threads", "1").exit_code == 0
    assert seen == [["--quick", "--threads", "1"]]


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
        [sys.executable, "-m", "pyjuliaode.cli", command, "point-cloud", *epochs, *more]
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
