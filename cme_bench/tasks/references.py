"""Right answers that cannot be read as their task's type, found before a model loads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cme_bench.scoring.generation import score_text
from cme_bench.scoring.references import decimal_problem, reference_problem
from cme_bench.tasks.build import Task
from cme_bench.util.errors import UsageError


def unreadable(task: Task, items: Iterable[int]) -> Iterator[tuple[int | None, str]]:
    """Yield each of ``items`` with no right answer that reads as its type, and the reason.

    At last, with None for the item, why the numbers of all of them can be read in two ways, if so. Tasks that
    choose a letter or a label have no such answers.
    """
    answer = getattr(task.lm_eval, "answer", None) or {}
    kind, decimal = answer.get("type"), answer.get("decimal")
    kind = "number" if kind == "last_number" else kind
    if kind in (None, "label", "letter", "first_choice"):
        return
    every: list[str] = []
    for index in items:
        references = task.lm_eval.gold_answer(task.docs[index]).references
        every += references
        problems = [reference_problem(kind, reference, decimal) for reference in references]
        if all(problems):
            yield index, problems[0] or "" if problems else "there is no right answer"
    if kind == "number" and (problem := decimal_problem(every, decimal)):
        yield None, problem


def unmet(task: Task, items: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Yield each of ``items`` of a task of short answers whose right answers no rule reads out of themselves:
    a text of two lines, of two sentences."""
    if ((getattr(task.lm_eval, "answer", None) or {}).get("type")) != "short":
        return
    for index in items:
        gold = task.lm_eval.gold_answer(task.docs[index])
        said = [text for each in gold.references for text in (each, f"The answer is {each}.")]
        scored = [score_text(text, gold) for text in said]
        if scored and not any(each.scores["em"] for each in scored):
            yield index, f"the right answer {gold.references[0]!r} is read as {scored[0].answer.text!r}"


def refuse_unreadable(task: Task, items: Iterable[int]) -> None:
    """Raise UsageError for the first of ``items`` with no right answer that reads as its type.

    Numbers and mathematics only: of texts every one can be met by its own words.
    """
    if (task.spec.metadata.get("answer") or {}).get("type") not in ("number", "last_number", "math"):
        return
    for index, reason in unreadable(task, items):
        if index is None:
            raise UsageError(f"{task.spec.line('metadata.answer')}: {reason}")
        raise UsageError(f"{task.place(index)}: task {task.name}: {reason}")
