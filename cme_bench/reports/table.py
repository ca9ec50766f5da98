"""The comparison table in the paper's layout: one row a run, one column a domain, and the macro average.

Pure functions of run folders; :mod:`cme_bench.reports.table_text` prints what is built here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from cme_bench.reports.cells import (
    CME_FORMS,
    FIXED,
    MULTIMODAL,
    Cell,
    ComparisonTable,
    method_cells,
    score_cell,
)
from cme_bench.reports.columns import by_dataset, score_of, shown_columns
from cme_bench.reports.near_ties import tie_notes
from cme_bench.reports.references import blind_form, blind_scores, is_blind
from cme_bench.reports.runs import RunView, check_alike, labels, provenance_notes, watermarks
from cme_bench.reports.scores import AVERAGE
from cme_bench.reports.significance import SIGNIFICANT, Significance, significance
from cme_bench.reports.table_below import published_below, reference_notes, references
from cme_bench.runs.records import AdapterRecord
from cme_bench.scoring.scales import Measure


def comparison_tables(
    runs: Sequence[RunView],
    *,
    allow_mixed: bool = False,
    paper: bool = False,
    tests: bool = True,
    blind_apart: bool = False,
) -> list[ComparisonTable]:
    """Return one table for each form (generated, likelihood) that occurs in ``runs``.

    Scores without images stand below those of the same tasks with them; ``blind_apart``: in a table of their
    own too. ``paper`` adds the published rows; ``tests`` adds daggers, from the per-item records. Raises
    UsageError if the runs differ in engine, dtype, quantisation, data, tasks, item sets, formats or task
    versions, unless ``allow_mixed``; then each difference becomes a note.
    """
    mixed = check_alike(runs, allow_mixed=allow_mixed)
    forms = dict.fromkeys(form for run in runs for form in run.results.forms)
    if not blind_apart:
        forms = dict.fromkeys(form for form in forms if not _stands_below(runs, form))
    return [
        _table(
            form,
            [r for r in runs if form in r.results.forms],
            mixed,
            allow_mixed=allow_mixed,
            with_paper=paper,
            with_tests=tests,
        )
        for form in forms
    ]


def _stands_below(runs: Sequence[RunView], form: str) -> bool:
    """Return whether all scores of a form without images stand in the table of that with them."""
    twins = {blind_form(other): other for run in runs for other in run.results.forms}
    having = [run for run in runs if form in run.results.forms]
    return is_blind(form) and form in twins and all(blind_scores(run, twins[form]) for run in having)


def _table(
    form: str,
    runs: Sequence[RunView],
    mixed: Sequence[str],
    *,
    allow_mixed: bool,
    with_paper: bool,
    with_tests: bool,
) -> ComparisonTable:
    shown = shown_columns(runs, form)
    measure = runs[0].measure(form)
    averaged = all(run.results.forms[form].average is not None for run in runs)
    columns = (*FIXED, *shown, *([AVERAGE] if averaged else []))
    names = labels(runs)
    rows = [tuple(_row(run, name, form, columns)) for run, name in zip(runs, names, strict=True)]
    rows = _mark_places(rows, measure)
    tested = significance(runs, form, allow_mixed=allow_mixed) if with_tests else None
    if tested is not None:
        rows = _mark_daggers(rows, columns, tested, measure)
    notes = [
        *_notes(runs, form),
        *reference_notes(runs, names, form),
        *_test_notes(runs, tested, with_tests, measure),
        *tie_notes(runs, form),
        *watermarks(runs),
        *(f"MIXED: {difference}" for difference in [*mixed, *(tested.notes if tested else ())]),
        *provenance_notes(runs, names),
    ]
    table = ComparisonTable(
        form=form,
        caption=f"{_suite(form)}: {_what(measure, runs, form, len(shown), averaged=averaged)}",
        columns=columns,
        rows=tuple(rows),
        references=tuple(references(runs, names, form, columns)),
        notes=tuple(notes),
        tested=tested,
        measure=measure,
    )
    images = not is_blind(form) and all(MULTIMODAL in run.results.forms[form].domains for run in runs)
    return published_below(table, images=images) if with_paper else table


def _suite(form: str) -> str:
    """Return the subject of a table of this form: CME's tasks, or ``other`` ones."""
    return f"CME, {form}" if form in CME_FORMS else f"Outside CME, {form.removeprefix('other ')}"


def _what(measure: Measure, runs: Sequence[RunView], form: str, count: int, *, averaged: bool) -> str:
    """Describe the numbers of a table."""
    score = f"score {measure.unit}"
    kind = "datasets" if all(by_dataset(run.results.forms[form].domains) for run in runs) else "domains"
    kind = kind.removesuffix("s") if count == 1 else kind
    return f"{score}, macro mean over {count} {kind}" if averaged else f"{score}, {count} tasks, no mean"


def _row(run: RunView, name: str, form: str, columns: Sequence[str]) -> Iterator[Cell]:
    summary = run.results.forms[form]
    adapter = run.run.adapter or AdapterRecord(name="", method="base")
    yield Cell(name)
    yield Cell(run.method)
    yield from method_cells(
        experts=adapter.experts,
        rank=adapter.rank,
        seconds=adapter.training_seconds,
        percent=adapter.percent,
        language=adapter.percent_language or None,
    )
    factor = run.measure(form).scale.factor
    for column in columns[len(FIXED) :]:
        yield score_cell(score_of(summary, column), factor)


def _mark_places(rows: Sequence[tuple[Cell, ...]], measure: Measure) -> list[tuple[Cell, ...]]:
    """Return the best and the second value of each column, ties included, once there is something to compare
    and a direction."""
    if not measure.sign:
        return list(rows)
    places = [
        sorted({c.value for c in column if c.value is not None}, reverse=measure.better == "higher")
        for column in zip(*rows, strict=True)
    ]
    if len(rows) < 2:
        return list(rows)
    return [
        tuple(
            replace(cell, best=cell.value in values[:1], second=cell.value in values[1:2])
            for cell, values in zip(row, places, strict=True)
        )
        for row in rows
    ]


def _mark_daggers(
    rows: Sequence[tuple[Cell, ...]], columns: Sequence[str], tested: Significance, measure: Measure
) -> list[tuple[Cell, ...]]:
    """Return a dagger on each score that a test does not tell from the column's best."""
    marked = [list(row) for row in rows]
    if not measure.sign:
        return [tuple(row) for row in marked]
    for place, column in enumerate(columns):
        if place < len(FIXED) or column not in tested.columns:
            continue
        values = [cell.value for cell in (row[place] for row in rows)]
        best = int(np.argmax([-np.inf if value is None else measure.sign * value for value in values]))
        for row, p in zip(marked, tested.columns[column].against(best), strict=True):
            row[place] = replace(row[place], dagger=bool(p >= SIGNIFICANT) and not row[place].best)
    return [tuple(row) for row in marked]


def _notes(runs: Sequence[RunView], form: str) -> Iterator[str]:
    if form in CME_FORMS:
        yield "CME here is a documented reconstruction of the paper's benchmark (22 datasets, 11 domains)."
    averages = [run.results.forms[form].average for run in runs]
    counts = sorted({average.n for average in averages if average is not None})
    if counts:
        yield f"n = {', '.join(str(n) for n in counts)} items; SE: standard error of the macro mean."
    else:
        yield "Scores on this scale have no common mean; SE: standard error of each."


def _test_notes(
    runs: Sequence[RunView], tested: Significance | None, wanted: bool, measure: Measure
) -> Iterator[str]:
    if len(runs) < 2:
        return
    if not measure.sign:
        yield "No marks: the tasks do not say whether more is better (higher_is_better)."
        return
    lower = " (lower is better)" if measure.better == "lower" else ""
    yield f"Bold: best of a column{lower}; underlined: second."
    pooled = [run for run in runs if run.members]
    if pooled:
        yield "Rows of several seeds: mean and SE over seeds and items, both random."
        yield from dict.fromkeys(note for run in pooled for note in run.notes)
    if tested is not None and tested.reason:
        yield f"No significance tests: {tested.reason}."
    elif tested is not None:
        test = "t test over seeds and items" if pooled else "paired permutation test"
        yield f"† not significantly different from the best ({test}, Holm-adjusted p >= {SIGNIFICANT})."
        if pooled and len(pooled) < len(runs):
            yield "Rows of a single seed are not tested: how seeds spread is unknown of them."
    elif wanted:
        bare = [str(run.folder) for run in runs if not run.has_records]
        yield f"No significance tests: no per-item records in {', '.join(bare) or 'a shared task'}."
