"""The comparison table: one row a run, one column a domain, and the macro average. Pure functions of runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from cme_bench.errors import UsageError
from cme_bench.reports.runs import RunView, differences
from cme_bench.tasks.suite import DOMAINS

FORMATS = ("md", "latex", "csv")
AVERAGE = "average"
CME_FORMS = ("generated", "likelihood")
_PRINTED_VERSIONS = ("cme-bench", "lm-eval", "transformers", "torch")


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry. ``value`` and ``stderr`` are percentages; ``text`` stands where there is no number."""

    text: str = "–"
    value: float | None = None
    stderr: float | None = None
    n: int | None = None
    best: bool = False


@dataclass(frozen=True, slots=True)
class ComparisonTable:
    """``columns`` name the cells of each row; ``notes`` stand under the table."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = field(default=())


def comparison_tables(runs: Sequence[RunView], *, allow_mixed: bool = False) -> list[ComparisonTable]:
    """One table for each form (generated, likelihood) that occurs in ``runs``.

    Raises UsageError if the runs differ in engine, dtype, data, tasks, item counts, formats or task
    versions, unless ``allow_mixed``; then each difference becomes a note.
    """
    mixed = differences(runs) if len(runs) > 1 else []
    if mixed and not allow_mixed:
        raise UsageError(f"the runs cannot be compared: {'; '.join(mixed)} (--allow-mixed compares anyway)")
    forms = dict.fromkeys(form for run in runs for form in run.results["forms"])
    return [_table(form, [r for r in runs if form in r.results["forms"]], mixed) for form in forms]


def _table(form: str, runs: Sequence[RunView], mixed: Sequence[str]) -> ComparisonTable:
    present = dict.fromkeys(d for run in runs for d in run.results["forms"][form]["domains"])
    domains = sorted(present, key=lambda d: (DOMAINS.index(d) if d in DOMAINS else len(DOMAINS), d))
    columns = ("model", "method", "params", "added %", *domains, AVERAGE)
    rows = [tuple(_row(run, form, domains)) for run in runs]
    return ComparisonTable(
        caption=f"{_suite(form)}: score in %, macro mean over {len(domains)} domains",
        columns=columns,
        rows=tuple(_mark_best(rows)),
        notes=tuple(_notes(runs, form, mixed)),
    )


def _suite(form: str) -> str:
    """What a table of this form is about: CME's tasks, or ``other`` ones."""
    return f"CME, {form}" if form in CME_FORMS else f"Outside CME, {form.removeprefix('other ')}"


def _row(run: RunView, form: str, domains: Sequence[str]) -> Iterator[Cell]:
    summary = run.results["forms"][form]
    adapter = run.run.get("adapter") or {}
    yield Cell(run.label)
    yield Cell(run.method)
    yield Cell(_millions(run.run["model"]["parameters"] + adapter.get("parameters", 0)))
    yield Cell(f"{adapter['percent']:.2f}" if adapter else "0")
    for domain in domains:
        yield _score(summary["domains"].get(domain))
    yield _score(summary["average"])


def _score(estimate: dict[str, float] | None) -> Cell:
    if estimate is None:
        return Cell()
    stderr = estimate["stderr"]
    return Cell(
        value=100 * estimate["value"],
        stderr=None if stderr is None else 100 * stderr,
        n=int(estimate["n"]),
    )


def _mark_best(rows: Sequence[tuple[Cell, ...]]) -> Iterator[tuple[Cell, ...]]:
    """Bold the best of each column, ties included, once there is something to compare."""
    best = [
        max((c.value for c in column if c.value is not None), default=None)
        for column in zip(*rows, strict=True)
    ]
    for row in rows:
        yield tuple(
            replace(cell, best=len(rows) > 1 and cell.value is not None and cell.value == top)
            for cell, top in zip(row, best, strict=True)
        )


def _notes(runs: Sequence[RunView], form: str, mixed: Sequence[str]) -> Iterator[str]:
    if form in CME_FORMS:
        yield "CME here is a documented reconstruction of the paper's benchmark (22 datasets, 11 domains)."
    counts = sorted({run.results["forms"][form]["average"]["n"] for run in runs})
    yield f"n = {', '.join(str(n) for n in counts)} items; SE: standard error of the macro mean."
    if any(run.run["identity"]["data"] == "mini" for run in runs):
        yield "LIMITED: 'mini' items are a smoke test written for this project, not a measurement."
    if limits := sorted(set().union(*(run.limits() for run in runs))):
        yield f"LIMITED: only {', '.join(str(n) for n in limits)} items of some tasks (a fixed shuffle)."
    for run in runs:
        if not run.finished:
            yield f"UNFINISHED: {run.folder}"
    for difference in mixed:
        yield f"MIXED: {difference}"
    for run in runs:
        identity, versions = run.run["identity"], run.run["versions"]
        yield (
            f"{run.label}: model {identity['model'][:8]}, {identity['engine']} {identity['dtype']}, tasks "
            f"{_hashes(run, form)}, "
            + ", ".join(f"{p} {versions[p]}" for p in _PRINTED_VERSIONS if p in versions)
            + (f", commit {run.run['commit']}" if run.run.get("commit") else "")
        )


def _hashes(run: RunView, form: str) -> str:
    """One hash for all tasks of the form: the first 8 digits of sha256 over their hashes in name order."""
    import hashlib

    tasks = sorted((name, t["hash"]) for name, t in run.results["tasks"].items() if t["form"] == form)
    return hashlib.sha256(repr(tasks).encode()).hexdigest()[:8]


def _millions(parameters: int) -> str:
    if parameters >= 1_000_000_000:
        return f"{parameters / 1e9:.2f}B"
    return f"{parameters / 1e6:.1f}M"


def render(table: ComparisonTable, fmt: str, *, with_se: bool = True) -> str:
    """The table as Markdown, LaTeX (booktabs) or csv."""
    if fmt == "md":
        return _markdown(table, with_se)
    if fmt == "latex":
        return _latex(table, with_se)
    if fmt == "csv":
        return _csv(table)
    raise UsageError(f"unknown table format {fmt!r}: one of {', '.join(FORMATS)}")


def _number(cell: Cell, with_se: bool, plus_minus: str) -> str:
    if cell.value is None:
        return cell.text
    if with_se and cell.stderr is not None:
        return f"{cell.value:.2f}{plus_minus}{cell.stderr:.2f}"
    return f"{cell.value:.2f}"


def _markdown(table: ComparisonTable, with_se: bool) -> str:
    def text(cell: Cell) -> str:
        shown = _number(cell, with_se, " ± ").replace("|", "\\|")
        return f"**{shown}**" if cell.best else shown

    grid = [list(table.columns), *([text(c) for c in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in grid) for i in range(len(table.columns))]
    lines = ["| " + " | ".join(s.ljust(w) for s, w in zip(row, widths, strict=True)) + " |" for row in grid]
    numeric = [i for i in range(len(table.columns)) if i >= 2]
    rule = ["-" * (w - 1) + ":" if i in numeric else "-" * w for i, w in enumerate(widths)]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"**{table.caption}**", "", *lines, "", *notes])


_LATEX_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
}


def latex_escape(text: str) -> str:
    """``text`` with LaTeX's special characters as text."""
    return "".join(_LATEX_SPECIAL.get(c, c) for c in text)


def _latex(table: ComparisonTable, with_se: bool) -> str:
    def text(cell: Cell) -> str:
        if cell.value is None:
            return latex_escape(cell.text)
        shown = f"{cell.value:.2f}"
        shown = rf"\textbf{{{shown}}}" if cell.best else shown
        if with_se and cell.stderr is not None:
            shown += rf"{{\scriptsize$\pm${cell.stderr:.2f}}}"
        return shown

    columns = "ll" + "r" * (len(table.columns) - 2)
    lines = [
        r"% needs \usepackage{booktabs,graphicx}",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{latex_escape(table.caption)}.}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(latex_escape(c) for c in table.columns) + r" \\",
        r"\midrule",
        *(" & ".join(text(c) for c in row) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        *(rf"\par\footnotesize {latex_escape(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines)


def _csv(table: ComparisonTable) -> str:
    """Tidy: one line a row and column, with value, standard error (percent) and n."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fixed = [i for i, c in enumerate(table.columns) if c in ("model", "method", "params", "added %")]
    writer.writerow([*(table.columns[i] for i in fixed), "column", "value", "stderr", "n"])
    for row in table.rows:
        for name, cell in zip(table.columns, row, strict=True):
            if cell.value is not None:
                writer.writerow([*(row[i].text for i in fixed), name, cell.value, cell.stderr, cell.n])
    return out.getvalue().rstrip("\n")
