"""The running Julia: started once, in one place, owned by one thread of one process."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..._juliacall import load
from ...errors import (
    BackendError,
    BackendUnavailableError,
    InvalidArgumentError,
    PyJuliaODEError,
)
from .environment import SETUP, TESTED, missing, numbers

_runtime: Runtime | None = None


class Runtime:
    """Julia with PyJuliaODE loaded.

    Julia must be called by the thread that started it: a garbage collection on any other one waits
    for the first for ever. A forked child inherits a dead runtime.
    """

    def __init__(self, juliacall: Any):
        self.pid, self.thread = os.getpid(), threading.get_ident()
        self.error_type = juliacall.JuliaError
        self._main = juliacall.Main
        self.package = self._require("PyJuliaODE")
        self._require("DLPack")  # with it and PythonCall comes the import of tensors
        names = (
            *("workspace", "discard", "release", "solve", "steps", "interpolate", "adjoint"),
            *("tape", "forget_tape", "attach", "probe", "replay"),
        )
        for name in names:  # looked up once: name_b is Julia's name!
            setattr(self, name, getattr(self.package, f"{name}_b"))
        # solutions that nobody holds any more: (number, workspace)
        self.released: deque[tuple[int, Any]] = deque()
        self.forgotten: deque[int] = deque()  # tapes
        self._adjoints = self._cuda = False

    def _require(self, name: str) -> Any:
        base = self._main.Base
        return base.require(self._main, base.Symbol(name))

    def check(self) -> None:
        """Raise where Julia must not be called from here.

        Raises:
            BackendUnavailableError: a forked process, or another thread.
        """
        if os.getpid() != self.pid:
            raise BackendUnavailableError(
                "Julia was started before this process was forked and cannot be used in the "
                "child: use the start method 'spawn' or 'forkserver' (DataLoader: "
                "multiprocessing_context='spawn'), or start Julia in the child only"
            )
        if threading.get_ident() != self.thread:
            raise BackendUnavailableError(
                "Julia belongs to the thread that started it, and this is another one; calling it "
                "from here could hang the process. Solve and call backward() in that thread. With "
                "CUDA tensors torch runs backward() in a thread of its own: switch that off with "
                "torch.autograd.set_multithreading_enabled(False)"
            )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Julia's errors as this package's, around calls that run none of the user's code."""
        try:
            yield
        except self.error_type as error:
            raise translated(error) from error

    def adjoints(self) -> None:
        """Load SciMLSensitivity, once, and check that it is a version that was run."""
        if not self._adjoints:
            self.package.load_adjoints()
            check_versions(self.versions())
            self._adjoints = True

    def cuda(self) -> None:
        """Load CUDA.jl, once; with it comes the sharing of tensors on a GPU.

        Raises:
            BackendUnavailableError: CUDA.jl is not in the environment.
        """
        if not self._cuda:
            try:
                self._require("CUDA")
            except self.error_type as error:
                raise BackendUnavailableError(
                    "CUDA tensors need CUDA.jl in the Julia environment: add it with "
                    "`python -c \"import juliapkg; juliapkg.add('CUDA', "
                    "'052768ef-5323-5732-b1bb-66c8b64840ba'); juliapkg.resolve()\"`, or use "
                    "backend='torch'"
                ) from error
            self._cuda = True

    def versions(self) -> dict[str, str]:
        """Versions of Julia and of the packages that are loaded."""
        lines = str(self.package.versions()).splitlines()
        return dict(line.split(" ", 1) for line in lines)


def started() -> Runtime | None:
    """The runtime, where Julia has been started by this process."""
    return _runtime if _runtime is not None and _runtime.pid == os.getpid() else None


def get() -> Runtime:
    """The runtime, started if need be.

    Raises:
        BackendUnavailableError: Julia or a package is missing or of a version that was not run;
            another thread or a forked process.
    """
    global _runtime
    if _runtime is None:
        _runtime = _start()
    _runtime.check()
    return _runtime


def check_reach() -> None:
    """Raise where this process or thread cannot call Julia; starts nothing."""
    if _runtime is not None:
        _runtime.check()
    elif threading.current_thread() is not threading.main_thread():
        raise BackendUnavailableError(
            "Julia has to be started in the main thread: call pyjuliaode.warmup() there first"
        )


def _start() -> Runtime:
    lacking = missing()
    if lacking is not None:
        raise BackendUnavailableError(f"backend 'julia' cannot be used here: {lacking}")
    check_reach()
    try:
        juliacall = load()
    except Exception as error:
        raise BackendUnavailableError(
            f"Julia could not be started: {error}. Try: {SETUP}"
        ) from error
    try:
        runtime = Runtime(juliacall)
    except juliacall.JuliaError as error:
        raise BackendUnavailableError(
            f"the Julia package PyJuliaODE could not be loaded: {first_lines(error)}. Try: {SETUP}"
        ) from error
    check_versions(runtime.versions())
    return runtime


def check_versions(found: dict[str, str]) -> None:
    """Raise for versions that were not run."""
    for name, (low, high) in TESTED.items():
        if name in found and not low <= numbers(found[name]) < high:
            wanted = f">= {'.'.join(map(str, low))}, < {'.'.join(map(str, high))}"
            raise BackendUnavailableError(
                f"{name} {found[name]} is installed, but only {wanted} has been run with this "
                f"version of pyjuliaode (others may give wrong gradients in silence): {SETUP}"
            )


def first_lines(error: BaseException, count: int = 6) -> str:
    """What a Julia error says, without its backtrace."""
    text = str(error).split("Stacktrace:")[0].strip()
    lines = [line if len(line) < 300 else line[:300] + " ..." for line in text.splitlines()]
    return "\n".join(lines[:count]) + (" ..." if len(lines) > count else "")


def translated(error: BaseException) -> PyJuliaODEError:
    """A Julia error as one of this package's."""
    if "DAE initialization failed" in str(error):
        return InvalidArgumentError(
            "y0 does not satisfy the algebraic equations, to atol; correct it, or pass "
            "options={'initialization': 'brown'} to have its algebraic part solved for"
        )
    return BackendError(f"Julia raised an error: {first_lines(error)}")
