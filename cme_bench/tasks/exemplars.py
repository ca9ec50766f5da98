"""Exemplars of a task: where each stands, and that it can be shown before it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cme_bench.harness.yaml_loader import FunctionRef
from cme_bench.images.marks import check_marks
from cme_bench.tasks.row_files import Rows
from cme_bench.tasks.spec import TaskSpec
from cme_bench.util.errors import UsageError, template_problem

Place = Callable[[int], str]
"""Where the exemplar of a number stands, for messages."""


def place_of_exemplars(spec: TaskSpec, rows: Rows | None, count: int) -> Place:
    """Return where each of ``count`` exemplars stands: in ``rows`` of a split, or in the task file."""
    if rows is not None:
        kept_all = count == len(rows.table)
        return rows.place if kept_all else lambda i: f"{rows.origin} (row {i} after filtering)"
    if isinstance(spec.samples, FunctionRef):
        place = f"{spec.samples.file}:{spec.samples.line}"
        return lambda i: f"{place} (exemplar {i} of the function)"
    return lambda i: spec.line(f"fewshot_config.samples.{i}")


class ExemplarPool:
    """The exemplars that a task's sampler draws from. ``drawn``: the numbers of those it drew last.

    Each is checked when it is first drawn: a split may hold a million, of which a run shows a few.
    """

    def __init__(self, lm_task: Any, name: str, place: Place) -> None:
        self.lm_task = lm_task
        self.name = name
        self.place = place
        self.rows: list[Any] = lm_task.sampler.fewshot_docs()
        self.numbers = {id(row): i for i, row in enumerate(self.rows)}
        self.drawn: list[int] = []
        self._good: set[int] = set()
        draw = lm_task.sampler.sample

        def sample(*args: Any, **kwargs: Any) -> Sequence[Any]:
            rows: Sequence[Any] = draw(*args, **kwargs)
            self.drawn = [self.numbers[id(row)] for row in rows]
            lm_task.shown = tuple(rows)
            if not self._good.issuperset(self.drawn):
                for number, row in zip(self.drawn, rows, strict=True):
                    self._check(number, row)
            return rows

        lm_task.sampler.sample = sample

    def check_enough(self, shots: int, *, own_rows: bool, origin: str) -> None:
        """Raise UsageError if there are fewer than ``shots``. An item that is among them (``own_rows``) is
        not shown to itself."""
        there = len(self.numbers) - own_rows
        if there < shots:
            raise UsageError(f"{origin}: {shots} shots asked for, {there} exemplars there")

    def problem(self, row: Any) -> str:
        """Return what keeps ``row`` from being an exemplar; empty if nothing does."""
        try:
            return exemplar_problem(self.lm_task, row)
        except Exception as error:  # a template may raise anything on a row it does not fit
            return template_problem(error)

    def _check(self, number: int, row: Any) -> None:
        if number in self._good:
            return
        if problem := self.problem(row):
            raise UsageError(f"{self.place(number)}: exemplar of task {self.name}: {problem}")
        self._good.add(number)


def exemplar_problem(lm_task: Any, row: Any) -> str:
    """Return what keeps ``row`` from being shown with its answer; empty if nothing does."""
    config = lm_task.fewshot_cfg
    question = lm_task.doc_to_text(row, config.doc_to_text)
    choices = lm_task.doc_to_choice(row, config.doc_to_choice) if config.doc_to_choice else None
    answer = lm_task.doc_to_target(row, config.doc_to_target)
    for label in (question if lm_task.multiple_input else answer,):
        if choices and isinstance(label, int) and not 0 <= label < len(choices):
            return f"label {label!r} is out of range: there are {len(choices)} choices"
    if not lm_task.multiple_input and not isinstance(question, str):
        return f"the question is no text, but {question!r}"
    if lm_task.row_images is not None and isinstance(question, str):
        check_marks(question, len(lm_task.images_of(row)))
    return ""
