"""A task file from rows: the YAML that asks them, written beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cme_bench.errors import UsageError, did_you_mean
from cme_bench.tasks.draft import KINDS, Draft, label_values
from cme_bench.tasks.row_files import SUFFIXES, Rows
from cme_bench.tasks.yaml_dump import dump_yaml
from cme_bench.tasks.yaml_loader import FunctionRef

FORMS = ("likelihood", "generate")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_INSTRUCTIONS = {
    "choice": "Choose the right answer to the question.",
    "label": "Classify the text.",
    "qa": "Answer the question with a name, a number or a few words.",
    "number": 'Solve the problem. End with a line of four number signs and the final number, as in "#### 5".',
    "summary": "Summarize the following text in one or two sentences.",
}
_ENDINGS = {
    "choice": "Answer:",
    "label": "Label:",
    "qa": "Answer:",
    "number": "Solution:",
    "summary": "Summary:",
}
_NEW_TOKENS = {"choice": 8, "label": 16, "qa": 32, "number": 256, "summary": 64}
_ANSWER_TYPES = {
    "choice": "letter",
    "label": "label",
    "qa": "short",
    "number": "number",
    "summary": "summary",
}


Fits: TypeAlias = Callable[[Draft, Mapping[str, Any], Sequence[str]], bool]
"""Whether a row's answer names one of its options in some way."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows come from: keys of the task file, and files to copy beside it."""

    keys: Mapping[str, Any]
    files: Mapping[str, Path]


def file_origin(name: str, test: Path, shots: Path | None) -> Origin:
    """Rows in files: copied beside the task file under its name, unless they lie there already."""
    kinds = {SUFFIXES.get(file.suffix.lower()) for file in (test, shots) if file is not None}
    if None in kinds or len(kinds) != 1:
        known = ", ".join(SUFFIXES)
        raise UsageError(f"{test}: rows are read from {known}, all of one kind")
    [kind] = kinds
    files = {f"{name}{test.suffix.lower()}": test}
    data = {"test": f"{name}{test.suffix.lower()}"}
    if shots is not None:
        data["train"] = f"{name}_train{shots.suffix.lower()}"
        files[data["train"]] = shots
    kwargs: dict[str, Any] = {"data_files": data}
    if kind == "csv":
        kwargs["keep_default_na"] = False  # "None" and "NA" are texts
    if test.suffix.lower() == ".tsv":
        kwargs["sep"] = "\t"
    keys = {"dataset_path": kind, "dataset_kwargs": kwargs, "test_split": "test"}
    return Origin(keys | ({"fewshot_split": "train"} if shots is not None else {}), files)


def task_yaml(name: str, draft: Draft, rows: Rows, origin: Origin, metadata: Mapping[str, Any]) -> str:
    """The task file. Raises UsageError, naming the row, for columns that are absent and answers that fit none
    of the options or labels."""
    _check_columns(draft, rows)
    generate = draft.form == "generate"
    answer: dict[str, Any] = {"type": _ANSWER_TYPES[draft.kind]}
    baseline = 0.0
    asked: dict[str, Any] = {}
    if draft.kind == "choice":
        options = _options(draft, rows)
        letters = f"'{LETTERS}'[:({options}) | length] | list"
        asked["doc_to_choice"] = f"{{{{ {letters if generate else options} }}}}"
        asked["doc_to_target"] = f"{{{{ {_gold(draft, rows, options)} }}}}"
        answer["options"] = f"{{{{ {options} }}}}"
        baseline = 1 / max(len(_option_texts(draft, row)) for row in rows.table)
    elif draft.kind == "label":
        found = label_values(rows, draft.answer)
        asked["doc_to_choice"] = list(_labels(draft, rows, found))
        asked["doc_to_target"] = f"{{{{ {found!r}.index({draft.answer}) }}}}"
        baseline = 1 / len(found)
    else:
        asked["doc_to_target"] = f"{{{{ {_references(draft, rows)} }}}}"
    settings = {"until": ["\n\n"], "max_gen_toks": _NEW_TOKENS[draft.kind], "do_sample": False}
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
    values = {
        "task": name,
        **({"class": FunctionRef("cme_bench.tasks.cme_task.CmeTask", Path(), 1)} if generate else {}),
        **origin.keys,
        "num_fewshot": 0,
        "output_type": "generate_until" if generate else "multiple_choice",
        "doc_to_text": _question(draft, rows),
        **asked,
        **({"generation_kwargs": settings} if generate else {"metric_list": metrics}),
        "metadata": {
            "version": 1,
            "dataset": name,
            **({"answer": answer} if generate else {}),
            "items": len(rows.table),
            **metadata,
            "random_baseline": round(baseline, 4),
        },
    }
    return (
        f"# Written by `cme-bench tasks new` ({KINDS[draft.kind]}); edit it as you like.\n{dump_yaml(values)}"
    )


def _check_columns(draft: Draft, rows: Rows) -> None:
    if draft.kind not in KINDS:
        raise UsageError(
            f"unknown type {draft.kind!r}{did_you_mean(draft.kind, KINDS)} (one of {', '.join(KINDS)})"
        )
    if draft.form not in FORMS or (draft.form == "likelihood" and draft.kind not in ("choice", "label")):
        raise UsageError(f"--form {draft.form}: {draft.kind} answers are scored as 'generate'")
    if draft.kind == "choice" and not draft.choices:
        raise UsageError(f"{rows.origin}: name the column, or columns, of the options with --choices")
    if not draft.question:
        raise UsageError(f"{rows.origin}: name the column of the question with --question")
    columns = rows.table.column_names
    for name in (*draft.question, draft.answer, *draft.choices):
        if name not in columns:
            raise UsageError(f"{rows.origin}: no column {name!r}{did_you_mean(name, columns)}")
        if not name.isidentifier():
            raise UsageError(f"{rows.origin}: a template cannot name the column {name!r}; rename it")


def _question(draft: Draft, rows: Rows) -> str:
    """The prompt's template: the instruction, the columns shown, the lettered options where one is chosen."""
    instruction = draft.instruction or _INSTRUCTIONS[draft.kind]
    if draft.kind == "label" and not draft.instruction:
        labels = _labels(draft, rows, label_values(rows, draft.answer))
        instruction += f" Answer with one of: {', '.join(labels)}."
    parts = [instruction, ""]
    parts += [f"{name.replace('_', ' ').capitalize()}: {{{{ {name} }}}}" for name in draft.question]
    if draft.kind == "choice" and draft.form == "generate":
        line = f"{{{{ '{LETTERS}'[loop.index0] }}}}. {{{{ option }}}}\n"
        parts.append(f"{{% for option in {_options(draft, rows)} %}}{line}{{% endfor %}}")
    else:
        parts.append("")
    return "\n".join([*parts, _ENDINGS[draft.kind]])


def _options(draft: Draft, rows: Rows) -> str:
    """Jinja expression of a row's options; empty columns of a short row are left out."""
    if len(draft.choices) > 1:
        return f"[{', '.join(draft.choices)}] | select('ne', none) | select('ne', '') | list"
    [name] = draft.choices
    return f"{name}.text" if isinstance(rows.table[0][name], dict) else name


def _option_texts(draft: Draft, row: Mapping[str, Any]) -> list[str]:
    if len(draft.choices) > 1:
        return [str(row[name]) for name in draft.choices if row[name] not in (None, "")]
    value = row[draft.choices[0]]
    return [str(text) for text in (value["text"] if isinstance(value, dict) else value)]


def _gold(draft: Draft, rows: Rows, options: str) -> str:
    """Jinja expression of the right option's index, by the first way in which every row names it."""
    field = draft.answer
    ways: list[tuple[str, Fits]] = [
        (f"(({options}) | map('string') | map('trim') | list).index({field} | string | trim)", _by_text),
        (f"'{LETTERS}'.index({field} | trim | upper)", _by_letter),
        (f"{field} | int", _by_index),
        (f"{field} | int - 1", _by_number),
    ]
    [name] = draft.choices if len(draft.choices) == 1 else [""]
    if name and isinstance(rows.table[0][name], dict) and "label" in rows.table[0][name]:
        ways.insert(0, (f"{name}.label.index({field})", _by_key))
    misfits = []
    for expression, fits in ways:
        misfit = _first_misfit(draft, rows, fits)
        if misfit is None:
            return expression
        misfits.append(misfit)
    row = rows.table[max(misfits)]
    raise UsageError(
        f"{rows.place(max(misfits))}: the answer {row[field]!r} is none of the options "
        f"{_option_texts(draft, row)}: neither a text, nor a letter, nor a number of theirs"
    )


def _first_misfit(draft: Draft, rows: Rows, fits: Fits) -> int | None:
    for index, row in enumerate(rows.table):
        if not fits(draft, row, _option_texts(draft, row)):
            return index
    return None


def _by_text(draft: Draft, row: Mapping[str, Any], options: Sequence[str]) -> bool:
    return str(row[draft.answer]).strip() in [option.strip() for option in options]


def _by_letter(draft: Draft, row: Mapping[str, Any], options: Sequence[str]) -> bool:
    letter = str(row[draft.answer]).strip().upper()
    return len(letter) == 1 and letter in LETTERS[: len(options)]


def _by_index(draft: Draft, row: Mapping[str, Any], options: Sequence[str]) -> bool:
    text = str(row[draft.answer]).strip()
    return text.isdecimal() and int(text) < len(options)


def _by_number(draft: Draft, row: Mapping[str, Any], options: Sequence[str]) -> bool:
    text = str(row[draft.answer]).strip()
    return text.isdecimal() and 1 <= int(text) <= len(options)


def _by_key(draft: Draft, row: Mapping[str, Any], options: Sequence[str]) -> bool:
    return row[draft.answer] in row[draft.choices[0]]["label"]


def _labels(draft: Draft, rows: Rows, found: Sequence[Any]) -> Sequence[str]:
    if draft.labels:
        if len(draft.labels) != len(found):
            names = ", ".join(map(str, found))
            raise UsageError(f"--labels: {len(draft.labels)} names for {len(found)} values ({names})")
        return draft.labels
    if not all(isinstance(value, str) for value in found):
        names = ", ".join(map(str, found))
        raise UsageError(f"{rows.origin}: name the labels {names} in this order with --labels NAME,NAME,...")
    return [str(value) for value in found]


def _references(draft: Draft, rows: Rows) -> str:
    """Jinja expression of the accepted answers."""
    value = rows.table[0][draft.answer]
    if isinstance(value, dict):
        key = next((key for key in ("text", "value", "aliases") if key in value), None)
        if key is None:
            raise UsageError(
                f"{rows.origin}: the answer is a mapping of {', '.join(value)}; give a plain column"
            )
        return f"{draft.answer}.{key}"
    if draft.separator and isinstance(value, str):
        return f"{draft.answer}.split({draft.separator!r}) | map('trim') | list"
    return draft.answer


def write_task(folder: Path, name: str, text: str, origin: Origin, *, force: bool) -> Path:
    """Write ``folder/NAME.yaml`` and copy its rows beside it; the file. UsageError if it is there already."""
    file = folder / f"{name}.yaml"
    if file.exists() and not force:
        raise UsageError(f"{file}: is there already (--force replaces it)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, source in origin.files.items():
            if source.resolve() != (folder / target).resolve():
                shutil.copyfile(source, folder / target)
        file.write_text(text, encoding="utf-8")
    except OSError as err:
        raise UsageError(f"{folder}: cannot be written ({err.strerror or err})") from err
    return file
