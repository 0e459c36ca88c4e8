"""The one import of juliacall. It loads no torch: on macOS Julia has to be loaded before it."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

# Set where the user has not: one thread owns Julia, Python keeps Ctrl-C (with Julia's own handler
# it kills the process), nobody's startup file or IPython extension is loaded.
_DEFAULTS = {
    "PYTHON_JULIACALL_THREADS": "1",
    "PYTHON_JULIACALL_HANDLE_SIGNALS": "no",
    "PYTHON_JULIACALL_STARTUP_FILE": "no",
    "PYTHON_JULIACALL_AUTOLOAD_IPYTHON_EXTENSION": "no",
}


def load() -> ModuleType:
    """Import juliacall, which starts Julia. Nothing is downloaded or resolved."""
    if "juliacall" in sys.modules:
        return sys.modules["juliacall"]
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    with _offline(), warnings.catch_warnings():
        # Right on macOS, where load_if_eager() exists for it; on Linux both orders work.
        warnings.filterwarnings("ignore", message=".*torch was imported before juliacall.*")
        import juliacall
    return juliacall


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """juliapkg resolves when juliacall is imported; here it may only look at what is there."""
    before = os.environ.get("PYTHON_JULIAPKG_OFFLINE")
    os.environ["PYTHON_JULIAPKG_OFFLINE"] = "yes"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHON_JULIAPKG_OFFLINE"]
        else:
            os.environ["PYTHON_JULIAPKG_OFFLINE"] = before


def load_if_eager() -> None:
    """With PYJULIAODE_EAGER=1, start Julia when pyjuliaode is imported, before torch.

    Raises:
        ImportError: torch is loaded already, which on macOS crashes Julia.
    """
    if os.environ.get("PYJULIAODE_EAGER", "0") in ("", "0", "no"):
        return
    if "torch" in sys.modules and "juliacall" not in sys.modules:
        raise ImportError(
            "PYJULIAODE_EAGER is set, but torch was imported before pyjuliaode: import pyjuliaode "
            "first, so that Julia can be loaded before torch"
        )
    load()
