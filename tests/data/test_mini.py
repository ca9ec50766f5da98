"""The mini items that ship with the package: shape, balance, and that we wrote them ourselves."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "cme_bench" / "data" / "mini"
REAL = Path(os.environ.get("CME_SHARED_DATA") or ROOT.parent / "shared" / "data")

Row = dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """What one dataset must look like. A field is `name`, or `name.sub` for a key inside a dict."""

    evals: str
    shots: str
    fields: str
    unique: str  # the field that says what is asked
    gold: str = ""  # the field to balance; empty for free-form answers
    values: tuple[Any, ...] = ()
    n_shots: int = 5
    folder: str = ""  # where it is not the dataset's name


ABCD = tuple("ABCD")
ANLI = Spec("test", "validation", "uid premise hypothesis label reason", "hypothesis", "label", (0, 1, 2))
ARC = Spec("test", "train", "id question choices.text choices.label answerKey", "question", "answerKey", ABCD)
TRIVIA = "aliases normalized_aliases matched_wiki_entity_name normalized_matched_wiki_entity_name".split()
TRIVIA += ["normalized_value", "type", "value"]

MM_NAME = Spec("test", "train", "image choices label others", "image", "label", (0, 1, 2, 3), n_shots=4)
CALC = Spec("test", "train", "id question chain result result_float equation", "question")

SPECS: dict[str, Spec] = {
    "tldr": Spec("test", "train", "id subreddit title post summary", "post"),
    "xsum": Spec("test", "train", "document summary id", "document"),
    "samsum": Spec("test", "validation", "id dialogue summary", "dialogue"),
    "imdb": Spec("test", "train", "text label", "text", "label", (0, 1)),
    "sst2": Spec("validation", "train", "sentence label idx", "sentence", "label", (0, 1)),
    "emotion": Spec("test", "train", "text label", "text", "label", (0, 1, 2, 3, 4, 5), n_shots=6),
    "anli_r1": ANLI,
    "anli_r2": ANLI,
    "anli_r3": ANLI,
    "mnli": Spec(
        "validation_matched", "train", "premise hypothesis label idx", "hypothesis", "label", (0, 1, 2)
    ),
    "snli": Spec("test", "train", "premise hypothesis label", "premise", "label", (0, 1, 2)),
    "snli_2way": Spec(
        "validation", "train", "premise hypothesis label", "premise", "label", (0, 1, 2), folder="snli"
    ),
    "qqp": Spec("validation", "train", "question1 question2 label idx", "question1", "label", (0, 1)),
    "mrpc": Spec("test", "train", "sentence1 sentence2 label idx", "sentence1", "label", (0, 1)),
    "rte": Spec("validation", "train", "sentence1 sentence2 label idx", "sentence1", "label", (0, 1)),
    "winogrande": Spec(
        "validation", "train", "sentence option1 option2 answer", "sentence", "answer", ("1", "2")
    ),
    "commonsense_qa": Spec(
        "validation",
        "train",
        "id question question_concept choices.label choices.text answerKey",
        "question",
        "answerKey",
        tuple("ABCDE"),
    ),
    "hellaswag": Spec(
        "validation",
        "train",
        "ind activity_label ctx_a ctx_b ctx endings source_id split split_type label",
        "ctx",
        "label",
        ("0", "1", "2", "3"),
    ),
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "openbookqa": Spec(
        "test",
        "train",
        "id question_stem choices.text choices.label answerKey",
        "question_stem",
        "answerKey",
        ABCD,
    ),
    "sciq": Spec(
        "validation",
        "train",
        "question distractor1 distractor2 distractor3 correct_answer support",
        "question",
    ),
    "nq_open": Spec("validation", "train", "question answer", "question"),
    "triviaqa": Spec(
        "validation",
        "train",
        "question question_id question_source " + " ".join(f"answer.{k}" for k in TRIVIA),
        "question",
    ),
    "boolq": Spec("validation", "train", "question passage idx label", "question", "label", (0, 1)),
    "squad": Spec(
        "validation", "train", "id title context question answers.text answers.answer_start", "question"
    ),
    "mmlu": Spec("test", "dev", "question subject choices answer", "question", "answer", (0, 1, 2, 3), 20),
    "cmmlu": Spec("test", "dev", "Question A B C D Answer subject", "Question", "Answer", ABCD, 10),
    "gsm8k": Spec("test", "train", "question answer", "question"),
    "piqa": Spec("validation", "train", "goal sol1 sol2 label", "goal", "label", (0, 1)),
    "siqa": Spec(
        "validation",
        "train",
        "context question answerA answerB answerC label",
        "context",
        "label",
        ("1", "2", "3"),
    ),
    "aqua": Spec(
        "test", "train", "question options rationale correct", "question", "correct", tuple("ABCDE")
    ),
    "mawps": CALC,
    "mm_easy_vqa": Spec("test", "train", "image question choices label", "image", n_shots=4),
    "mm_emoji_name": MM_NAME,
    "mm_flags": MM_NAME,
    "mm_emoji_count": Spec(
        "test", "train", "image name count", "image", "count", (1, 2, 3, 4, 5, 6), n_shots=6
    ),
    "mm_emoji_where": Spec(
        "test", "train", "image one other choices label", "image", "label", (0, 1), n_shots=4
    ),
    "mm_emoji_pope": Spec(
        "test", "train", "image name answer absent", "image", "answer", ("yes", "no"), n_shots=4
    ),
    "mm_digits": Spec("test", "train", "image label", "image", n_shots=4),
    "svamp": replace(CALC, shots="", n_shots=0),  # the hub has one split of it
}
SUBJECTS = {
    "mmlu": {"astronomy", "computer_security", "high_school_geography", "world_religions"},
    "cmmlu": {"astronomy", "computer_science"},
}
each_dataset = pytest.mark.parametrize("name", list(SPECS))


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def folder(name: str) -> str:
    return SPECS[name].folder or name


def mini(name: str, part: str) -> list[Row]:
    split = getattr(SPECS[name], part)
    return read(MINI / folder(name) / f"{split}.jsonl") if split else []


def shape(row: Row) -> dict[str, str]:
    """Every key of a row, nested ones with a dot, and the type of its value (with that of list members)."""
    out: dict[str, str] = {}
    for key, value in row.items():
        for sub, leaf in value.items() if isinstance(value, dict) else [("", value)]:
            kind = type(leaf).__name__
            if isinstance(leaf, list):
                kind += "/" + "+".join(sorted({type(x).__name__ for x in leaf}))
            out[f"{key}.{sub}" if sub else key] = kind
    return out


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def asked(name: str, row: Row) -> str:
    return " ".join(str(row[SPECS[name].unique]).lower().split())


def test_the_table_and_the_folder_name_the_same_files() -> None:
    found = {str(p.relative_to(MINI)) for p in MINI.rglob("*.jsonl")}
    named = {f"{folder(n)}/{s}.jsonl" for n, spec in SPECS.items() for s in (spec.evals, spec.shots) if s}
    assert found == named


@each_dataset
def test_there_are_enough_items(name: str) -> None:
    assert len(mini(name, "evals")) >= 12
    assert len(mini(name, "shots")) == SPECS[name].n_shots


@each_dataset
def test_every_row_has_the_fields_and_no_empty_text(name: str) -> None:
    rows = mini(name, "evals") + mini(name, "shots")
    assert len({json.dumps(shape(row), sort_keys=True) for row in rows}) == 1
    assert set(shape(rows[0])) == set(SPECS[name].fields.split())
    may_be_empty = {"ctx_b", "matched_wiki_entity_name", "normalized_matched_wiki_entity_name"}
    for row in rows:
        flat = {**row, **(row["answer"] if isinstance(row.get("answer"), dict) else {})}
        for key in flat.keys() - may_be_empty - {"answer"}:
            assert all(text.strip() for text in strings(flat[key])), (key, row)


@each_dataset
def test_labels_are_balanced(name: str) -> None:
    spec = SPECS[name]
    if not spec.gold:
        pytest.skip("answers are free text")
    evals = Counter(row[spec.gold] for row in mini(name, "evals"))
    assert set(evals) == set(spec.values)
    assert len(set(evals.values())) == 1
    shots = Counter(dict.fromkeys(spec.values, 0))
    shots.update(row[spec.gold] for row in mini(name, "shots"))
    assert set(shots) == set(spec.values)
    assert max(shots.values()) - min(shots.values()) <= 1


@each_dataset
def test_nothing_is_asked_twice(name: str) -> None:
    evals = [asked(name, row) for row in mini(name, "evals")]
    shots = [asked(name, row) for row in mini(name, "shots")]
    assert len(set(evals)) == len(evals)
    assert len(set(shots)) == len(shots)
    assert not set(evals) & set(shots)


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "openbookqa", "commonsense_qa"])
def test_choices_are_distinct_and_labelled(name: str) -> None:
    for row in mini(name, "evals") + mini(name, "shots"):
        assert tuple(row["choices"]["label"]) == SPECS[name].values
        assert len(set(row["choices"]["text"])) == len(SPECS[name].values)


def test_other_multiple_choice_rows_have_distinct_choices() -> None:
    for part in ("evals", "shots"):
        for row in mini("sciq", part):
            wrong = {row[f"distractor{i}"] for i in (1, 2, 3)}
            assert len(wrong | {row["correct_answer"]}) == 4
        for row in mini("hellaswag", part):
            assert len(set(row["endings"])) == 4
            assert row["ctx"] == f"{row['ctx_a']} {row['ctx_b']}".strip()
        for row in mini("mmlu", part):
            assert len(set(row["choices"])) == 4
        for row in mini("cmmlu", part):
            assert len({row[letter] for letter in ABCD}) == 4
        for row in mini("winogrande", part):
            assert row["sentence"].count("_") == 1
            assert row["option1"] != row["option2"]


@pytest.mark.parametrize("name", list(SUBJECTS))
def test_each_subject_has_five_exemplars(name: str) -> None:
    assert {row["subject"] for row in mini(name, "evals")} == SUBJECTS[name]
    assert Counter(row["subject"] for row in mini(name, "shots")) == dict.fromkeys(SUBJECTS[name], 5)


def test_sums_of_the_word_problems_are_right() -> None:
    for row in (*mini("mawps", "evals"), *mini("mawps", "shots"), *mini("svamp", "evals")):
        assert float(row["result"]) == row["result_float"]
        left, _, right = row["equation"].rpartition("=")
        if left in ("", "x"):
            assert eval(right) == row["result_float"]
    for row in (*mini("aqua", "evals"), *mini("aqua", "shots")):
        assert [option[:2] for option in row["options"]] == ["A)", "B)", "C)", "D)", "E)"]
        assert len(set(row["options"])) == 5


def test_squad_answers_lie_where_they_say() -> None:
    for row in mini("squad", "evals") + mini("squad", "shots"):
        answers = row["answers"]
        assert len(answers["text"]) == len(answers["answer_start"]) > 0
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text


def test_boolq_passages_start_with_a_title() -> None:
    for row in mini("boolq", "evals") + mini("boolq", "shots"):
        title, mark, passage = row["passage"].partition(" -- ")
        assert title and mark and passage


def normalized(text: str) -> str:
    bare = re.sub(r"[^\w\s]", " ", text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def test_triviaqa_normal_forms_agree_with_the_aliases() -> None:
    for row in mini("triviaqa", "evals") + mini("triviaqa", "shots"):
        answer = row["answer"]
        assert answer["value"] in answer["aliases"]
        assert answer["normalized_value"] == normalized(answer["value"])
        assert set(answer["normalized_aliases"]) == {normalized(alias) for alias in answer["aliases"]}


def test_gsm8k_steps_compute_the_final_answer() -> None:
    for row in mini("gsm8k", "evals") + mini("gsm8k", "shots"):
        steps = re.findall(r"<<([\d+\-*/.]+)=([\d.]+)>>", row["answer"])
        assert steps and len(steps) == row["answer"].count("<<")
        for sum_, result in steps:
            assert eval(sum_) == float(result)  # digits and + - * / . only
        final = re.search(r"\n#### (\d+)$", row["answer"])
        assert final is not None
        assert final.group(1) == steps[-1][1]


def real_files(name: str) -> list[Path]:
    if not REAL.is_dir():
        pytest.skip(f"no real data at {REAL}")
    files = sorted((REAL / folder(name)).glob("*.jsonl"))
    if not files:
        pytest.skip(f"no {name} at {REAL}")
    return files


@each_dataset
def test_shapes_equal_those_of_the_real_rows(name: str) -> None:
    files = {path.stem: path for path in real_files(name)}
    checked = 0
    for part in ("evals", "shots"):
        split = getattr(SPECS[name], part)
        if split in files:
            with files[split].open(encoding="utf-8") as lines:
                assert shape(json.loads(next(lines))) == shape(mini(name, part)[0])
            checked += 1
    assert checked


def flat(text: str) -> str:
    return " ".join(text.lower().split())


@pytest.mark.slow
def test_no_text_is_copied_from_the_real_data() -> None:
    """Our longer strings, spacing and case aside, must not occur anywhere in any of the real datasets."""
    if not REAL.is_dir():
        pytest.skip(f"no real data at {REAL}")
    rows = [row for name in SPECS for part in ("evals", "shots") for row in mini(name, part)]
    ours = {line for row in rows for text in strings(row) if len(line := flat(text)) > 30}
    assert ours
    for path in sorted(REAL.glob("*/*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            everything = "\n".join(flat(text) for line in lines for text in strings(json.loads(line)))
        copied = [text for text in ours if text in everything]
        assert not copied, f"{path}: {copied}"
