"""Right answers that cannot be read as their task's type, found before a model loads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cme_bench.scoring.generation import score_text
from cme_bench.scoring.references import decimal_problem, reference_problem
from cme_bench.tasks.build import Task
from cme_bench.util.errors import UsageError, template_problem

_CHOSEN = frozenset({"label", "letter", "first_choice"})
"""Answer types whose right answer is the place of a choice."""
_NUMERIC = frozenset({"number", "last_number", "math"})


def unreadable(task: Task, items: Iterable[int]) -> Iterator[tuple[int | None, str]]:
    """Yield each of ``items`` with no right answer that reads as its type, and the reason.

    At last, with None for the item, why the numbers of all of them can be read in two ways, if so. Of tasks
    that choose a letter or a label it is looked whether the right one is named as their scoring needs it.
    """
    answer = getattr(task.lm_eval, "answer", None) or {}
    kind, decimal = answer.get("type"), answer.get("decimal")
    kind = "number" if kind == "last_number" else kind
    if kind is None:
        return
    every: list[str] = []
    for index in items:
        if wrong := gold_problem(task.lm_eval, task.docs[index]):
            yield index, wrong
            continue
        if kind in _CHOSEN:
            continue
        references = task.lm_eval.gold_answer(task.docs[index]).references
        every += references
        problems = [reference_problem(kind, reference, decimal) for reference in references]
        if all(problems):
            yield index, problems[0] or "" if problems else "there is no right answer"
    if kind == "number" and (problem := decimal_problem(every, decimal)):
        yield None, problem


def gold_problem(lm_task: Any, doc: dict[str, Any]) -> str:
    """Return why the right answer of a row cannot be what ``metadata.answer`` says; empty if it can."""
    try:
        return _gold_problem(lm_task, doc)
    except Exception as error:  # a template may raise anything on a row it does not fit
        return template_problem(error)


def _gold_problem(lm_task: Any, doc: dict[str, Any]) -> str:
    target = lm_task.doc_to_target(doc)
    if lm_task.answer["type"] not in _CHOSEN:
        odd = (each for each in (target if isinstance(target, list) else [target]) if _is_nested(each))
        return next((f"the right answer is no text, but {each!r}" for each in odd), "")
    if lm_task.config.doc_to_choice is None:
        return f"answer type {lm_task.answer['type']!r} needs 'doc_to_choice', the list that is chosen from"
    try:
        place = int(target)
    except (TypeError, ValueError):
        return (
            f"doc_to_target gives {target!r}, but must give the place of the right choice, from 0 "
            "(\"{{ ['A', 'B'].index(column) }}\")"
        )
    if not 0 <= place < len(lm_task.doc_to_choice(doc)):
        return f"label {place} is out of range: there are {len(lm_task.doc_to_choice(doc))} choices"
    try:
        options = lm_task.gold_answer(doc).options
    except Exception:  # a template may raise anything on a row it does not fit
        return 'metadata.answer.options gives no list of texts ("{{ column }}" of a column of lists does)'
    beyond = bool(options) and place >= len(options)
    return f"the right answer is option {place + 1}, but there are {len(options)}" if beyond else ""


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict | list)


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
    """Raise UsageError for the first of ``items`` with no right answer that can be scored as its type.

    Of numbers and mathematics it must read as such; of texts every one can be met by its own words. The
    built-in tasks have been looked through otherwise.
    """
    kind = (task.spec.metadata.get("answer") or {}).get("type")
    if kind in _NUMERIC:
        found = unreadable(task, items)
    elif kind is None or task.spec.in_cme:
        return
    else:
        problems = ((index, gold_problem(task.lm_eval, task.docs[index])) for index in items)
        found = ((index, problem) for index, problem in problems if problem)
    for index, reason in found:
        if index is None:
            raise UsageError(f"{task.spec.line('metadata.answer')}: {reason}")
        raise UsageError(f"{task.place(index)}: task {task.name}: {reason}")
