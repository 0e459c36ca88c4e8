"""The Julia backend in its process: threads, forks, interrupts, import orders, notebooks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import pyjuliaode as pjo
from pyjuliaode.backends.julia.environment import OWN, PACKAGES

pytestmark = [pytest.mark.julia, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[1]


def run(code: str, **env: str) -> subprocess.CompletedProcess:
    """A fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
        timeout=1200,
    )


SOLVE = """
import torch, pyjuliaode as pjo
net = torch.nn.Linear(2, 2).double()
y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
def once(adjoint="gauss"):
    func = type("F", (torch.nn.Module,), {"forward": lambda self, t, y: self.net(y)})()
    func.net = net
    y = pjo.solve(func, y0, [0.0, 1.0], pjo.Solver(adjoint=adjoint, backend="julia")).y
    y[-1].sum().backward()
    return y
"""


@pytest.mark.parametrize("first", ["torch", "juliacall"])
def test_both_import_orders_run_and_end_well(first):
    eager = {"PYJULIAODE_EAGER": "1"} if first == "juliacall" else {}
    start = "import pyjuliaode" if eager else "import torch"
    done = run(f"{start}\n{SOLVE}\nonce(); print('fine', y0.grad.sum())", **eager)
    assert done.returncode == 0, done.stderr
    assert "fine" in done.stdout


def test_eager_start_after_torch_is_refused():
    done = run("import torch, pyjuliaode", PYJULIAODE_EAGER="1")
    assert done.returncode != 0
    assert "torch was imported before pyjuliaode" in done.stderr


def solve_once(adjoint="direct"):
    net = torch.nn.Linear(2, 2)
    y0 = torch.ones(3, 2, requires_grad=True)
    func = pjo.NODE(net)
    return pjo.solve(func, y0[None], [0.0, 1.0], pjo.Solver(adjoint=adjoint, backend="julia")).y


@pytest.mark.parametrize("adjoint", ["direct", "gauss"])
def test_another_thread_is_refused_and_does_not_hang(adjoint):
    y = solve_once(adjoint)
    caught = []

    def work(call):
        try:
            call()
        except pjo.BackendUnavailableError as error:
            caught.append(str(error))

    calls = [solve_once] + ([y.sum().backward] if adjoint == "gauss" else [])
    for call in calls:
        thread = threading.Thread(target=work, args=(call,))
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    assert len(caught) == len(calls)
    assert all("thread" in message for message in caught)


def test_a_forked_child_is_refused():
    solve_once()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # the child must not run pytest's clean-up
        try:
            solve_once()
            message = "solved"
        except pjo.BackendUnavailableError as error:
            message = str(error)
        except BaseException as error:
            message = f"wrong: {error!r}"
        os.write(write, message.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    message = os.read(read, 10_000).decode()
    os.close(read)
    assert "fork" in message
    assert "spawn" in message


INTERRUPT = """
import os, signal, threading, time
import torch, pyjuliaode as pjo
class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.ones(()))
        self.n = 0
    def forward(self, t, y):
        self.n += 1
        if self.n == START:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(0.01)
        return -self.a * torch.cos(1000 * t) * y
func = Slow()
y0 = torch.ones(2, requires_grad=True)
solver = pjo.Solver("tsit5", 1e-6, 1e-6, adjoint=ADJOINT, backend="julia", max_steps=10**7)
before = time.perf_counter()
try:
    y = pjo.solve(func, y0, [0.0, SPAN], solver).y
    y[-1].sum().backward()
    print("finished")
except KeyboardInterrupt:
    print("interrupted")
func.n = 10**9
func.forward = lambda t, y: -func.a * y
y = pjo.solve(func, y0, [0.0, 1.0], solver).y
y[-1].sum().backward()
print("goes on", float(y[-1, 0]))
"""


@pytest.mark.parametrize(
    ("start", "span", "adjoint"), [(3, 100.0, "gauss"), (40, 0.02, "gauss"), (40, 0.02, "direct")]
)
def test_ctrl_c_comes_out_as_keyboardinterrupt_and_the_solver_goes_on(start, span, adjoint):
    code = INTERRUPT.replace("START", str(start)).replace("SPAN", str(span))
    done = run(code.replace("ADJOINT", repr(adjoint)))
    assert done.returncode == 0, done.stderr
    assert "interrupted" in done.stdout
    assert "goes on 0.36" in done.stdout


def test_a_notebook_kernel(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    cells = [nbformat.v4.new_code_cell(c) for c in (SOLVE, "once(); float(y0.grad.sum())")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
    ).execute()
    assert notebook.cells[-1].outputs[0]["output_type"] == "execute_result"


def test_the_runtime_reports_versions_that_were_run():
    solve_once("gauss")
    versions = pjo.backends()["julia"]["versions"]
    assert versions["SciMLSensitivity"].startswith("7.112")
    assert versions["PythonCall"] == "0.9.34"
    report = pjo.doctor(start=True)
    assert versions["julia"] in report
    assert "gradient" in report


def test_the_shared_vectors_are_the_same_memory():
    from pyjuliaode.backends.julia.runtime import get
    from pyjuliaode.backends.julia.workspace import Workspace

    runtime = get()
    for dtype in (torch.float32, torch.float64):
        workspace = Workspace(runtime, (3, 2, dtype, torch.device("cpu"), False))
        theirs = runtime.package.WORKSPACES[workspace.id]
        workspace.u.copy_(torch.tensor([1.0, 2.0, 3.0]))
        assert list(theirs.u) == [1.0, 2.0, 3.0]
        theirs.du[1] = 7.0
        assert workspace.du.tolist() == [0.0, 7.0, 0.0]
        runtime.discard(workspace.id)


def compiled() -> set[tuple[str, int]]:
    """Images of this package and its extensions; one that is compiled again is another file."""
    depots = os.environ.get("JULIA_DEPOT_PATH", "").split(os.pathsep)
    depot = Path(next((d for d in depots if d), Path.home() / ".julia"))
    return {(p.name, p.stat().st_ino) for p in depot.glob("compiled/*/PyJuliaODE*/*")}


@pytest.mark.timeout(1500)
def test_an_environment_as_juliapkg_makes_it_compiles_nothing_twice(tmp_path):
    """Direct dependencies are only these four: the solvers' packages are PyJuliaODE's."""
    code = "import juliacall; print(juliacall.Main.seval('dirname(Base.active_project())'))"
    active = Path(run(code).stdout.strip().splitlines()[-1])
    (tmp_path / "Manifest.toml").write_bytes((active / "Manifest.toml").read_bytes())
    deps = {OWN[0]: OWN[1], **{name: uuid for name, (uuid, _) in PACKAGES.items()}}
    deps["PythonCall"] = "6099a3de-0909-46bc-b1f4-468b9a2dfc0d"
    lines = [f'{name} = "{uuid}"' for name, uuid in sorted(deps.items())]
    (tmp_path / "Project.toml").write_text("\n".join(["[deps]", *lines]) + "\n")
    env = {"PYTHON_JULIACALL_PROJECT": str(tmp_path), "JULIA_PKG_OFFLINE": "true"}
    exe = os.environ.get("PYTHON_JULIACALL_EXE") or shutil.which("julia")
    if exe:
        env["PYTHON_JULIACALL_EXE"] = exe
    first = run(f"{SOLVE}\nonce()", **env)
    assert first.returncode == 0, first.stderr
    before = compiled()
    second = run(f"{SOLVE}\nonce()", **env)
    assert second.returncode == 0, second.stderr
    assert before
    assert compiled() == before
