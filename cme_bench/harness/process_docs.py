"""``process_docs`` functions that the built-in task files name: which rows of a split count."""

from __future__ import annotations

from typing import Any


def drop_unlabelled(rows: Any) -> Any:
    """Return the rows without those whose annotators did not agree (SNLI and MNLI mark them with label
    -1)."""
    return rows.filter(lambda row: row["label"] != -1, desc=None) if -1 in rows["label"] else rows
