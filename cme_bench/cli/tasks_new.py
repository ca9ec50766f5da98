"""``cme-bench tasks new``: a task file from rows, by flags or by questions on a terminal."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from cme_bench.cli.tasks import Offline, tasks_app
from cme_bench.terminal import say

if TYPE_CHECKING:
    from cme_bench.tasks.draft import Draft
    from cme_bench.tasks.row_files import Rows
    from cme_bench.tasks.scaffold import Origin

_EPILOG = (
    "Examples:  cme-bench tasks new quiz --from quiz.jsonl   |   cme-bench tasks new mood --from mood.csv "
    "--type label --question text --answer mood   |   cme-bench tasks new facts --from facts.parquet --type "
    "qa   |   cme-bench tasks new other --from hub:owner/name --split validation"
)


@tasks_app.command(epilog=_EPILOG)
def new(
    name: Annotated[str, typer.Argument(help="Name of the task.")],
    from_: Annotated[
        str, typer.Option("--from", help="A .jsonl, .csv, .tsv or .parquet file, or hub:OWNER/NAME[:CONFIG].")
    ],
    kind: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--type", help="choice, label, qa, number or summary; default: guessed."),
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
    shots_from: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A file of exemplars for --shots, like --from."),
    ] = None,
    split: Annotated[str, typer.Option(help="The split of a hub dataset.")] = "test",
    domain: Annotated[str, typer.Option(help="Domain in tables.")] = "own",
    licence: Annotated[str, typer.Option(help="Licence of the rows.")] = "not stated",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the task file.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace a task file of this name.")] = False,
    offline: Offline = False,
) -> None:
    """Write a task file for rows of your own, check it, and say how to run it.

    On a terminal it asks what no flag says; elsewhere it goes by the columns' names and values.
    """
    from cme_bench.cli.tasks_check import print_checked
    from cme_bench.tasks.check import check_path
    from cme_bench.tasks.draft import guess
    from cme_bench.tasks.scaffold import task_yaml, write_task
    from cme_bench.tasks.sources import open_source
    from cme_bench.tasks.suite import load_suite

    suite = load_suite()
    _check_name(name, set(suite.tasks))
    rows, origin = _open(name, from_, shots_from, split, offline)
    asking = sys.stdin.isatty()
    draft = guess(rows, answer=answer or "", choices=_names(choices))
    draft = replace(draft, separator=separator)
    if kind:
        draft = replace(draft, kind=kind)
    elif asking:
        draft = replace(draft, kind=typer.prompt("Type (choice, label, qa, number, summary)", draft.kind))
    shown = question or (asking and typer.prompt("Columns that are shown", ",".join(draft.question)))
    if shown:
        draft = replace(draft, question=_names(shown))
    if asking and not answer:
        draft = replace(draft, answer=typer.prompt("Column of the right answer", draft.answer))
    if draft.kind == "choice" and asking and not choices:
        options = typer.prompt("Column or columns of the options", ",".join(draft.choices))
        draft = replace(draft, choices=_names(options))
    draft = replace(draft, labels=_names(labels) or _ask_labels(draft, rows, asking))
    if instruction is None and asking:
        instruction = typer.prompt("Instruction (empty for a plain one)", "", show_default=False)
    usual = "likelihood" if draft.kind in ("choice", "label") else "generate"
    draft = replace(draft, instruction=instruction or "", form=form or usual)
    text = task_yaml(name, draft, rows, origin, {"domain": domain, "licence": licence})
    file = write_task(out, name, text, origin, force=force)
    say(f"{file}: {draft.kind}, question {', '.join(draft.question)}, answer {draft.answer}, {draft.form}")
    fine = print_checked(check_path(file, suite, open_source("hub", offline=offline)))
    say(f"preview: cme-bench tasks preview {name} --include {out} --model smollm2")
    say(f"run:     cme-bench run smollm2 --tasks {name} --include {out}")
    if not fine:
        raise typer.Exit(2)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _check_name(name: str, known: set[str]) -> None:
    from cme_bench.errors import UsageError
    from cme_bench.tasks.spec import PLAIN_NAME

    if not PLAIN_NAME.fullmatch(name):
        raise UsageError(f"task name {name!r} is no plain name (letters, digits, '_', '-', '.')")
    if name in known:
        raise UsageError(f"a task {name!r} is built in; take another name")


def _open(name: str, from_: str, shots: Path | None, split: str, offline: bool) -> tuple[Rows, Origin]:
    """The rows, and how the task file will name them."""
    from cme_bench.errors import UsageError
    from cme_bench.tasks.hub import HubSource
    from cme_bench.tasks.row_files import read_file
    from cme_bench.tasks.scaffold import Origin, file_origin
    from cme_bench.tasks.spec import TaskSpec

    if from_.startswith("hub:"):
        path, _, config = from_.removeprefix("hub:").partition(":")
        keys = {"dataset_path": path, **({"dataset_name": config} if config else {}), "test_split": split}
        return HubSource(offline=offline).rows(TaskSpec(name, Path(from_), keys, {}), split), Origin(keys, {})
    file = Path(from_).expanduser()
    for wanted in (file, shots):
        if wanted is not None and not wanted.is_file():
            raise UsageError(f"{wanted}: no such file")
    origin = file_origin(name, file, shots)
    return read_file(file), origin


def _ask_labels(draft: Draft, rows: Rows, asking: bool) -> tuple[str, ...]:
    """Names for labels that are no words, from the terminal."""
    from cme_bench.tasks.draft import label_values

    if draft.kind != "label" or not asking or draft.answer not in rows.table.column_names:
        return ()
    found = label_values(rows, draft.answer)
    if all(isinstance(value, str) for value in found):
        return ()
    return _names(typer.prompt(f"Names of the labels {', '.join(map(str, found))}, in this order"))
