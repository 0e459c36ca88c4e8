"""The arithmetic, the counts, the errors and the files of ``pyjuliaode bench``; never its times."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from pyjuliaode.bench import bench, command, measure, memory, report, torch_solvers
from pyjuliaode.bench.clock import interleaved
from pyjuliaode.bench.competitors import PACKAGES, Competitor, choose, gradients, solvers
from pyjuliaode.bench.measure import admit, count_evaluations, everyone
from pyjuliaode.bench.problems import MAKERS, convolution, heavy_ball, nesterov, robertson, wide
from pyjuliaode.bench.reference import reference
from pyjuliaode.cli import app
from pyjuliaode.errors import InvalidArgumentError, UnsupportedError


def small_convolution():
    return convolution(batch=1)


def small_nesterov():
    """With tanh: at the kinks of ELU a reference is off by 1e-7, here more and there less."""
    problem = nesterov(batch=3)
    net = problem.func.field
    for i, layer in enumerate(net):
        if isinstance(layer, torch.nn.ELU):
            net[i] = torch.nn.Tanh()
    return problem


# ------------------------------------------------------------------------------------ arithmetic


def test_the_cost_of_an_error_is_that_of_the_cheapest_run_that_achieves_it():
    curve = [(1e-2, 1.0), (1e-5, 2.0), (1e-4, 1.5), (1e-6, 4.0)]
    assert report.cheapest(curve, 1e-3) == 1.5
    assert report.cheapest(curve, 1e-5) == 2.0
    assert report.cheapest(curve, 1e-7) is None


def test_interleaved_measures_every_task_the_same_number_of_times():
    calls = {"a": 0, "b": 0}

    def task(name):
        def count():
            calls[name] += 1

        return count

    seconds = interleaved({n: task(n) for n in calls}, repeats=4, least=0.0)
    # three calibrations and four measurements, each of one call after one to warm up
    assert calls == {"a": 14, "b": 14}
    assert all(value >= 0 for value in seconds.values())


# -------------------------------------------------------------------------- problems, competitors


@pytest.mark.parametrize("name", MAKERS)
def test_a_problem_is_what_it_says(name):
    problem = MAKERS[name]()
    assert problem.name == name
    assert problem.weight.shape == (len(problem.t) - 1, *problem.y0.shape)
    t = problem.t[0].to(problem.y0.dtype)
    slope = problem.func(t, problem.y0)
    assert slope.shape == problem.y0.shape
    exact = problem.in_float64()
    assert {p.dtype for p in (exact.y0, exact.weight, *exact.params)} == {torch.float64}
    torch.testing.assert_close(exact.func(t.double(), exact.y0).float(), slope.float())
    assert not {p.data_ptr() for p in exact.params} & {p.data_ptr() for p in problem.params}


def test_the_spiral_s_network_is_the_cubic_spiral():
    problem = MAKERS["spiral"]()
    y = 3.0 * torch.rand(100, 2, dtype=torch.float64) - 1.5
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(problem.func(0.0, y), y**3 @ matrix, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_robertson_s_reference_is_confirmed_by_differences():
    problem = robertson()
    truth = reference(problem)
    assert truth.doubt_state < 1e-9
    assert truth.doubt_gradient < 1e-9
    torch.testing.assert_close(truth.y.sum().item(), 1.0, rtol=0, atol=1e-10)  # mass is kept
    solve = torch_solvers.solver(problem, Competitor("torch", "Radau", "backsolve"), 1e-10)
    losses = []
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            problem.func.log_rates[1] += step
            losses.append((solve(problem.y0)[0] * problem.weight).sum().item())
            problem.func.log_rates[1] -= step
    slope = (losses[0] - losses[1]) / 2e-3
    # the third derivatives are of the size of the first, and the step's square is 1e-6
    assert truth.grads[1][1].item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(
    ("problem", "bound"),
    # in float32 at rtol = atol = 1e-5, in float64 at 1e-7: two orders of room for every adjoint
    [(wide(batch=2), 2e-3), (small_nesterov(), 1e-4), (small_convolution(), 2e-3)],
    ids=lambda x: getattr(x, "name", ""),
)
def test_counts_and_errors_of_every_competitor_are_plausible(problem, bound):
    truth = reference(problem)
    assert truth.doubt_state < 1e-9
    assert truth.doubt_gradient < 1e-7
    own_tests = ("compiled", "diffrax")
    packages = [name for name in choose(())[0] if name not in own_tests]
    found = admit(problem, everyone(problem, packages), problem.tol, truth)
    assert not found.refusals
    assert {row.package for row in found.rows} == set(packages)
    for row in found.rows:
        assert row.nfe_forward > 10, row.label
        assert (row.nfe_backward or 99) > 10, row.label
        assert (row.nfe_backward is None) == (row.what == "forward")
        assert row.error < bound, row.label


def test_evaluations_are_those_that_the_right_hand_side_sees():
    problem, calls = wide(batch=2), 0

    class Counted(torch.nn.Module):
        def forward(self, t, y):
            nonlocal calls
            calls += 1
            return problem.func(t, y)

    seen = replace(problem, func=Counted())
    for who in solvers(problem, choose(())[0]):
        if who.package in ("compiled", "native", "diffrax"):  # which trace it
            continue
        calls = 0
        found = count_evaluations(seen, who, 1e-5, backward=False)
        assert found["calls_forward"] == calls
        assert (found["nfe_forward"] == calls) == (who.package != "pan")
        assert found["nfe_backward"] is None


def test_who_fails_is_recorded_with_the_reason_and_asked_nothing_more():
    problem = wide(batch=1)
    chosen = [("forward", Competitor("torch")), ("gradient", Competitor("torch", "no method"))]
    found = admit(problem, chosen, 1e-3)
    assert [row.label for row in found.rows] == ["pyjuliaode torch dopri5"]
    assert [entry.what for entry in found.entries] == ["forward"]
    (refusal,) = found.refusals
    assert refusal.what == "gradient"
    assert "no method" in refusal.reason


def test_a_result_that_is_not_finite_is_refused():
    problem = wide(batch=1)
    weight = torch.full_like(problem.weight, math.nan)
    found = admit(replace(problem, weight=weight), [("gradient", Competitor("torch"))], 1e-3)
    assert "not finite" in found.refusals[0].reason


def test_stiff_problems_are_for_those_with_implicit_methods():
    packages = {who.package for who in solvers(robertson(), list(PACKAGES))}
    assert packages == set(PACKAGES) - {"compiled", "torchode"}
    methods = {who.method for who in gradients(robertson(), list(PACKAGES))}
    assert methods == {"BDF", "Radau", "pan", "Rodas5P", "FBDF", "Kvaerno5"}


@pytest.mark.parametrize("problem", [heavy_ball(2), nesterov(2), small_convolution(), robertson()])
def test_diffrax_solves_the_same_problem(problem):
    pytest.importorskip("diffrax")
    # a wrong translation is off in the first digits
    problem = replace(problem.in_float64(), tight=1e-10)
    truth = reference(problem)
    who = Competitor("diffrax", "Kvaerno5" if problem.stiff else "tsit5", "recursive checkpoint")
    found = admit(problem, [("forward", who), ("gradient", who)], 1e-10, truth)
    assert not found.refusals
    assert found.rows[0].error < 1e-8
    assert found.rows[1].error < 1e-5  # the gradient of a field with kinks: see the reference
    assert found.rows[0].nfe_forward > 10
    assert found.rows[0].compile_seconds > 0


# ---------------------------------------------------------------------------------- the front door


def invoke(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture
def quick(monkeypatch):
    """A bench of small problems with a reference that takes no time."""
    makers = {"wide": lambda: replace(wide(batch=2), grid=50, tight=1e-9, tolerances=(1e-3, 1e-4))}
    makers["gnesterov-1"] = lambda: replace(nesterov(1), grid=50, tight=1e-9)
    monkeypatch.setattr(command, "MAKERS", makers)
    monkeypatch.setattr("pyjuliaode.bench.problems.MAKERS", makers)


def test_a_bench_writes_what_it_measured_and_prints_the_tables(quick, tmp_path):
    pytest.importorskip("matplotlib")
    done = invoke("--competitors", "torch,torchdiffeq", "--repeats", 1, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    assert lines[0] == "wide: reference: 0 of 6 parts, 0:00"
    assert lines[-1].startswith("gnesterov-1 at 1e-07: 6 of 6 parts")
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["complete"]
    assert torch.__version__.startswith(result["machine"]["versions"]["torch"])  # but for +cpu
    assert set(result["left_out"]) == set(PACKAGES) - {"torch", "torchdiffeq"}
    first, second = result["problems"]
    assert (first["name"], second["name"]) == ("wide", "gnesterov-1")
    assert [r["tol"] for r in first["sweep"]] == sorted(r["tol"] for r in first["sweep"])[::-1]
    assert not second["sweep"]
    text, _, last = done.stdout.rstrip("\n").rpartition("\n")
    assert last == f"written to {tmp_path}: bench.json, bench.md, grid.png, work_precision.png"
    assert text.rstrip("\n") == (tmp_path / "bench.md").read_text().rstrip("\n")
    theirs = next(r for r in second["rows"] if r["package"] == "torchdiffeq")
    cell = f"{report._ms(theirs['seconds'])} (1), {theirs['error']:.0e}"
    assert f"| {cell} |" in next(x for x in text.splitlines() if x.startswith("| gnesterov-1"))
    for name in ("grid.png", "work_precision.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_bench_keeps_the_problems_that_were_complete(quick, tmp_path, monkeypatch):
    compare = measure.compare

    def interrupted(problem, *rest):
        if problem.name == "gnesterov-1":
            raise KeyboardInterrupt
        return compare(problem, *rest)

    monkeypatch.setattr(command, "compare", interrupted)
    arguments = ["--competitors", "torch", "--repeats", 1, "--out", tmp_path]
    done = invoke(*arguments)
    assert done.exit_code == 130
    assert f"what was measured is in {tmp_path}" in done.stderr
    result = json.loads((tmp_path / "bench.json").read_text())
    assert not result["complete"]
    assert [problem["name"] for problem in result["problems"]] == ["wide"]
    written = (tmp_path / "bench.md").read_text()
    assert "Not complete" in written
    (tmp_path / "bench.md").unlink()
    assert invoke("--render", "--out", tmp_path).exit_code == 0
    assert (tmp_path / "bench.md").read_text() == written
    refused = invoke(*arguments)
    assert refused.exit_code == 2
    assert "bench.json is there already: --overwrite" in refused.stderr


def test_a_problem_without_a_reference_is_skipped_with_the_reason(quick, tmp_path, monkeypatch):
    def none(problem):
        if problem.name == "wide":
            raise UnsupportedError("there is none today")
        return reference(problem)

    monkeypatch.setattr(command, "reference", none)
    result = bench(repeats=1, out=tmp_path, competitors=["torch"])
    assert result["skipped"] == {"wide": "there is none today"}
    assert [problem["name"] for problem in result["problems"]] == ["gnesterov-1"]
    assert "wide (there is none today)" in (tmp_path / "bench.md").read_text()


def test_growth_measures_every_quantity(tmp_path, monkeypatch):
    sweeps = {"batch": (1,), "width": (8, 16), "tol": (1e-3, 1e-6)}
    monkeypatch.setattr("pyjuliaode.bench.growth.SWEEPS", sweeps)
    chosen = ["torch", "torchdiffeq"]
    result = bench(repeats=1, out=tmp_path, growth=True, competitors=chosen)
    points = {(p["quantity"], p["value"]): p for p in result["points"]}
    assert list(points) == [(name, x) for name, values in sweeps.items() for x in values]
    for point in points.values():
        assert [(r["what"], r["package"]) for r in point["rows"]] == [
            (what, package) for what in ("forward", "gradient") for package in chosen
        ]
    assert points["width", 16]["parameters"] == 16 * 16 * 2 + 16 + 16 + 1
    loose, tight = (points["tol", tol]["rows"][0]["nfe_forward"] for tol in (1e-3, 1e-6))
    assert tight > loose
    text = (tmp_path / "growth.md").read_text()
    assert f"({tight})" in next(x for x in text.splitlines() if x.startswith("| 1e-06"))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("--problems spirl", "spiral"),
        ("--problems wide,hbnode", "hbnode-120"),
        ("--competitors julai", "julia"),
        ("--competitors torch,julia", "PYJULIAODE_BACKEND"),
        ("--threads 0", "--threads must be at least 1"),
        ("--repeats -1", "--repeats must be at least 1"),
        ("--memory --growth", "exclude each other"),
        ("--growth --problems wide", "leave out --problems"),
        ("--render", "measure first"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(arguments, hint, tmp_path):
    out = tmp_path / "results"
    done = invoke(*arguments.split(), "--out", out)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert hint in line
    assert not out.exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match="is a file"):
        bench(out=tmp_path / "file")


def test_the_memory_of_a_kept_graph_grows_with_the_steps():
    few, many = (memory.peak(Competitor("torch", "rk4"), 1, steps=n) for n in (10, 100))
    assert many["mib"] > few["mib"] + 10


def test_memory_of_the_problems(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "STEPS", ())
    chosen = {"problems": ["hbnode-1", "hbnode-4096"], "competitors": ["torchdiffeq"]}
    result = bench(out=tmp_path, memory=True, quick=True, **chosen)
    rows = {(row["problem"], row["label"]): row["mib"] for row in result["grid"]}
    label = "torchdiffeq dopri5 odeint"
    # 26 evaluations, each of which keeps some 30 numbers of every sample
    assert rows["hbnode-4096", label] > 26 * 30 * 4096 * 8 / 2**20 / 2
    assert rows["hbnode-4096", label] > 10 * rows["hbnode-1", label]
    text = (tmp_path / "memory.md").read_text()
    assert f"{rows['hbnode-4096', label]:.1f}" in text
