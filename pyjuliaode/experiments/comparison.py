"""compare: several models over several seeds, one table and one figure."""

from __future__ import annotations

import csv
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .. import plotting
from ..errors import InvalidArgumentError, unknown_name
from ..progress import say
from . import get, parallel
from .base import ALL, Experiment
from .config import RunConfig
from .folder import RunFolder, check_writable, plain
from .runner import RUN_FAILURES, check_figures, execute
from .settings import MOST, read_whole
from .threads import Threads, choose
from .trainer import COSTS

SUMMARY = "comparison"  # .json, .csv, .md, .png
NOT_STARTED = "not started"

# key in "final" -> heading, number format
COLUMNS = {
    "test_accuracy": ("test accuracy", ".4f"),
    "test_loss": ("test loss", ".4f"),
    "loss": ("training loss", ".4f"),
    "nfe_forward": ("NFE forward", ".1f"),
    "nfe_backward": ("NFE backward", ".1f"),
    "sequential_forward": ("calls forward", ".1f"),
    "sequential_backward": ("calls backward", ".1f"),
    "seconds": ("seconds", ".1f"),
}


@dataclass(frozen=True)
class Planned:
    """One run of a comparison, where it goes, and its threads."""

    config: RunConfig
    folder: RunFolder
    threads: Threads


def compare(
    name: str,
    *,
    models: Sequence[str] | str = ALL,
    seeds: int = 3,
    jobs: int = 1,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: bool = True,
    **choices: Any,
) -> dict[str, Any]:
    """Train ``models`` with the seeds 0, 1, ... and write one table and one figure of them.

    Arguments:
        name: an experiment that trains.
        models: names, or "all".
        seeds: how many.
        jobs: runs at a time, each in its own process where there are several.
        out: the folder; default runs/NAME-comparison. Every run has its own folder in it.
        resume: skip what is finished there, continue what is not.
        overwrite: remove the runs that lie there.
        threads, progress, choices: as for :func:`.runner.run`; the same for every run.

    Returns:
        What comparison.json holds: "table", one row a model, and "runs", one a run. A run that
        failed is counted in the table and left out of the means.

    Raises:
        InvalidArgumentError: a wrong choice, or a folder that holds other runs; nothing has been
            written.
        KeyboardInterrupt: Ctrl-C; the table and figure of what is finished are on disk.
    """
    check_figures()
    experiment = get(name)
    if not experiment.trains:
        raise InvalidArgumentError(
            f"{name} compares by itself: pyjuliaode run {name}; compare takes what trains"
        )
    seeds = read_whole("seeds", seeds, 1, MOST)
    jobs = read_whole("jobs", jobs, 1, MOST)
    folder = RunFolder(default_folder(name) if out is None else out)
    check_writable(folder.path)
    folder.refuse_run()
    share = partial(choose, asked=threads, resume=resume, jobs=jobs)
    planned = [
        Planned(config, place, share(experiment.work(config), place))
        for config in _configs(experiment, _names(models, experiment), seeds, choices)
        for place in [RunFolder(folder.path / f"{config.model}-seed{config.seed}")]
    ]
    for run in planned:  # all of them, before the first is started
        run.folder.check(run.config.to_dict(), resume=resume, overwrite=overwrite)
    for line in {run.threads.number: run.threads.line() for run in planned}.values():
        say(line, progress)
    options = {"resume": resume, "overwrite": overwrite}
    try:
        if jobs == 1:
            _one_by_one(planned, options, progress)
        else:
            parallel.run(planned, options, jobs, progress)
    finally:
        summary = summarise(name, planned)
        if any(run["status"] != NOT_STARTED for run in summary["runs"]):
            write(summary, planned, folder)
    return summary


def default_folder(name: str) -> str:
    """Of the comparisons of an experiment."""
    return f"runs/{name}-{SUMMARY}"


def _names(models: Sequence[str] | str, experiment: Experiment) -> list[str]:
    """The chosen models, in the order given."""
    if isinstance(models, str):
        models = [name.strip() for name in models.split(",")]
    chosen = list(experiment.models) if list(models) == [ALL] else list(models)
    if not all(chosen) or not chosen:
        raise InvalidArgumentError(
            f"models must be names with commas between them, or 'all', got {','.join(models)!r}"
        )
    for name in chosen:
        if name not in experiment.models:
            raise unknown_name("model", name, [*experiment.models, ALL])
        if chosen.count(name) > 1:
            raise InvalidArgumentError(f"models names {name!r} twice")
    return chosen


def _configs(
    experiment: Experiment, models: Iterable[str], seeds: int, choices: Mapping[str, Any]
) -> list[RunConfig]:
    """Seed by seed, so that an interrupted comparison has all models on the first seeds."""
    return [
        experiment.configure(model=model, seed=seed, **choices)
        for seed in range(seeds)
        for model in models
    ]


def _one_by_one(planned: Sequence[Planned], options: Mapping[str, Any], progress: bool) -> None:
    for run in planned:
        try:
            execute(run.config, run.folder, run.threads.number, progress=progress, **options)
        except RUN_FAILURES as error:
            run.folder.note_failure(run.config.to_dict(), str(error))


def summarise(name: str, planned: Sequence[Planned]) -> dict[str, Any]:
    """The table over the runs that are finished, and what became of each run."""
    runs = []
    for run in planned:
        metrics = _metrics(run) or {"status": NOT_STARTED}
        runs.append(
            {
                "model": run.config.model,
                "seed": run.config.seed,
                "status": metrics["status"],
                "error": metrics.get("error"),
                "parameters": metrics.get("parameters"),
                "final": metrics.get("final", {}),
            }
        )
    models = dict.fromkeys(run.config.model for run in planned)
    table = [_row(model, [run for run in runs if run["model"] == model]) for model in models]
    config = {key: value for key, value in planned[0].config.to_dict().items()}
    config |= {"model": list(models), "seed": sorted({run["seed"] for run in runs})}
    return {"experiment": name, "config": config, "table": table, "runs": runs}


def _metrics(run: Planned) -> dict[str, Any] | None:
    """Of this run; not of another that it was to overwrite."""
    metrics = run.folder.read_metrics()
    same = metrics is not None and metrics["config"] == plain(run.config.to_dict())
    return metrics if same else None


def _row(model: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    finished = [run for run in runs if run["status"] == "finished"]
    row: dict[str, Any] = {
        "model": model,
        "finished": len(finished),
        "runs": len(runs),
        "parameters": next((run["parameters"] for run in finished), None),
    }
    for key in COLUMNS:
        values = [run["final"][key] for run in finished if run["final"].get(key) is not None]
        row[key] = statistics.fmean(values) if values else None
        row[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return row


def write(summary: Mapping[str, Any], planned: Sequence[Planned], folder: RunFolder) -> None:
    """comparison.json, .csv, .md and .png."""
    folder.write_json(f"{SUMMARY}.json", summary)
    folder.write(f"{SUMMARY}.csv", lambda path: _write_csv(path, summary["table"]))
    text = markdown(summary)
    folder.write(f"{SUMMARY}.md", lambda path: path.write_text(text, encoding="utf-8"))
    records: dict[str, list[Any]] = {}
    data = ""
    for run in planned:
        metrics = _metrics(run)
        if metrics is not None and metrics["status"] == "finished":
            records.setdefault(run.config.model, []).append(metrics["epochs"])
            data = metrics["task"].get("data", "")
    if records:
        seeds = len({run.config.seed for run in planned})
        title = f"{data or summary['experiment']}: mean and range over {seeds} seed(s)"
        figure = plotting.comparison(records, title)
        folder.write(f"{SUMMARY}.png", lambda path: plotting.save(figure, path))


def _write_csv(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def markdown(summary: Mapping[str, Any]) -> str:
    """The table in Markdown, mean ± standard deviation over the seeds.

    Evaluations have no columns where no model has any.
    """
    table = summary["table"]
    shown = [key for key in COLUMNS if key not in COSTS or any(row[key] for row in table)]
    heads = ["model", "runs", "parameters", *(COLUMNS[key][0] for key in shown)]
    lines = [heads] + [_cells(row, shown) for row in table]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    rows = [lines[0], rule, *lines[1:]]
    # Names to the left, numbers to the right, as the rule says it to a Markdown reader.
    text = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in text) + "\n"


def _cells(row: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    cells = [plotting.label(row["model"]), f"{row['finished']}/{row['runs']}"]
    cells.append("-" if row["parameters"] is None else str(row["parameters"]))
    for key in shown:
        mean, spread, form = row[key], row[f"{key}_std"], COLUMNS[key][1]
        if mean is None:
            cells.append("-")
        else:
            cells.append(f"{mean:{form}}" + ("" if spread is None else f" ± {spread:{form}}"))
    return cells
