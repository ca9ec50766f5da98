"""N-gram overlap: planted ones are found, near misses are not, against a plain set of word tuples."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cme_bench.cli import main
from cme_bench.experiments import contamination
from cme_bench.experiments.contaminated_run import check_run, file_texts
from cme_bench.experiments.contamination import find_overlaps, row_texts, words
from cme_bench.experiments.training_texts import training_texts
from cme_bench.util.errors import UsageError

WORDS = [f"w{i}" for i in range(40)]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["cme-bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


def text(source: random.Random, length: int) -> str:
    return " ".join(source.choices(WORDS, k=length))


def reference(rows: dict[int, dict[str, str]], texts: list[str], n: int) -> set[int]:
    """Items that share an n-gram, by sets of tuples; a short item by the whole of its longest field."""

    def grams(field: list[str], length: int) -> set[tuple[str, ...]]:
        return {tuple(field[i : i + length]) for i in range(len(field) - length + 1)}

    found = set()
    for item, row in rows.items():
        fields = sorted((value.lower().split() for value in row.values()), key=len, reverse=True)
        long = [f for f in fields if len(f) >= n] or [f for f in fields[:1] if len(f) >= min(8, n)]
        for field in long:
            length = min(n, len(field))
            if any(grams(field, length) & grams(t.lower().split(), length) for t in texts):
                found.add(item)
    return found


@pytest.mark.parametrize("n", [5, 13])
@pytest.mark.parametrize("seed", range(5))
def test_it_agrees_with_sets_of_words(seed: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "BATCH_TEXTS", 3)
    source = random.Random(seed)
    rows = {
        i: {"q": text(source, source.randrange(4, 30)), "a": text(source, source.randrange(3, 15))}
        for i in range(40)
    }
    rows[40] = {"q": text(source, 20)}
    texts = [text(source, source.randrange(0, 40)) for _ in range(10)] + [f"x {rows[40]['q']} y"]
    for item in source.sample(range(40), 12):  # planted: a part of an item amid other words
        field = rows[item]["q"].split()
        start = source.randrange(len(field))
        part = field[start : start + source.randrange(3, 20)]
        texts.append(" ".join([*text(source, 4).split(), *part, *text(source, 4).split()]))
    [found] = find_overlaps({"t": rows}, iter(texts), n=n)
    assert set(found.overlapping) == reference(rows, texts, n)
    assert 40 in found.overlapping


def test_case_and_punctuation_do_not_hide_an_overlap_and_fields_do_not_join() -> None:
    rows = {0: {"q": "One two three, four five six seven eight nine ten eleven twelve thirteen!"}}
    hidden = "zero ONE two; three four (five) six seven eight nine ten eleven twelve thirteen fourteen"
    assert find_overlaps({"t": rows}, [hidden])[0].overlapping == (0,)
    one_word = hidden.replace("seven", "sieben")
    assert find_overlaps({"t": rows}, [one_word])[0].overlapping == ()
    halves = hidden.split(" eight ")
    assert find_overlaps({"t": rows}, [halves[0], "eight " + halves[1]])[0].overlapping == ()
    parted = {0: {"q": "one two three four five six seven", "a": "eight nine ten eleven twelve thirteen"}}
    assert find_overlaps({"t": parted}, [hidden])[0].checked == 0


def test_neither_two_fields_nor_two_texts_join() -> None:
    fields = {"q": " ".join(WORDS[:13]), "a": " ".join(WORDS[13:26])}
    texts = [" ".join(WORDS[6:13]), " ".join(WORDS[13:20])]  # one after the other, as in the item
    assert find_overlaps({"t": {0: fields}}, texts)[0].overlapping == ()
    assert find_overlaps({"t": {0: fields}}, [" ".join(WORDS[:13])])[0].overlapping == (0,)


def test_short_items_are_compared_whole_and_tiny_ones_not_at_all() -> None:
    rows = {0: {"q": "a b c d e f g h"}, 1: {"q": "a b c d e f g"}, 2: {"q": "a b c d e f g x"}}
    [found] = find_overlaps({"t": rows}, ["x a b c d e f g h y"])
    assert (found.items, found.checked, found.overlapping) == (3, 2, (0,))
    assert found.share == 0.5
    [none] = find_overlaps({"t": {0: {"label": 3}}}, ["x"])
    assert math.isnan(none.share)


def test_chinese_is_read_by_characters() -> None:
    assert words("太阳系 has 八 planets.") == ["太", "阳", "系", "has", "八", "planets"]
    rows = {0: {"q": "太阳系八大行星中公转周期最长的是"}}
    assert find_overlaps({"t": rows}, ["题：太阳系八大行星中，公转周期最长的是？"])[0].overlapping == (0,)


def test_texts_are_read_once_as_a_stream() -> None:
    seen = []

    def stream() -> Iterator[str]:
        for i in range(10_000):
            seen.append(i)
            yield f"text {i}"

    assert find_overlaps({"t": {0: {"q": "nothing of that"}}}, stream())[0].overlapping == ()
    assert len(seen) == 10_000


def test_every_text_of_a_row_counts() -> None:
    row = {"a": "x", "b": {"text": ["y", "z"], "n": [1]}, "c": None}
    assert list(row_texts(row)) == ["x", "y", "z"]


def record(id_: int, doc: dict[str, Any], acc: float) -> dict[str, Any]:
    asked = {"key": "k", "task": "own", "prompt": "", "choices": [], "target": "", "truncated": 0}
    scores = {"acc": acc, "answered": 1.0}
    return asked | {"id": id_, "doc": doc, "response": {"text": ""}, "scores": scores}


def run_folder(folder: Path) -> Path:
    (folder / "samples").mkdir(parents=True)
    questions = [text(random.Random(i), 20) for i in range(4)]
    records = [record(i, {"q": q}, float(i < 2)) for i, q in enumerate(questions)]
    lines = [json.dumps(r) + "\n" for r in [records[0] | {"scores": {"acc": 0.0}}, *records]]
    (folder / "samples" / "own.jsonl").write_text("".join(lines))
    score = {"value": 0.5, "stderr": 0.25, "n": 4}
    task = {"form": "generated", "domain": "own", "dataset": "own", "primary": "acc", "hash": "0"}
    tasks = {"own": task | {"metrics": {"acc": score}, "quality": {}}}
    forms = {"generated": {"average": score, "domains": {"own": score}}}
    (folder / "results.json").write_text(json.dumps({"cme": {"forms": forms, "tasks": tasks}}))
    return folder


def test_it_is_written_beside_the_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run")
    corpus = tmp_path / "corpus.jsonl"
    questions = [text(random.Random(i), 20) for i in (0, 3)]
    corpus.write_text("".join(json.dumps({"text": [q], "meta": {"n": 1}}) + "\n" for q in questions))
    command(monkeypatch, "contamination", run, "--train", corpus)
    header, line = (run / "contamination.csv").read_text().splitlines()
    found = dict(zip(header.split(","), line.split(","), strict=True))
    assert (found["task"], found["items"], found["checked"], found["overlapping"]) == ("own", "4", "4", "2")
    assert (float(found["share"]), float(found["score"]), float(found["clean_score"])) == (0.5, 0.5, 0.5)
    assert found["clean_n"] == "2"
    detail = json.loads((run / "contamination.json").read_text())
    assert detail["tasks"]["own"]["overlapping"] == [0, 3]
    assert (detail["training"], detail["n"]) == (str(corpus), 13)
    assert "own" in capsys.readouterr().out


def test_the_mixture_is_what_train_would_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cme_bench.tasks.sources import mini_source

    run = run_folder(tmp_path / "run")
    row = json.loads((mini_source().folder / "boolq" / "train.jsonl").read_text().splitlines()[0])
    with (run / "samples" / "own.jsonl").open("a") as stream:
        stream.write(json.dumps(record(9, row, 1.0)) + "\n")
    for datasets, overlapping in (("boolq", [9]), ("rte", [])):
        command(monkeypatch, "contamination", run, "--train", "mini", "--datasets", datasets)
        detail = json.loads((run / "contamination.json").read_text())
        assert detail["tasks"]["own"]["overlapping"] == overlapping


def test_items_with_images_are_not_compared_by_their_text(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    question = text(random.Random(0), 20)
    file = run / "samples" / "own.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    [before] = check_run(run, [question], training="corpus")
    assert (before.checked, before.overlapping) == (4, (0,))
    file.write_text("".join(json.dumps(line | {"images": ["0" * 64]}) + "\n" for line in lines))
    [seen] = check_run(run, [question], training="corpus")
    assert (seen.checked, seen.overlapping) == (0, ())


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"a": "b"}\n{"a": \n')
    with pytest.raises(UsageError, match=r"corpus\.jsonl:2: not JSON"):
        check_run(run, file_texts(corpus), training="corpus")
    with pytest.raises(UsageError, match=r"corpus\.bin: training texts are read from"):
        list(file_texts(tmp_path / "corpus.bin"))
    (tmp_path / "corpus.txt").write_text("one\ntwo\n")
    assert [line.strip() for line in file_texts(tmp_path / "corpus.txt")] == ["one", "two"]
    (run / "samples" / "own.jsonl").unlink()
    with pytest.raises(UsageError, match="holds no records"):
        check_run(run, [], training="nothing")


def test_own_rows_of_every_kind_are_compared(tmp_path: Path) -> None:
    words_ = "one two three four five six seven eight nine ten eleven twelve thirteen"
    row = {"instruction": "Say it.", "output": words_, "answer": "kept too"}
    talk = {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": words_}]}
    files = {
        "a.json": json.dumps([row]),
        "b.jsonl": json.dumps(talk),
        "c.csv": f"prompt,completion\nx,{words_}\n",
    }
    (tmp_path / "rows").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / "rows" / name).write_text(text)
    for name in (*files, "rows"):
        texts = list(training_texts(str(tmp_path / name)))
        assert texts.count(words_) == (len(files) if name == "rows" else 1), name
        [found] = find_overlaps({"t": {0: {"question": words_}}}, texts)
        assert found.overlapping == (0,)
    assert "kept too" in list(training_texts(f"commonsense-170k={tmp_path / 'a.json'}"))
    with pytest.raises(UsageError, match="no such folder or file"):
        list(training_texts(str(tmp_path / "absent.json")))
