"""Write a new task: its YAML file, and its rows beside it with what is right worked out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cme_bench.authoring.draft import KINDS, Draft
from cme_bench.authoring.guess import guess
from cme_bench.authoring.images import WrittenImages
from cme_bench.authoring.nested import joined_text
from cme_bench.authoring.new_options import Told
from cme_bench.authoring.options import LETTERS
from cme_bench.authoring.references import as_label
from cme_bench.authoring.table_files import Table
from cme_bench.harness.yaml_loader import FunctionRef
from cme_bench.images.image import Image
from cme_bench.scoring.generation import GENERATE_UNTIL
from cme_bench.tasks.values import as_text, is_blank
from cme_bench.tasks.yaml_dump import dump_yaml
from cme_bench.util.errors import UsageError

FORMS = ("likelihood", "generate")
_INSTRUCTIONS = {
    "choice": "Choose the right answer to the question.",
    "label": "Classify the text.",
    "qa": "Answer the question with a name, a number or a few words.",
    "number": 'Solve the problem. End with a line of four number signs and the final number, as in "#### 5".',
    "math": "Solve the problem. End with the final answer in \\boxed{}.",
    "summary": "Summarize the following text in one or two sentences.",
}
_SEEN = {
    "choice": "Choose the right answer.",
    "label": "Look at the image.",
    "qa": "Answer with a name, a number or a few words.",
    "summary": "Describe the image in one or two sentences.",
}
"""The instructions where an image is shown."""
_ENDINGS = {
    "choice": "Answer:",
    "label": "Label:",
    "qa": "Answer:",
    "number": "Solution:",
    "math": "Solution:",
    "summary": "Summary:",
}
_NEW_TOKENS = {"choice": 8, "label": 16, "qa": 32, "number": 256, "math": 512, "summary": 64}
_ANSWER_TYPES = {
    "choice": "letter",
    "label": "label",
    "qa": "short",
    "number": "number",
    "math": "math",
    "summary": "summary",
}
_OURS = FunctionRef("cme_bench.tasks.cme_task.CmeTask", Path(), 1)
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_JINJA_WORDS = frozenset("and or not in is if else true false none True False None".split())


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to write. ``text``: the YAML; ``blind``: the same without its images. ``files``: rows by the
    name of their file. ``columns``: a table column's name in these files, where it is another. ``images``:
    those that are copied, by path."""

    name: str
    text: str
    files: Mapping[str, Sequence[Mapping[str, Any]]]
    columns: Mapping[str, str]
    blind: str
    images: Mapping[str, Image] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The columns of a draft as they are written. ``columns``: a name that a template can say, for every
    column of the table. ``options``, ``gold``, ``references``: free names for what is right."""

    table: Table
    draft: Draft
    generate: bool
    instruction: str
    columns: Mapping[str, str]
    options: str
    gold: str
    references: str
    seen: bool = False


def new_task(
    name: str,
    table: Table,
    draft: Draft,
    *,
    shots: Table | None = None,
    form: str = "",
    instruction: str = "",
    metadata: Mapping[str, Any] | None = None,
    images: WrittenImages | None = None,
    shot_images: WrittenImages | None = None,
) -> NewTask:
    """Return the task file and rows of ``draft``.

    Raises UsageError, naming the row, for exemplars that do not fit, and for a form that the kind lacks.
    """
    form = form or ("likelihood" if draft.kind in ("choice", "label") else "generate")
    if form not in FORMS or (form == "likelihood" and draft.kind not in ("choice", "label")):
        raise UsageError(f"--form {form}: {draft.kind} answers are scored as 'generate'")
    _check_letters(table, draft, form)
    seen = list(images.rows[0]) if images else []
    columns = _safe_names([*table.columns, *seen])
    options, gold, references = (_free(key, columns.values()) for key in ("options", "gold", "references"))
    plan = _Plan(
        table, draft, form == "generate", instruction, columns, options, gold, references, seen=bool(seen)
    )
    data = {"test": f"{name}_test.jsonl"}
    files = {data["test"]: _with_images(_rows(plan, table, draft), images, columns)}
    if shots is not None:
        data["train"] = f"{name}_train.jsonl"
        rows = _rows(plan, shots, _shot_draft(shots, draft))
        files[data["train"]] = _with_images(rows, shot_images, columns)
    head = f"# Written by `cme-bench tasks new` ({KINDS[draft.kind]}); edit it as you like.\n"
    values = _yaml_values(name, plan, data, metadata or {})
    blind = head + dump_yaml(values)
    if seen:
        values = _with_image_key(values, [columns[column] for column in seen])
    copied = {**(images.files if images else {}), **(shot_images.files if shot_images else {})}
    renamed = {old: new for old, new in columns.items() if old != new}
    return NewTask(name, head + dump_yaml(values), files, renamed, blind, copied)


def _with_images(
    rows: list[dict[str, Any]], images: WrittenImages | None, columns: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return rows with the paths of their images."""
    if images is None:
        return rows
    pairs = zip(rows, images.rows, strict=True)
    return [row | {columns[column]: path for column, path in seen.items()} for row, seen in pairs]


def _with_image_key(values: Mapping[str, Any], columns: list[str]) -> dict[str, Any]:
    """Return a task file that shows these columns; as a list, in which a row may lack one."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        made |= ({"doc_to_image": columns} if key == "doc_to_text" else {}) | {key: value}
    return made


def _check_letters(table: Table, draft: Draft, form: str) -> None:
    for index, options in enumerate(draft.options):
        if form == "generate" and len(options) > len(LETTERS):
            raise UsageError(
                f"{table.place(index)}: {len(options)} options, but at most {len(LETTERS)} can be lettered; "
                "use --form likelihood"
            )


def _safe_names(columns: Sequence[str]) -> dict[str, str]:
    """Return names that a template can say: ``a question`` becomes ``a_question``."""
    safe: dict[str, str] = {}
    for name in columns:
        word = name if name.isidentifier() else re.sub(r"\W+", "_", name).strip("_")
        if not word.isidentifier() or word in _JINJA_WORDS:
            word = f"column_{word}" if word else "column"
        safe[name] = _free(word, [*safe.values(), *(c for c in columns if c != name and c.isidentifier())])
    return safe


def _free(name: str, taken: Iterable[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _shot_draft(shots: Table, draft: Draft) -> Draft:
    """Read the exemplars exactly as the scored rows are."""
    told = Told(
        kind=draft.kind,
        question=draft.question,
        answer=draft.answer,
        choices=draft.choices,
        way=draft.way,
        separator=draft.separator,
        decimal=draft.decimal,
    )
    if draft.kind != "label":
        return guess(shots, told, seen=True)
    for name in (*draft.question, draft.answer):
        if name not in shots.columns:
            raise UsageError(f"{shots.origin}: no column {name!r}")
    for index, value in enumerate(shots.values(draft.answer)):
        if as_label(value) not in draft.values:
            known = ", ".join(map(as_text, draft.values))
            raise UsageError(f"{shots.place(index)}: label {value!r} is none of {known}")
    return draft


def _rows(plan: _Plan, table: Table, draft: Draft) -> list[dict[str, Any]]:
    """Return the rows as they are written: the table's columns, then what is right."""
    kept = {name: _uniform(table, name) for name in table.columns if name in plan.columns}
    rows = []
    for index in range(len(table.rows)):
        row = {plan.columns[name]: values[index] for name, values in kept.items()}
        for name in draft.question:
            row[plan.columns[name]] = _shown_text(table, index, name)
        if draft.kind == "choice":
            row[plan.options] = [option.text.strip() for option in draft.options[index]]
            row[plan.gold] = draft.golds[index]
        elif draft.kind == "label":
            row[plan.gold] = draft.values.index(as_label(table.rows[index][draft.answer]))
        else:
            row[plan.references] = list(draft.references[index])
        rows.append(row)
    return rows


def _shown_text(table: Table, index: int, name: str) -> str:
    try:
        return joined_text(table.rows[index][name])
    except ValueError as error:
        raise UsageError(f"{table.place(index)}: {name}: {error}") from error


def _uniform(table: Table, name: str) -> list[Any]:
    """Return a column's values, as texts where rows have values of several types (Arrow holds one)."""
    values = table.values(name)
    kinds = {_kind(value) for value in values if value is not None}
    if len(kinds) <= 1 and not kinds & {"mapping", "mixed"}:
        return values
    return [
        None if v is None else v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values
    ]


def _kind(value: Any) -> str:
    if isinstance(value, list):
        inner = {_kind(each) for each in value if each is not None}
        if len(inner) > 1 or inner & {"mapping", "mixed"}:
            return "mixed"
        return f"list of {inner.pop()}" if inner else "list of text"
    return "mapping" if isinstance(value, dict) else type(value).__name__


def _yaml_values(
    name: str, plan: _Plan, data: Mapping[str, str], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the task file as a mapping, its keys in the order of the built-in tasks."""
    kind, generate = plan.draft.kind, plan.generate
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
    return {
        "task": name,
        **({"class": _OURS} if generate or _shows_dates(plan) else {}),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": dict(data)},
        "test_split": "test",
        **({"fewshot_split": "train"} if "train" in data else {}),
        "num_fewshot": 0,
        "output_type": GENERATE_UNTIL if generate else "multiple_choice",
        "doc_to_text": _question(plan),
        **_right_keys(plan),
        **({"generation_kwargs": _generation(plan)} if generate else {"metric_list": metrics}),
        "metadata": {
            "version": 1,
            "dataset": name,
            **({"answer": _answer(plan)} if generate else {}),
            "items": len(plan.table.rows),
            **metadata,
            "random_baseline": round(_baseline(plan.draft), 4) if kind in ("choice", "label") else 0.0,
        },
    }


def _shows_dates(plan: _Plan) -> bool:
    """Return whether a text that is shown, or the options, are dates in every row: lm-eval reads such texts
    from JSON as times of a day, and a task of our class as they are."""
    shown = [[as_text(row[name]) for row in plan.table.rows] for name in plan.draft.question]
    options = [option.text for options in plan.draft.options for option in options]
    columns = [[text for text in texts if text.strip()] for texts in (*shown, options)]
    return any(texts and all(map(_DATE.match, texts)) for texts in columns)


def _right_keys(plan: _Plan) -> dict[str, Any]:
    """Return the keys that name the choices and the right answer."""
    if plan.draft.kind == "choice":
        letters = f"{{{{ '{LETTERS}'[:{plan.options} | length] | list }}}}"
        return {"doc_to_choice": letters if plan.generate else plan.options, "doc_to_target": plan.gold}
    if plan.draft.kind == "label":
        return {"doc_to_choice": list(plan.draft.labels), "doc_to_target": plan.gold}
    return {"doc_to_target": plan.references}


def _answer(plan: _Plan) -> dict[str, Any]:
    """Return ``metadata.answer``: how a response is read."""
    options = {"options": f"{{{{ {plan.options} }}}}"} if plan.draft.kind == "choice" else {}
    decimal = {"decimal": plan.draft.decimal} if plan.draft.decimal else {}
    return {"type": _ANSWER_TYPES[plan.draft.kind], **options, **decimal}


def _baseline(draft: Draft) -> float:
    """Score of guessing blindly."""
    return 1 / (len(draft.labels) if draft.kind == "label" else max(map(len, draft.options)))


def _generation(plan: _Plan) -> dict[str, Any]:
    """Return the generation settings. A worked solution may have paragraphs: a number task ends where the
    model asks the next question."""
    kind = plan.draft.kind
    shown = plan.draft.question
    next_question = [f"{_shown_name(plan.columns[shown[0]])}:"] if shown else []
    until = [*next_question, "\n\n\n"] if kind in ("number", "math") else ["\n\n"]
    return {"until": until, "max_gen_toks": _NEW_TOKENS[kind], "do_sample": False}


def _shown_name(column: str) -> str:
    return column.replace("_", " ").strip().capitalize()


def _question(plan: _Plan) -> str:
    """Return the prompt's template: the instruction, the columns shown, the lettered options where one is
    chosen.

    A column that is empty in some rows has no line there.
    """
    draft, columns = plan.draft, plan.columns
    begins = plan.instruction or (_SEEN if plan.seen else _INSTRUCTIONS).get(
        draft.kind, _INSTRUCTIONS[draft.kind]
    )
    if draft.kind == "label" and not plan.instruction:
        begins += f" Answer with one of: {', '.join(map(_literal, draft.labels))}."
    text = f"{begins}\n\n"
    for name in draft.question:
        line = f"{_shown_name(columns[name])}: {{{{ {columns[name]} }}}}\n"
        sparse = any(is_blank(row[name]) for row in plan.table.rows)
        text += f"{{% if {columns[name]} %}}{line}{{% endif %}}" if sparse else line
    if draft.kind == "choice" and plan.generate:
        line = f"{{{{ '{LETTERS}'[loop.index0] }}}}. {{{{ option }}}}\n"
        text += f"{{% for option in {plan.options} %}}{line}{{% endfor %}}"
    return f"{text}\n{_ENDINGS[draft.kind]}"


def _literal(text: str) -> str:
    """Return what a template shows as ``text``, also where that has signs of templates."""
    signs = ("{{", "{%", "{#")
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if any(s in text for s in signs) else text


def write_task(folder: Path, task: NewTask, source: Path | None, *, force: bool) -> Path:
    """Write ``folder/NAME.yaml`` and its rows; return the file.

    Raises UsageError, with nothing changed, if a file is there already that ``force`` does not let go, or
    that is the source of the rows.
    """
    file = folder / f"{task.name}.yaml"
    for each in (file, *(folder / name for name in task.files)):
        if source is not None and each.exists() and each.resolve() == source.resolve():
            raise UsageError(f"{each}: holds the rows themselves; give the task another name, or -o FOLDER")
        if each.exists() and not force:
            raise UsageError(f"{each}: is there already (--force replaces it)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in task.files.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name).write_text("".join(lines), encoding="utf-8")
        for name, image in task.images.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(image.data)
        file.write_text(task.text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return file
