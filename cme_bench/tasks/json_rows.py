"""Rows of JSON files as ``datasets``, and so lm-eval, reads them, where that is not as they are written."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cme_bench.tasks.packed import unpacked
from cme_bench.tasks.row_files import Rows
from cme_bench.util.errors import UsageError, first_line

_READ_OTHERWISE = re.compile(rb'NaN|\d{19}|"\d{4}-\d\d-\d\d|[:\[,]\s*\{|\A(?:\xef\xbb\xbf)?\s*\[')
"""Missing numbers (nan there), integers beyond 64 bits (rounded), dates (times of a day), mappings (which
keep their own keys), and arrays (whose decimals are rounded)."""


def may_differ(file: Path) -> bool:
    """Return whether a JSON file holds anything that ``datasets`` reads otherwise than we do."""
    return _READ_OTHERWISE.search(unpacked(file)[1]) is not None


def as_lm_eval_reads(rows: Rows, files: Mapping[str, Sequence[Path]], split: str) -> Rows:
    """Return ``rows`` of ``split`` with the values that lm-eval has for them.

    ``files``: those of every split, in order. Rows that ``datasets`` cannot read stay as they are: lm-eval
    has no others. UsageError if it finds another number of rows.
    """
    import datasets

    try:
        with tempfile.TemporaryDirectory() as cache, _quiet():
            table = datasets.load_dataset(
                "json",
                data_files={name: [str(file.resolve()) for file in each] for name, each in files.items()},
                split=split,
                cache_dir=cache,
                keep_in_memory=True,
            )
    except (datasets.exceptions.DatasetsError, ValueError, FileNotFoundError):
        return rows
    except OSError as error:
        raise UsageError(
            f"{rows.origin}: cannot be read as lm-eval reads it ({first_line(error)})"
        ) from error
    if len(table) != len(rows.table):
        raise UsageError(f"{rows.origin}: holds {len(rows.table)} rows, of which lm-eval reads {len(table)}")
    return replace(rows, table=table)


@contextmanager
def _quiet() -> Iterator[None]:
    """Show no progress of ``datasets`` meanwhile."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
