"""A comparison as text: Markdown for people, csv for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from cme_bench.reports.compare import Comparison, Row
from cme_bench.reports.grids import csv_text, markdown, markdown_escape, markdown_line

SIGNIFICANT = 0.05
_COLUMNS = ("n", "A", "B", "B − A", "95 % CI", "p", "p (Holm)", "wins", "losses", "ties", "MDE", "test")


def comparison_markdown(comparison: Comparison, *, by: str = "domain", flips: int = 5) -> str:
    """Rows by ``domain`` or ``task``, then the average. Scores and differences are in points (percent).

    ``flips``: how many of the items that flipped are named for each task, each way.
    """
    rows = comparison.tasks if by == "task" else comparison.domains
    table = markdown(
        (by, "metric", *_COLUMNS),
        [(row.name, row.metric, *_cells(row)) for row in (*rows, comparison.average)],
        left=2,
    )
    a, b = markdown_escape(comparison.a), markdown_escape(comparison.b)
    found = sum(row.adjusted < SIGNIFICANT for row in rows)
    lines = [
        f"**CME, {comparison.form}: A = {a}, B = {b}**",
        "",
        table,
        "",
        f"- {found} of {len(rows)} {by}s differ at {SIGNIFICANT} after Holm's adjustment; bold: those.",
        "- B − A in points, paired by item; MDE: the smallest true difference found with 80 % power.",
        *(f"- {markdown_line(note)}" for note in comparison.notes),
    ]
    if flips:
        lines += ["", "Items that flipped (ids):", "", *_flip_lines(comparison, flips)]
    return "\n".join(lines)


def _cells(row: Row) -> Iterator[str]:
    d = row.difference
    shown = f"{100 * d.value:+.2f}"
    yield str(d.n)
    yield f"{100 * row.a:.2f}"
    yield f"{100 * row.b:.2f}"
    yield f"**{shown}**" if row.adjusted < SIGNIFICANT else shown
    yield f"{100 * d.low:+.2f} .. {100 * d.high:+.2f}"
    yield pvalue(row.p)
    yield pvalue(row.adjusted)
    yield from (str(d.wins), str(d.losses), str(d.ties))
    yield f"{100 * row.detectable:.2f}"
    yield row.test


def pvalue(p: float) -> str:
    """Three digits after the point, or "<0.001"."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _flip_lines(comparison: Comparison, most: int) -> Iterator[str]:
    wins, losses = Counter[str](), Counter[str]()
    named: dict[tuple[str, bool], list[str]] = {}
    for flip in comparison.flips:
        won = flip.score_b > flip.score_a
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
    """Tidy: a line a domain and a task and one for the average; scores as shares, not points."""
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
        )
        for comparison in comparisons
        for kind, group in (
            ("domain", comparison.domains),
            ("task", comparison.tasks),
            ("average", (comparison.average,)),
        )
        for row in group
    ]
    return csv_text(
        "form kind name metric n a b difference stderr low high p p_holm test wins losses ties mde".split(),
        rows,
    )


def flips_csv(comparisons: Sequence[Comparison]) -> str:
    """Every item that flipped, with both answers. It holds text of the items: mind their licences."""
    return csv_text(
        ("task", "id", "target", "score_a", "score_b", "answer_a", "answer_b"),
        [
            (f.task, f.id, f.target, f.score_a, f.score_b, f.answer_a, f.answer_b)
            for comparison in comparisons
            for f in comparison.flips
        ],
    )
