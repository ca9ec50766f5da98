"""``cme-bench tasks new``: a task file from rows, by flags or by questions on a terminal."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from cme_bench.cli.tasks import Offline, tasks_app
from cme_bench.terminal import say

if TYPE_CHECKING:
    from cme_bench.authoring.draft import Draft, Told
    from cme_bench.authoring.table_files import FileOptions, Table
    from cme_bench.authoring.verify import Rendered

_EPILOG = (
    "Examples:  cme-bench tasks new quiz --from quiz.jsonl   |   cme-bench tasks new mood --from mood.csv "
    "--type label --question text --answer mood   |   cme-bench tasks new facts --from facts.parquet --type "
    "qa   |   cme-bench tasks new other --from hub:owner/name --split validation"
)
_SHOWN_ITEMS = 2


@tasks_app.command(epilog=_EPILOG)
def new(
    name: Annotated[str, typer.Argument(help="Name of the task.")],
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            help="A .jsonl, .json, .csv, .tsv or .parquet file (.gz too), or hub:OWNER/NAME[:CONFIG].",
        ),
    ],
    kind: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--type", help="choice, label, qa, number, math or summary; default: guessed."),
    ] = None,
    question: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Columns that are shown, comma-separated."),
    ] = None,
    choices: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The column of a list of options, or one column an option."),
    ] = None,
    answer: Annotated[Optional[str], typer.Option(help="The column of the right answer.")] = None,  # noqa: UP045
    answer_is: Annotated[
        str,
        typer.Option(
            help="How answers name their option: text, key, letter, index0 or index1 (places from 0 or 1); "
            "for --type qa: text, or list where a text writes several answers."
        ),
    ] = "",
    labels: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Names of the labels, in the order of their sorted values."),
    ] = None,
    instruction: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What the prompt begins with."),
    ] = None,
    form: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="likelihood (of the options or labels) or generate."),
    ] = None,
    separator: Annotated[str, typer.Option(help="Parts several accepted answers in one text.")] = "",
    decimal: Annotated[
        str, typer.Option(help="comma or point: what parts the decimals of right answers that are numbers.")
    ] = "",
    shots_from: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A file of exemplars for --shots, like --from."),
    ] = None,
    encoding: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Encoding of the files, where it is not UTF-8 and no byte order mark says it."),
    ] = None,
    sep: Annotated[Optional[str], typer.Option(help="What parts the fields of a CSV file.")] = None,  # noqa: UP045
    quote: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help='yes if quotation marks (") enclose fields of a CSV file, no if they are characters.'
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="The split of a hub dataset.")] = "test",
    domain: Annotated[str, typer.Option(help="Domain in tables.")] = "own",
    licence: Annotated[str, typer.Option(help="Licence of the rows.")] = "not stated",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the task file.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace a task file of this name.")] = False,
    offline: Offline = False,
) -> None:
    """Write a task file for rows of your own, check it, and say how to run it.

    The rows are read once, in whatever form they have, and written beside the task file with the right
    answer worked out. On a terminal it asks what no flag says; elsewhere it goes by the columns' names and
    values, and refuses what can be read in two ways.
    """
    from cme_bench.authoring.draft import Told
    from cme_bench.authoring.verify import verified
    from cme_bench.authoring.write import new_task, write_task
    from cme_bench.cli.tasks_check import print_checked
    from cme_bench.errors import UsageError
    from cme_bench.tasks.check import check_path
    from cme_bench.tasks.open_source import open_source
    from cme_bench.tasks.suite import load_suite

    if decimal not in ("", "comma", "point"):
        raise UsageError(f"--decimal {decimal}: comma or point")
    suite = load_suite()
    _check_name(name, set(suite.tasks))
    options = _file_options(encoding, sep, quote)
    table, note = _open(name, from_, split, options, offline)
    shots = None if shots_from is None else _open_file(shots_from, options)
    told = Told(
        kind or "",
        _names(question),
        answer or "",
        _names(choices),
        _names(labels),
        answer_is,
        separator,
        decimal,
    )
    draft = _draft(table, told)
    if instruction is None and sys.stdin.isatty():
        instruction = typer.prompt("Instruction (empty for a plain one)", "", show_default=False)
    metadata = {"domain": domain, "licence": licence, **({"note": note} if note else {})}
    task = new_task(
        name, table, draft, shots=shots, form=form or "", instruction=instruction or "", metadata=metadata
    )
    items = verified(task, table, draft)
    source = None if from_.startswith("hub:") else Path(from_).expanduser()
    file = write_task(out, task, source, force=force)
    _print(file, table, draft, task.columns, items)
    fine = print_checked(check_path(file, suite, open_source("hub", offline=offline)))
    say(f"preview: cme-bench tasks preview {name} --include {out} --model smollm2")
    say(f"run:     cme-bench run smollm2 --tasks {name} --include {out}")
    if not fine:
        raise typer.Exit(2)


def _print(
    file: Path, table: Table, draft: Draft, renamed: dict[str, str] | Any, items: list[Rendered]
) -> None:
    """How the rows were read, what is in no place, and two items as they are asked."""
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
    say(f"{file}: {draft.kind}, question {', '.join(draft.question)}, answer {draft.answer}")


def _draft(table: Table, told: Told) -> Draft:
    """What the rows ask; on a terminal each guess is a question."""
    from cme_bench.authoring.guess import guess, suggest

    if not sys.stdin.isatty():
        return guess(table, told)
    first = suggest(table, told)
    asked = told
    if not told.kind:
        asked = replace(
            asked, kind=typer.prompt("Type (choice, label, qa, number, math, summary)", first.kind)
        )
    if not told.question:
        shown = typer.prompt("Columns that are shown", ",".join(first.question))
        asked = replace(asked, question=_names(shown))
    if not told.answer:
        asked = replace(asked, answer=typer.prompt("Column of the right answer", first.answer))
    if asked.kind == "choice" and not told.choices:
        options = typer.prompt("Column or columns of the options", ",".join(first.choices))
        asked = replace(asked, choices=_names(options))
    return _decided(table, asked)


def _decided(table: Table, told: Told) -> Draft:
    """The draft; where rows can still be read in two ways, the terminal decides."""
    from cme_bench.authoring.guess import guess
    from cme_bench.errors import UsageError

    try:
        return guess(table, told)
    except UsageError as err:
        if "--answer-is" in str(err) and not told.way:
            say(err)
            return guess(
                table, replace(told, way=typer.prompt("Answers are (text, key, letter, index0, index1)"))
            )
        if "--labels" in str(err) and not told.labels:
            say(err)
            return guess(
                table, replace(told, labels=_names(typer.prompt("Names of the labels, in this order")))
            )
        raise


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _check_name(name: str, known: set[str]) -> None:
    from cme_bench.errors import UsageError
    from cme_bench.tasks.spec import PLAIN_NAME

    if not PLAIN_NAME.fullmatch(name):
        raise UsageError(f"task name {name!r} is no plain name (letters, digits, '_', '-', '.')")
    if name in known:
        raise UsageError(f"a task {name!r} is built in; take another name")


def _file_options(encoding: str | None, sep: str | None, quote: str | None) -> FileOptions:
    from cme_bench.authoring.table_files import FileOptions
    from cme_bench.errors import UsageError

    sep = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|"}.get(sep or "", sep)
    if sep is not None and len(sep) != 1:
        raise UsageError(f"--sep {sep!r}: one character parts the fields (or 'tab')")
    if quote not in (None, "yes", "no"):
        raise UsageError(f"--quote {quote}: yes or no")
    return FileOptions(encoding, sep, None if quote is None else quote == "yes")


def _open(name: str, from_: str, split: str, options: FileOptions, offline: bool) -> tuple[Table, str]:
    """The rows, and a sentence on where they come from if that is the hub."""
    from cme_bench.authoring.table_files import table_of
    from cme_bench.tasks.hub import HubSource
    from cme_bench.tasks.spec import TaskSpec

    if not from_.startswith("hub:"):
        return _open_file(Path(from_), options), ""
    path, _, config = from_.removeprefix("hub:").partition(":")
    keys = {"dataset_path": path, **({"dataset_name": config} if config else {}), "test_split": split}
    source = HubSource(offline=offline)
    spec = TaskSpec(name, Path(from_), keys, {})
    rows = source.rows(spec, split)
    note = f"rows of {path}{f' ({config})' if config else ''}, split {split}, commit {source.revision(spec)}"
    return table_of(rows), note


def _open_file(path: Path, options: FileOptions) -> Table:
    from cme_bench.authoring.table_files import read_table
    from cme_bench.errors import UsageError

    file = path.expanduser()
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    return read_table(file, options)
