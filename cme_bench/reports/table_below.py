"""The rows below those of runs: chance, majority, runs without their images, and what was published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cme_bench.reports.cells import CME_FORMS, FIXED, Cell, ComparisonTable, method_cells, score_cell
from cme_bench.reports.paper import PublishedRow, published, published_on_images
from cme_bench.reports.references import blind_scores, known_rows, sight
from cme_bench.reports.runs import RunView
from cme_bench.reports.scores import AVERAGE


def references(
    runs: Sequence[RunView], names: Sequence[str], form: str, columns: Sequence[str]
) -> Iterator[tuple[Cell, ...]]:
    """Yield chance and majority, and each run that was asked without the images as well."""
    factor = runs[0].measure(form).scale.factor
    found = [(name, "–", scores) for name, scores in known_rows(runs, form)]
    for run, name in zip(runs, names, strict=True):
        if scores := blind_scores(run, form):
            found.append((f"{name}, without images", run.method, scores))
    for name, method, scores in found:
        fixed = (Cell(name), Cell(method), *(Cell() for _ in FIXED[2:]))
        yield *fixed, *(score_cell(scores.get(column), factor) for column in columns[len(FIXED) :])


def reference_notes(runs: Sequence[RunView], names: Sequence[str], form: str) -> Iterator[str]:
    if any(True for _ in known_rows(runs, form)):
        yield "chance: guessing; majority: always the most frequent answer, as the tasks say."
    for run, name in zip(runs, names, strict=True):
        if said := sight(run, form):
            yield f"{name}: its images add {said}, paired by item, 95 % interval."


def _published_cells(row: PublishedRow) -> Iterator[Cell]:
    seconds = None if row.training_hours is None else 3600 * row.training_hours
    cells = list(method_cells(experts=row.experts, rank=row.rank, seconds=seconds, percent=row.percent))
    yield from cells if row.percent is not None else [*cells[:-1], Cell()]


def published_below(table: ComparisonTable, *, images: bool) -> ComparisonTable:
    """Return the table with the published rows: those of CME, or those of image tasks."""
    if table.columns[-1] != AVERAGE or table.measure.kind:
        return table  # what was published is a mean of shares
    if table.form not in CME_FORMS and not images:
        return table  # the paper's rows are of CME's tasks
    paper = published_on_images() if images else published()
    scores = len(table.columns) - len(FIXED)
    rows = tuple(
        (
            Cell(f"{paper.base} (paper, not comparable) ‡" if images else f"{paper.base} ‡"),
            Cell(row.method),
            *_published_cells(row),
            *(Cell() for _ in range(scores - 1)),
            Cell(value=row.average),
        )
        for row in paper.rows
    )
    generated = ("‡ the published averages are of generated answers.",)
    told = () if "generated" in table.form else generated
    return replace(table, published=rows, notes=(*table.notes, *paper.notes, *told))
