"""``cme-bench tasks ls | show | preview | export``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cme_bench.cli import app
from cme_bench.cli.help import TASKS, command, group
from cme_bench.cli.shared import tell
from cme_bench.util.options import (
    BOS_UNKNOWN,
    AllowCode,
    BosMode,
    Data,
    FormatName,
    Include,
    Offline,
    Option,
    ThinkingChoice,
)
from cme_bench.util.terminal import markup, say

if TYPE_CHECKING:
    from cme_bench.prompts.reader import Reader
    from cme_bench.tasks.spec import TaskSpec

COLUMNS = ("domain", "dataset", "task", "form", "metric", "items", "licence", "random")

tasks_app = group(help="List, read, preview, check, make and export task files.")
app.add_typer(tasks_app, name="tasks", rich_help_panel=TASKS)

Format = Annotated[FormatName, Option("As for `run`.", flag="--format")]
Bos = Annotated[BosMode, Option("Whether prompts begin with BOS, as for `run`.", noun=BOS_UNKNOWN)]


@command(tasks_app, {"see domains, datasets, sizes, licences and baselines": "cme-bench tasks ls"})
def ls(
    names: Annotated[str | None, Option("Only these tasks, domains or suites.", argument=True)] = None,
    include: Include = (),
) -> None:
    """List tasks: domain, dataset, name, form, metric, items as published, licence of the data, accuracy of
    guessing in %."""
    from cme_bench.tasks.suite import load_suite

    suite = load_suite(include)
    specs = suite.select(names) if names else list(suite.tasks.values())
    rows = [_row(spec) for spec in specs]
    if sys.stdout.isatty():
        _print_table(rows)
    else:
        widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
        for row in (COLUMNS, *rows):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            say(line.rstrip())
    for odd in () if names else suite.odd:
        if not odd.harmless:
            say(f"not a task that can be run: {odd.reason}")


def _row(spec: TaskSpec) -> tuple[str, ...]:
    form = "generate" if spec.generated else "likelihood"
    random = spec.metadata.get("random_baseline")
    return (
        spec.domain,
        spec.dataset,
        spec.name,
        form,
        spec.primary,
        "-" if spec.items is None else str(spec.items),
        str(spec.metadata.get("licence", "-")),
        "-" if random is None else f"{100 * random:.1f}",
    )


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False)
    for name in COLUMNS:
        table.add_column(
            name, justify="right" if name in ("items", "random") else "left", no_wrap=name == "task"
        )
    domain = ""
    for row in rows:
        if domain and row[0] != domain:
            table.add_section()
        table.add_row("" if row[0] == domain else markup(row[0]), *map(markup, row[1:]))
        domain = row[0]
    Console().print(table)


@command(tasks_app, {"read a task as it is resolved, with file and line": "cme-bench tasks show cme_rte"})
def show(
    task: Annotated[str, Option("A task's name.", argument=True)],
    include: Include = (),
) -> None:
    """Print a task's YAML with includes merged; a comment says in which file and line each key stands."""
    from cme_bench.tasks.suite import load_suite
    from cme_bench.tasks.yaml_dump import dump_with_places

    spec = load_suite(include).task(task)
    here = f"{Path.cwd()}/"
    say(dump_with_places(spec.config, {k: v.removeprefix(here) for k, v in spec.where.items()}), end="")


@command(
    tasks_app,
    {"see the prompt and token ids that a model gets": "cme-bench tasks preview cme_rte --model smollm2"},
)
def preview(
    task: Annotated[str, Option("A task's name.", argument=True)],
    model: Annotated[
        str | None, Option("Show this model's token ids (only its tokenizer is loaded).")
    ] = None,
    data: Data = "mini",
    shots: Annotated[int | None, Option("Few-shot exemplars.", minimum=0)] = None,
    number: Annotated[int, Option("How many items.", flag="-n", minimum=1)] = 1,
    prompt_format: Format = "auto",
    system: Annotated[str | None, Option("System prompt of a chat, as for `run`.")] = None,
    bos: Bos = "auto",
    thinking: Annotated[
        ThinkingChoice, Option("Whether a model that can think does, as for `run`.")
    ] = "auto",
    seed: Annotated[int, Option("Seed of few-shot sampling.")] = 0,
    include: Include = (),
    allow_code: AllowCode = False,
    offline: Offline = False,
) -> None:
    """Print a prompt as a model gets it: text, token ids, where the scored part begins, and the hash."""
    from cme_bench.prompts.formats import resolve_format
    from cme_bench.prompts.generation import GenerationOptions
    from cme_bench.prompts.items import build_items, limited_ids, render_item
    from cme_bench.prompts.preview import preview_text, preview_tokens
    from cme_bench.runs.planner import task_hash, thought_overrides
    from cme_bench.tasks.build import build_task
    from cme_bench.tasks.open_source import open_source
    from cme_bench.tasks.suite import load_suite

    suite = load_suite(include, allow_code=allow_code)
    spec = suite.task(task)
    reader = load_reader(model, offline, bos=bos, prompt_format=prompt_format) if model else None
    tokenizer = reader.tokenizer if reader else None
    generated, described = spec.generated, bool(spec.config.get("description"))
    built = build_task(spec, suite, open_source(data, offline=offline), shots=shots)
    vision = reader.vision_for(built.lm_eval) if reader else None
    form = resolve_format(
        prompt_format,
        tokenizer,
        own=spec.prompt_format,
        generated=generated,
        system=system,
        described=described,
        thinking=thinking,
        vision=vision,
    )
    ids = limited_ids(range(len(built.docs)), number)  # the items that `run --limit N` asks
    rendered = [render_item(built, index, form, seed) for index in ids]
    items = []
    if reader is not None:
        items = build_items(
            built,
            reader.encoder,
            form,
            max_length=reader.max_length,
            limit=number,
            seed=seed,
            vision=vision,
        )
        reader.check([item.request for item in items])
        items = [item for item in items if item.repeat == 0]
    for position, (index, item) in enumerate(zip(ids, rendered, strict=True)):
        say(f"== {built.name}, item {item.id} of {len(built.docs)}: {built.place(item.id)}")
        for line in preview_text(item):
            say(line)
        if built.shots:
            rows = ", ".join(map(str, built.exemplars(seed, index)))
            say(f"exemplars: rows {rows} of {spec.fewshot_split or 'those in the task file'}")
        if items:
            for line in preview_tokens(items[position], tokenizer):
                say(line)
    for note in (*((reader.encoder.bos.warning,) if reader else ()), *form.notes):
        if note is not None:
            say(f"note: {note}")
    say(f"== format {form.name}, policy {form.policy}, {built.shots} shots")
    overrides = thought_overrides(form.thinking, [item.request for item in items], GenerationOptions())
    say(f"hash {task_hash(built, form.name, form.policy, overrides)}")


def load_reader(model: str, offline: bool, *, bos: str, prompt_format: str) -> Reader:
    """Return the reader of prompts as MODEL reads them; only its tokenizer is loaded."""
    from cme_bench.engines.hf.forward import max_positions
    from cme_bench.models.checkpoint import resolve_model
    from cme_bench.models.load import load_config, load_tokenizer
    from cme_bench.models.vision import vision_of
    from cme_bench.prompts.bos import decide_bos, model_types
    from cme_bench.prompts.encode import Encoder
    from cme_bench.prompts.reader import Reader
    from cme_bench.prompts.vocabulary import embeddings

    checkpoint = resolve_model(model, offline=offline, note=tell)
    tokenizer, config = load_tokenizer(checkpoint), load_config(checkpoint)
    encoder = Encoder(tokenizer, decide_bos(tokenizer, bos, model_types=model_types(config)))
    return Reader(
        encoder,
        max_positions(config),
        embeddings(config),
        str(checkpoint.path),
        prompt_format,
        functools.partial(vision_of, checkpoint.path, config, tokenizer),
    )


@command(
    tasks_app,
    {"run our tasks under stock lm-eval": "cme-bench tasks export cme_rte_ll --data ./data -o FOLDER"},
)
def export(
    tasks: Annotated[str, Option("Comma-separated tasks, domains and suites.", argument=True)],
    out: Annotated[Path, Option("Folder for the copies.", short="-o")],
    data: Data = "hub",
    include: Include = (),
    offline: Offline = False,
) -> None:
    """Write copies that stock lm-eval runs: lm_eval --include_path FOLDER --tasks NAME.

    A copy says in its second line if cme-bench must be installed there too, and why: its answers are read by
    the rules of cme-bench, or it has macro-F1, for example. The others need lm-eval alone.
    """
    from cme_bench.authoring.export import export_tasks
    from cme_bench.tasks.open_source import open_source
    from cme_bench.tasks.suite import load_suite

    specs = load_suite(include).select(tasks)
    files = export_tasks(specs, open_source(data, offline=offline), out)
    plural = "s" if len(files) > 1 else ""
    say(f"{len(files)} task{plural} in {out}; lm_eval --include_path {out} --tasks {tasks} runs them")
