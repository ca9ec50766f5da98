"""Tables as csv that a spreadsheet can open: no cell of text is taken for a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def no_formula(cell: object) -> object:
    """Return a cell, with an apostrophe before text that a spreadsheet would take for a formula."""
    if not isinstance(cell, str) or not cell.lstrip().startswith(("=", "+", "-", "@")):
        return cell
    try:
        float(cell)
    except ValueError:
        return cell if cell == "-" else f"'{cell}"
    return cell


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows as comma-separated lines, the header first, without a newline at the end."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([no_formula(cell) for cell in row] for row in rows)
    return out.getvalue().rstrip("\n")


def frame_csv(frame: pd.DataFrame) -> str:
    """Return a frame without its index, as :func:`csv_text` does, with a newline at the end."""
    return str(frame.map(no_formula).to_csv(index=False))
