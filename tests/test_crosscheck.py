"""crosscheck: errors are the true ones, and whoever is wrong is named, with the time."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace

import pytest
import torch
from problems import F64, Field, linear_matrix
from torch import nn
from typer.testing import CliRunner

import pyjuliaode as pjo
from pyjuliaode import plotting
from pyjuliaode._install import install_command
from pyjuliaode.backends import base
from pyjuliaode.backends.torch import TorchBackend
from pyjuliaode.cli import app
from pyjuliaode.crosscheck import compare, competitors, witnesses
from pyjuliaode.crosscheck.problems import PROBLEMS, build

TIMES = torch.linspace(0, 1, 11, dtype=F64)
PACKAGES = ("scipy", "torchdiffeq", "torchode")
ONE = {"methods": ["dopri5"], "adjoints": ["direct"], "against": ["torch", *PACKAGES]}
ALONE = {**ONE, "against": ["torch"], "tols": [1e-6]}


class Linear(nn.Module):
    """y' = A y on rows, float64."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(linear_matrix())

    def forward(self, t, y):
        return y @ self.a.T


class Wrong(TorchBackend):
    """The torch backend with a mistake of its own."""

    name = "wrong"


@pytest.fixture
def wrong(monkeypatch):
    """The backend "wrong", whose ``solve`` the test gives."""

    def install(solve):
        monkeypatch.setattr(Wrong, "solve", solve)
        monkeypatch.setitem(base._registry, "wrong", Wrong())

    return install


def start(*shape, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(1)).to(dtype)


def row_of(check, who):
    (row,) = [row for row in check.rows if row.who == who]
    return row


# ------------------------------------------------------------------------------------ agreement


def test_the_errors_are_those_of_the_closed_form():
    func, y0 = Linear(), start(3, 4)
    check = pjo.crosscheck(func, y0, TIMES, ONE["against"], tols=[1e-4, 1e-7])
    assert check.agrees
    assert check.raise_if_disagrees() is check
    truth = torch.stack([y0 @ torch.matrix_exp(func.a.detach() * t).T for t in TIMES])
    for tol in (1e-4, 1e-7):
        solver = pjo.Solver("tsit5", tol, tol, backend="torch", options={"dense": False})
        with torch.no_grad():
            off = (pjo.solve(func, y0, TIMES, solver).y - truth).abs()
        (row,) = [r for r in check.rows if r.who == "torch tsit5 direct" and r.rtol == tol]
        assert row.state_error == pytest.approx(off.max().item(), rel=1e-3)
        assert row.state_time == TIMES[off.flatten(1).amax(dim=1).argmax()].item()
        assert row.state_units == pytest.approx(
            (off / (tol + tol * truth.abs())).max().item(), 1e-3
        )


def test_the_gradient_errors_are_those_of_the_closed_form():
    func, y0, weight = Linear(), start(3, 4), start(3, 4)
    loss = {"loss": lambda y: (y[-1] * weight).sum()}
    check = pjo.crosscheck(func, y0, [0.0, 1.0], **ALONE, **loss)
    a, leaf = func.a.detach().clone().requires_grad_(), y0.clone().requires_grad_()
    exact = torch.autograd.grad(((leaf @ torch.matrix_exp(a).T) * weight).sum(), (leaf, a))
    leaf = y0.clone().requires_grad_()
    solver = pjo.Solver("dopri5", 1e-6, 1e-6, adjoint="direct", backend="torch")
    y = pjo.solve(func, leaf, [0.0, 1.0], solver).y
    found = torch.autograd.grad((y[-1] * weight).sum(), (leaf, func.a))
    row = check.rows[0]
    for error, x, truth in zip((row.gradient_y0, row.gradient_params), found, exact, strict=True):
        # the reference's own error is 1e-12
        assert error == pytest.approx(((x - truth).norm() / truth.norm()).item(), rel=1e-3)
    units = max(row.gradient_y0, row.gradient_params) / 1e-6
    assert row.gradient_units == pytest.approx(units)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("backward", [False, True])
def test_witnesses_agree_on_states_and_gradients(package, backward):
    pytest.importorskip(package)
    t = TIMES.flip(0) if backward else TIMES
    choices = {**ONE, "against": ["torch", package], "tols": [1e-7]}
    check = pjo.crosscheck(Field(), start(3, 2), t, **choices)
    assert check.agrees, check
    found = [row for row in check.rows if row.backend == package]
    assert len(found) == (2 if package == "torchdiffeq" else 1)
    for row in found:
        assert row.status == "ok"
        assert 0 < row.state_error < 1e-5
        assert 0 < row.gradient_params < 1e-5
        assert row.nfe_forward > 10
        assert row.nfe_backward > 10


def test_a_tuple_state_is_compared_in_all_its_parts():
    a = linear_matrix()

    class Pair(nn.Module):
        def forward(self, t, y):
            return y[0] @ a.T, -y[1]

    y0 = (start(3, 4), start(2))
    loss = {"loss": lambda y: y[0].square().sum() + y[1].sum()}
    check = pjo.crosscheck(Pair(), y0, TIMES, ONE["against"], tols=[1e-6], **loss)
    assert check.agrees, check
    assert check.problem["states"] == 14
    assert all(row.gradient_params is None for row in check.rows)


def test_a_float32_model_is_held_to_its_float64_copy():
    func = Field().float()
    y0 = start(3, 2, dtype=torch.float32)
    check = pjo.crosscheck(func, y0, TIMES, ONE["against"], tols=[1e-5])
    assert check.agrees, check
    assert {p.dtype for p in func.parameters()} == {torch.float32}
    assert check.problem["dtype"] == "float32"
    # float32 cannot come nearer; float64 with 1e-5 could not stay that far
    tight = pjo.crosscheck(func, y0, TIMES, **{**ALONE, "tols": [1e-10]})
    assert 1e-8 < tight.rows[0].state_error < 1e-5
    assert tight.agrees


def test_explicit_params_are_found_in_the_copy():
    func = Field().float()
    named = [func.net[0].weight]
    check = pjo.crosscheck(
        func, start(3, 2, dtype=torch.float32), TIMES, params=named, **{**ALONE, "tols": [1e-4]}
    )
    assert check.agrees, check
    assert check.problem["params"] == 12


def test_a_plain_function_is_checked():
    check = pjo.crosscheck(lambda t, y: -y, start(3, 2), TIMES, ONE["against"], tols=[1e-6])
    assert check.agrees, check
    ran = [row for row in check.rows if row.status != "not run"]  # witnesses that are installed
    assert {row.status for row in ran} == {"ok"}
    assert all(0 < row.gradient_y0 < 1e-5 for row in ran)


def test_a_layer_is_checked_through_its_dynamics():
    layer = pjo.NeuralODE(pjo.HBNODE(Field()).to(F64), t=(0.0, 1.0))
    check = pjo.crosscheck(layer, start(3, 2), TIMES, **ALONE)
    assert check.agrees
    assert check.problem["states"] == 12


def test_kinks_are_noticed_and_the_bound_is_said():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 2)).to(F64)
    with torch.no_grad():
        net[0].weight *= 3

    class Kinked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, y):
            return self.net(y)

    smooth = pjo.crosscheck(Field(), start(3, 2), [0.0, 1.0], **ALONE)
    assert smooth.verdict.unit == "tolerance"
    tight = {**ALONE, "tols": [1e-9]}
    default = pjo.crosscheck(Kinked(), start(8, 2), [0.0, 1.0], **tight)
    assert default.agrees, default
    assert default.verdict.unit == "root of the tolerance"
    assert "square root" in default.verdict.sentence
    strict = pjo.crosscheck(Kinked(), start(8, 2), [0.0, 1.0], **tight, bound=100)
    assert strict.verdict.unit == "tolerance"
    assert "gradient" in {found.what for found in strict.verdict.disagreements}


# --------------------------------------------------------------------------------- disagreement


def test_a_backend_with_a_wrong_field_is_named_with_the_time(wrong):
    def solve(self, problem, solver, event_fn=None):
        right = problem.func

        def func(t, y):
            return right(t, y) + 0.1 * (t > 0.5)

        problem = replace(problem, func=func, explicit_params=problem.params)
        return TorchBackend().solve(problem, solver, event_fn)

    wrong(solve)
    check = pjo.crosscheck(Field(), start(3, 2), TIMES, **{**ALONE, "against": ["torch", "wrong"]})
    assert row_of(check, "torch dopri5 direct").status == "ok"
    assert row_of(check, "wrong dopri5 direct").status == "disagrees"
    worst = check.verdict.disagreements[0]
    assert (worst.first, worst.what) == ("wrong dopri5 direct at 1e-06", "state")
    assert "reference" in worst.second
    assert worst.since == pytest.approx(0.6)
    assert worst.time == row_of(check, "wrong dopri5 direct").state_time
    assert worst.units > 1e3
    apart = check.verdict.furthest
    assert {apart.first, apart.second} == {
        "torch dopri5 direct at 1e-06",
        "wrong dopri5 direct at 1e-06",
    }
    with pytest.raises(pjo.DisagreementError, match=r"wrong dopri5 direct.*t = 0.6") as raised:
        check.raise_if_disagrees()
    assert raised.value.check is check


def test_a_backend_with_a_wrong_gradient_is_named(wrong):
    def solve(self, problem, solver, event_fn=None):
        found = TorchBackend().solve(problem, solver, event_fn)
        found.y.register_hook(lambda g: 1.01 * g)
        return found

    wrong(solve)
    check = pjo.crosscheck(Field(), start(3, 2), TIMES, **{**ALONE, "against": ["torch", "wrong"]})
    (found,) = check.verdict.disagreements
    assert (found.first, found.what) == ("wrong dopri5 direct at 1e-06", "gradient")
    assert found.units == pytest.approx(1e4, rel=0.01)


def test_a_state_that_is_not_a_number_disagrees(wrong):
    def solve(self, problem, solver, event_fn=None):
        found = TorchBackend().solve(problem, solver, event_fn)
        found.y = torch.where(torch.arange(len(found.y))[:, None, None] == 4, math.nan, found.y)
        return found

    wrong(solve)
    check = pjo.crosscheck(Field(), start(3, 2), TIMES, **{**ALONE, "against": ["wrong"]})
    worst = check.verdict.disagreements[0]
    assert (worst.time, worst.units) == (TIMES[4].item(), math.inf)
    assert json.loads(check.to_json())["rows"][0]["state_units"] is None


def test_an_error_of_one_competitor_is_its_row_and_a_disagreement(wrong):
    def solve(self, problem, solver, event_fn=None):
        raise RuntimeError("the engine broke")

    wrong(solve)
    check = pjo.crosscheck(Field(), start(3, 2), TIMES, **{**ALONE, "against": ["torch", "wrong"]})
    row = row_of(check, "wrong dopri5 direct")
    assert (row.status, row.reason) == ("failed", "RuntimeError: the engine broke")
    assert not check.agrees
    assert check.verdict.n_failed == 1
    assert "the engine broke" in check.verdict.sentence
    assert "the engine broke" in check.table()


def test_a_wrong_witness_is_named(monkeypatch):
    pytest.importorskip("torchdiffeq")
    run = witnesses.TorchDiffEq.run

    def shifted(self, case, rtol, atol):
        found = run(self, case, rtol, atol)
        found.states[7:, 0] += 0.01
        return found

    monkeypatch.setattr(witnesses.TorchDiffEq, "run", shifted)
    choices = {**ONE, "tols": [1e-6], "against": ["torch", "torchdiffeq"]}
    check = pjo.crosscheck(Field(), start(3, 2), TIMES, **choices)
    found = check.verdict.disagreements
    assert {d.first for d in found} == {
        "torchdiffeq dopri5 odeint at 1e-06",
        "torchdiffeq dopri5 odeint_adjoint at 1e-06",
    }
    assert {d.since for d in found} == {TIMES[7].item()}


def test_a_wrong_reference_is_noticed_by_its_witness(monkeypatch):
    pytest.importorskip("scipy")
    solve = compare.solve_reference

    def shifted(exact):
        found = solve(exact)
        found.states[5:] += 1e-3
        return found

    monkeypatch.setattr(compare, "solve_reference", shifted)
    choices = {**ONE, "tols": [1e-6], "against": ["torch", "scipy"]}
    check = pjo.crosscheck(Field(), start(3, 2), TIMES, **choices)
    doubt = check.verdict.disagreements[0]
    assert "reference" in doubt.first
    assert doubt.second == "scipy DOP853 at 1e-12"
    assert doubt.since == TIMES[5].item()
    assert check.verdict.confirmed == "in doubt"


# ------------------------------------------------------------------------------ what cannot run


def test_packages_that_are_not_installed_are_rows_that_were_not_run(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in PACKAGES else find(name, *rest),
    )
    check = pjo.crosscheck(Field(), start(3, 2), TIMES, **ONE, tols=[1e-6])
    missing = {row.backend: row for row in check.rows if row.status == "not run"}
    assert set(missing) == set(PACKAGES)
    for package, row in missing.items():
        assert f"{package} is not installed: {install_command('bench')}" == row.reason
        assert row.state_error is None
    assert check.agrees
    assert check.verdict.confirmed.startswith("not confirmed: scipy is not installed")


def test_a_missing_julia_is_said_in_its_own_words(monkeypatch):
    sentence = "Julia is not here: run something"
    monkeypatch.setattr(type(base._registry["julia"]), "missing", lambda self: sentence)
    check = pjo.crosscheck(Field(), start(3, 2), TIMES, **{**ALONE, "against": None})
    for who, native in (("julia dopri5 direct", False), ("julia native dopri5 direct", True)):
        row = row_of(check, who)
        assert (row.status, row.reason, row.native) == ("not run", sentence, native)
    assert {row.backend for row in check.rows} >= {"torch", "julia", *PACKAGES}
    assert check.agrees
    alone = pjo.crosscheck(Field(), start(3, 2), TIMES, **{**ALONE, "against": ["julia"]})
    assert not alone.agrees  # nothing was compared
    assert alone.verdict.n_compared == 0


def test_a_method_of_another_backend_is_not_run():
    choices = {**ALONE, "against": ["torch", "julia"], "methods": ["dopri5", "Rodas5P"]}
    check = pjo.crosscheck(Field(), start(3, 2), [0.0, 0.1], **choices)
    row = row_of(check, "torch Rodas5P direct")
    assert (row.status, row.reason) == ("not run", "the torch backend has no method 'Rodas5P'")


def test_what_a_backend_refuses_is_not_run():
    check = pjo.crosscheck(Field(), start(3, 2), TIMES, **{**ALONE, "adjoints": ["quadrature"]})
    assert check.rows[0].status == "not run"
    assert "gauss" in check.rows[0].reason


def test_an_exception_of_the_field_comes_out_as_itself():
    def func(t, y):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        pjo.crosscheck(func, start(2), TIMES, **ALONE)


@pytest.mark.parametrize(
    ("choices", "hint"),
    [
        ({"methods": ["dopri6"]}, "dopri5"),
        ({"methods": ["rk4"]}, "fixed steps"),
        ({"methods": "dopri5"}, "list"),
        ({"adjoints": ["gaus"]}, "gauss"),
        ({"against": ["torsh"]}, "torch"),
        ({"against": ["torch", "scippy"]}, "scipy"),
        ({"against": []}, "torch, julia.*scipy"),
        ({"against": "torch"}, "list"),
        ({"against": True}, "list"),
        ({"against": ["scipy", "torchode"]}, "no backend.*torch, julia"),
        ({"tols": [1e-12]}, "1e-10"),
        ({"rtol": 1e-5, "tols": [1e-5]}, "not both"),
        ({"bound": 0}, "bound"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_solved(choices, hint):
    def func(t, y):
        pytest.fail("was evaluated")

    with pytest.raises(pjo.InvalidArgumentError, match=hint):
        pjo.crosscheck(func, start(2), TIMES, **choices)


def test_a_float32_function_without_a_float64_form_is_refused():
    net = nn.Linear(2, 2)
    with pytest.raises(pjo.InvalidArgumentError, match=r"float64.*nn\.Module"):
        pjo.crosscheck(lambda t, y: net(y), start(3, 2, dtype=torch.float32), TIMES, **ALONE)


def test_a_module_that_cannot_be_copied_is_refused():
    class Locked(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle a lock")

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Locked(2, 2)

        def forward(self, t, y):
            return self.inner(y)

    with pytest.raises(pjo.InvalidArgumentError, match="cannot pickle a lock"):
        pjo.crosscheck(Around(), start(3, 2, dtype=torch.float32), TIMES, **ALONE)


# ------------------------------------------------------------------------------- files, figures


@pytest.fixture(scope="module")
def checked():
    torch.manual_seed(0)
    choices = {"title": "a small field", "tols": [1e-3, 1e-5]}
    return pjo.crosscheck(Field(), start(3, 2), TIMES, ONE["against"], **choices)


def test_json_comes_back_as_it_was(checked):
    assert pjo.CrossCheck.from_json(checked.to_json()) == checked


def test_save_writes_three_whole_files(checked, tmp_path):
    paths = checked.save(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["crosscheck.json", "crosscheck.md", "crosscheck.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        path.name for path in paths
    ]
    written = json.loads(paths[0].read_text())
    assert written["verdict"]["bound"] == 100
    assert written["verdict"]["tolerances"] == [[1e-3, 1e-3], [1e-5, 1e-5]]
    text = paths[1].read_text()
    assert "**Agreement.**" in text
    assert "| torch tsit5 gauss" in text
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_cannot_be_drawn_leaves_the_old_one(checked, tmp_path, monkeypatch):
    (tmp_path / "crosscheck.png").write_bytes(b"old")

    def interrupted(figure, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(plotting, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checked.save(tmp_path)
    assert (tmp_path / "crosscheck.png").read_bytes() == b"old"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["crosscheck.json", "crosscheck.md", "crosscheck.png"]


def test_the_figure_has_every_competitor_once(checked):
    figure = checked.plot()
    drawn = {row.who for row in checked.rows if row.state_error is not None}
    states, gradients = figure.axes[0], figure.axes[1]
    assert {line.get_label() for line in gradients.get_lines()} == drawn
    shown = [line.get_label() for line in states.get_lines()]
    assert "torch dopri5 direct" in shown
    assert "torch dopri5 gauss" not in shown  # the same states
    (line,) = [x for x in gradients.get_lines() if x.get_label() == "torch tsit5 gauss"]
    rows = [row for row in checked.rows if row.who == "torch tsit5 gauss"]
    assert list(line.get_xdata()) == [max(r.gradient_y0, r.gradient_params) for r in rows]
    assert list(line.get_ydata()) == [r.nfe_forward + r.nfe_backward for r in rows]


def test_plot_writes_the_figure_that_it_returns(checked, tmp_path):
    figure = checked.plot(tmp_path / "new" / "figure.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figure.png"]
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert len(figure.axes) == 4


def test_native_rows_are_told_apart(checked):
    first = next(row for row in checked.rows if row.status == "ok")
    rows = [replace(first, backend="julia", native=native) for native in (False, True)]
    check = replace(checked, rows=rows)
    assert pjo.CrossCheck.from_json(check.to_json()) == check
    assert [row["native"] for row in json.loads(check.to_json())["rows"]] == [False, True]
    names = [f"julia{mode} {first.method} {first.adjoint}" for mode in ("", " native")]
    assert [line.split("|")[1].strip() for line in check.table().splitlines()[2:]] == names
    for ax in check.plot().axes[:2]:
        lines = ax.get_lines()
        assert [line.get_label() for line in lines] == names
        assert lines[0].get_color() != lines[1].get_color()


def test_a_reason_does_not_break_the_table(checked):
    row = replace(checked.rows[0], status="failed", reason="a | b\nc")
    lines = replace(checked, rows=[row]).table().splitlines()
    assert len(lines) == 3
    assert lines[2].endswith("| failed: a \\| b c |")


# ----------------------------------------------------------------------------- the command line


QUICK = ["--against", "torch", "--method", "dopri5", "--adjoint", "direct", "--tol", "1e-4"]


def invoke(*arguments):
    return CliRunner().invoke(app, ["crosscheck", *map(str, arguments)])


def test_the_command_prints_the_table_and_writes_the_files(tmp_path):
    done = invoke(*QUICK, "--against", "scipy", "--tol", "1e-6", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    check = pjo.CrossCheck.from_json((tmp_path / "out" / "crosscheck.json").read_text())
    assert check.table() in done.stdout
    assert check.verdict.sentence in done.stdout
    assert check.verdict.tolerances == [[1e-4, 1e-4], [1e-6, 1e-6]]
    assert check.problem["title"] == "hbnode on 20 points of the point cloud"
    assert (tmp_path / "out" / "crosscheck.png").stat().st_size > 10_000


def test_a_disagreement_is_status_1_with_the_pair_and_the_time(tmp_path, wrong):
    def solve(self, problem, solver, event_fn=None):
        problem = replace(problem, y0=problem.y0 + 0.1)
        return TorchBackend().solve(problem, solver, event_fn)

    wrong(solve)
    done = invoke(*QUICK, "--against", "wrong", "--out", tmp_path)
    assert done.exit_code == 1, done.output
    assert "disagreement: wrong dopri5 direct at 0.0001 and the reference" in done.stderr
    assert "t = 1" in done.stderr
    assert json.loads((tmp_path / "crosscheck.json").read_text())["verdict"]["agrees"] is False


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--model", "hbnod"], "hbnode"),
        (["--problem", "point-clod"], "point-cloud"),
        (["--against", "torsh"], "torch"),
        (["--against", "scipy"], "no backend"),
        (["--method", "dopri6"], "dopri5"),
        (["--adjoint", "gaus"], "gauss"),
        (["--tol", "2"], "less than 1"),
        (["--out", __file__], "is a file"),
    ],
)
def test_a_bad_option_is_one_line_and_status_2_before_any_solve(
    tmp_path, monkeypatch, arguments, hint
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "solve_reference", lambda exact: pytest.fail("was solved"))
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert hint in done.stderr
    assert not list(tmp_path.iterdir())


def test_ctrl_c_exits_with_130_and_writes_nothing(tmp_path, monkeypatch):
    def interrupted(exact):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "solve_reference", interrupted)
    assert invoke(*QUICK, "--out", tmp_path / "out").exit_code == 130
    assert not (tmp_path / "out").exists()


def test_an_earlier_report_is_not_replaced_in_silence(tmp_path):
    command = [*QUICK, "--out", tmp_path]
    assert invoke(*command).exit_code == 0
    before = (tmp_path / "crosscheck.json").read_bytes()
    refused = invoke(*command, "--seed", 1)
    assert refused.exit_code == 2
    (line,) = refused.stderr.splitlines()
    assert "crosscheck.json is there already: --overwrite" in line
    assert "--out" in line
    assert (tmp_path / "crosscheck.json").read_bytes() == before
    assert invoke(*command, "--seed", 1, "--overwrite").exit_code == 0
    assert (tmp_path / "crosscheck.json").read_bytes() != before


def test_the_command_takes_one_thread_and_gives_back_the_others(tmp_path, two_threads):
    assert invoke(*QUICK, "--out", tmp_path).exit_code == 0
    check = pjo.CrossCheck.from_json((tmp_path / "crosscheck.json").read_text())
    assert check.environment["threads"] == 1
    assert torch.get_num_threads() == 2


def test_a_file_instead_of_a_terminal_is_told_how_far_it_is(tmp_path):
    lines = invoke(*QUICK, "--out", tmp_path).stderr.splitlines()
    assert lines[0] == "reference: 0 of 3 runs, 0:00"
    assert lines[-1].startswith("torch dopri5 direct: 3 of 3 runs")


@pytest.mark.parametrize("problem", sorted(PROBLEMS))
@pytest.mark.parametrize(
    "model", ["node", "anode", "sonode", "hbnode", "ghbnode", "nesterovnode", "gnesterovnode"]
)
def test_every_model_has_every_problem(model, problem):
    built, again = build(model, problem, seed=1), build(model, problem, seed=1)
    other = build(model, problem, seed=2)
    t = built.t[0]
    assert torch.equal(built.func(t, built.y0), again.func(t, again.y0))
    assert not torch.equal(built.func(t, built.y0), other.func(t, built.y0))
    assert built.func(t, built.y0).dtype == F64


# ----------------------------------------------------------------------------------------- julia


@pytest.mark.julia
def test_julia_agrees_with_all_others_in_both_modes(monkeypatch):
    modes = set()

    def watched(func, y0, t, solver, **choices):
        found = solve(func, y0, t, solver, **choices)
        modes.add((solver.backend, solver.native, found.stats.native))
        return found

    solve = competitors.solve
    monkeypatch.setattr(competitors, "solve", watched)
    check = pjo.crosscheck(Field(), start(3, 2), TIMES, tols=[1e-6])
    assert check.agrees, check
    assert modes == {
        ("torch", "never", False),
        ("julia", "never", False),
        ("julia", "always", True),
    }
    ran = {row.who: row.native for row in check.rows if row.backend == "julia"}
    pairs = [f"{m} {a}" for m in ("dopri5", "tsit5") for a in ("direct", "gauss")]
    assert ran == {f"julia {p}": False for p in pairs} | {f"julia native {p}": True for p in pairs}
    assert {row.status for row in check.rows if row.backend == "julia"} == {"ok"}


@pytest.mark.julia
def test_a_field_that_cannot_run_in_julia_is_not_run_natively():
    choices = {**ALONE, "against": ["torch", "julia"]}
    check = pjo.crosscheck(lambda t, y: -y, start(3, 4), TIMES, **choices)
    assert row_of(check, "julia dopri5 direct").status == "ok"
    row = row_of(check, "julia native dopri5 direct")
    assert row.status == "not run"
    assert "cannot be run in Julia" in row.reason
    assert check.agrees, check
    pair = pjo.crosscheck(lambda t, y: (y[1], -y[0]), (start(2), start(2)), TIMES, **choices)
    assert [row.native for row in pair.rows] == [False, False]
    assert pair.agrees, pair
