"""Look for what a row lacks: a right answer, a question, a value that is then shown as the word None."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
import jinja2.meta

from cme_bench.scoring.generation import GENERATE_UNTIL
from cme_bench.tasks.build import Task
from cme_bench.tasks.values import is_blank

_WORKED = ("number", "math", "last_number", "letter", "first_choice")
"""Answer types whose right answer is read out of a text, which may be longer."""


def columns_of(template: Any, columns: list[str]) -> list[str]:
    """Return the columns that a template of a task file shows; none for code."""
    if not isinstance(template, str):
        return []
    if template in columns:
        return [template]
    try:
        names = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(template))
    except jinja2.TemplateError:
        return []
    return [name for name in columns if name in names]


def without_answer(task: Task, row: Mapping[str, Any], target: str) -> str:
    """Return why a row has no right answer, empty if it has one: lm-eval would ask for the word None."""
    named = columns_of(task.lm_eval.config.doc_to_target, task.docs.column_names)
    missing = bool(named) and all(row[name] is None for name in named)
    return f"there is no right answer: {', '.join(named)} is null" if missing and "None" in target else ""


def warnings_of(task: Task, row: Mapping[str, Any], context: str, target: str) -> Iterator[str]:
    """Yield what is odd in a row: nothing is asked, a null is shown as None, the answer holds a stop text."""
    config = task.lm_eval.config
    named = columns_of(config.doc_to_text, task.docs.column_names)
    nulls = [name for name in named if row[name] is None]
    if named and all(is_blank(row[name]) for name in named):
        yield f"nothing is asked: {', '.join(named)} is empty"
    elif nulls and "None" in context:
        yield f"{', '.join(nulls)} is null, and shown as the word None"
    if config.output_type == GENERATE_UNTIL and not config.filter_list and _read_whole(task):
        until = (config.generation_kwargs or {}).get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            if stop and stop in target.strip():
                yield f"the right answer holds {stop!r}, where answers are stopped"


def _read_whole(task: Task) -> bool:
    answer = task.spec.metadata.get("answer")
    return (answer.get("type") if isinstance(answer, Mapping) else None) not in _WORKED
