"""The notebooks: clean files that run from top to bottom."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# What Jupyter writes that depends on the machine (versions, times) is left out.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# /home/me, ~/me, C:\Users and file://; not the slashes of URLs, fractions and LaTeX.
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/\\}$)\]*-])/(?:\w[\w.-]*/)+[\w.-]+|~/\w|\b[A-Za-z]:\\{1,2}\w+\\|file://"
)
MAX_BYTES = 400_000


def output_text(output: dict[str, Any]) -> str:
    """What an output shows as text; pictures are left out."""
    data = output.get("data", {})
    parts = [output.get("text", ""), *(data[key] for key in data if key.startswith("text/"))]
    return "\n".join("".join(part) for part in parts)


def test_there_is_a_quickstart():
    assert "quickstart" in [path.stem for path in NOTEBOOKS]


@EVERY
def test_the_file_is_clean_and_keeps_its_outputs(path):
    assert path.stat().st_size < MAX_BYTES
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]) == (4, METADATA)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # run once, in order, in a fresh kernel
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        shown = [output_text(output) for output in cell.get("outputs", [])]
        for text in ("".join(cell["source"]), *shown):
            assert not (found := ABSOLUTE_PATH.search(text)), found
            assert "Warning" not in text
    for cell in code:
        assert cell["outputs"], f"cell {cell['id']} shows nothing"
        for output in cell["outputs"]:
            assert output["output_type"] != "error", cell["id"]
            assert output.get("name") != "stderr", cell["id"]


@pytest.mark.parametrize(
    "text",
    ["in /home/me/code.py", '"/usr/lib/x"', "~/data", r"C:\Users\me", "file:///x", "(/a/b/c)"],
)
def test_an_absolute_path_is_recognised(text):
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize(
    "text", ["https://arxiv.org/abs/2110.04840", "$dt/dh/2$", "a/b/c", "1 / 2"]
)
def test_other_slashes_are_no_path(text):
    assert not ABSOLUTE_PATH.search(text)


@pytest.mark.slow
@EVERY
def test_the_notebook_runs_in_a_fresh_kernel(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="running notebooks needs nbclient")
    nbformat = pytest.importorskip("nbformat", reason="running notebooks needs nbformat")
    pytest.importorskip("ipykernel", reason="running notebooks needs ipykernel")
    # The kernel shows figures itself, whatever backend this process was told to use.
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # nobody's own settings
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3")
    client.execute(cwd=str(tmp_path))  # raises the error of a cell; nothing is read from its folder
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", output.text
