"""Hold a written task against the rows that it comes from, item by item."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cme_bench.authoring.draft import Draft
from cme_bench.authoring.table_files import Table
from cme_bench.authoring.write import NewTask, write_task
from cme_bench.util.errors import UsageError

if TYPE_CHECKING:
    from cme_bench.scoring.generation import GoldAnswer


@dataclass(frozen=True, slots=True)
class Rendered:
    """One item as it will be asked: prompt, choices and the right answer."""

    prompt: str
    choices: tuple[str, ...]
    gold: str


def verified(task: NewTask, table: Table, draft: Draft) -> list[Rendered]:
    """Return every item as the written task asks it, and hold each gold against the row that it comes from.

    Raises UsageError, naming the row, where the task would ask or score something else.
    """
    from cme_bench.prompts.formats import resolve_format
    from cme_bench.prompts.items import render_item
    from cme_bench.tasks.build import build_task
    from cme_bench.tasks.sources import mini_source
    from cme_bench.tasks.suite import load_suite

    form = resolve_format("plain", None, generated=False)
    with tempfile.TemporaryDirectory() as scratch:
        write_task(Path(scratch), replace(task, text=task.blind, images={}), None, force=True)
        suite = load_suite((Path(scratch),))
        built = build_task(suite.task(task.name), suite, mini_source(), shots=0)
        items = [render_item(built, index, form) for index in range(len(built.docs))]
        generated = built.spec.generated
        scored = [built.lm_eval.gold_answer(doc) if generated else None for doc in built.docs]
    rendered = []
    for index, (item, gold) in enumerate(zip(items, scored, strict=True)):
        expected = _expected(table, draft, index)
        actual = (item.target.strip(),) if gold is None else _right(gold)
        if actual != expected:
            raise UsageError(f"{table.place(index)}: the task would take {actual!r} for {expected!r}")
        rendered.append(Rendered(item.contexts[0], item.choices, " / ".join(expected)))
    return rendered


def _right(gold: GoldAnswer) -> tuple[str, ...]:
    """Return the texts that the written task accepts."""
    if gold.type in ("letter", "label"):
        return (str((gold.options or gold.choices)[gold.gold]),)
    return tuple(gold.references)


def _expected(table: Table, draft: Draft, index: int) -> tuple[str, ...]:
    """Return the texts that are right in a row."""
    if draft.kind == "choice":
        return (draft.options[index][draft.golds[index]].text.strip(),)
    if draft.kind == "label":
        return (draft.labels[draft.values.index(table.rows[index][draft.answer])],)
    return draft.references[index]
