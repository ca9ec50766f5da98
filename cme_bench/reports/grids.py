"""Rectangles of text as Markdown, LaTeX (booktabs), HTML and csv. They know nothing of what they print."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cme_bench.util.terminal import visible

if TYPE_CHECKING:
    pass

_LATEX_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
}


def latex_escape(text: str) -> str:
    """Return ``text`` with LaTeX's special characters as text; what pdflatex's default fonts lack becomes
    "?"."""
    shown = "".join(_LATEX_SPECIAL.get(c, c if c.isprintable() else " ") for c in text)
    return shown.encode("latin-1", "replace").decode("latin-1")


def markdown_escape(text: str) -> str:
    """Return ``text`` for a cell of a Markdown table: no markup, no HTML, no new cell, on one line."""
    return _markdown_text(text, "\\`*_[]|")


def markdown_line(text: str) -> str:
    """Return ``text``, with names of others' choosing in it, as one line of Markdown without HTML or
    links."""
    return _markdown_text(text, "[")


def _markdown_text(text: str, specials: str) -> str:
    line = visible(" ".join(text.split()))
    for special in specials:
        line = line.replace(special, f"\\{special}")
    return html.escape(line, quote=False)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> str:
    """Return a padded Markdown table of cells that are Markdown already; all but the first ``left`` columns
    are aligned right."""
    grid = [list(columns), *(list(row) for row in rows)]
    widths = [max(3, *(len(row[i]) for row in grid)) for i in range(len(columns))]
    lines = ["| " + " | ".join(s.ljust(w) for s, w in zip(row, widths, strict=True)) + " |" for row in grid]
    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def latex(columns: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], *, left: int) -> str:
    """Return a booktabs tabular of cells that are LaTeX already, shrunk to the line if it is wider; a rule
    stands between groups of rows."""
    spec = "l" * left + "r" * (len(columns) - left)
    body: list[str] = []
    for group in groups:
        body += [r"\midrule", *(" & ".join(row) + r" \\" for row in group)]
    return "\n".join(
        [
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            " & ".join(columns) + r" \\",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
        ]
    )


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> str:
    """Return a table of cells that are HTML already; the first cell of a row is its header."""

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = ' class="text"', ""
        return "".join(
            f'<{tag}{kinds[i >= left]} scope="col">{c}</{tag}>'
            if tag == "th"
            else f'<th{kinds[0]} scope="row">{c}</th>'
            if i == 0
            else f"<td{kinds[i >= left]}>{c}</td>"
            for i, c in enumerate(cells)
        )

    head = f"<thead><tr>{row(columns, 'th')}</tr></thead>"
    body = "\n".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table>"
