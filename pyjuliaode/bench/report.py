"""The reports, in Markdown, of what bench.json, growth.json and memory.json hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..experiments.markdown import table
from .competitors import BASE, PACKAGES
from .measure import Row

Result = Mapping[str, Any]
Curve = list[tuple[float, float]]  # of (error, seconds), from loose to tight
WHATS = ("forward", "gradient")
GROWTH_COUNTS = "NFE, forward + backward; calls/NFE where a call evaluates more than once"


def rows_of(problem: Result, what: str, key: str = "rows") -> list[Row]:
    """The rows of one problem, in the order in which they were measured."""
    return [Row(**row) for row in problem[key] if row["what"] == what]


def firsts(rows: Iterable[Row]) -> dict[str, Row]:
    """The row that stands for each package in the overview: its first."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row.package, row)
    return found


def curves(rows: Iterable[Row]) -> dict[str, Curve]:
    """(error, seconds) of every competitor, from loose to tight."""
    found: dict[str, Curve] = {}
    for row in rows:
        found.setdefault(row.label, []).append((row.error, row.seconds))
    return found


def cheapest(curve: Iterable[tuple[float, float]], error: float) -> float | None:
    """Seconds of the fastest run whose error is at most ``error``; None where there was none."""
    return min((seconds for e, seconds in curve if e <= error), default=None)


def _ratio(value: float | None, base: float | None) -> str:
    return "" if value is None or not base else f"{value / base:.2g}"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{1e3 * seconds:.2f}" if seconds < 1e-2 else f"{1e3 * seconds:.3g}"


# -------------------------------------------------------------------------------- the comparison


def markdown(result: Result) -> str:
    """The report of a comparison, complete or not."""
    parts = ["# pyjuliaode bench", _introduction(result), *overview(result)]
    for problem in result["problems"]:
        parts += _details(problem)
    return "\n\n".join(parts) + "\n"


def _introduction(result: Result) -> str:
    here = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    left_out = [f"{PACKAGES[name]} ({reason})" for name, reason in result["left_out"].items()]
    left_out += [f"{name} ({reason})" for name, reason in result["skipped"].items()]
    lines = [
        f"{here['processor']}, {here['threads']} thread(s), {versions}, {here['date']}; medians of "
        f"{result['repeats']} interleaved runs. Seconds are this machine's; compare ratios."
    ]
    if left_out:
        lines.append(f"Left out: {', '.join(left_out)}.")
    if not result["complete"]:
        lines.append("**Not complete**: the measurement was interrupted.")
    return "\n\n".join(lines)


def overview(result: Result) -> list[str]:
    """Problems by packages: a table of forward solves, one of gradients, and the refusals."""
    parts = []
    for what in WHATS:
        found = {p["name"]: firsts(rows_of(p, what)) for p in result["problems"]}
        shown = [name for name in PACKAGES if any(name in rows for rows in found.values())]
        lines = [
            [f"{p['name']} ({p['tol']:.0e})", *(_cell(found[p["name"]], name) for name in shown)]
            for p in result["problems"]
        ]
        parts += [
            f"**{what.capitalize()}**, ms (ratio to {BASE}), relative error; each at the rtol in "
            "brackets, by dopri5 and through its own steps; stiff problems by each package's first "
            "stiff method:",
            table([what, *(PACKAGES[name] for name in shown)], lines),
        ]
    refusals = [f"- {p['name']}, {_refusal(r)}" for p in result["problems"] for r in p["refused"]]
    return parts + (["Not done:\n\n" + "\n".join(refusals)] if refusals else [])


def _cell(rows: Mapping[str, Row], package: str) -> str:
    row = rows.get(package)
    if row is None:
        return "-"
    ratio = _ratio(row.seconds, rows[BASE].seconds if BASE in rows else None)
    return f"{_ms(row.seconds)}{f' ({ratio})' if ratio else ''}, {row.error:.0e}"


def _refusal(refusal: Result) -> str:
    return f"{refusal['what']}, {refusal['label']}: {refusal['reason']}"


def _details(problem: Result) -> list[str]:
    costs = ", ".join(f"{name} {1e6 * s:.0f} us" for name, s in problem["bare"].items())
    doubt, (first, *_, last) = problem["reference"], problem["t"]
    parts = [
        f"## {problem['name']}: {problem['title']}",
        f"rtol = {problem['tol']:g}, atol = {problem['atol']:g}, t in [{first:g}, {last:g}]. Bare "
        f"costs: {costs}. Two references agree to {doubt['state']:.0e} (state) and "
        f"{doubt['gradient']:.0e} (gradient).",
        equal_tolerance_table(problem),
    ]
    if not problem["sweep"]:
        return parts
    return [
        *parts,
        "At equal achieved error: the cheapest run over the tolerances "
        f"{problem['tolerances'][0]:g} to {problem['tolerances'][-1]:g} that achieves it (in "
        f"brackets: ratio to {BASE}'s first):",
        equal_error_table(problem),
    ]


def equal_tolerance_table(problem: Result) -> str:
    """Competitors at the problem's tolerance; ratios below 1 are faster than the other.

    Calls are one after another, NFE all evaluations in them.
    """
    header = ["", "ms", "calls forward", "NFE forward", "calls backward", "NFE backward"]
    header += ["relative error", "/ own evaluations"]
    bases = ["odeint", "odeint_adjoint"]
    lines = []
    for what in WHATS:
        rows = rows_of(problem, what)
        theirs = {r.label.split()[-1]: r.seconds for r in rows if r.package == BASE}
        if what == "forward":  # there its methods are the last words
            first = firsts(rows).get(BASE)
            theirs = {"odeint": first.seconds} if first else {}
        for r in rows:
            lines.append(
                [
                    f"{what}: {r.label}",
                    _ms(r.seconds),
                    *("" if n is None else n for n in _counts(r)),
                    f"{r.error:.1e}",
                    "" if r.overhead is None else f"{r.overhead:.2f}",
                    *(_ratio(r.seconds, theirs.get(base)) for base in bases),
                ]
            )
    return table([*header, *(f"/ {BASE} {base}" for base in bases)], lines)


def _counts(row: Row) -> tuple[int | None, ...]:
    return row.calls_forward, row.nfe_forward, row.calls_backward, row.nfe_backward


def equal_error_table(problem: Result) -> str:
    """Milliseconds of the cheapest run that achieves an error, and the ratio to the base's."""
    lines = []
    errors = [float(f"1e-{k}") for k in range(3, 10)]
    for what in WHATS:
        rows = rows_of(problem, what, "sweep")
        found, base = curves(rows), firsts(rows).get(BASE)
        theirs = found[base.label] if base else []
        for label, curve in found.items():
            cells = []
            for error in errors:
                seconds = cheapest(curve, error)
                ratio = _ratio(seconds, cheapest(theirs, error))
                cells.append(f"{_ms(seconds)} ({ratio})" if ratio else _ms(seconds))
            lines.append([f"{what}: {label}", *cells])
    return table(["ms for a relative error of at most", *(f"{e:.0e}" for e in errors)], lines)


# ------------------------------------------------------------------------------ growth and memory


def growth_markdown(result: Result) -> str:
    """A table per swept quantity: milliseconds and evaluations of forward solve and gradient."""
    parts = ["# pyjuliaode bench --growth", _introduction(result)]
    for quantity in dict.fromkeys(point["quantity"] for point in result["points"]):
        points = [point for point in result["points"] if point["quantity"] == quantity]
        for what in WHATS:
            title = f"**{what.capitalize()}**, by {quantity}: ms ({GROWTH_COUNTS})"
            parts += [title, _growth(points, what)]
    return "\n\n".join(parts) + "\n"


def _growth(points: Sequence[Result], what: str) -> str:
    found = [firsts(rows_of(point, what)) for point in points]
    shown = [name for name in PACKAGES if any(name in rows for rows in found)]
    lines = [
        [f"{point['value']:g}", point["parameters"], *(_growth_cell(rows, n) for n in shown)]
        for point, rows in zip(points, found, strict=True)
    ]
    header = [points[0]["quantity"], "parameters", *(PACKAGES[name] for name in shown)]
    return table(header, lines)


def _growth_cell(rows: Mapping[str, Row], package: str) -> str:
    row = rows.get(package)
    if row is None:
        return "-"
    total = ((row.calls_forward, row.nfe_forward), (row.calls_backward, row.nfe_backward))
    counts = (str(n) if calls in (None, n) else f"{calls}/{n}" for calls, n in total if n)
    return f"{_ms(row.seconds)} ({' + '.join(counts)})"


def memory_markdown(result: Result) -> str:
    """The report of peak memory."""
    steps, problems = result["steps"], result["problems"]
    return "\n".join(
        (
            _memory_table(
                "peak MiB above the start, by rk4 steps", result["memory"], "steps", steps
            ),
            "",
            _memory_table("peak MiB, by problem", result["grid"], "problem", problems),
            "",
        )
    )


def _memory_table(
    title: str, rows: Sequence[Result], key: str, columns: Sequence[int | str]
) -> str:
    found: dict[str, dict[Any, str]] = {}
    for row in rows:
        shown = f"{row['mib']:.1f}" if row["mib"] is not None else "refused"
        found.setdefault(row["label"], {})[row[key]] = shown
    lines = ([label, *(cells.get(c, "") for c in columns)] for label, cells in found.items())
    return table([title, *columns], lines)
