"""Columns of real data in three forms, without a flag: a right task, or a refusal that says what to add."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from cme_bench.authoring.guess import guess
from cme_bench.authoring.table_files import read_table
from cme_bench.util.errors import UsageError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ROWS = 150
LABELS = "name the labels"
LISTS = "say --answer-is list (each part is accepted) or --answer-is text"

OUTCOMES: dict[str, tuple[str, str, str]] = {
    # data set: (what jsonl and parquet become, the same of csv, how item 0 reads); a refusal names its flag
    "anli_r1": (LABELS, LABELS, ""),
    "anli_r2": (LABELS, LABELS, ""),
    "anli_r3": (LABELS, LABELS, ""),
    "arc_challenge": ("choice question by key", "same", "answerKey in choices.label"),
    "arc_easy": ("choice question by key", "same", "answerKey in choices.label"),
    "boolq": (LABELS, LABELS, ""),
    "cmmlu": ("choice Question by key", "same", "Answer names a column"),
    "commonsense_qa": ("choice question by key", "same", "answerKey in choices.label"),
    "emotion": (LABELS, LABELS, ""),
    "gsm8k": ("number question", "same", "answer"),
    "hellaswag": ("choice ctx by index0", "same", "label is a place"),
    "imdb": ("label is '0' in every row", "same", ""),  # its files are sorted by label
    "mmlu": ("choice question by index0", "same", "answer is a place"),
    "mnli": (LABELS, LABELS, ""),
    "mrpc": (LABELS, LABELS, ""),
    "nq_open": ("qa question", LISTS, "answer"),
    "openbookqa": ("choice question_stem by key", "same", "answerKey in choices.label"),
    "qqp": (LABELS, LABELS, ""),
    "reddit_tifu": ("the right answer '**' has no words", "the right answer '**' has no words", ""),
    "rte": (LABELS, LABELS, ""),
    "samsum": ("summary dialogue", "same", "summary"),
    "sciq": ("hold wrong options", "hold wrong options", ""),
    "snli": (LABELS, LABELS, ""),
    "squad": ("qa context,question", LISTS, "answers.text"),
    "sst2": (LABELS, LABELS, ""),
    "tldr": ("summary title,post", "same", "summary"),
    "triviaqa": ("qa question", LISTS, "answer.value"),
    "winogrande": ("choice sentence by key", "same", "answer names a column"),
    "xsum": ("summary document", "same", "summary"),
}


def right(name: str, row: dict[str, Any], how: str) -> str:
    """The right answer of a row, read again by what is known of the data set."""
    if how == "answerKey in choices.label":
        return str(row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])])
    if how == "Answer names a column":
        return str(row[row["Answer"]])
    if how == "answer names a column":
        return str(row[f"option{row['answer']}"])
    if how == "label is a place":
        return str(row["endings"][int(row["label"])])
    if how == "answer is a place":
        return str(row["choices"][row["answer"]])
    column, _, key = how.partition(".")
    value = row[column][key] if key else row[column]
    return str(value[0] if isinstance(value, list) else value)


def outcome(file: Path, rows: list[dict[str, Any]], name: str) -> str:
    """What ``tasks new`` makes of a file; every gold is compared with the rows as they were."""
    try:
        draft = guess(read_table(file))
    except UsageError as err:
        return str(err)
    how = OUTCOMES[name][2]
    for index, row in enumerate(rows):
        if draft.kind == "choice":
            gold = draft.options[index][draft.golds[index]].text
        else:
            gold = draft.references[index][0]
        assert gold.strip() == right(name, row, how).strip(), (name, file.suffix, index)
    by = f" by {draft.way}" if draft.way else ""
    return f"{draft.kind} {','.join(draft.question)}{by}"


@pytest.mark.skipif(not DATA.is_dir(), reason="real rows are in ../shared/data, which a lone clone lacks")
@pytest.mark.parametrize("name", OUTCOMES)
def test_real_columns_become_right_tasks_or_are_refused(name: str, tmp_path: Path) -> None:
    source = sorted(file for file in (DATA / name).glob("*.jsonl") if not file.stem.startswith("train"))[0]
    with source.open() as stream:
        rows = [json.loads(line) for line, _ in zip(stream, range(ROWS), strict=False)]
    frame = pandas.DataFrame(rows)
    files = {suffix: tmp_path / f"rows.{suffix}" for suffix in ("jsonl", "csv", "parquet")}
    files["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    frame.to_csv(files["csv"], index=False)
    frame.to_parquet(files["parquet"])
    typed, text, _ = OUTCOMES[name]
    for suffix, file in files.items():
        expected = typed if suffix != "csv" or text == "same" else text
        assert expected in outcome(file, rows, name), suffix


@pytest.mark.skipif(not DATA.is_dir(), reason="real rows are in ../shared/data, which a lone clone lacks")
def test_a_row_whose_answer_has_no_words_is_named() -> None:
    with pytest.raises(UsageError, match=r"train\.jsonl:\d+: the right answer ':' has no words"):
        guess(read_table(DATA / "reddit_tifu" / "train.jsonl"))


@pytest.mark.skipif(not DATA.is_dir(), reason="real rows are in ../shared/data, which a lone clone lacks")
def test_every_real_data_set_is_in_the_table() -> None:
    assert {folder.name for folder in DATA.iterdir() if folder.is_dir()} == set(OUTCOMES)
