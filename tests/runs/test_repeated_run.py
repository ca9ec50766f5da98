"""Runs that sample several answers to each item: seeds, resume, pass@k, votes, lm-eval's filters, packing."""

from __future__ import annotations

import base64
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import cme_bench
from cme_bench.reports.page.payload import PageBlocks, task_payload
from cme_bench.reports.runs import open_run, provenance_notes
from cme_bench.runs.folder import current_records
from cme_bench.runs.options import RunOptions
from cme_bench.runs.pack import pack_run
from cme_bench.runs.progress import Listener
from cme_bench.runs.rescore import rescore
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.scoring.record import Record
from cme_bench.scoring.repeats import pass_at_k
from cme_bench.util.errors import UsageError
from tests.support import thinking_templates as templates
from tests.support.scripted import END, save_scripted

DICE = {"\n": {"yes": 0.5, "no": 0.3, "hm": 0.2}, "yes": END, "no": END, "hm": END}
N_ITEMS = 6
OWN = """\
task: own_gen
dataset_path: own/data
test_split: test
output_type: generate_until
doc_to_text: "{{ question }}"
doc_to_target: "{{ label }}"
doc_to_choice: ["no", "yes"]
generation_kwargs: {until: ["."], max_gen_toks: 4}
metadata: {dataset: own, answer: {type: label}}
"""
VOTES = """\
task: votes
dataset_path: own/data
test_split: test
output_type: generate_until
doc_to_text: "{{ question }}"
doc_to_target: "yes"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: true, temperature: 1.0}
repeats: 5
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: first, filter: [{function: take_first}]}
  - {name: maj3, filter: [{function: take_first_k, k: 3}, {function: majority_vote}, {function: take_first}]}
  - {name: maj5, filter: [{function: majority_vote}, {function: take_first}]}
metadata: {dataset: own}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks over six questions, and a model that answers them by throwing dice."""
    folder = tmp_path_factory.mktemp("repeats")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "own.yaml").write_text(OWN)
    (folder / "tasks" / "votes.yaml").write_text(VOTES)
    (folder / "data" / "own").mkdir(parents=True)
    rows = [json.dumps({"question": f"Is {i} a number?", "label": 1}) for i in range(N_ITEMS)]
    (folder / "data" / "own" / "test.jsonl").write_text("\n".join(rows) + "\n")
    save_scripted(folder / "model", DICE, templates.QWEN3)
    return folder


def options(files: Path, out: Path, **changes: Any) -> RunOptions:
    settings: dict[str, Any] = {"tasks": "own_gen", "temperature": 1.0, "repeats": 5, "thinking": "template"}
    return RunOptions(
        model=str(files / "model"),
        include=(files / "tasks",),
        data=str(files / "data"),
        out=out,
        **settings | changes,
    )


def ask(files: Path, out: Path, listener: Listener | None = None, **changes: Any) -> Path:
    return run(options(files, out, **changes), listener)[0]


def texts(folder: Path, task: str = "own_gen") -> dict[tuple[int, int], str]:
    records = read_records(samples_file(folder, task))
    return {(r.id, r.repeat): r.response.text or "" for r in records}


class KilledError(Exception):
    pass


class Killer(Listener):
    """Ends a run, as a crash would, once some answers are stored."""

    def advance(self, items: int, detail: str = "") -> None:
        if items:
            raise KilledError


def test_means_passes_and_votes_are_those_of_the_answers(files: Path, tmp_path: Path) -> None:
    folder = ask(files, tmp_path / "r")
    found = texts(folder)
    assert len(found) == 5 * N_ITEMS
    right = np.array([[found[i, r] == "yes" for r in range(5)] for i in range(N_ITEMS)], dtype=float)
    assert 0 < right.mean() < 1
    task = open_run(folder).results.tasks["own_gen"]
    assert task.score.n == N_ITEMS
    assert task.score.value == pytest.approx(right.mean())
    assert task.score.stderr == pytest.approx(right.mean(1).std(ddof=1) / math.sqrt(N_ITEMS))
    for k in (1, 2, 4, 5):
        each = [pass_at_k(5, int(c), k) for c in right.sum(1)]
        assert task.metrics[f"pass@{k}"].value == pytest.approx(np.mean(each))
    votes = []
    for i in range(N_ITEMS):
        counts = {a: [found[i, r] for r in range(5)].count(a) for a in ("yes", "no")}
        most = max(counts.values())
        best = [a for a, c in counts.items() if c == most and c]
        votes.append(float("yes" in best) / max(1, len(best)))
    assert task.metrics["maj@5"].value == pytest.approx(np.mean(votes))
    assert ",pass@4," in (folder / "summary.csv").read_text()
    [line] = provenance_notes([open_run(folder)], ["m"])
    assert "sampled at temperature 1, repeats 5" in line
    planned = open_run(folder).run.tasks["own_gen"]
    assert (planned.repeats, planned.n) == (5, N_ITEMS)
    assert planned.sampling == {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


def test_answers_depend_on_the_seed_and_on_nothing_else(files: Path, tmp_path: Path) -> None:
    whole = texts(ask(files, tmp_path / "a"))
    one_by_one = texts(ask(files, tmp_path / "b", settings={"tokens_per_batch": 1, "shared_prefixes": 0}))
    assert one_by_one == whole
    part = texts(ask(files, tmp_path / "c", limit=3, repeats=3))
    assert len(part) == 9
    assert all(whole[key] == text for key, text in part.items())
    other = texts(ask(files, tmp_path / "d", seed=1))
    assert other != whole


def test_a_killed_run_goes_on_and_ends_the_same(files: Path, tmp_path: Path) -> None:
    whole = ask(files, tmp_path / "a")
    with pytest.raises(KilledError):
        ask(files, tmp_path / "b", Killer())
    stored = len(texts(tmp_path / "b"))
    assert 0 < stored < 5 * N_ITEMS
    file = samples_file(tmp_path / "b", "own_gen")
    file.write_bytes(file.read_bytes()[:-9])  # and the last line is torn
    resumed = ask(files, tmp_path / "b")
    assert texts(resumed) == texts(whole)
    assert open_run(resumed).run.sessions[-1].items == 5 * N_ITEMS - stored + 1
    assert (resumed / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_more_repeats_keep_what_is_stored_and_fewer_leave_it_out(files: Path, tmp_path: Path) -> None:
    folder = ask(files, tmp_path / "r", repeats=2)
    first = texts(folder)
    ask(files, folder, repeats=5)
    assert open_run(folder).run.sessions[-1].items == 3 * N_ITEMS
    assert {key: text for key, text in texts(folder).items() if key[1] < 2} == first
    ask(files, folder, repeats=2)
    assert open_run(folder).run.sessions[-1].items == 0
    task = open_run(folder).results.tasks["own_gen"]
    assert "maj@2" in task.metrics
    assert "maj@5" not in task.metrics
    assert task.score.value == pytest.approx(np.mean([text == "yes" for text in first.values()]))


def test_another_temperature_is_another_answer(files: Path, tmp_path: Path) -> None:
    folder = ask(files, tmp_path / "r")
    for changes, computed in (
        ({"temperature": 0.7}, 5 * N_ITEMS),
        ({"top_p": 0.9}, 5 * N_ITEMS),
        ({"top_k": 2}, 5 * N_ITEMS),
        ({"seed": 3}, 5 * N_ITEMS),
        ({"temperature": 0.0, "repeats": 1}, N_ITEMS),
    ):
        ask(files, folder, **changes)
        assert open_run(folder).run.sessions[-1].items == computed, changes


def test_rescoring_and_packing(files: Path, tmp_path: Path) -> None:
    folder = ask(files, tmp_path / "r")
    before = (folder / "results.json").read_bytes()
    [task] = rescore(folder)
    assert (task.items, task.changed) == (N_ITEMS, 0)
    assert (folder / "results.json").read_bytes() == before
    pack_run(folder, tmp_path / "packed")
    kept, planned = open_run(tmp_path / "packed"), open_run(folder).run.tasks["own_gen"]
    assert kept.results.tasks["own_gen"].score == open_run(folder).results.tasks["own_gen"].score
    scores = [
        [r.scores["acc"] for r in current_records(f, "own_gen", planned)]
        for f in (folder, tmp_path / "packed")
    ]
    assert scores[0] == scores[1]


def test_runs_are_compared_by_the_means_of_items(files: Path, tmp_path: Path) -> None:
    a, b = ask(files, tmp_path / "a"), ask(files, tmp_path / "b", seed=1)
    means = []
    for folder in (a, b):
        found = texts(folder)
        means.append([np.mean([found[i, r] == "yes" for r in range(5)]) for i in range(N_ITEMS)])
    difference = np.array(means[1]) - np.array(means[0])
    [row] = cme_bench.compare(a, b).forms[0].tasks
    assert row.difference.value == pytest.approx(difference.mean())
    assert row.difference.stderr == pytest.approx(difference.std(ddof=1) / math.sqrt(N_ITEMS))
    greedy = ask(files, tmp_path / "c", temperature=0.0, repeats=1)
    with pytest.raises(UsageError, match="repeats differ in own_gen"):
        cme_bench.compare(a, greedy)


def test_the_report_page_holds_every_answer(files: Path, tmp_path: Path) -> None:
    folder = ask(files, tmp_path / "r")
    blocks = PageBlocks()
    payload = task_payload([open_run(folder)], "own_gen", blocks)
    assert payload is not None
    items = json.loads(gzip.decompress(base64.b64decode(blocks.texts[payload["chunks"][0]])))
    found = texts(folder)
    assert len(items) == N_ITEMS
    for item in items:
        answers = [each["text"] for each in item["runs"][0]["repeats"]]
        assert answers == [found[item["id"], repeat] for repeat in range(5)]


def stock_scores(answers: list[list[str]]) -> dict[str, float]:
    """Exact match by the filters of VOTES, as lm-eval's own code applies them to all answers."""
    from lm_eval.api.instance import Instance
    from lm_eval.filters import build_filter_ensemble

    config = yaml.safe_load(VOTES)
    totals: dict[str, float] = {}
    for entry in config["filter_list"]:
        steps = [(s["function"], {k: v for k, v in s.items() if k != "function"}) for s in entry["filter"]]
        ensemble = build_filter_ensemble(entry["name"], steps)
        instances = [
            Instance("generate_until", {}, ("", {}), i, resps=list(r)) for i, r in enumerate(answers)
        ]
        ensemble.apply(instances)
        kept = [instance.filtered_resps[entry["name"]] for instance in instances]
        totals[entry["name"]] = float(np.mean([k == "yes" for k in kept]))
    return totals


def test_the_filters_of_a_task_file_see_all_its_answers(files: Path, tmp_path: Path) -> None:
    folder = ask(files, tmp_path / "r", tasks="votes", temperature=None, repeats=None)
    found = texts(folder, "votes")
    answers = [[found[i, r] for r in range(5)] for i in range(N_ITEMS)]
    task = open_run(folder).results.tasks["votes"]
    expected = stock_scores(answers)
    assert len(set(expected.values())) > 1
    for name, value in expected.items():
        assert task.metrics[f"em@{name}"].value == pytest.approx(value), name
    results = json.loads((folder / "results.json").read_text())["results"]["votes"]
    assert results["exact_match,maj5"] == pytest.approx(expected["maj5"])
    [outcome] = rescore(folder)
    assert outcome.changed == 0
    assert open_run(folder).results.tasks["votes"] == task


def test_votes_of_a_killed_run_are_counted_when_it_goes_on(files: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"tasks": "votes", "temperature": None, "repeats": None}
    whole = ask(files, tmp_path / "a", **asked)
    with pytest.raises(KilledError):
        ask(files, tmp_path / "b", Killer(), **asked)
    lines = samples_file(tmp_path / "b", "votes").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if b'"combined"' not in line]  # killed before it was counted
    samples_file(tmp_path / "b", "votes").write_bytes(b"".join(kept))
    resumed = ask(files, tmp_path / "b", **asked)
    assert open_run(resumed).results == open_run(whole).results


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": None}, "--repeats 5: greedy answers of task own_gen are all alike"),
        ({"temperature": 0.0}, "--repeats 5: greedy answers of task own_gen are all alike"),
        ({"temperature": 0.0, "repeats": None, "top_p": 0.5}, "--top-p is for sampled answers"),
        ({"temperature": None, "repeats": None, "top_k": 5}, "--top-k is for sampled answers"),
        ({"seed": 1 << 63}, "--seed: a whole number of at most 63 bits, not 9223372036854775808"),
        ({"seed": "1"}, "--seed: a whole number, not '1'"),
        ({"temperature": float("nan")}, "--temperature: a number of at least 0, not nan"),
        ({"temperature": 0.001}, "--temperature: 0, or from 0.01 to 100, not 0.001"),
        ({"temperature": -1.0}, "--temperature"),
        ({"top_p": 0.0}, "--top-p: above 0 and 1 at most, not 0"),
        ({"top_p": 1.5}, "--top-p: above 0 and 1 at most"),
        ({"repeats": 0}, "--repeats"),
        ({"tasks": "votes", "repeats": 3}, "makes one score of its own 5 answers"),
    ],
)
def test_what_makes_no_sense_is_refused(
    files: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ask(files, tmp_path / "r", **changes)
    assert not list((tmp_path / "r").glob("samples/*"))


def test_a_user_takes_the_place_of_a_task_visibly(files: Path, tmp_path: Path) -> None:
    folder = ask(files, tmp_path / "r", tasks="votes", temperature=0.0, repeats=None)
    record = open_run(folder).run
    assert any(
        "greedy decoding takes the place of its own sampling (temperature 1)" in n for n in record.notes
    )
    assert (record.tasks["votes"].repeats, record.tasks["votes"].sampling) == (1, None)
    assert len(texts(folder, "votes")) == N_ITEMS


def test_older_records_are_first_answers() -> None:
    assert Record.__struct_defaults__[-4:] == (0, None, None, 1)
