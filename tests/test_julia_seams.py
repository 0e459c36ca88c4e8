"""The Julia backend as far as it goes without Julia: names, plans, refusals, the environment."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from problems import F64, Field, models
from torch import nn

import pyjuliaode as pjo
from pyjuliaode import adjoints
from pyjuliaode.backends import registered
from pyjuliaode.backends.julia import backend as julia_backend
from pyjuliaode.backends.julia import environment
from pyjuliaode.backends.julia import setup as julia_setup
from pyjuliaode.backends.julia.methods import find, julia_source, names, table
from pyjuliaode.backends.julia.plan import Plan, advice
from pyjuliaode.problem import Problem

JULIA = registered()["julia"]


def problem(func=None, y0=None, t=(0.0, 1.0)) -> Problem:
    y0 = torch.ones(2, dtype=F64) if y0 is None else y0
    return Problem.build((lambda t, y: -y) if func is None else func, y0, list(t))


def plan(method="dopri5", **kwargs) -> Plan:
    return Plan.build(problem(), pjo.Solver(method, backend="julia", **kwargs))


def refusal(of: Problem, solver: pjo.Solver | None = None, **kwargs) -> str | None:
    return JULIA.refuses(of, solver or pjo.Solver(backend="julia", **kwargs))


# ------------------------------------------------------------------------------------- methods


def test_the_table_names_every_kind_of_method():
    wanted = "Tsit5 DP5 Vern7 Rosenbrock23 Rodas5P FBDF TRBDF2 KenCarp4 RadauIIA5 ROCK2 FineRKN5"
    assert set(wanted.split()) <= set(table())
    packages = {
        line.split("|")[0].strip()
        for line in (julia_source() / "methods.txt").read_text().splitlines()
        if line.strip() and not line.startswith(("#", "withheld"))
    }
    project = (julia_source() / "Project.toml").read_text()
    assert all(f"\n{package} = " in project for package in packages)
    assert len(set(names())) == len(names())


def test_torchdiffeq_s_names_and_julia_s_are_found():
    assert find("dopri5").name == "DP5"
    assert find("Rodas5P").implicit
    assert find("euler").fixed
    assert find("Euler").fixed  # it has no error estimate
    assert find("rk4").fixed
    assert not find("RK4").fixed
    assert find("AutoTsit5(Rodas5P())").name == "AutoTsit5(Rodas5P)"
    with pytest.raises(pjo.UnsupportedError, match="AB4"):
        find("explicit_adams")
    with pytest.raises(pjo.InvalidArgumentError, match="Rodas5P"):
        find("Rodas5X")
    with pytest.raises(pjo.InvalidArgumentError, match="AutoTsit5"):
        find("Tsit5(Rodas5P)")


def test_methods_that_are_wrong_in_their_packages_are_withheld_with_the_reason():
    with pytest.raises(pjo.UnsupportedError, match="depends on time"):
        find("Kvaerno4")
    with pytest.raises(pjo.UnsupportedError, match="interpolant"):
        find("Stepanov5")
    assert "Kvaerno4" not in names()


# --------------------------------------------------------------------------------------- plans


def test_auto_replays_explicit_steps_and_solves_adjoints_for_others():
    assert plan("tsit5").adjoint == "direct"
    assert plan("Rodas5P").adjoint == "gauss"
    assert plan("ROCK2").adjoint == "gauss"
    with pytest.raises(pjo.UnsupportedError, match="gauss"):
        plan("Rodas5P", adjoint="direct")


def test_the_adjoint_s_method_is_tsit5_where_the_forward_one_does_not_serve():
    assert plan("Vern7", adjoint="gauss").adjoint_method.name == "Tsit5"
    assert plan("dopri5", adjoint="gauss").adjoint_method.name == "DP5"
    assert plan("Rodas5P", adjoint="gauss").adjoint_method.name == "Rodas5P"

    # declared to be of order 1, BDFs would have one node of Gauss's rule in a step
    assert plan("FBDF", adjoint="gauss").adjoint_method.name == "Rodas5P"
    assert plan("Feagin10", adjoint="backsolve").adjoint_method.name == "Tsit5"


def test_adjoints_that_a_method_cannot_have_are_refused():
    with pytest.raises(pjo.UnsupportedError, match="nodes"):
        plan("Rodas5P", adjoint=adjoints.Gauss(method="FBDF"))
    with pytest.raises(pjo.UnsupportedError, match="error estimate"):
        plan("tsit5", adjoint=adjoints.Gauss(method="euler"))
    for name, match in (("FineRKN5", "h'' = f"), ("Feagin10", "interpolant of its order")):
        with pytest.raises(pjo.UnsupportedError, match=match):
            plan("tsit5", adjoint=adjoints.Gauss(method=name))
    for name in (5, ["tsit5"]):
        with pytest.raises(pjo.InvalidArgumentError, match="method"):
            adjoints.Gauss(method=name)
    with pytest.raises(pjo.InvalidArgumentError, match="method"):
        plan("tsit5", adjoint=adjoints.Gauss(method="nothing"))
    with pytest.raises(pjo.UnsupportedError, match="interpolant of its order"):
        plan("Feagin10", adjoint="gauss")
    with pytest.raises(pjo.UnsupportedError, match="its own choice"):
        plan("VCABM", options={"step_size": 0.1})
    for method, adjoint, extra in (
        ("Rodas5P", "gauss", {}),
        ("Tsit5", "gauss", {"step_size": 0.1}),
        ("rk4", "interpolating", {}),
    ):
        with pytest.raises(pjo.UnsupportedError, match="checkpoints"):
            plan(method, adjoint=adjoint, options={"checkpoints": 3, **extra})
    assert plan("Rodas5P", adjoint="interpolating", options={"checkpoints": 3}).checkpoints == 3


def test_options_are_understood_refused_or_warned_of():
    assert plan("DP5", options={"step_size": 0.1}).adaptive is False
    with pytest.warns(UserWarning, match="DP5"):  # torchdiffeq's dopri5 ignores it
        assert plan("dopri5", options={"step_size": 0.1}).adaptive
    assert plan("rk4").adaptive is False
    assert plan(options={"first_step": 0.1}).dt == 0.1
    assert plan(options={"jump_t": torch.tensor([0.5])}).jumps == (0.5,)
    with pytest.raises(pjo.UnsupportedError, match="norm"):
        plan(options={"norm": lambda y: y.abs().max()})
    with pytest.raises(pjo.UnsupportedError, match="per_sample"):
        plan(options={"per_sample": True})
    with pytest.warns(UserWarning, match="safety"):
        plan(options={"safety": 0.8})
    with pytest.raises(pjo.InvalidArgumentError, match="step_size"):
        plan("DP5", options={"step_size": -1.0})
    with pytest.raises(pjo.InvalidArgumentError, match="checkpoints"):
        plan(options={"checkpoints": 0})
    with pytest.raises(pjo.UnsupportedError, match="linear"):
        plan(options={"interp": "linear"})
    assert plan(options={"interp": "cubic"}).adaptive
    with pytest.raises(pjo.InvalidArgumentError, match="initialization"):
        plan(options={"initialization": "maybe"})


def test_plans_are_remembered_by_value():
    options = {"max_step": 0.5}
    solver = pjo.Solver("tsit5", backend="julia", options=options)
    first = JULIA._plan(problem(), solver)
    assert JULIA._plan(problem(), pjo.Solver(**vars(solver))) is first
    assert JULIA._plan(problem(), replace(solver, options={"max_step": 0.25})).dtmax == 0.25


def test_what_the_backend_refuses_it_refuses_by_name():
    assert refusal(problem()) is None
    assert "complex" in refusal(problem(y0=torch.ones(2, dtype=torch.complex128)))
    assert "empty" in refusal(problem(y0=torch.ones(0, dtype=F64)))
    assert "unknown method" in refusal(problem(), method="nothing")
    weight = torch.ones(2, dtype=F64, requires_grad=True)
    assert "adjoint_params" in refusal(problem(lambda t, y: -weight * y))
    with torch.no_grad():
        assert refusal(problem(lambda t, y: -weight * y)) is None

    class Told(nn.Module):
        def callback_step(self, t, y, dt):
            raise AssertionError

        def forward(self, t, y):
            return -y

    assert "callback_step" in refusal(problem(Told()))


def test_nystrom_methods_want_a_position_and_its_velocity():
    state = torch.zeros(2, 3, 2, dtype=F64)
    solver = pjo.Solver("FineRKN5", backend="julia")
    assert refusal(problem(models()["hbnode"], state), solver) is None
    assert refusal(problem(models()["sonode"], state), solver) is None
    assert "h'' = f" in refusal(problem(models()["ghbnode"], state), solver)
    assert "h'' = f" in refusal(problem(models()["nesterovnode"], state), solver)
    second = pjo.NesterovNODE(Field(), form="second_order")
    assert refusal(problem(second, state), solver) is None
    back = Problem.build(models()["hbnode"], state, [1.0, 0.0])
    assert "forward in time" in refusal(back, solver)


# -------------------------------------------------------------------------- mass-matrix systems


@pytest.mark.parametrize("name", ["nesterovnode", "gnesterovnode"])
def test_the_mass_matrix_form_has_the_slopes_of_the_eliminated_form(name):
    dynamics = models()[name]
    dae, t = dynamics.as_dae(), torch.tensor(1.3, dtype=F64)
    h0 = torch.randn(3, 2, dtype=F64)
    state = dynamics.initial_state(h0, t0=1.3)
    lifted = dae.initial_state(h0, t0=1.3)
    assert lifted.shape == (3, 3, 2)
    assert torch.allclose(dae.lower(1.3, lifted), state, rtol=1e-12)
    slope = dae(t, lifted)
    # of the whole map from (x, m, h) to the state, along h = k x
    wanted = dynamics(t, state)
    along = torch.stack((*slope[:2], dynamics.velocity(1.3, state)))
    step = 1e-5  # central differences, exact to 1e-10 in float64
    ends = [dae.lower(1.3 + s, lifted + s * along) for s in (-step, step)]
    assert torch.allclose((ends[1] - ends[0]) / (2 * step), wanted, rtol=1e-8, atol=1e-9)
    assert float(slope[2].detach().abs().max()) < 1e-15  # h and k (h/k)
    assert torch.allclose(dae.readout(1.3, lifted), h0, rtol=1e-12)
    built = Problem.build(dae, lifted, [1.3, 2.0])
    assert built.mass.tolist() == [1.0] * 12 + [0.0] * 6
    assert len(list(dae.parameters())) == len(list(dynamics.parameters()))


def test_forms_without_a_constraint_have_no_mass_matrix_form():
    with pytest.raises(pjo.InvalidArgumentError, match="constraint"):
        pjo.NesterovNODE(Field(), form="second_order").as_dae()
    with pytest.raises(pjo.InvalidArgumentError, match="constraint"):
        pjo.solve(
            models()["hbnode"],
            torch.zeros(2, 1, 2, dtype=F64),
            [0.0, 1.0],
            pjo.Solver(options={"form": "mass_matrix"}),
        )


def test_masses_are_checked():
    given = pjo.SemiExplicitDAE(lambda t, y: -y, torch.tensor([1.0, 0.0]))
    solver = pjo.Solver("Rodas5P", backend="julia", options={"jacobian": False})
    assert "wrong in silence" in refusal(problem(given), solver)
    for mass, message in (
        (torch.ones(3), "does not fit"),
        (torch.tensor([1.0, torch.inf]), "finite"),
    ):
        dae = pjo.SemiExplicitDAE(lambda t, y: -y, mass)
        with pytest.raises(pjo.InvalidArgumentError, match=message):
            problem(dae)
    with pytest.raises(pjo.InvalidArgumentError, match="tensor"):
        pjo.SemiExplicitDAE(lambda t, y: -y, [1.0, 0.0])
    with pytest.raises(pjo.UnsupportedError, match="backend='julia'"):
        pjo.solve(
            pjo.SemiExplicitDAE(lambda t, y: -y, torch.tensor([1.0, 0.0])),
            torch.ones(2, dtype=F64),
            [0.0, 1.0],
            pjo.Solver(backend="torch"),
        )


def test_the_jacobian_of_a_field_by_one_vectorised_product_and_one_by_one():
    from pyjuliaode.rhs import RHS

    class Awkward(nn.Module):
        """An operation of its own that vmap does not know."""

        def forward(self, t, y):
            return Square.apply(y) * torch.tensor([1.0, 2.0], dtype=F64)

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * (2 * x + 0 * float(g.sum()))  # a number out of a batched tensor fails

    y0 = torch.tensor([1.0, 3.0], dtype=F64)
    rhs = RHS(problem(Awkward(), y0))
    assert torch.equal(rhs.jacobian(0.0, y0), torch.diag(torch.tensor([2.0, 12.0], dtype=F64)))
    field, y0 = Field(), torch.randn(3, 2, dtype=F64)
    rhs = RHS(problem(field, y0))
    wanted = torch.func.jacrev(lambda y: field(torch.tensor(0.3, dtype=F64), y))(y0).reshape(6, 6)
    assert torch.allclose(rhs.jacobian(0.3, y0.reshape(-1)), wanted, rtol=1e-12)
    assert rhs.n_jacobians == 1
    with torch.inference_mode():
        inside = rhs.jacobian(0.3, y0.reshape(-1).clone())
    assert torch.allclose(inside, wanted, rtol=1e-12)


# --------------------------------------------------------------------------------- environment


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine on which nothing is set, with a place for juliapkg's environment."""
    for name in environment._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHON_JULIAPKG_PROJECT", str(tmp_path / "env"))
    monkeypatch.setattr(environment, "without_juliacall", lambda: None)
    monkeypatch.setattr(environment, "juliapkg_project", lambda: tmp_path / "env")
    monkeypatch.delitem(sys.modules, "juliacall", raising=False)
    monkeypatch.setattr(julia_backend, "started", lambda: None)
    environment.forget()
    yield monkeypatch, tmp_path
    environment.forget()


def test_a_bare_machine_is_told_to_set_julia_up(bare):
    assert "pyjuliaode setup-julia" in environment.missing()
    with pytest.raises(pjo.BackendUnavailableError, match="setup-julia"):
        pjo.solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0], pjo.Solver(backend="julia"))


def test_what_was_set_up_is_ready_until_the_requirements_change(bare):
    monkeypatch, tmp_path = bare
    (tmp_path / "env").mkdir()
    julia_setup._mark(tmp_path / "env")
    environment.forget()
    assert environment.missing() is None
    monkeypatch.setattr(environment, "JULIA", "~1.99")
    environment.forget()
    assert "another version" in environment.missing()


def test_an_environment_of_one_s_own_is_checked_without_starting_it(bare):
    monkeypatch, tmp_path = bare
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", sys.executable)
    assert "PROJECT is not" in environment.missing()
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(tmp_path))
    assert "no Manifest" in environment.missing()
    manifest = tmp_path / "Manifest.toml"
    manifest.write_text('julia_version = "1.10.8"\n[[deps.PythonCall]]\nversion = "0.9.34"\n')
    environment.forget()
    lacking = environment.missing()
    assert "SciMLSensitivity" in lacking
    assert "Pkg.develop" in lacking
    entries = "".join(
        f"[[deps.{n}]]\n" for n in ("PythonCall", *environment.PACKAGES, "PyJuliaODE")
    )
    manifest.write_text(entries)
    environment.forget()
    assert environment.missing() is None
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", "no-such-julia")
    assert "no program" in environment.missing()


def test_versions_that_were_not_run_are_refused():
    from pyjuliaode.backends.julia.runtime import check_versions

    check_versions({"julia": "1.10.8", "SciMLSensitivity": "7.112.3", "PythonCall": "0.9.34"})
    for name, version in (("SciMLSensitivity", "7.96.0"), ("julia", "1.9.4"), ("julia", "1.12.0")):
        with pytest.raises(pjo.BackendUnavailableError, match=name):
            check_versions({name: version})


def test_the_requirements_agree_with_the_julia_package():
    project = (julia_source() / "Project.toml").read_text()
    for name, (uuid, version) in environment.PACKAGES.items():
        assert f'{name} = "{uuid}"' in project
        assert f'{name} = "{version}"' in project.split("[compat]")[1]
    assert f'julia = "{environment.JULIA}"' in project
    assert f'uuid = "{environment.OWN[1]}"' in project


def test_auto_says_what_is_missing_where_only_julia_has_the_method(bare):
    monkeypatch, _ = bare
    monkeypatch.delenv("PYJULIAODE_BACKEND", raising=False)
    y0 = torch.ones(2, dtype=F64)
    with pytest.raises(pjo.BackendUnavailableError, match=r"Rodas5P.*setup-julia"):
        pjo.solve(lambda t, y: -y, y0, [0.0, 1.0], pjo.Solver("Rodas5P"))
    assert pjo.solve(lambda t, y: -y, y0, [0.0, 1.0]).stats.backend == "torch"


def test_auto_can_be_named_by_the_environment(monkeypatch):
    monkeypatch.setenv("PYJULIAODE_BACKEND", "nothing")
    with pytest.raises(pjo.InvalidArgumentError, match="backend"):
        pjo.solve(lambda t, y: -y, torch.ones(2), [0.0, 1.0])


def test_setup_says_what_it_cannot_do(bare, tmp_path):
    monkeypatch, _ = bare
    monkeypatch.setattr(environment, "without_juliacall", lambda: "juliacall is not installed")
    with pytest.raises(pjo.BackendUnavailableError, match="juliacall"):
        julia_setup.setup(lambda line: None)
    with pytest.raises(pjo.InvalidArgumentError, match="folder"):
        julia_setup.build_sysimage(tmp_path / "nowhere" / "sys.so")


def test_setup_marks_an_environment_only_when_julia_has_loaded_it(bare, tmp_path):
    """With a Julia that fails nothing is marked; with one that loads the packages it is ready."""
    monkeypatch, _ = bare
    env = tmp_path / "env"
    env.mkdir()
    fake = tmp_path / "julia"
    monkeypatch.setattr(julia_setup, "_resolve", lambda say: (str(fake), str(env)))
    for status in (1, 0):
        fake.write_text(f"#!/bin/sh\necho julia 1.10.8\nexit {status}\n")
        fake.chmod(0o755)
        if status:
            with pytest.raises(pjo.BackendUnavailableError, match="could not load"):
                julia_setup.setup(lambda line: None)
            assert not list(env.iterdir())
        else:
            assert julia_setup.setup(lambda line: None) == "julia 1.10.8"
            marker = json.loads((env / environment.MARKER).read_text())
            assert marker["requirements"] == environment.requirements()


def test_importing_and_asking_start_no_julia():
    code = (
        "import sys, pyjuliaode; pyjuliaode.backends(); pyjuliaode.doctor(); "
        "assert not {'juliacall', 'juliapkg'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_advice_fits_the_method_that_failed():
    explicit = advice(pjo.Retcode.MAX_ITERS, plan("tsit5"))
    assert "needs an implicit method" in explicit
    assert "needs an implicit method" not in advice(pjo.Retcode.MAX_ITERS, plan("Rodas5P"))
    of_bdf = advice(pjo.Retcode.MAX_ITERS, plan("FBDF", adjoint="interpolating"), backward=True)
    assert "adjoint='gauss', solve with 'Rodas5P'" in of_bdf
    assert advice(pjo.Retcode.UNSTABLE, plan("FBDF")) == pjo.Retcode.UNSTABLE.advice
