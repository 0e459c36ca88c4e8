"""``pyjuliaode bench``: what a solve and a gradient cost here, beside torchdiffeq where installed.

Absolute seconds belong to one machine on one day. The figures to read are ratios: to torchdiffeq,
and to the bare cost of the evaluations that were made. All competitors run in one process, in
turns (round-robin, each round from another starting point), after a warm-up and with the garbage
collector off while the clock runs; medians are reported.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .bench_problems import (
    Competitor,
    Problem,
    forward_competitors,
    gradient_competitors,
    wide,
)
from .bench_problems import problems as every_problem
from .rhs import RHS

Task = Callable[[], Any]
MEMORY_STEPS = (10, 50, 200, 1000)
PACKAGES = ("pyjuliaode", "torch", "torchdiffeq", "juliacall", "numpy")


# ------------------------------------------------------------------------------------ the clock


def interleaved(tasks: Mapping[str, Task], repeats: int, least: float = 5e-3) -> dict[str, float]:
    """Median seconds of one call of every task, measured in turns.

    A task shorter than ``least`` seconds is called several times per measurement.
    """
    calls = {name: _calls(task, least) for name, task in tasks.items()}
    samples: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for i in range(repeats):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            samples[name].append(_timed(tasks[name], calls[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def _calls(task: Task, least: float) -> int:
    once = min(_timed(task, 1) for _ in range(3))
    return max(1, math.ceil(least / max(once, 1e-9)))


def _timed(task: Task, calls: int) -> float:
    """Seconds of one call; the collector runs before, which empties the caches: so warm up."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(min(calls, 5)):
            task()
        start = time.perf_counter()
        for _ in range(calls):
            task()
        return (time.perf_counter() - start) / calls
    finally:
        gc.enable()


# ------------------------------------------------------------------- the parts that are measured


def bare_costs(problem: Problem) -> dict[str, Task]:
    """One evaluation of the right-hand side, and its vector-Jacobian products, without a solver."""
    t0 = torch.zeros((), dtype=problem.y0.dtype)
    y = problem.y0.detach().requires_grad_()

    def evaluation() -> Tensor:
        with torch.no_grad():
            return problem.func(t0, problem.y0)

    def vjp(inputs: Sequence[Tensor]) -> Task:
        return lambda: torch.autograd.grad(problem.func(t0, y), inputs, problem.weight)

    return {
        "evaluation": evaluation,
        "vjp state": vjp([y]),
        "vjp params": vjp(problem.params),
        "vjp state+params": vjp([y, *problem.params]),
    }


def forward(problem: Problem, who: Competitor, tol: float) -> Task:
    """y(1), without gradients."""

    def task() -> Tensor:
        with torch.no_grad():
            return who.solve(problem, problem.y0, tol)[0]

    return task


def gradient(problem: Problem, who: Competitor, tol: float, dt: float | None = None) -> Task:
    """The gradient of the loss with respect to the initial state and the parameters."""

    def task() -> tuple[Tensor, ...]:
        y0 = problem.y0.detach().clone().requires_grad_()
        loss = (who.solve(problem, y0, tol, dt)[0] * problem.weight).sum()
        return torch.autograd.grad(loss, (y0, *problem.params))

    return task


def count_evaluations(problem: Problem, who: Competitor, tol: float) -> tuple[int, int]:
    """Evaluations of the forward solve, and vector-Jacobian products of the backward one."""
    y0 = problem.y0.detach().clone().requires_grad_()
    if who.native:  # a hook would be a reason not to be native
        y, stats = who.solve(problem, y0, tol)
        torch.autograd.grad((y * problem.weight).sum(), (y0, *problem.params))
        return stats.nfe_forward, stats.nfe_backward
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = problem.func.register_forward_pre_hook(count)
    try:
        y, stats = who.solve(problem, y0, tol)
        in_forward = calls
        torch.autograd.grad((y * problem.weight).sum(), (y0, *problem.params))
    finally:
        hook.remove()
    if stats is not None:
        return stats.nfe_forward, stats.nfe_backward
    return in_forward, in_forward if who.keeps_graph else calls - in_forward


def count_products(problem: Problem, who: Competitor, tol: float) -> Counter[str] | None:
    """Vector-Jacobian products of a continuous adjoint by kind; None where it takes none."""
    counts: Counter[str] = Counter()
    plain = RHS.vjp

    def counted(self: RHS, *args: Any, state: bool = True, params: bool = True) -> Any:
        kinds = [name for name, wanted in (("state", state), ("params", params)) if wanted]
        counts["vjp " + "+".join(kinds)] += 1
        return plain(self, *args, state=state, params=params)

    RHS.vjp = counted
    try:
        gradient(problem, who, tol)()
    finally:
        RHS.vjp = plain
    return counts or None


# ---------------------------------------------------------------------------------- the reference


@dataclass(frozen=True)
class Reference:
    """State and gradient to measure errors against, and how well two ways to get them agree."""

    y: Tensor
    grads: tuple[Tensor, ...]
    doubt_state: float
    doubt_gradient: float

    def state_error(self, y: Tensor) -> float:
        return relative([y], [self.y])

    def gradient_error(self, grads: Sequence[Tensor]) -> float:
        """The larger of the relative errors of dL/dy0 and dL/dparameters."""
        return gradient_difference(grads, self.grads)


def relative(values: Iterable[Tensor], truth: Iterable[Tensor]) -> float:
    """Relative error, in the 2-norm over all tensors together."""
    off, size = 0.0, 0.0
    for value, true in zip(values, truth, strict=True):
        off += (value.detach().double() - true).square().sum().item()
        size += true.square().sum().item()
    return math.sqrt(off / size)


def gradient_difference(grads: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    return max(relative(grads[:1], truth[:1]), relative(grads[1:], truth[1:]))


def reference(problem: Problem) -> Reference:
    """dopri5 at tolerance 1e-12 in float64, confirmed by rk4 with 400 steps."""
    exact = problem.in_float64()
    tight, grid = Competitor("pyjuliaode", checkpoint=True), Competitor("pyjuliaode", "rk4")
    with torch.no_grad():
        y = tight.solve(exact, exact.y0, 1e-12)[0]
        y_grid = grid.solve(exact, exact.y0, 1e-12, dt=1 / 400)[0]
    grads = gradient(exact, tight, 1e-12)()
    grads_grid = gradient(exact, grid, 1e-12, dt=1 / 400)()
    doubts = relative([y_grid], [y]), gradient_difference(grads_grid, grads)
    return Reference(y, grads, *doubts)


# -------------------------------------------------------------------------- at equal tolerance


@dataclass
class Row:
    """One competitor at one tolerance; seconds of the whole forward solve or the whole gradient."""

    problem: str
    what: str
    label: str
    tol: float
    seconds: float
    error: float
    nfe_forward: int
    nfe_backward: int | None = None
    own_cost: float | None = None

    @property
    def overhead(self) -> float | None:
        """Seconds over the bare cost of the evaluations that were made."""
        return None if self.own_cost is None else self.seconds / self.own_cost


def tasks_at(problem: Problem, tol: float, gradients: Sequence[Competitor]) -> dict[str, Task]:
    """Every competitor's forward solve, and the gradients asked for, by what and label."""
    solves = {_key("forward", c): forward(problem, c, tol) for c in forward_competitors()}
    return solves | {_key("gradient", c): gradient(problem, c, tol) for c in gradients}


def _key(what: str, who: Competitor) -> str:
    return f"{what}: {who.label}"


def rows_at(
    problem: Problem,
    tol: float,
    gradients: Sequence[Competitor],
    seconds: Mapping[str, float],
    truth: Reference,
) -> list[Row]:
    """What was measured for :func:`tasks_at`, with counts and errors."""
    rows = []
    for c in forward_competitors():
        label, key = f"{c.name} {c.method}", _key("forward", c)
        error = truth.state_error(forward(problem, c, tol)())
        nfe, _ = count_evaluations(problem, c, tol)
        rows.append(Row(problem.name, "forward", label, tol, seconds[key], error, nfe))
    for c in gradients:
        error = truth.gradient_error(gradient(problem, c, tol)())
        nfe = count_evaluations(problem, c, tol)
        key = _key("gradient", c)
        rows.append(Row(problem.name, "gradient", c.label, tol, seconds[key], error, *nfe))
    return rows


def compare(problem: Problem, repeats: int, truth: Reference) -> tuple[dict[str, float], list[Row]]:
    """Bare costs, and every competitor at the problem's own tolerance, all measured in turns."""
    who, bare = gradient_competitors(), bare_costs(problem)
    seconds = interleaved(bare | tasks_at(problem, problem.tol, who), repeats)
    rows = rows_at(problem, problem.tol, who, seconds, truth)
    keeps_graph = {c.label for c in who if c.keeps_graph}
    products = {c.label: count_products(problem, c, problem.tol) for c in who}
    for row in rows:
        if " native " in row.label:
            continue  # its evaluations are not those of torch
        # Where the graph is kept, a product includes its evaluation; else that came before it.
        before = 0 if row.label in keeps_graph else row.nfe_forward
        row.own_cost = before * seconds["evaluation"]
        counts = products.get(row.label) if row.what == "gradient" else None
        if counts is None:
            row.own_cost += (row.nfe_backward or 0) * seconds["vjp state+params"]
        else:
            row.own_cost += sum(n * seconds[kind] for kind, n in counts.items())
    return {name: seconds[name] for name in bare}, rows


# ----------------------------------------------------------------------- at equal achieved error


def sweep(problem: Problem, repeats: int, truth: Reference, quick: bool) -> list[Row]:
    """Forward solves and gradients over the problem's tolerances."""
    who = [c for c in gradient_competitors() if c.adjoint not in ("interpolating", "backsolve")]
    rows: list[Row] = []
    for tol in problem.tolerances[:: 2 if quick else 1]:
        seconds = interleaved(tasks_at(problem, tol, who), repeats)
        rows += rows_at(problem, tol, who, seconds, truth)
    return rows


def curves(rows: Iterable[Row], problem: str, what: str) -> dict[str, list[tuple[float, float]]]:
    """(error, seconds) of every competitor, from loose to tight."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if (row.problem, row.what) == (problem, what):
            found.setdefault(row.label, []).append((row.error, row.seconds))
    return found


def cheapest(curve: Sequence[tuple[float, float]], error: float) -> float | None:
    """Seconds of the fastest run whose error is at most ``error``; None where there was none."""
    return min((seconds for e, seconds in curve if e <= error), default=None)


# ------------------------------------------------------------------------------------------ memory


def memory_table(steps: Sequence[int], threads: int) -> list[dict[str, Any]]:
    """Peak memory of every adjoint over numbers of rk4 steps, each in a process of its own."""
    return [
        {"label": c.label, "steps": n, **_memory_in_child(c, n, threads)}
        for c in gradient_competitors("rk4")
        for n in steps
    ]


def _memory_in_child(who: Competitor, steps: int, threads: int) -> dict[str, Any]:
    asked = json.dumps({"who": asdict(who), "steps": steps, "threads": threads})
    command = [sys.executable, "-m", "pyjuliaode.bench", "--memory-child", asked]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"mib": None, "error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout)


def memory_child(asked: str) -> dict[str, Any]:
    """In the child: how far one gradient raises the process's peak above its start."""
    config = json.loads(asked)
    torch.set_num_threads(config["threads"])
    problem, who = wide(batch=64), Competitor(**config["who"])
    gradient(problem, who, 1e-5, dt=1 / 2)()  # what loads and allocates once
    gc.collect()
    before = _reset_peak()
    gradient(problem, who, 1e-5, dt=1 / config["steps"])()
    return {"mib": (_peak() - before) / 2**20}


def _reset_peak() -> int:
    """Start the peak anew where the system can; bytes that it starts from."""
    # Not Linux, or not allowed: then the peak so far is what the next one is compared with.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Peak resident memory of this process, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


# ------------------------------------------------------------------------------------- the report


def machine(threads: int) -> dict[str, Any]:
    """What the numbers belong to."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _ratio(value: float | None, base: float | None) -> str:
    return "" if value is None or not base else f"{value / base:.2f}"


def equal_tolerance_table(problem: Problem, rows: Sequence[Row]) -> str:
    """Competitors at the problem's tolerance; ratios below 1 are faster than torchdiffeq."""
    mine = [r for r in rows if r.problem == problem.name]
    base = {r.label: r.seconds for r in mine}
    header = ["", "ms", "NFE forward", "NFE backward", "relative error", "/ own evaluations"]
    header += ["/ torchdiffeq odeint", "/ torchdiffeq odeint_adjoint"]
    lines = []
    for r in mine:
        to = "torchdiffeq dopri5" + (" odeint" if r.what == "gradient" else "")
        adjoint = base.get("torchdiffeq dopri5 odeint_adjoint") if r.what == "gradient" else None
        backward = "" if r.nfe_backward is None else r.nfe_backward
        lines.append(
            [
                f"{r.what}: {r.label}",
                f"{1e3 * r.seconds:.2f}",
                r.nfe_forward,
                backward,
                f"{r.error:.1e}",
                "" if r.overhead is None else f"{r.overhead:.2f}",
                _ratio(r.seconds, base.get(to)),
                _ratio(r.seconds, adjoint),
            ]
        )
    return table(header, lines)


def equal_error_table(problem: Problem, rows: Sequence[Row]) -> str:
    """Milliseconds of the cheapest run that achieves an error, and the ratio to torchdiffeq's."""
    lines = []
    errors = [float(f"1e-{k}") for k in range(3, 10)]
    for what, base in (
        ("forward", "torchdiffeq dopri5"),
        ("gradient", "torchdiffeq dopri5 odeint"),
    ):
        found = curves(rows, problem.name, what)
        for label, curve in found.items():
            cells = []
            for error in errors:
                seconds = cheapest(curve, error)
                ratio = _ratio(seconds, cheapest(found.get(base, []), error))
                shown = "" if seconds is None else f"{1e3 * seconds:.2f}"
                cells.append(f"{shown} ({ratio})" if ratio else shown)
            lines.append([f"{what}: {label}", *cells])
    return table(["ms for a relative error of at most", *(f"{e:.0e}" for e in errors)], lines)


def markdown(result: Mapping[str, Any], problems: Sequence[Problem], rows: Sequence[Row]) -> str:
    """The report of a comparison."""
    here = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in here["versions"].items())
    parts = [
        "# pyjuliaode bench",
        f"{here['processor']}, {here['threads']} thread(s), {versions}, {here['date']}; medians of "
        f"{result['repeats']} interleaved runs. Seconds are this machine's; compare ratios.",
    ]
    swept = [Row(**row) for row in result["sweep"]]
    for problem in problems:
        bare = result["bare"][problem.name]
        doubt = result["reference"][problem.name]
        costs = ", ".join(f"{name} {1e6 * seconds:.0f} us" for name, seconds in bare.items())
        parts += [
            f"## {problem.title}",
            f"rtol = atol = {problem.tol:g}, t in [0, 1]. Bare costs: {costs}. Two references "
            f"agree to {doubt['state']:.0e} (state) and {doubt['gradient']:.0e} (gradient).",
            equal_tolerance_table(problem, rows),
        ]
        if not problem.tolerances:
            continue
        parts += [
            "At equal achieved error: the cheapest run over the tolerances "
            f"{problem.tolerances[0]:g} to {problem.tolerances[-1]:g} that achieves it "
            "(in brackets: ratio to torchdiffeq's dopri5, for gradients by odeint):",
            equal_error_table(problem, swept),
        ]
    return "\n\n".join(parts) + "\n"


def memory_markdown(result: Mapping[str, Any]) -> str:
    """The report of peak memory."""
    steps = result["steps"]
    lines: dict[str, list[str]] = {}
    for row in result["memory"]:
        shown = f"{row['mib']:.1f}" if row["mib"] is not None else "refused"
        lines.setdefault(row["label"], []).append(shown)
    header = ["peak MiB above the start, by rk4 steps", *map(str, steps)]
    return table(header, ([label, *cells] for label, cells in lines.items())) + "\n"


def work_precision_figure(problems: Sequence[Problem], rows: Sequence[Row], path: Path) -> None:
    """Seconds over achieved error, one panel per problem and quantity."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(11, 4.9 * len(problems)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(problems), 2, squeeze=False)
    for row, problem in zip(axes, problems, strict=True):
        for ax, what in zip(row, ("forward", "gradient"), strict=True):
            for label, curve in curves(rows, problem.name, what).items():
                style = "--s" if label.startswith("torchdiffeq") else "-o"
                errors, seconds = zip(*curve, strict=True)
                ax.loglog(errors, [1e3 * s for s in seconds], style, label=label, markersize=4)
            ax.invert_xaxis()
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set(title=f"{what}: {problem.title}", xlabel="relative error", ylabel="ms")
            ax.title.set_fontsize(9)
            ax.grid(True, which="major", alpha=0.3)
            # below the axes: inside, it hides a curve wherever the measurements put one
            ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.savefig(path, dpi=150)


# ---------------------------------------------------------------------------------- the front door


def bench(
    quick: bool = False,
    threads: int = 1,
    repeats: int | None = None,
    out: str | os.PathLike[str] = "runs/bench",
    memory: bool = False,
) -> dict[str, Any]:
    """Measure, write bench.json, bench.md and work_precision.png (or memory.*), print the tables.

    The figure needs matplotlib and is left out without it.

    Arguments:
        quick: fewer repeats and tolerances (memory: fewer steps); seconds instead of minutes.
        threads: torch's threads.
        repeats: runs of every competitor (default 15, quick 3).
        out: folder for the results.
        memory: measure peak memory against the number of steps instead of time.

    Returns:
        What is in the JSON file.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        result = _measure_memory(quick, threads) if memory else {}
        if not memory:
            result = _measure_time(quick, threads, repeats or (3 if quick else 15), out)
    finally:
        torch.set_num_threads(before)
    name = "memory" if memory else "bench"
    text = result.pop("markdown")
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
    return result


def _measure_memory(quick: bool, threads: int) -> dict[str, Any]:
    steps = MEMORY_STEPS[:2] if quick else MEMORY_STEPS
    result: dict[str, Any] = {"machine": machine(threads), "steps": list(steps)}
    result["memory"] = memory_table(steps, threads)
    result["markdown"] = memory_markdown(result)
    return result


def _measure_time(quick: bool, threads: int, repeats: int, out: Path) -> dict[str, Any]:
    problems = every_problem()
    bare, doubts = {}, {}
    rows: list[Row] = []
    swept: list[Row] = []
    for problem in problems:
        truth = reference(problem)
        doubts[problem.name] = {"state": truth.doubt_state, "gradient": truth.doubt_gradient}
        bare[problem.name], found = compare(problem, repeats, truth)
        rows += found
        swept += sweep(problem, min(repeats, 5), truth, quick)
    if importlib.util.find_spec("matplotlib") is not None:
        swept_problems = [problem for problem in problems if problem.tolerances]
        work_precision_figure(swept_problems, swept, out / "work_precision.png")
    result: dict[str, Any] = {
        "machine": machine(threads),
        "repeats": repeats,
        "problems": {p.name: p.title for p in problems},
        "reference": doubts,
        "bare": bare,
        "equal_tolerance": [asdict(row) for row in rows],
        "sweep": [asdict(row) for row in swept],
    }
    result["markdown"] = markdown(result, problems, rows)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m pyjuliaode.bench``: the same as ``pyjuliaode bench``."""
    parser = argparse.ArgumentParser(
        prog="pyjuliaode bench",
        description="Measure solvers and gradients here, beside torchdiffeq where it is installed.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats and tolerances")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument(
        "--repeats", type=int, help="runs of every competitor (default 15, quick 3)"
    )
    parser.add_argument("--out", default="runs/bench", help="folder for the results")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="peak memory against the number of steps instead of time",
    )
    parser.add_argument("--memory-child", help=argparse.SUPPRESS)
    options = vars(parser.parse_args(arguments))
    child = options.pop("memory_child")
    if child is not None:
        print(json.dumps(memory_child(child)))
    else:
        bench(**options)


if __name__ == "__main__":
    main()
