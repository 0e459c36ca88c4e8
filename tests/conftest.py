"""What every test relies on: one thread, fixed seeds, and honest skips."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest
import torch

import pyjuliaode
from pyjuliaode import plotting


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-julia",
        action="store_true",
        help="a missing Julia is an error of the tests marked julia, not a reason to skip them",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Small problems: more threads only add noise, and leave none for tests that run beside.
    torch.set_num_threads(1)
    # A shell's background job ignores Ctrl-C, and hands that on to the processes that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def missing_julia() -> str | None:
    """What the Julia backend lacks on this machine, or None. Starts and downloads nothing."""
    return pyjuliaode.backends()["julia"]["missing"]


@pytest.fixture(autouse=True)
def _auto_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that name no backend are of the torch backend, on machines with Julia too."""
    monkeypatch.setenv("PYJULIAODE_BACKEND", "torch")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("julia") and (missing := missing_julia()):
        if item.config.getoption("--require-julia"):
            pytest.fail(f"--require-julia was given, but {missing}", pytrace=False)
        pytest.skip(missing)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads of torch for one test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def float64() -> Iterator[torch.dtype]:
    """float64 as torch's default dtype for one test: modules made in it are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(before)


@pytest.fixture
def drawn() -> None:
    """For the tests that look at figures; the others do not wait for them."""


@pytest.fixture
def skip_figures(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Has figures of these names not drawn, nor files of any; but for tests with ``drawn``."""

    def skip(*names: str) -> None:
        if "drawn" in request.fixturenames:
            return
        for name in names:
            monkeypatch.setattr(plotting, name, lambda *data: None)
        monkeypatch.setattr(plotting, "save", lambda figure, path: path.touch())

    return skip
