"""The command line: pyjuliaode run, list, compare, crosscheck, bench, doctor, setup-julia."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .errors import InvalidArgumentError, PyJuliaODEError

if TYPE_CHECKING:
    from .experiments.config import RunConfig

DISAGREED = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(help="Name of the experiment: see `pyjuliaode list`.")]
Backend = Annotated[str, typer.Option(help="auto, torch or julia.")]
Adjoint = Annotated[
    str, typer.Option(help="auto, direct, backsolve, interpolating, gauss or quadrature.")
]
Method = Annotated[str | None, typer.Option(help="Method of the solver, for example dopri5.")]
Tol = Annotated[float | None, typer.Option(help="Relative and absolute tolerance.")]
Epochs = Annotated[int | None, typer.Option(help="How many epochs to train.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of torch (of each run).", show_default="1 for small networks"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the experiment; repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what lies in the folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove the run that lies there.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pyjuliaode {__version__}")
        raise typer.Exit


@app.callback()
def pyjuliaode(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Neural ODEs in PyTorch with Julia's DifferentialEquations.jl: the papers' experiments."""


@contextlib.contextmanager
def _clean_errors() -> Iterator[None]:
    """Errors that say what to do as one line and exit status 2, without a traceback."""
    try:
        yield
    except PyJuliaODEError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


@app.command("run")
def run_command(
    name: Name,
    model: Annotated[
        str | None, typer.Option(help="The model's class name in lower case, for example hbnode.")
    ] = None,
    backend: Backend = "auto",
    adjoint: Adjoint = "auto",
    method: Method = None,
    tol: Tol = None,
    epochs: Epochs = None,
    seed: Annotated[int, typer.Option(help="Of the initial parameters.")] = 0,
    out: Annotated[
        str | None, typer.Option(help="Folder to write to. [default: runs/NAME-MODEL-seedN]")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    threads: Threads = None,
    device: Device = "cpu",
    input_name: Annotated[
        str | None, typer.Option("--input", help="Input of silverbox-init: silverbox or duffing.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Run one experiment; write metrics.json, a checkpoint and the figures."""
    with _clean_errors():
        from .experiments import get
        from .experiments.runner import run

        choices = {
            "model": model,
            "seed": seed,
            "epochs": epochs,
            "method": method,
            "tol": tol,
            "adjoint": adjoint,
            "backend": backend,
            "device": device,
            "settings": _settings(settings, input_name),
        }
        config = get(name).configure(**choices)
        folder = config.default_folder if out is None else out
        try:
            metrics = run(
                name, out=folder, resume=resume, overwrite=overwrite, threads=threads, **choices
            )
        except KeyboardInterrupt:
            _say_how_to_resume(config, folder)
            raise typer.Exit(INTERRUPTED) from None
        _report(metrics, folder)


def _settings(pairs: list[str] | None, input_name: str | None) -> dict[str, Any]:
    from .experiments.runner import as_settings

    chosen = dict(as_settings(pairs or []))
    return chosen if input_name is None else {**chosen, "input": input_name}


def _say_how_to_resume(config: RunConfig, folder: str) -> None:
    from .experiments import get
    from .experiments.folder import RunFolder

    metrics = RunFolder(folder).read_metrics()
    command = config.command(folder, get(config.experiment).configure())
    if metrics is None:
        typer.echo("\ninterrupted before anything was complete; nothing was kept", err=True)
        return
    done = len(metrics.get("epochs", []))
    typer.echo(
        f"\ninterrupted; {done} complete epochs are in {folder}\nto continue: {command} --resume",
        err=True,
    )


def _report(metrics: Mapping[str, Any], folder: str) -> None:
    """The final numbers, one line each, and where everything is."""
    for key, value in metrics.get("final", {}).items():
        if isinstance(value, Mapping):
            typer.echo(f"{key}: " + ", ".join(_pair(k, v) for k, v in value.items()))
        else:
            typer.echo(_pair(key, value))
    typer.echo(_written(folder))


def _written(folder: str) -> str:
    """Where the results lie: the folder, and the files that this package writes in it."""
    kinds = (".json", ".csv", ".md", ".pt", ".png")
    files = sorted(path.name for path in Path(folder).iterdir() if path.suffix in kinds)
    return f"written to {folder}: {', '.join(files)}"


def _refuse_earlier(report: Path, overwrite: bool) -> None:
    if report.exists() and not overwrite:
        raise InvalidArgumentError(
            f"{report} is there already: --overwrite replaces it, --out writes somewhere else"
        )


def _pair(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{key} ({', '.join(_pair(k, v) for k, v in value.items())})"
    return f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}"


@app.command("list")
def list_command() -> None:
    """List the experiments with their models and settings."""
    with _clean_errors():
        from .experiments import get, names

        for name in names():
            experiment = get(name)
            typer.echo(f"{name}: {experiment.summary}")
            if experiment.models:
                typer.echo(f"  models: {', '.join(experiment.models)}")
            typer.echo(f"  defaults: {_defaults(experiment.configure())}")


def _defaults(config: RunConfig) -> str:
    shown = {"model": config.model, "epochs": config.epochs}
    shown |= {"method": config.method, "tol": config.tol}
    words = [f"--{key} {value}" for key, value in shown.items() if value is not None]
    return " ".join(words + [f"--set {key}={value}" for key, value in config.settings.items()])


@app.command("compare")
def compare_command(
    name: Name,
    models: Annotated[str, typer.Option(help="all, or names with commas between them.")] = "all",
    seeds: Annotated[int, typer.Option(help="How many seeds: 0, 1, ...")] = 3,
    jobs: Annotated[int, typer.Option(help="Runs at a time, a process each.")] = 1,
    backend: Backend = "auto",
    adjoint: Adjoint = "auto",
    method: Method = None,
    tol: Tol = None,
    epochs: Epochs = None,
    out: Annotated[
        str | None, typer.Option(help="Folder to write to. [default: runs/NAME-comparison]")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    threads: Threads = None,
    device: Device = "cpu",
    settings: Settings = None,
) -> None:
    """Train several models over several seeds; one table and one figure of all."""
    with _clean_errors():
        from .experiments.comparison import compare, default_folder, markdown

        out = default_folder(name) if out is None else out
        try:
            summary = compare(
                name,
                models=models,
                seeds=seeds,
                jobs=jobs,
                out=out,
                resume=resume,
                overwrite=overwrite,
                threads=threads,
                backend=backend,
                adjoint=adjoint,
                method=method,
                tol=tol,
                epochs=epochs,
                device=device,
                settings=_settings(settings, None),
            )
        except KeyboardInterrupt:
            typer.echo(
                f"\ninterrupted; {out} holds what is finished, and the same command with "
                "--resume continues",
                err=True,
            )
            raise typer.Exit(INTERRUPTED) from None
        typer.echo(markdown(summary), nl=False)
        _report_failures(summary)
        typer.echo(f"{_written(out)}, and a folder of every run")


def _report_failures(summary: Mapping[str, Any]) -> None:
    for run in summary["runs"]:
        if run["status"] != "finished":
            reason = run["error"] or "see its folder"
            typer.echo(f"{run['model']} seed {run['seed']} {run['status']}: {reason}", err=True)


@app.command("crosscheck")
def crosscheck_command(
    model: Annotated[str, typer.Option(help="The model's class name in lower case.")] = "hbnode",
    problem: Annotated[
        str, typer.Option(help="Data of the initial state: point-cloud or digits.")
    ] = "point-cloud",
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="torch, julia, scipy, torchdiffeq or torchode; repeatable.",
            show_default="all",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="An adaptive method; repeatable.", show_default="dopri5, tsit5"),
    ] = None,
    adjoint: Annotated[
        list[str] | None,
        typer.Option(
            help="auto, direct, backsolve, interpolating, gauss or quadrature; repeatable.",
            show_default="direct, gauss",
        ),
    ] = None,
    tol: Annotated[
        list[float] | None,
        typer.Option(
            help="Relative and absolute tolerance; repeatable.", show_default="1e-4, 1e-6, 1e-8"
        ),
    ] = None,
    bound: Annotated[
        float | None,
        typer.Option(help="Largest deviation in units of tolerance.", show_default="100"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the network's weights.")] = 0,
    out: Annotated[str, typer.Option(help="Folder to write to.")] = "runs/crosscheck",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the report that lies there.")
    ] = False,
) -> None:
    """Solve one problem in several ways; status 1 and who, where and when if they disagree.

    The problems are small: torch gets one thread.
    """
    with _clean_errors():
        from .crosscheck import crosscheck
        from .crosscheck.compare import ADJOINTS, METHODS
        from .crosscheck.problems import build
        from .experiments.folder import check_writable
        from .experiments.settings import SEED, read_whole
        from .experiments.threads import using

        seed = read_whole("seed", seed, 0, SEED)
        check_writable(out)
        _refuse_earlier(Path(out, "crosscheck.json"), overwrite)
        title, func, y0, t = build(model, problem, seed)
        try:
            with using(1):
                check = crosscheck(
                    func,
                    y0,
                    t,
                    against or None,
                    methods=method or METHODS,
                    adjoints=adjoint or ADJOINTS,
                    tols=tol or None,
                    bound=bound,
                    title=title,
                    progress=True,
                )
        except KeyboardInterrupt:
            typer.echo("\ninterrupted; nothing was written", err=True)
            raise typer.Exit(INTERRUPTED) from None
        written = check.save(out)
        typer.echo(check.table())
        typer.echo(check.verdict.sentence)
        typer.echo(f"written to {out}: {', '.join(path.name for path in written)}")
        if not check.agrees:
            for found in check.verdict.disagreements:
                typer.echo(f"disagreement: {' '.join(found.sentence.split())}", err=True)
            raise typer.Exit(DISAGREED)


@app.command("bench")
def bench_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer repeats, tolerances, steps and points.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    repeats: Annotated[
        int | None,
        typer.Option(help="Runs of every competitor.", show_default="15, with --quick 3"),
    ] = None,
    out: Annotated[str, typer.Option(help="Folder to write to.")] = "runs/bench",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results that lie there.")
    ] = False,
    problems: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Some of spiral, hbnode-1, hbnode-120, hbnode-4096, gnesterov-1, gnesterov-120, "
            "gnesterov-4096, wide, convolution, robertson.",
            show_default="all",
        ),
    ] = "",
    competitors: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Some of torch, compiled, pan, julia, native, torchdiffeq, torchode, diffrax.",
            show_default="all that are installed",
        ),
    ] = "",
    memory: Annotated[
        bool, typer.Option("--memory", help="Peak memory of gradients instead.")
    ] = False,
    growth: Annotated[
        bool, typer.Option("--growth", help="How costs grow with size and tolerance instead.")
    ] = False,
    render: Annotated[
        bool, typer.Option("--render", help="Only write the tables and figures of --out anew.")
    ] = False,
) -> None:
    """Measure solvers and gradients here, beside the other packages that are installed."""
    with _clean_errors():
        from .bench import bench

        kind = "memory" if memory else "growth" if growth else "bench"
        _refuse_earlier(Path(out, f"{kind}.json"), overwrite or render)
        try:
            bench(
                quick,
                threads,
                repeats,
                out,
                problems=_names(problems),
                competitors=_names(competitors),
                memory=memory,
                growth=growth,
                render=render,
            )
        except KeyboardInterrupt:
            typer.echo(f"\ninterrupted; what was measured is in {out}", err=True)
            raise typer.Exit(INTERRUPTED) from None
        typer.echo(_written(out))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command("doctor")
def doctor_command(
    start: Annotated[
        bool, typer.Option("--start", help="Start Julia too, and solve a problem with it.")
    ] = False,
) -> None:
    """Say what is here, what is missing and how to get it."""
    with _clean_errors():
        from .doctor import doctor

        typer.echo(doctor(start=start))


@app.command("setup-julia")
def setup_julia_command(
    sysimage: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Build a system image instead, for quicker starts."),
    ] = None,
) -> None:
    """Download Julia and its packages where they are missing, and precompile them."""
    with _clean_errors():
        from .backends.julia.setup import build_sysimage, setup

        if sysimage is not None:
            path = build_sysimage(Path(sysimage), typer.echo)
            typer.echo(f"done; use it with PYTHON_JULIACALL_SYSIMAGE={path}")
        else:
            typer.echo(setup(typer.echo))
            typer.echo("done: backend='julia' is ready")


def main() -> None:
    """The entry point of the ``pyjuliaode`` command."""
    app()


if __name__ == "__main__":
    main()
