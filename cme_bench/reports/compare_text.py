"""A comparison as text: Markdown for people, csv for machines."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence

from cme_bench.reports.compare import Comparison, ComparisonRow
from cme_bench.reports.grids import html_table, markdown, markdown_escape, markdown_line
from cme_bench.reports.significance import SIGNIFICANT
from cme_bench.scoring.scales import Measure
from cme_bench.util.csv_text import csv_text
from cme_bench.util.errors import UsageError, did_you_mean

_COLUMNS = ("n", "A", "B", "B − A", "95 % CI", "p", "p (Holm)", "wins", "losses", "ties", "MDE", "test")


def comparison_markdown(comparison: Comparison, *, by: str = "domain", flips: int = 5) -> str:
    """Return rows by ``domain`` or ``task``, then the average. Shares and their differences are in points
    (percent), other scores in their own unit.

    ``flips``: how many of the items that flipped are named for each task, each way.
    """
    rows = comparison.tasks if by == "task" else comparison.domains
    table = markdown(
        (by, "metric", *_COLUMNS),
        [
            (row.name, row.metric, *_cells(row, comparison.measure))
            for row in (*rows, *([comparison.average] if comparison.average else []))
        ],
        left=2,
    )
    a, b = markdown_escape(comparison.a), markdown_escape(comparison.b)
    found = sum(row.adjusted < SIGNIFICANT for row in rows)
    lines = [
        f"**{_suite(comparison.form)}: A = {a}, B = {b}**",
        "",
        table,
        "",
        f"- {found} of {len(rows)} {by}s differ at {SIGNIFICANT} after Holm's adjustment; bold: those.",
        f"- B − A {_points(comparison.measure)}, paired by item; MDE: the smallest true difference found "
        "with 80 % power.",
        *(f"- {markdown_line(note)}" for note in comparison.notes),
    ]
    if flips:
        lines += ["", "Items that flipped (ids):", "", *_flip_lines(comparison, flips)]
    return "\n".join(lines)


def comparison_html(comparison: Comparison) -> str:
    """Return the domains and the average of a comparison as HTML that stands inside a page."""
    rows = (*comparison.domains, *([comparison.average] if comparison.average else []))
    grid = html_table(
        ["domain", "metric", *_COLUMNS],
        [
            [*map(html.escape, (row.name, row.metric)), *map(_bold, _cells(row, comparison.measure))]
            for row in rows
        ],
        left=2,
    )
    title = f"{_suite(comparison.form)}: A = {comparison.a}, B = {comparison.b}"
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes)
    return f"<h2>{html.escape(title)}</h2>\n{grid}\n<ul>{notes}</ul>"


def _bold(cell: str) -> str:
    inner = cell.removeprefix("**").removesuffix("**")
    return html.escape(cell) if inner == cell else f"<b>{html.escape(inner)}</b>"


def render_comparisons(
    comparisons: Sequence[Comparison], fmt: str = "md", *, by: str = "domain", flips: int = 5
) -> str:
    """Return comparisons as one text with a newline at the end. Raises UsageError for an unknown ``by`` or
    ``fmt``."""
    for option, value, known in (("by", by, ("domain", "task")), ("format", fmt, ("md", "csv"))):
        if value not in known:
            raise UsageError(f"--{option} {value}: one of {', '.join(known)}{did_you_mean(value, known)}")
    if fmt == "csv":
        return comparisons_csv(comparisons) + "\n"
    return "\n\n".join(comparison_markdown(c, by=by, flips=flips) for c in comparisons) + "\n"


def _suite(form: str) -> str:
    return f"CME, {form}" if form.partition(",")[0] in ("generated", "likelihood") else form


def _points(measure: Measure) -> str:
    """Return the unit of a difference, and which sign is better where that is not the usual one."""
    unit = "in points" if measure.scale.factor == 100 else measure.unit
    return unit if measure.better == "higher" else f"{unit}, {_DIRECTIONS[measure.better]}"


_DIRECTIONS = {"lower": "less is better", "unknown": "which sign is better is unknown"}


def _cells(row: ComparisonRow, measure: Measure) -> Iterator[str]:
    d = row.difference
    shown = measure.shown(d.value, signed=True)
    yield str(d.n)
    yield measure.shown(row.a)
    yield measure.shown(row.b)
    yield f"**{shown}**" if row.adjusted < SIGNIFICANT else shown
    yield f"{measure.shown(d.low, signed=True)} .. {measure.shown(d.high, signed=True)}"
    yield pvalue(row.p)
    yield pvalue(row.adjusted)
    yield from (str(d.wins), str(d.losses), str(d.ties))
    yield measure.shown(row.detectable)
    yield row.test


def pvalue(p: float) -> str:
    """Return three digits after the point, or "<0.001"."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _flip_lines(comparison: Comparison, most: int) -> Iterator[str]:
    wins, losses = Counter[str](), Counter[str]()
    named: dict[tuple[str, bool], list[str]] = {}
    for flip in comparison.flips:
        won = flip.gain > 0
        (wins if won else losses)[flip.task] += 1
        ids = named.setdefault((flip.task, won), [])
        if len(ids) < most:
            ids.append(str(flip.id))
    for row in comparison.tasks:
        parts = []
        for word, won, counts in (("B better", True, wins), ("A better", False, losses)):
            if total := counts[row.name]:
                more = ", ..." if total > most else ""
                parts.append(f"{word} on {total}: {', '.join(named[row.name, won])}{more}")
        yield f"- {row.name}: {'; '.join(parts) or 'none'}"


def comparisons_csv(comparisons: Sequence[Comparison]) -> str:
    """Return tidy csv: a line for each domain and task and one for the average; scores as computed, shares
    not in percent."""
    rows = [
        (
            comparison.form,
            kind,
            row.name,
            row.metric,
            row.difference.n,
            row.a,
            row.b,
            row.difference.value,
            row.difference.stderr,
            row.difference.low,
            row.difference.high,
            row.p,
            row.adjusted,
            row.test,
            row.difference.wins,
            row.difference.losses,
            row.difference.ties,
            row.detectable,
            comparison.measure.scale.name,
            comparison.measure.better,
        )
        for comparison in comparisons
        for kind, group in (
            ("domain", comparison.domains),
            ("task", comparison.tasks),
            ("average", (comparison.average,) if comparison.average else ()),
        )
        for row in group
    ]
    return csv_text(
        "form kind name metric n a b difference stderr low high p p_holm test wins losses ties mde scale "
        "better".split(),
        rows,
    )


def flips_csv(comparisons: Sequence[Comparison]) -> str:
    """Return every item that flipped, with both answers. It holds text of the items: mind their licences."""
    return csv_text(
        ("task", "id", "target", "score_a", "score_b", "answer_a", "answer_b"),
        [
            (f.task, f.id, f.target, f.score_a, f.score_b, f.answer_a, f.answer_b)
            for comparison in comparisons
            for f in comparison.flips
        ],
    )
