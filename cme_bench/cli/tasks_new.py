"""``cme-bench tasks new``: a task file from rows, by flags or by questions on a terminal."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cme_bench.authoring.new_options import FileOptions, NewOptions, Told
from cme_bench.cli.help import command
from cme_bench.cli.tasks import tasks_app
from cme_bench.util.options import Offline
from cme_bench.util.terminal import say

if TYPE_CHECKING:
    from cme_bench.authoring.draft import Draft
    from cme_bench.authoring.table_files import Table
    from cme_bench.authoring.verify import Rendered

_EXAMPLES = {
    "make a task of your own rows": "cme-bench tasks new quiz --from quiz.jsonl",
    "say what the columns are": (
        "cme-bench tasks new mood --from mood.csv --type label --question text --answer mood"
    ),
    "make a task of a dataset on the hub": (
        "cme-bench tasks new other --from hub:owner/name --split validation"
    ),
}
_SHOWN_ITEMS = 2


@command(tasks_app, _EXAMPLES)
def new(task: NewOptions, told: Told, files: FileOptions, offline: Offline = False) -> None:
    """Write a task file for rows of your own, check it, and say how to run it.

    The rows are read once, in whatever form they have, and written beside the task file with the right
    answer worked out. On a terminal it asks what no flag says; elsewhere it goes by the columns' names and
    values, and refuses what can be read in two ways.
    """
    from cme_bench.authoring.check import check_path
    from cme_bench.authoring.images import part_images, written_images
    from cme_bench.authoring.verify import verified
    from cme_bench.authoring.write import new_task, write_task
    from cme_bench.cli.tasks_check import print_checked
    from cme_bench.tasks.open_source import open_source
    from cme_bench.tasks.suite import load_suite

    suite = load_suite()
    _check_name(task.name, set(suite.tasks))
    table, note = _open(task, files, offline)
    shots = None if task.shots_from is None else _open_file(task.shots_from, files)
    taken = (*told.question, *told.choices, told.answer)
    place = None if task.on_hub else Path(task.source).expanduser().parent
    table, images = part_images(table, told.images, place, taken=taken)
    seen = written_images(table, images, task.out, task.name) if images.columns else None
    shown = None
    if shots is not None and task.shots_from is not None:
        shots, others = part_images(shots, images.columns or ("none",), task.shots_from.expanduser().parent)
        shown = written_images(shots, others, task.out, task.name) if seen else None
    draft = _draft(table, told, seen=seen is not None)
    if seen is not None:
        draft = replace(draft, notes=(images.note(), *draft.notes))
    instruction = task.instruction
    if instruction is None and sys.stdin.isatty():
        instruction = typer.prompt("Instruction (empty for a plain one)", "", show_default=False)
    metadata = {"domain": task.domain, "licence": task.licence, **({"note": note} if note else {})}
    made = new_task(
        task.name,
        table,
        draft,
        shots=shots,
        form=task.form,
        instruction=instruction or "",
        metadata=metadata,
        images=seen,
        shot_images=shown,
    )
    items = verified(made, table, draft)
    file = write_task(
        task.out, made, None if task.on_hub else Path(task.source).expanduser(), force=task.force
    )
    _print(file, table, draft, made.columns, items)
    fine = print_checked(check_path(file, suite, open_source("hub", offline=offline)))
    model = "smollm2" if seen is None else "smollava"
    say(f"preview: cme-bench tasks preview {task.name} --include {task.out} --model {model}")
    say(f"run:     cme-bench run {model} --tasks {task.name} --include {task.out}")
    if not fine:
        raise typer.Exit(2)


def _print(
    file: Path, table: Table, draft: Draft, renamed: dict[str, str] | Any, items: list[Rendered]
) -> None:
    """Print how the rows were read, the columns that are left out, and two items as prompts."""
    for note in (*table.notes, *draft.notes):
        say(note if note.startswith("warning: ") else f"note: {note}")
    for old, new_name in renamed.items():
        say(f"note: column {old!r} is called {new_name} in the task")
    for column, reason in draft.unused.items():
        say(f"not shown: {column}{f' ({reason})' if reason else ''}")
    for number, item in enumerate(items[:_SHOWN_ITEMS], start=1):
        say(f"item {number}:")
        say("\n".join(f"  | {line}" for line in item.prompt.split("\n")))
        if item.choices:
            say(f"  choices: {', '.join(repr(choice) for choice in item.choices)}")
        say(f"  right: {item.gold}")
    say(f"{file}: {draft.kind}, question {', '.join(draft.question) or '(none)'}, answer {draft.answer}")


def _draft(table: Table, told: Told, *, seen: bool) -> Draft:
    """Return what the rows ask; on a terminal each guess is a question."""
    from cme_bench.authoring.guess import guess, suggest

    if not sys.stdin.isatty():
        return guess(table, told, seen=seen)
    first = suggest(table, told)
    answers = told
    if not told.kind:
        answers = replace(
            answers, kind=typer.prompt("Type (choice, label, qa, number, math, summary)", first.kind)
        )
    if not told.question:
        shown = typer.prompt("Columns that are shown", ",".join(first.question))
        answers = replace(answers, question=_names(shown))
    if not told.answer:
        answers = replace(answers, answer=typer.prompt("Column of the right answer", first.answer))
    if answers.kind == "choice" and not told.choices:
        options = typer.prompt("Column or columns of the options", ",".join(first.choices))
        answers = replace(answers, choices=_names(options))
    return _decided(table, answers, seen=seen)


def _decided(table: Table, told: Told, *, seen: bool) -> Draft:
    """Return the draft; where rows can still be read in two ways, the terminal decides."""
    from cme_bench.authoring.guess import guess
    from cme_bench.util.errors import UsageError

    try:
        return guess(table, told, seen=seen)
    except UsageError as error:
        if "--answer-is" in str(error) and not told.way:
            say(error)
            told = replace(told, way=typer.prompt("Answers are (text, key, letter, index0, index1)"))
            return guess(table, told, seen=seen)
        if "--labels" in str(error) and not told.labels:
            say(error)
            told = replace(told, labels=_names(typer.prompt("Names of the labels, in this order")))
            return guess(table, told, seen=seen)
        raise


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _check_name(name: str, known: set[str]) -> None:
    from cme_bench.tasks.spec import PLAIN_NAME
    from cme_bench.util.errors import UsageError

    if not PLAIN_NAME.fullmatch(name):
        raise UsageError(f"task name {name!r} is no plain name (letters, digits, '_', '-', '.')")
    if name in known:
        raise UsageError(f"a task {name!r} is built in; take another name")


def _open(task: NewOptions, files: FileOptions, offline: bool) -> tuple[Table, str]:
    """Return the rows, and a sentence on where they come from if that is the hub."""
    from cme_bench.authoring.table_files import table_of
    from cme_bench.tasks.hub import HubSource
    from cme_bench.tasks.spec import TaskSpec

    if not task.on_hub:
        return _open_file(Path(task.source), files), ""
    path, _, config = task.source.removeprefix("hub:").partition(":")
    keys = {"dataset_path": path, **({"dataset_name": config} if config else {}), "test_split": task.split}
    source = HubSource(offline=offline)
    spec = TaskSpec(task.name, Path(task.source), keys, {})
    rows = source.rows(spec, task.split)
    version = f"split {task.split}, commit {source.revision(spec)}"
    return table_of(rows), f"rows of {path}{f' ({config})' if config else ''}, {version}"


def _open_file(path: Path, options: FileOptions) -> Table:
    from cme_bench.authoring.table_files import read_table
    from cme_bench.util.errors import UsageError

    file = path.expanduser()
    if file.is_dir():
        raise UsageError(f"{file}: a folder; name the file of the split that is scored")
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    return read_table(file, options)
