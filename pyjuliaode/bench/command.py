"""``pyjuliaode bench``: what is asked for, checked, measured, and written."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgumentError, UnsupportedError
from ..experiments.folder import RunFolder, check_writable
from ..experiments.threads import using
from ..plotting import save
from ..progress import progress_bar
from . import figures, report
from .competitors import choose
from .growth import point, points
from .machine import machine
from .measure import Step, compare, everyone, sweep
from .memory import STEPS, by_problem, by_steps, peak
from .problems import MAKERS, Problem, check_names
from .reference import reference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = dict[str, Any]
Measured = Iterator[None]  # after each item of which the result may be written
# Their sweeps would repeat what "direct" and "gauss" show.
NOT_SWEPT = ("interpolating", "backsolve")


def bench(
    quick: bool = False,
    threads: int = 1,
    repeats: int | None = None,
    out: str | os.PathLike[str] = "runs/bench",
    *,
    problems: Sequence[str] = (),
    competitors: Sequence[str] = (),
    memory: bool = False,
    growth: bool = False,
    render: bool = False,
) -> Result:
    """Measure, write bench.json, bench.md and the figures, and print the tables.

    After every problem the JSON is written, so that an interruption keeps what was measured; the
    tables and figures of what there is are written then too. Figures need matplotlib and are left
    out without it.

    Arguments:
        quick: fewer repeats, tolerances, steps and points.
        threads: of torch, and of JAX where it is 1.
        repeats: runs of every competitor (default 15, quick 3).
        out: folder for the results.
        problems: names of problems; none: all.
        competitors: names of packages; none: all that are installed.
        memory: measure peak memory instead, against the number of steps and of the problems
            (memory.*).
        growth: measure how costs grow instead (growth.*).
        render: measure nothing: write tables and figures of the JSON that lies in the folder.

    Returns:
        What is in the JSON file.

    Raises:
        InvalidArgumentError: an argument does not fit; nothing has been started or written.
        KeyboardInterrupt: after what was measured has been written.
    """
    kind = _kind(memory, growth, problems)
    _check_positive(threads=threads, repeats=repeats)
    names = check_names(problems)
    packages, left_out = choose(competitors)
    check_writable(out)
    folder = RunFolder(out)
    if render:
        result = _read(kind, folder)
        _publish(kind, folder, result)
        return result
    repeats = repeats or (3 if quick else 15)
    result = {"machine": machine(threads), "repeats": repeats, "complete": False}
    result |= {"left_out": left_out, "skipped": {}}
    measured = {
        "bench": partial(_measure_problems, names, packages, repeats, quick),
        "growth": partial(_measure_growth, packages, min(repeats, 5), quick),
        "memory": partial(_measure_memory, names, packages, threads, quick),
    }[kind]
    started = False
    try:
        with _conditions(threads):
            for _ in measured(result):
                result["machine"] = machine(threads)  # of Julia too, once it has started
                folder.write_json(f"{kind}.json", result)
                started = True
        result["complete"] = True
    finally:
        if started:
            folder.write_json(f"{kind}.json", result)
            _publish(kind, folder, result)
    return result


# ------------------------------------------------------------------------------------- arguments


def _kind(memory: bool, growth: bool, problems: Sequence[str]) -> str:
    if memory and growth:
        raise InvalidArgumentError(
            "--memory and --growth exclude each other: run one after another"
        )
    if problems and growth:
        raise InvalidArgumentError("--growth has its own problem: leave out --problems")
    return "memory" if memory else "growth" if growth else "bench"


def _check_positive(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise InvalidArgumentError(f"--{name} must be at least 1, got {value}")


@contextmanager
def _conditions(threads: int) -> Iterator[None]:
    """Threads of torch, and no warnings: what fails is in the report with its reason."""
    with using(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ----------------------------------------------------------------------------------- measurements


@contextmanager
def _progress(total: int) -> Iterator[Step]:
    """Told what begins, it counts what came before."""
    with progress_bar(total, "part") as bar:
        begun = False

        def step(what: str) -> None:
            nonlocal begun
            if begun:
                bar.update()
            bar.set_description(what)
            begun = True

        yield step
        if begun:
            bar.update()


def _measure_problems(
    names: Sequence[str], packages: Sequence[str], repeats: int, quick: bool, result: Result
) -> Measured:
    result["problems"] = []
    made = [MAKERS[name]() for name in names]
    tolerances = {p.name: p.tolerances[:: 2 if quick else 1] for p in made}
    with _progress(sum(2 + len(t) for t in tolerances.values())) as step:
        for problem in made:
            try:
                measured = _measure(problem, packages, repeats, tolerances[problem.name], step)
            except UnsupportedError as error:  # there is no reference
                result["skipped"][problem.name] = str(error)
            else:
                result["problems"].append(measured)
            yield


def _measure(
    problem: Problem,
    packages: Sequence[str],
    repeats: int,
    tolerances: Sequence[float],
    step: Step,
) -> Result:
    step(f"{problem.name}: reference")
    truth = reference(problem)
    step(f"{problem.name} at {problem.tol:g}")
    bare, found = compare(problem, packages, repeats, truth)
    able = {entry.key for entry in found.entries}
    chosen = [
        (what, who)
        for what, who in everyone(problem, packages)
        if f"{what}: {who.label(what)}" in able
        and (problem.stiff or what == "forward" or who.adjoint not in NOT_SWEPT)
    ]
    swept = sweep(problem, chosen, tolerances, min(repeats, 5), truth, step)
    return {
        "name": problem.name,
        "title": problem.title,
        "t": [float(problem.t[0]), float(problem.t[-1])],
        "tol": problem.tol,
        "atol": problem.tol * problem.atol_factor,
        "tolerances": list(tolerances),
        "reference": {"state": truth.doubt_state, "gradient": truth.doubt_gradient},
        "bare": bare,
        "rows": [asdict(row) for row in found.rows],
        "refused": [asdict(refusal) for refusal in found.refusals],
        "sweep": [asdict(row) for row in swept],
    }


def _measure_growth(packages: Sequence[str], repeats: int, quick: bool, result: Result) -> Measured:
    result["points"] = []
    chosen = points(quick)
    with _progress(len(chosen)) as step:
        for name, value in chosen:
            step(f"{name} {value:g}")
            result["points"].append(point(name, value, packages, repeats))
            yield


def _measure_memory(
    names: Sequence[str], packages: Sequence[str], threads: int, quick: bool, result: Result
) -> Measured:
    steps, chosen = STEPS[:2] if quick else STEPS, by_steps(packages)
    grid = [(name, who) for name in names for who in by_problem(MAKERS[name](), packages)]
    result |= {"steps": list(steps), "memory": [], "problems": list(names), "grid": []}
    with _progress(len(chosen) * len(steps) + len(grid)) as step:
        for who in chosen:
            label = who.label("gradient")
            for n in steps:
                step(f"{label}, {n} steps")
                found = peak(who, threads, steps=n)
                result["memory"].append({"label": label, "steps": n, **found})
            yield
        for name, who in grid:
            label = who.label("gradient")
            step(f"{name}: {label}")
            found = peak(who, threads, name=name)
            result["grid"].append({"label": label, "problem": name, **found})
            yield


# --------------------------------------------------------------------------------------- results


def _read(kind: str, folder: RunFolder) -> Result:
    path = folder.path / f"{kind}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"cannot read {path}: {error}; measure first") from error


def _publish(kind: str, folder: RunFolder, result: Result) -> None:
    """Write the tables and figures of a result, complete or not, and print the tables."""
    text = _REPORTS[kind](result)
    folder.write(f"{kind}.md", lambda path: path.write_text(text, encoding="utf-8"))
    if importlib.util.find_spec("matplotlib") is not None:
        for name, figure in _figures(kind, result):
            folder.write(name, partial(save, figure))
    print(text)


_REPORTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "bench": report.markdown,
    "growth": report.growth_markdown,
    "memory": report.memory_markdown,
}


def _figures(kind: str, result: Result) -> Iterable[tuple[str, Figure]]:
    if kind == "growth":
        yield "growth.png", figures.growth(result["points"])
    if kind == "bench" and result["problems"]:
        yield "grid.png", figures.grid(result["problems"])
        if swept := [problem for problem in result["problems"] if problem["sweep"]]:
            yield "work_precision.png", figures.work_precision(swept)
