"""The package as a whole: what importing it loads, which module may import which, the wheel."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyjuliaode
from pyjuliaode._install import install_command

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyjuliaode"

# ------------------------------------------------------------------------- importing the package


def modules_after(statement: str) -> set[str]:
    """Names of all modules that a fresh interpreter has loaded after ``statement``."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def loaded_beyond_torch() -> set[str]:
    """What ``import pyjuliaode`` loads and ``import torch`` does not."""
    return modules_after("import pyjuliaode") - modules_after("import torch")


def test_importing_the_package_loads_no_optional_dependency(loaded_beyond_torch):
    optional = {"juliacall", "juliapkg", "matplotlib", "scipy", "sklearn", "torchdiffeq", "typer"}
    assert not optional & {name.partition(".")[0] for name in loaded_beyond_torch}


def test_importing_the_package_loads_little_beyond_torch(loaded_beyond_torch):
    foreign = {n for n in loaded_beyond_torch if n.partition(".")[0] not in sys.stdlib_module_names}
    foreign = {n for n in foreign if n.partition(".")[0] not in {"pyjuliaode", "torch"}}
    assert not foreign
    own = {n for n in loaded_beyond_torch if n.startswith("pyjuliaode.")}
    heavy = ("cli", "experiments", "data", "plotting", "bench")
    assert not [n for n in own if n.split(".")[1].startswith(heavy)]


PUBLIC = """
odeint odeint_adjoint odeint_event odeint_dense
solve Solver Solution SolveStats Retcode NeuralODE
NODE ANODE SONODE HBNODE GHBNODE NesterovNODE GNesterovNODE
MomentumNet to_momentum from_momentum
Direct Gauss Interpolating Backsolve Quadrature
SemiExplicitDAE
backends doctor warmup
crosscheck CrossCheck DisagreementError
PyJuliaODEError InvalidArgumentError UnsupportedError BackendUnavailableError BackendError
SolverError
AccuracyWarning GradientWarning
"""


def test_the_public_names_are_the_documented_ones():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    aliases = [a for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
    assert all(a.asname == a.name for a in aliases), "re-export as `X as X`"
    public = [a.name for a in aliases if not a.name.startswith("_")]
    assert sorted(public) == sorted(PUBLIC.split())
    assert sorted(pyjuliaode.__all__) == sorted(PUBLIC.split())
    assert all(hasattr(pyjuliaode, name) for name in pyjuliaode.__all__)


# ------------------------------------------------------------------------- imports run one way

# Which part of the package a module belongs to, by the first part of its name ...
PARTS = {
    **dict.fromkeys(
        ("errors", "graph", "refusal", "solution", "solver", "problem", "rhs"), "foundation"
    ),
    **dict.fromkeys(("_eager", "_install", "_juliacall", "_torch"), "foundation"),
    **dict.fromkeys(("arguments", "memory", "progress", "signature"), "foundation"),
    **dict.fromkeys(("adjoints", "args", "autocast", "batching"), "foundation"),
    "backends": "backends",
    "dynamics": "dynamics",
    **dict.fromkeys(("api", "event"), "api"),
    **dict.fromkeys(("layer", "sequence", "flows", "momentum", "optim"), "models"),
    **dict.fromkeys(("plotting", "validation", "diagnostics", "doctor", "dae"), "models"),
    "data": "data",
    "experiments": "experiments",
    **dict.fromkeys(("crosscheck", "bench"), "crosscheck"),
    "cli": "cli",
    "__main__": "cli",
    **dict.fromkeys(("__init__", "compat"), "front"),
}
# ... and which parts it may import.
MAY_IMPORT = {
    "foundation": {"foundation"},
    "backends": {"foundation", "backends"},
    "dynamics": {"foundation", "dynamics"},
    "data": {"foundation", "data"},
    "api": {"foundation", "backends", "api"},
    "models": {"foundation", "backends", "dynamics", "api", "models"},
    "experiments": set(PARTS.values()) - {"cli", "crosscheck"},
    "crosscheck": set(PARTS.values()) - {"cli"},
    "cli": set(PARTS.values()),
    "front": {"foundation", "backends", "dynamics", "api", "models", "crosscheck", "front"},
}


def module_name(path: Path) -> str:
    """``pyjuliaode.backends.torch`` for ``pyjuliaode/backends/torch/__init__.py``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below ``if TYPE_CHECKING:``, which are never executed."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from run_time_nodes(node)


def imports_of(path: Path) -> set[str]:
    """Absolute dotted names that a source file imports, with ``from a import b`` as ``a.b``."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names: set[str] = set()
    for node in run_time_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


def part_of(module: str) -> str:
    """The part that a dotted module (or a name in it) belongs to; the bare package is "front"."""
    pieces = module.split(".")
    if len(pieces) == 1 or (len(pieces) == 2 and pieces[1] not in PARTS):
        return "front"
    return PARTS[pieces[1]]


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    first = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert first in PARTS, f"say in PARTS what {first} is a part of"
    allowed = MAY_IMPORT[PARTS[first]]
    own = {n for n in imports_of(path) if n.partition(".")[0] == "pyjuliaode"}
    wrong = {n for n in own if part_of(n) not in allowed and n != "pyjuliaode.__version__"}
    assert not wrong


@pytest.mark.parametrize(("one", "other"), [("torch", "julia"), ("julia", "torch")])
def test_neither_backend_imports_the_other(one, other):
    sources = (PACKAGE / "backends" / one).rglob("*.py")
    assert not [p.name for p in sources for n in imports_of(p) if f".backends.{other}" in n]


@pytest.mark.parametrize(
    ("bridge", "file"),
    [("juliacall", "_juliacall.py"), ("juliapkg", "backends/julia/setup.py")],
)
def test_one_file_imports_what_leads_to_julia(bridge, file):
    files = [p for p in SOURCES if bridge in {n.partition(".")[0] for n in imports_of(p)}]
    assert files == [PACKAGE / file]


# ------------------------------------------------------------------------- versions, wheel, README


def test_the_versions_agree():
    version = importlib.metadata.version("pyjuliaode")
    assert re.search(rf'^version = "{version}"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert re.search(rf'^version = "{version}"$', (ROOT / "julia/Project.toml").read_text(), re.M)
    assert f"{version}" in (ROOT / "CHANGELOG.md").read_text()


def test_hints_to_install_name_extras_that_there_are():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\n", project, re.DOTALL)[1]
    extras = set(re.findall(r"^(\w+) = \[", listed, re.M))
    texts = {path: path.read_text(encoding="utf-8") for path in SOURCES}
    named = {n for text in texts.values() for n in re.findall(r"install_command\(['\"](\w+)", text)}
    assert named
    assert named <= extras
    assert install_command("bench") == 'pip install -c constraints.txt -e ".[bench]"'


def test_the_two_julia_projects_agree_on_the_uuid():
    uuid = re.search(r'^uuid = "(.*)"$', (ROOT / "julia/Project.toml").read_text(), re.M)[1]
    assert f'PyJuliaODE = "{uuid}"' in (ROOT / "Project.toml").read_text()


def test_ci_runs_the_readme_s_test_command():
    command = 'pip install -c constraints.txt -e ".[test]" && python -m pytest'
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci/run").read_text().replace("pip install -q ", "pip install ")
    assert command in script.splitlines()


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory) -> Path:
    """A freshly built wheel. Needs no network."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run([*build, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("pyjuliaode-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(wheel_file) -> set[str]:
    """Names of the files in the wheel."""
    with zipfile.ZipFile(wheel_file) as archive:
        return set(archive.namelist())


def test_the_wheel_says_where_the_project_lives_and_what_it_runs_on(wheel_file):
    (found,) = importlib.metadata.Distribution.discover(path=[str(wheel_file)])
    urls = dict(url.split(", ") for url in found.metadata.get_all("Project-URL"))
    assert urls.keys() == {"Homepage", "Repository", "Issues", "Changelog"}
    assert found.metadata["License-Expression"] == "MIT"
    classifiers = found.metadata.get_all("Classifier")
    minors = [line.rpartition(".")[2] for line in classifiers if ":: 3." in line]
    assert minors == ["10", "11", "12", "13"]
    assert found.metadata["Requires-Python"] == f">=3.{minors[0]}"
    assert "Typing :: Typed" in classifiers


def test_the_wheel_holds_every_module_and_the_type_marker(wheel):
    assert {p.relative_to(ROOT).as_posix() for p in SOURCES} <= wheel
    assert "pyjuliaode/py.typed" in wheel


def test_the_wheel_holds_the_julia_package_without_its_tests(wheel):
    julia = ROOT / "julia"
    files = {p.relative_to(julia).as_posix() for p in julia.rglob("*") if p.is_file()}
    shipped = {f for f in files if f.endswith((".jl", ".toml", ".txt")) and "Manifest" not in f}
    shipped = {f for f in shipped if not f.startswith("test/")}
    assert {f"pyjuliaode/_julia/{f}" for f in shipped} == {n for n in wheel if "/_julia/" in n}
    assert "pyjuliaode/_julia/src/PyJuliaODE.jl" in wheel


def test_the_wheel_holds_nothing_else(wheel):
    assert {name.partition("/")[0] for name in wheel} == {
        "pyjuliaode",
        f"pyjuliaode-{importlib.metadata.version('pyjuliaode')}.dist-info",
    }
    assert not [n for n in wheel if "test_" in n or n.endswith((".ipynb", ".pt", ".pyc"))]
