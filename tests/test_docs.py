"""README and docs/: short, without dead links, and what they quote works. Needs no Sphinx."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.main import get_command

import pyjuliaode
from pyjuliaode import experiments
from pyjuliaode.cli import app

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BUILT = {"_build", "jupyter_execute", "notebooks"}
README = ROOT / "README.md"
PAGES = [README, *sorted(p for p in DOCS.rglob("*.md") if not BUILT & set(p.parts))]
EVERY = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
MOST_WORDS = 750
COMMANDS = get_command(app).commands
EXTRAS = set(re.findall(r"^(\w+) = \[$", (ROOT / "pyproject.toml").read_text(), re.M))


@dataclass(frozen=True)
class Block:
    """A fenced block: what follows its fence, its options, its text, and the line of that."""

    kind: str
    options: str
    text: str
    line: int


FENCE = re.compile(r"^```(.*)\n((?::.*\n)*)\n?((?:(?!```).*\n)*)```$", re.M)


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = FENCE.finditer(text)
    return [Block(m[1], m[2], m[3], text.count("\n", 0, m.start(3)) + 1) for m in found]


def prose(page: Path) -> str:
    """The page without its fenced blocks, but with the text of figures and admonitions."""
    directive = re.compile(r"^\{(figure|admonition|include)\}")
    text = page.read_text(encoding="utf-8")
    return FENCE.sub(lambda m: m[0] if directive.match(m[1]) else "", text)


def commands(page: Path) -> list[str]:
    """Lines of shell, and what code spans quote, where they begin with this package's command."""
    lines = [line for b in blocks(page) if b.kind in ("", "sh") for line in b.text.splitlines()]
    lines = [part.strip() for line in lines for part in line.split("&&")]
    lines += re.findall(r"`([^`\n]+)`", prose(page))
    return [line for line in lines if line.startswith("pyjuliaode ")]


def test_the_readme_is_a_screen_and_a_half():
    assert len(README.read_text(encoding="utf-8").split()) <= MOST_WORDS


@EVERY
def test_links_lead_to_files(page):
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    targets += re.findall(r"^```\{(?:figure|include)\} (\S+)", text, re.M)
    for target in targets:
        path = target.partition("#")[0]
        if not path or re.match(r"(https?|mailto):", path):
            continue
        found = (page.parent / path).resolve()
        if found.parent == DOCS / "notebooks":  # copies that conf.py makes
            found = ROOT / "notebooks" / found.name
        assert found.is_file(), target


@EVERY
def test_pages_of_a_table_of_contents_exist(page):
    for block in blocks(page):
        if block.kind == "{toctree}":
            for name in block.text.split():
                kind = ".ipynb" if name.startswith("notebooks/") else ".md"
                folder = ROOT if kind == ".ipynb" else page.parent
                assert (folder / f"{name}{kind}").is_file(), name


def test_every_page_is_in_a_table_of_contents():
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for block in blocks(page):
            if block.kind == "{toctree}":
                listed |= {page.parent / f"{name}.md" for name in block.text.split()}
    assert set(PAGES) - {README} <= listed


@EVERY
def test_the_python_of_a_page_runs(page, monkeypatch, capsys):
    """One after another, in one namespace; those marked ``:class: skip`` are only compiled."""
    monkeypatch.setenv("PYJULIAODE_BACKEND", "torch")
    for name in [n for n in sys.modules if n.split(".")[0] == "torchdiffeq"]:
        monkeypatch.delitem(sys.modules, name)  # a page binds that name
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    before = set(sys.modules)
    torch.manual_seed(0)
    scope: dict[str, object] = {"__name__": "__main__"}
    try:
        for block in blocks(page):
            if block.kind not in ("python", "{code-block} python"):
                continue
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            if ":class: skip" not in block.options:
                exec(code, scope)
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("torchdiffeq."):
                del sys.modules[name]


def test_some_python_is_run():
    run = [b for p in PAGES for b in blocks(p) if b.kind == "python"]
    assert len(run) > 20
    assert all(not b.options for b in run)


@EVERY
def test_quoted_commands_exist(page):
    for line in commands(page):
        words = shlex.split(line)[1:]
        if words[0].startswith("-"):
            continue
        assert words[0] in COMMANDS, line
        command = COMMANDS[words[0]]
        if words[0] in ("run", "compare") and len(words) > 1 and words[1] not in ("NAME", "..."):
            assert words[1] in experiments.names(), line
        if not command.context_settings.get("ignore_unknown_options"):
            known = {name for parameter in command.params for name in parameter.opts}
            wrong = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert wrong <= known | {"--help"}, line


@EVERY
def test_install_lines_name_extras_that_there_are_and_hold_torch(page):
    wanted = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.M)[0]
    build = f"pip install {wanted} --index-url https://download.pytorch.org/whl/cpu"
    for line in re.findall(r"pip install [^`\n]*", page.read_text(encoding="utf-8")):
        if line == build:
            continue
        assert line.startswith("pip install -c constraints.txt -e "), line
        assert set(re.findall(r"\[(\w+)\]", line)) <= EXTRAS, line


def test_every_public_name_is_in_the_reference():
    pages = [b.text for p in (DOCS / "reference").glob("*.md") for b in blocks(p)]
    named = set(re.findall(r"^\.\. auto\w+:: (?:\w+\.)*(\w+)", "\n".join(pages), re.M))
    public = {
        name
        for name, value in vars(pyjuliaode).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("pyjuliaode")
    }
    assert len(public) > 30
    assert public <= named
