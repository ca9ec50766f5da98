"""Refusing a task whose right answers cannot be read, before a model loads."""

from __future__ import annotations

from collections.abc import Iterable

from cme_bench.errors import UsageError
from cme_bench.scoring.references import decimal_problem, reference_problem
from cme_bench.tasks.build import Task


def refuse_unreadable(task: Task, items: Iterable[int]) -> None:
    """Raise UsageError for the first of ``items`` with no right answer that reads as its type.

    Numbers and mathematics only: of texts every one can be met by its own words.
    """
    answer = task.spec.metadata.get("answer") or {}
    kind, decimal = answer.get("type"), answer.get("decimal")
    if kind not in ("number", "math"):
        return
    every: list[str] = []
    for index in items:
        references = task.lm_eval.gold_answer(task.docs[index]).references
        every += references
        problems = [reference_problem(kind, reference, decimal) for reference in references]
        if all(problems):
            said = problems[0] if problems else "there is no right answer"
            raise UsageError(f"{task.place(index)}: task {task.name}: {said}")
    if kind == "number" and (problem := decimal_problem(every, decimal)):
        raise UsageError(f"{task.spec.line('metadata.answer')}: {problem}")
