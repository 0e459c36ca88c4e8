"""CrossCheck: what a cross-check found, as a table, JSON, a figure and a verdict."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PyJuliaODEError
from .verdict import Apart, Disagreement, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OK, DISAGREES, FAILED, NOT_RUN = "ok", "disagrees", "failed", "not run"


class DisagreementError(PyJuliaODEError, AssertionError):
    """Two ways to solve a problem disagree.

    Attributes:
        check: the :class:`CrossCheck`.
    """

    def __init__(self, message: str, check: CrossCheck | None = None):
        super().__init__(message)
        self.check = check


def label(backend: str, native: bool) -> str:
    """What tables and figures call a backend in one of its modes."""
    return f"{backend} native" if native else backend


@dataclass(frozen=True)
class Row:
    """One competitor at one tolerance.

    Attributes:
        backend: "torch", "julia", or the package of a witness.
        method, adjoint: by that package's names.
        rtol, atol: tolerances.
        status: "ok", "disagrees", "failed" (it ended with an error) or "not run".
        reason: of a failure the error; of a run that was not made why not.
        state_error: largest absolute error of any component at any output time.
        state_time: the output time of that.
        state_units: largest deviation in units of tolerance, which the verdict judges.
        gradient_y0, gradient_params: relative errors of the gradients of the loss.
        gradient_units: the larger of them in units of tolerance.
        nfe_forward, nfe_backward: evaluations, and vector-Jacobian products.
        alongside_forward, alongside_backward: how many of these were made in one call with another.
        n_accepted, n_rejected: steps; None where the package hides them.
        seconds_forward, seconds_backward: wall-clock time of one run after two others.
        retcode: how the solve ended.
        native: the field ran in Julia, without calls into Python.
    """

    backend: str
    method: str
    adjoint: str
    rtol: float
    atol: float
    status: str
    reason: str = ""
    state_error: float | None = None
    state_time: float | None = None
    state_units: float | None = None
    gradient_y0: float | None = None
    gradient_params: float | None = None
    gradient_units: float | None = None
    nfe_forward: int | None = None
    nfe_backward: int | None = None
    alongside_forward: int = 0
    alongside_backward: int = 0
    n_accepted: int | None = None
    n_rejected: int | None = None
    seconds_forward: float | None = None
    seconds_backward: float | None = None
    retcode: str = ""
    native: bool = False

    @property
    def label(self) -> str:
        return label(self.backend, self.native)

    @property
    def calls(self) -> tuple[int | None, int | None]:
        """Evaluations, and products, one after another."""
        forward, backward = self.nfe_forward, self.nfe_backward
        return (
            None if forward is None else forward - self.alongside_forward,
            None if backward is None else backward - self.alongside_backward,
        )

    @property
    def who(self) -> str:
        return f"{self.label} {self.method} {self.adjoint}"


@dataclass(frozen=True)
class CrossCheck:
    """Every run beside the reference.

    Attributes:
        rows: :class:`Row` by competitor, from the loosest tolerance to the tightest.
        verdict: :class:`Verdict`.
        reference: what errors are measured against: name, NFE, steps, seconds.
        problem: what was solved: title, dtype, numbers of states and parameters, output times.
        environment: versions and machine.
    """

    rows: list[Row]
    verdict: Verdict
    reference: dict[str, Any]
    problem: dict[str, Any]
    environment: dict[str, Any]

    @property
    def agrees(self) -> bool:
        return self.verdict.agrees

    def __str__(self) -> str:
        return f"{self.table()}\n{self.verdict.sentence}"

    def raise_if_disagrees(self) -> CrossCheck:
        """Return self, or raise :class:`DisagreementError` with the verdict."""
        if not self.agrees:
            raise DisagreementError(self.verdict.sentence, self)
        return self

    def table(self) -> str:
        """A Markdown table with aligned columns; what was not run, by its reason, below it."""
        header = ["", "tol", "state error", "at t", "units", "gradient error", "units"]
        header += ["calls", "NFE", "steps", "seconds", "status"]
        ran = [row for row in self.rows if row.status != NOT_RUN]
        left_out: dict[str, dict[str, None]] = {}
        for row in self.rows:
            if row.status == NOT_RUN:
                left_out.setdefault(row.reason, {})[row.who] = None
        text = _aligned([header, *map(_cells, ran)])
        return text + "".join(
            f"\nnot run: {', '.join(names)}: {_one_line(why)}\n" for why, names in left_out.items()
        )

    def markdown(self) -> str:
        """The report that :meth:`save` writes."""
        problem, versions = self.problem, self.environment.get("versions", {})
        lines = [
            "# pyjuliaode crosscheck",
            f"{problem['title']}: {problem['states']} states, {problem['params']} parameters, "
            f"{problem['dtype']}, t from {problem['t'][0]:g} to {problem['t'][-1]:g} with "
            f"{len(problem['t'])} outputs.",
            f"**{'Agreement' if self.agrees else 'Disagreement'}.** {self.verdict.sentence}",
            self.table().rstrip(),
            "Calls (one after another), NFE (all evaluations in them) and seconds: forward + "
            "backward; steps: accepted + rejected. "
            "Seconds are of one run; `pyjuliaode bench` measures.",
            ", ".join(f"{name} {version}" for name, version in versions.items()),
        ]
        return "\n\n".join(lines) + "\n"

    def to_json(self) -> str:
        """All of it as JSON; numbers that are not finite become null."""
        from ..experiments.folder import plain

        return json.dumps(plain(asdict(self)), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CrossCheck:
        """What :meth:`to_json` wrote."""
        values: Mapping[str, Any] = json.loads(text)
        verdict = dict(values["verdict"])
        verdict["disagreements"] = [Disagreement(**d) for d in verdict["disagreements"]]
        verdict["furthest"] = verdict["furthest"] and Apart(**verdict["furthest"])
        rows = [Row(**row) for row in values["rows"]]
        return cls(**{**values, "rows": rows, "verdict": Verdict(**verdict)})

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Errors of states and gradients over NFE and seconds, logarithmic.

        Arguments:
            path: also write the figure there, whole or not at all; the format follows the suffix.

        Raises:
            UnsupportedError: matplotlib is not installed.
        """
        from .. import plotting
        from ..experiments.folder import RunFolder

        rows = [{**asdict(row), "backend": row.label} for row in self.rows]
        figure = plotting.crosscheck(rows, self.problem["title"])
        if path is not None:
            path = Path(path)
            writer = RunFolder(path.parent)
            writer.write(path.name, lambda temporary: plotting.save(figure, temporary))
        return figure

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write crosscheck.json, crosscheck.md and, where matplotlib is, crosscheck.png.

        Each is written beside its place and then renamed, so that none is ever half there.

        Returns:
            The files.
        """
        from ..experiments.folder import RunFolder

        target = RunFolder(folder)
        texts = {"crosscheck.json": self.to_json(), "crosscheck.md": self.markdown()}
        paths = [
            target.write(name, lambda path, text=text: path.write_text(text, encoding="utf-8"))
            for name, text in texts.items()
        ]
        if importlib.util.find_spec("matplotlib") is not None:
            paths.append(target.path / "crosscheck.png")
            self.plot(paths[-1])
        return paths


def _cells(row: Row) -> list[str]:
    same = row.rtol == row.atol
    tol = f"{row.rtol:.0e}" if same else f"{row.rtol:.0e}, {row.atol:.0e}"
    gradients = [g for g in (row.gradient_y0, row.gradient_params) if g is not None]
    status = row.status if not row.reason else f"{row.status}: {_one_line(row.reason)}"
    return [
        row.who,
        tol,
        _shown(row.state_error, ".1e"),
        _shown(row.state_time, ".4g"),
        _shown(row.state_units, ".2g"),
        _shown(max(gradients, default=None), ".1e"),
        _shown(row.gradient_units, ".2g"),
        _sum(*row.calls, "d"),
        _sum(row.nfe_forward, row.nfe_backward, "d"),
        _sum(row.n_accepted, row.n_rejected, "d"),
        _sum(row.seconds_forward, row.seconds_backward, ".2g"),
        status,
    ]


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _sum(first: float | None, second: float | None, form: str) -> str:
    return " + ".join(_shown(value, form) for value in (first, second) if value is not None)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _aligned(rows: list[list[str]]) -> str:
    """A Markdown table that can be read as it is: the first and the last column left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    widths[last] = max(len(row[last]) for row in rows[:1])  # reasons may be long
    rule = ["-" * max(widths[0], 3), *("-" * (max(w, 3) - 1) + ":" for w in widths[1:last]), "---"]
    lines = []
    for row in [rows[0], rule, *rows[1:]]:
        first, *middle, end = row
        cells = [c.rjust(max(w, 3)) for c, w in zip(middle, widths[1:last], strict=True)]
        lines.append("| " + " | ".join([first.ljust(max(widths[0], 3)), *cells, end]) + " |")
    return "\n".join(lines) + "\n"
