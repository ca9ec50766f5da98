"""Looking a task over before anything is run: its file, its rows, its labels, its lengths."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cme_bench.authoring.check_images import image_fact, image_warnings
from cme_bench.authoring.check_rows import warnings_of, without_answer
from cme_bench.images.image import Image
from cme_bench.prompts.formats import PromptFormat, resolve_format
from cme_bench.prompts.items import build_items, limited_ids, render_item
from cme_bench.prompts.reader import Reader
from cme_bench.scoring.metrics import LM_EVAL_ALIASES
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.open_source import source_of
from cme_bench.tasks.references import unmet, unreadable
from cme_bench.tasks.sources import DataSource
from cme_bench.tasks.spec import NoTaskError, TaskSpec, load_spec
from cme_bench.tasks.suite import Suite, task_files
from cme_bench.util.errors import CmeError, UsageError

MOST_ROWS = 5
"""Rows that are named of one kind of problem; the others are counted."""
ID_FIELDS = ("id", "uid", "guid", "idx", "ind", "index", "question_id", "item_id")

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem; ``text`` begins with the file, and the line where there is one."""

    level: Level
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.text}"


@dataclass(frozen=True, slots=True)
class Checked:
    """The outcome of checking one task: problems, and facts worth a line."""

    name: str
    findings: tuple[Finding, ...]
    facts: tuple[str, ...]

    @property
    def failed(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)


def find_specs(path: Path, suite: Suite) -> tuple[list[TaskSpec], list[Finding]]:
    """Return the tasks in the file or folder ``path``, and what is wrong with files that hold none.

    Every file is read by itself, so that a broken one does not hide the next.
    """
    files = task_files(path)
    root = path.parent if path.is_file() else path
    specs: list[TaskSpec] = []
    findings: list[Finding] = []
    names = {spec.name: spec.path.resolve() for spec in suite.tasks.values()}
    for file in files:
        try:
            spec = load_spec(file, root=root)
        except NoTaskError as error:
            findings += [Finding("warning", str(error))] if error.group else []
            continue
        except UsageError as error:
            findings.append(Finding("error", str(error)))
            continue
        if names.setdefault(spec.name, file.resolve()) != file.resolve():
            text = f"{spec.line('task')}: task {spec.name!r} is already defined in {names[spec.name]}"
            findings.append(Finding("error", text))
            continue
        specs.append(spec)
    if not files:
        findings.append(Finding("error", f"{path}: holds no task file (.yaml)"))
    return specs, findings


def check_task(
    spec: TaskSpec,
    suite: Suite,
    source: DataSource,
    *,
    reader: Reader | None = None,
    limit: int | None = None,
) -> Checked:
    """Check everything about one task that can be known without a model's weights.

    ``limit``: look at so many rows only (those that ``run --limit`` asks).
    """
    checked = _Checked(spec)
    checked.add("warning", spec.notes)
    try:
        task = build_task(spec, suite, source)
    except CmeError as error:
        return Checked(spec.name, (Finding("error", str(error)),), ())
    ids = limited_ids(range(len(task.docs)), limit)
    _check_primary(task, checked)
    _check_fields(task, checked)
    prompts = _check_items(task, ids, checked)
    _check_repeats(task, prompts, checked)
    _check_images(task, prompts, checked)
    _check_references(task, prompts, checked)
    _check_labels(task, checked)
    _check_ids(task, ids, checked)
    _check_exemplars(task, suite, source_of(spec, source), prompts, checked)
    checked.facts.append(f"{len(ids)} items")
    if reader is not None and not checked.failed:
        _check_lengths(task, reader, limit, checked)
    return Checked(spec.name, tuple(checked.findings), tuple(checked.facts))


@dataclass
class _Checked:
    """Findings as they come; of each kind only the first few rows are named."""

    spec: TaskSpec
    findings: list[Finding] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)

    def add(self, level: Level, texts: Sequence[str]) -> None:
        self.findings += [Finding(level, text) for text in texts[:MOST_ROWS]]
        if len(texts) > MOST_ROWS:
            more = f"{self.spec.path}: and {len(texts) - MOST_ROWS} more rows like that"
            self.findings.append(Finding(level, more))


def _check_primary(task: Task, checked: _Checked) -> None:
    """Check that the task yields the metric that stands for it."""
    names = [LM_EVAL_ALIASES.get(name, name) for name in task.lm_eval.aggregation()]
    if task.spec.primary not in names:
        place = task.spec.line("metadata.primary")
        known = ", ".join(names)
        checked.add("error", [f"{place}: primary metric {task.spec.primary!r} is none of {known}"])


def _check_fields(task: Task, checked: _Checked) -> None:
    """Check that the columns that the metadata names are there."""
    columns = task.docs.column_names
    for key in ("cluster", "fewshot_group"):
        name = task.spec.metadata.get(key)
        if name is not None and name not in columns:
            place = task.spec.line(f"metadata.{key}")
            checked.add("error", [f"{place}: {key} {name!r} is no column (there are {', '.join(columns)})"])


@dataclass(frozen=True, slots=True)
class Asked:
    """One item, zero-shot: its contexts, its choices, the right answer, and its images."""

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    target: str
    images: tuple[Image, ...] = ()


Prompts = dict[int, Asked]
Question: TypeAlias = tuple[str, tuple[Image, ...]]
"""The text of a question with its choices, and its images."""


def _check_items(task: Task, ids: Sequence[int], checked: _Checked) -> Prompts:
    """Check of every row that it renders, its label is in range, its choices differ and its answer is not
    empty."""
    zero_shot = Task(task.spec, task.lm_eval, task.rows, 0, task.identity, task.revision)
    prompts: Prompts = {}
    errors, empty, twins, unclear, odd = [], [], [], [], []
    answers = set()
    for index in ids:
        try:
            item = render_item(zero_shot, index, PLAIN)
        except UsageError as error:
            errors.append(str(error))
            continue
        prompts[index] = Asked(item.contexts, item.choices, item.target, item.images)
        answers.add(item.target)
        pairs = list(zip(item.contexts, (choice.strip() for choice in item.choices), strict=False))
        context = item.contexts[0] if item.contexts else ""
        odd += [f"{task.place(index)}: {text}" for text in warnings_of(task, item.doc, context, item.target)]
        if len(pairs) == 1 and task.lm_eval.config.doc_to_choice is not None:
            odd.append(f"{task.place(index)}: there is one choice, which is always right")
        if missing := without_answer(task, item.doc, item.target):
            empty.append(f"{task.place(index)}: {missing}")
        elif not item.target.strip():
            empty.append(f"{task.place(index)}: the right answer is empty")
        elif len(set(pairs)) < len(pairs):
            right = [pair for pair in pairs if pair[1] == item.target.strip()]
            if len(right) > 1:
                unclear.append(f"{task.place(index)}: the right choice {item.target!r} stands there twice")
            else:
                twins.append(f"{task.place(index)}: two choices are the same text")
    checked.add("error", errors)
    checked.add("error", empty)
    checked.add("error", unclear)
    checked.add("warning", twins)
    checked.add("warning", odd)
    has_choices = task.lm_eval.config.doc_to_choice is not None
    if has_choices and len(answers) == 1 and len(prompts) > 1:
        text = f"{task.rows.origin}: the answer is {next(iter(answers))!r} in all {len(prompts)} items"
        checked.add("warning", [text])
    return prompts


PLAIN: PromptFormat = resolve_format("plain", None, generated=False)


SHARED_PROMPTS = 0.1
"""If more of the items than this share their prompt with another answer, the prompt lacks something."""


def _check_repeats(task: Task, prompts: Prompts, checked: _Checked) -> None:
    """Find items that are asked twice; those whose answers differ cannot all be right."""
    first: dict[Any, int] = {}
    texts, differ = [], []
    for index, prompt in prompts.items():
        before = first.setdefault((prompt.contexts, prompt.choices, prompt.images), index)
        if before == index:
            continue
        if prompts[before].target == prompt.target:
            texts.append(f"{task.place(index)}: the same question stands in {task.place(before)}")
        else:
            differ.append(
                f"{task.place(index)}: asks the same as {task.place(before)}, but {prompt.target!r} is "
                f"right, not {prompts[before].target!r}"
            )
    checked.add("warning", texts)
    checked.add("error" if len(differ) > SHARED_PROMPTS * len(prompts) else "warning", differ)


def _check_images(task: Task, prompts: Prompts, checked: _Checked) -> None:
    if task.lm_eval.row_images is None:
        return
    shown = {index: prompt.images for index, prompt in prompts.items()}
    for texts in image_warnings(shown, task.place):
        checked.add("warning", texts)
    checked.facts.append(image_fact(shown))
    if prompts and not any(shown.values()):
        checked.add("error", [f"{task.spec.line('doc_to_image')}: no row has an image"])


def _check_references(task: Task, prompts: Prompts, checked: _Checked) -> None:
    """Check that every accepted answer can be read as the task's answer type, a short one as itself."""
    faults = list(unreadable(task, prompts))
    checked.add("error", [f"{task.place(index)}: {reason}" for index, reason in faults if index is not None])
    line = task.spec.line("metadata.answer")
    checked.add("error", [f"{line}: {reason}" for index, reason in faults if index is None])
    odd = [f"{task.place(index)}: {reason}" for index, reason in unmet(task, prompts)]
    checked.add("warning", odd)


def _check_labels(task: Task, checked: _Checked) -> None:
    """Warn of labels that differ by case or blanks only: they are probably one."""
    choices = task.lm_eval.config.doc_to_choice
    seen: dict[str, str] = {}
    for label in choices if isinstance(choices, list) else ():
        other = seen.setdefault(" ".join(label.lower().split()), label)
        if other != label:
            place = task.spec.line("doc_to_choice")
            checked.add("warning", [f"{place}: labels {other!r} and {label!r} differ by case or blanks only"])


def _check_ids(task: Task, ids: Sequence[int], checked: _Checked) -> None:
    for name in ID_FIELDS:
        if name not in task.docs.column_names:
            continue
        first: dict[str, int] = {}
        texts = []
        values = task.docs[name]
        for index in ids:
            value = values[index]
            if value in (None, ""):
                continue
            before = first.setdefault(str(value), index)
            if before != index:
                texts.append(f"{task.place(index)}: {name} {value!r} stands in {task.place(before)} too")
        checked.add("warning", texts)


def _check_exemplars(
    task: Task, suite: Suite, source: DataSource, prompts: Prompts, checked: _Checked
) -> None:
    """Check that exemplars are at hand, render, and are not among the items that are scored."""
    split = task.spec.fewshot_split
    if split is None and task.spec.samples is None:
        checked.facts.append("no exemplars")
        return
    try:
        build = build_task(task.spec, suite, source, shots=1)
    except CmeError as error:
        checked.add("warning", [f"{error} (so --shots cannot be used)"])
        return
    if split == task.spec.eval_split:
        return  # an item is not shown to itself
    pool = build.pool
    assert pool is not None  # a shot was asked for
    questions: dict[Question | None, int] = {_question(task, task.docs[index]): index for index in prompts}
    texts = []
    rows = build.lm_eval.sampler.fewshot_docs()
    for index, row in enumerate(rows):
        if problem := pool.problem(row):
            texts.append(f"{pool.place(index)}: this exemplar cannot be shown: {problem}")
        elif (before := questions.get(_question_or_none(build, row))) is not None:
            texts.append(f"{pool.place(index)}: this exemplar is also scored, in {task.place(before)}")
    checked.add("warning", texts)
    checked.facts.append(f"{len(rows)} exemplars")


def _question_or_none(task: Task, row: dict[str, Any]) -> Question | None:
    """Return the question; None for an exemplar that has templates of its own and no field of the task's."""
    try:
        return _question(task, row)
    except Exception:  # a template may raise anything on a row it does not fit
        return None


def _question(task: Task, row: dict[str, Any]) -> Question:
    lm_task = task.lm_eval
    choices = lm_task.doc_to_choice(row) if lm_task.config.doc_to_choice is not None else ""
    text = f"{'' if lm_task.multiple_input else lm_task.doc_to_text(row)}\n{choices}"
    return text, lm_task.images_of(row)


def _check_lengths(task: Task, reader: Reader, limit: int | None, checked: _Checked) -> None:
    """Measure lengths in a model's tokens, and warn of prompts that must be cut."""
    generated = task.spec.generated
    described = bool(task.lm_eval.config.description)
    try:
        vision = reader.vision_for(task.lm_eval)
        form = resolve_format(
            reader.prompt_format,
            reader.tokenizer,
            own=task.spec.prompt_format,
            generated=generated,
            described=described,
            thinking="auto",
            vision=vision,
        )
        items = build_items(
            task, reader.encoder, form, max_length=reader.max_length, limit=limit, vision=vision
        )
        reader.check(item.request for item in items)
    except UsageError as error:
        checked.add("error", [str(error)])
        return
    lengths = [item.request.n_prompt + item.truncated for item in items]
    if reader.encoder.bos.changed:
        checked.facts.append(f"every prompt begins with {reader.begin!r} ({reader.encoder.bos.reason})")
    checked.facts += form.notes
    middle = statistics.median_low(lengths)
    checked.facts.append(f"prompts of {min(lengths)} to {max(lengths)} tokens (median {middle}, {form.name})")
    cut = [item for item in items if item.truncated]
    checked.add(
        "warning",
        [
            f"{task.place(item.id)}: {item.truncated} tokens are cut from the left to fit {reader.max_length}"
            for item in cut
        ],
    )


def check_path(
    path: Path,
    suite: Suite,
    source: DataSource,
    *,
    allow_code: bool = False,
    reader: Reader | None = None,
    limit: int | None = None,
) -> list[Checked]:
    """Check all tasks of a file or folder; a file without a task is checked as one with an empty name."""
    specs, findings = find_specs(path, suite)
    trusted = (*suite.trusted, path.resolve()) if allow_code else suite.trusted
    whole = Suite({**suite.tasks, **{spec.name: spec for spec in specs}}, trusted)
    checked = [Checked("", tuple(findings), ())] if findings else []
    for spec in specs:
        checked.append(check_task(spec, whole, source, reader=reader, limit=limit))
    return checked
