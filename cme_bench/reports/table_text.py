"""A comparison table as Markdown, LaTeX (booktabs), HTML and csv."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import get_args

from cme_bench.reports import grids
from cme_bench.reports.cells import FIXED, Cell, ComparisonTable
from cme_bench.reports.grids import latex_escape, markdown_escape, markdown_line
from cme_bench.util.csv_text import csv_text
from cme_bench.util.options import TABLE_FORMAT_UNKNOWN, TableFormat, check_choice

FORMATS = get_args(TableFormat)
LATEX_COLUMNS = 6
"""So many scores stand side by side in LaTeX unless told otherwise: what a page can hold with errors."""

_Text = Callable[[Cell], str]


def render(
    tables: Sequence[ComparisonTable],
    fmt: str,
    *,
    with_se: bool = True,
    with_n: bool = False,
    columns: int | None = None,
    brief: bool = False,
) -> str:
    """Return all tables in one text, with a newline at the end.

    ``columns``: at most so many scores side by side; the others follow in a block below, which repeats
    model and method. Default: 6 in LaTeX, all of them elsewhere. ``brief``: no column but names and scores.
    csv is tidy, never split and never brief. UsageError for an unknown format.
    """
    check_choice(fmt, TableFormat, TABLE_FORMAT_UNKNOWN)
    if fmt == "csv":
        return _csv(tables) + "\n"
    draw = {"md": _markdown, "latex": _latex, "html": _html}[fmt]
    width = columns or (LATEX_COLUMNS if fmt == "latex" else 1000)
    body = "\n\n".join(draw(table, _blocks(table, width, brief), with_se, with_n) for table in tables)
    return (_page(body) if fmt == "html" else body) + "\n"


def fragment(tables: Sequence[ComparisonTable]) -> str:
    """Return all tables as HTML that stands inside a page, as in a notebook."""
    return "\n".join(_html(table, _blocks(table, 1000, brief=False), True, False) for table in tables)


def _number(cell: Cell, table: ComparisonTable, with_se: bool, with_n: bool) -> str:
    """Return value, standard error and n as asked for; no marks."""
    assert cell.value is not None
    text = table.measure.scale.text(cell.value)
    if with_se and cell.stderr is not None:
        text += f" ± {table.measure.scale.text(cell.stderr)}"
    if with_n and cell.n is not None:
        text += f" ({cell.n})"
    return text


def _blocks(table: ComparisonTable, width: int, brief: bool) -> Iterator[list[int]]:
    """Yield the column indices of each block: the first carries all identifying columns, later ones two.

    ``brief``: all blocks carry the name alone, and the method where rows share a name.
    """
    names = [row[0].text for row in (*table.rows, *table.references, *table.published)]
    short = 1 if len(set(names)) == len(names) else 2
    scores = list(range(len(FIXED), len(table.columns)))
    count = -(-len(scores) // width)
    size = -(-len(scores) // count)  # blocks of about the same width
    for start in range(0, len(scores), size):
        yield [*range(short if brief else 2 if start else len(FIXED)), *scores[start : start + size]]


def _text_columns(kept: Sequence[int]) -> int:
    """Return how many of the block's columns are words, which stand at the left: model and method."""
    return sum(column < 2 for column in kept)


def _pick(rows: Sequence[Sequence[Cell]], kept: Sequence[int], text: _Text) -> list[list[str]]:
    return [[text(row[i]) for i in kept] for row in rows]


def _markdown(table: ComparisonTable, columns: Iterable[list[int]], with_se: bool, with_n: bool) -> str:
    def text(cell: Cell) -> str:
        if cell.value is None:
            return markdown_escape(cell.text)
        shown = _number(cell, table, with_se, with_n)
        shown = f"**{shown}**" if cell.best else f"<u>{shown}</u>" if cell.second else shown
        return shown + ("†" if cell.dagger else "")

    blocks = [
        grids.markdown(
            [table.columns[i] for i in kept],
            _pick((*table.rows, *table.references, *table.published), kept, text),
            left=_text_columns(kept),
        )
        for kept in columns
    ]
    notes = "\n".join(f"- {markdown_line(note)}" for note in table.notes)
    return "\n\n".join([f"**{table.caption}**", *blocks, notes])


def _latex(table: ComparisonTable, columns: Iterable[list[int]], with_se: bool, with_n: bool) -> str:
    def text(cell: Cell) -> str:
        if cell.value is None:
            return latex_escape(cell.text)
        value, _, rest = _number(cell, table, with_se, with_n).partition(" ")
        if cell.best:
            value = rf"\textbf{{{value}}}"
        elif cell.second:
            value = rf"\underline{{{value}}}"
        small = rf"{{\scriptsize {latex_escape(rest)}}}" if rest else ""
        return value + (r"$^\dagger$" if cell.dagger else "") + small

    panels = []
    for kept in columns:
        groups = [_pick(rows, kept, text) for rows in (table.rows, table.references, table.published) if rows]
        panels.append(
            grids.latex([latex_escape(table.columns[i]) for i in kept], groups, left=_text_columns(kept))
        )
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}",
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{latex_escape(table.caption)}.}}",
            "\n\n\\medskip\n".join(panels),
            *(rf"\par\footnotesize {latex_escape(note)}" for note in table.notes),
            r"\end{table}",
        ]
    )


def _html(table: ComparisonTable, columns: Iterable[list[int]], with_se: bool, with_n: bool) -> str:
    def text(cell: Cell) -> str:
        if cell.value is None:
            return html.escape(cell.text)
        shown = _number(cell, table, with_se, with_n)
        shown = f"<b>{shown}</b>" if cell.best else f"<u>{shown}</u>" if cell.second else shown
        return shown + ("†" if cell.dagger else "")

    rows = (*table.rows, *table.references, *table.published)
    blocks = [
        grids.html_table(
            [html.escape(table.columns[i]) for i in kept], _pick(rows, kept, text), left=_text_columns(kept)
        )
        for kept in columns
    ]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return "\n".join([f"<h2>{html.escape(table.caption)}</h2>", *blocks, f"<ul>{notes}</ul>"])


def _page(body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>CME</title>\n'
        "<style>:root{color-scheme:light dark}body{font:15px system-ui,sans-serif;margin:2em}"
        "table{border-collapse:collapse}th,td{padding:.2em .6em;text-align:right}"
        "thead th{border-block:1px solid}.text{text-align:left}</style>\n" + body + "\n</html>"
    )


def _csv(tables: Sequence[ComparisonTable]) -> str:
    """Return tidy csv: a line for each row and column with value and error (shares in percent), n, marks,
    scale, direction."""
    rows = []
    for table in tables:
        sources = (("ours", table.rows), ("reference", table.references), ("published", table.published))
        for source, row in ((source, row) for source, group in sources for row in group):
            for name, cell in zip(table.columns, row, strict=True):
                if cell.value is not None:
                    marks = [cell.value, cell.stderr, cell.n, int(cell.best), int(cell.dagger)]
                    place = [table.form, source, *(c.text for c in row[: len(FIXED)]), name]
                    rows.append([*place, *marks, table.measure.scale.name, table.measure.better])
    return csv_text(
        ["form", "source", *FIXED, "column", "value", "stderr", "n", "best", "dagger", "scale", "better"],
        rows,
    )
