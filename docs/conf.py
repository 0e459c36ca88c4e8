"""Sphinx: the site of pyjuliaode. Build it with ``sphinx-build -W -b html docs docs/_build``.

Nothing is fetched, nothing is executed: notebooks show the outputs that are committed, formulas
become MathML, and there are no inventories of other projects.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.nodes import make_refnode

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import pyjuliaode  # noqa: E402

project = "pyjuliaode"
author = "the pyjuliaode authors"
copyright = author
version = release = pyjuliaode.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "jupyter_execute"]
root_doc = "index"
language = "en"
smartquotes_action = "D"  # dashes alone: h' and "auto" stay what they are

# The notebooks lie in notebooks/, where people open them; Sphinx reads below this folder only.
(HERE / "notebooks").mkdir(exist_ok=True)
for source in (ROOT / "notebooks").glob("*.ipynb"):
    shutil.copy2(source, HERE / "notebooks" / source.name)

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
nb_execution_cache_path = str(HERE / "_build" / ".jupyter_cache")

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"pyjuliaode {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"code-font-size": "0.78rem"},
    "dark_css_variables": {"code-font-size": "0.78rem"},
}
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"
highlight_language = "python"


def _inline_math(self: Any, node: Any) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise SkipNode


def _block_math(self: Any, node: Any) -> None:
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise SkipNode


# Literals and roles, which are left as they are; between them an asterisk is a product or an
# unpacking and a bar an absolute value, as people read the docstrings in a terminal.
_MARKED = re.compile(r"(``.*?``|:\w+:`[^`]*`|`[^`]*`)")


def _as_read(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = _one_by_one(lines)
    for i, line in enumerate(lines):
        parts = _MARKED.split(line)
        parts[::2] = [re.sub(r"(?<!\\)([*|])", r"\\\1", part) for part in parts[::2]]
        lines[i] = "".join(parts)


def _one_by_one(lines: list[str]) -> list[str]:
    """Attributes that share a text, "one, other: text", each with it; napoleon takes one name."""
    if "Attributes:" not in lines:
        return lines
    at = lines.index("Attributes:") + 1
    found = lines[:at]
    while at < len(lines):
        names = re.match(r"    ((?:\w+, )+\w+): ", lines[at])
        end = at + 1
        while names and end < len(lines) and lines[end].startswith("     "):
            end += 1
        for name in names[1].split(", ") if names else [None]:
            first = lines[at] if name is None else f"    {name}: {lines[at][names.end() :]}"
            found += [first, *lines[at + 1 : end]]
        at = end
    return found


def _resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """A name of a docstring that is documented in one place, whatever module that is."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains["py"]
    found = domain.find_obj(env, "", "", node["reftarget"], None, 1)
    places = {(entry.docname, entry.node_id) for _, entry in found}
    if len(places) != 1:
        return None
    return make_refnode(app.builder, node["refdoc"], *places.pop(), content)


def setup(app: Any) -> None:
    """Formulas as MathML, which browsers draw by themselves; docstrings as they are read."""
    app.connect("missing-reference", _resolve)
    app.connect("autodoc-process-docstring", _as_read, priority=400)  # before napoleon
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(_inline_math, None),
        block_renderers=(_block_math, None),
    )


html_math_renderer = "mathml"
