"""Records of a run: what is written, what older folders lack, and how a part that does not fit is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from cme_bench.engines.base import EngineStats
from cme_bench.reports.runs import open_run
from cme_bench.runs.folder import overlaid, read_results, read_run
from cme_bench.runs.options import RunOptions
from cme_bench.runs.rescore import rescore
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.util.errors import UsageError
from tests.support.folders import ADAPTER, MadeTask, make_run

RESULTS = Path(__file__).resolve().parent.parent.parent / "results"
TASKS = "cme_rte,cme_rte_ll"
RUN_KEYS = (
    "schema identity model adapter arguments seed bos notes versions commit machine engine tasks unanswered "
    "finished sessions engine_because"
)
KEYS = {
    "identity": "model adapter dtype engine data prompt_format",
    "model": "name path hash revision architecture parameters dtype dtype_because",
    "bos": "prefix own mode reason warning",
    "tasks.cme_rte": "domain dataset primary output_type hash n rows limit shots prompt_format policy source "
    "origin revision truncated repeats combined sampling thinking thinking_budget overrides random_baseline "
    "majority_baseline",
    "sessions.0": "started seconds items first_answer engine",
    "sessions.0.engine": "requests tokens_computed tokens_padding tokens_rowwise tokens_generated "
    "model_seconds peak_memory_bytes extra",
}
CME_KEYS = {
    "": "average_is near_tie_nats forms tasks",
    "forms.generated": "measure average domains datasets",
    "forms.generated.measure": "scale better aggregation",
    "forms.generated.average": "value stderr n",
    "forms.generated.domains.entailment": "value stderr n",
    "tasks.cme_rte": "form domain dataset primary metrics quality thinking hash",
    "tasks.cme_rte.metrics.acc": "value stderr n scale better aggregation",
}
RECORD_KEYS = {
    "cme_rte": "id key task scores answer response target truncated prompt choices doc repeat repeats",
    "cme_rte_ll": "id key task scores response target truncated prompt choices doc repeat repeats",
}
RESPONSE_KEYS = {"cme_rte": "text n_tokens finish", "cme_rte_ll": "logprobs greedy margin"}


@pytest.fixture(scope="module")
def answered(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("records") / "run"
    run(RunOptions(model=str(tiny_checkpoint), tasks=TASKS, data="mini", out=out, limit=4))
    return out


def at(value: Any, path: str) -> Any:
    for step in filter(None, path.split(".")):
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def test_the_files_have_their_keys_in_their_order(answered: Path) -> None:
    content = json.loads((answered / "run.json").read_text())
    assert " ".join(content) == RUN_KEYS
    for path, keys in KEYS.items():
        assert " ".join(at(content, path)) == keys, path
    assert content["adapter"] is None and content["tasks"]["cme_rte"]["revision"] is None
    results = json.loads((answered / "results.json").read_text())
    for path, keys in CME_KEYS.items():
        assert " ".join(at(results["cme"], path)) == keys, path
    assert results["configs"]["cme_rte"]["metadata"] == content["tasks"]["cme_rte"]
    for task, keys in RECORD_KEYS.items():
        first = json.loads(samples_file(answered, task).read_text().splitlines()[0])
        assert (" ".join(first), " ".join(first["response"])) == (keys, RESPONSE_KEYS[task])


def test_what_is_read_is_what_was_written(answered: Path) -> None:
    record, results = read_run(answered), read_results(answered)
    assert list(record.tasks) == list(results.tasks) == TASKS.split(",")
    assert record.tasks["cme_rte"].n == 4 and record.finished
    [session] = record.sessions
    assert session.engine is not None and record.stats == session.engine
    assert record.stats.tokens_computed > 0
    assert len(list(read_records(samples_file(answered, "cme_rte")))) == 4


def test_every_committed_run_loads() -> None:
    folders = [file.parent for root in (RESULTS, Path(__file__).parent) for file in root.rglob("run.json")]
    assert folders
    for folder in folders:
        view = open_run(folder)
        assert view.results.tasks and all(task.score.n for task in view.results.tasks.values()), folder
        assert view.run.stats.model_seconds >= 0


def test_an_older_folder_needs_the_least(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", {"cme_a": MadeTask([1.0, 0.0])}).folder
    content = json.loads((folder / "run.json").read_text())
    least = ("identity", "model", "versions", "tasks")
    empty = dict.fromkeys(("adapter", "seed", "bos", "notes", "engine", "sessions", "finished", "commit"))
    (folder / "run.json").write_text(json.dumps({key: content[key] for key in least} | empty))
    results = json.loads((folder / "results.json").read_text())["cme"]
    del results["average_is"], results["near_tie_nats"], results["forms"]["generated"]["measure"]
    for part in ("scale", "better", "aggregation"):
        del results["tasks"]["cme_a"]["metrics"]["acc"][part]
    (folder / "results.json").write_text(json.dumps({"cme": results}))
    view = open_run(folder)
    assert (view.label, view.method, view.logits, view.run.stats) == (
        "smollm2",
        "base",
        "float32",
        EngineStats(),
    )
    assert view.measure("generated").kind == ""


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        ("run.json", "tasks.cme_b.n", "x", r"run\.json: tasks: cme_b: n: must be a whole number, not text"),
        ("run.json", "tasks.cme_b.rows", -1, r"run\.json: tasks: cme_b: rows: must be a whole number >= 0"),
        ("run.json", "tasks.cme_b.limit", 1.5, "tasks: cme_b: limit: must be a whole number or null, not"),
        ("run.json", "sessions.0.seconds", None, "sessions: 0: seconds: must be a number, not null"),
        ("run.json", "sessions.0.engine.model_seconds", "x", "sessions: 0: engine: model_seconds: must be"),
        ("run.json", "versions.torch", 2, r"run\.json: versions: torch: must be text, not a whole number"),
        ("run.json", "adapter.rank", [], "adapter: rank: must be a whole number or null, not a list"),
        ("run.json", "arguments.include", "x", r"run\.json: arguments: include: must be a list or null"),
        ("run.json", "identity.engine", ..., r"run\.json: identity: 'engine' is missing"),
        (
            "results.json",
            "cme.tasks.cme_b.metrics.acc.n",
            None,
            r"tasks: cme_b: metrics: acc: n: must be",
        ),
        ("results.json", "cme.tasks.cme_b.primary", "em", r"results\.json: task cme_b has no score 'em'"),
        (
            "results.json",
            "cme.forms.generated.domains.nli",
            1,
            "generated: domains: nli: must be an obj",
        ),
        ("results.json", "cme", ..., r"results\.json: 'cme' is missing"),
    ],
)
def test_a_part_that_does_not_fit_is_named(
    tmp_path: Path, file: str, path: str, value: Any, message: str
) -> None:
    tasks = {"cme_a": MadeTask([1.0, 0.0]), "cme_b": MadeTask([1.0, 0.0], dataset="b")}
    folder = make_run(tmp_path / "r", tasks, adapter=ADAPTER).folder
    content = json.loads((folder / file).read_text())
    parent, _, last = path.rpartition(".")
    part = at(content, parent)
    if value is ...:
        del part[last]
    else:
        part[last] = value
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message):
        open_run(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "1"}, r"cme_a\.jsonl:2: broken record \(id: must be a whole number, not text\)"),
        ({"id": -1}, r"id: must be a whole number >= 0"),
        ({"response": {}}, "neither a text nor a log-likelihood for every choice"),
        (
            {"response": {"logprobs": [-1.0, "x"], "greedy": [True]}},
            "response: logprobs: 1: must be a number",
        ),
        ({"response": {"logprobs": [-1.0], "greedy": []}}, "whether it is 'greedy'"),
        ({"answer": {"text": "x"}}, "answer: 'rule' is missing"),
        ({"scores": None}, "scores: must be an object, not null"),
        ({"key": ...}, "'key' is missing"),
    ],
)
def test_a_record_that_does_not_fit_is_named_with_its_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = samples_file(make_run(tmp_path / "r", {"cme_a": MadeTask([1.0, 0.0, 1.0])}).folder, "cme_a")
    lines = file.read_text().splitlines()
    changed = {k: v for k, v in (json.loads(lines[1]) | changes).items() if v is not ...}
    file.write_text("\n".join([lines[0], json.dumps(changed), lines[2], ""]))
    with pytest.raises(UsageError, match=message):
        list(read_records(file))


def test_rescoring_keeps_what_another_version_wrote(answered: Path) -> None:
    content = json.loads((answered / "run.json").read_text())
    content["tasks"]["cme_rte"]["later"] = {"field": [1]}
    content["of_a_later_version"] = "kept"
    del content["notes"]
    (answered / "run.json").write_text(json.dumps(content))
    before = copy.deepcopy(content)
    rescore(answered)
    after = json.loads((answered / "run.json").read_text())
    assert after.pop("rescored")[0]["versions"]
    assert after == before and list(after) == list(before)


def test_laying_one_over_the_other_adds_values_only() -> None:
    old = {"b": {"x": 1, "y": 2}, "a": 1.0}
    assert overlaid(old, {"a": 1, "b": {"x": 3}, "c": None, "d": [], "e": 5}) == {
        "b": {"x": 3, "y": 2},
        "a": 1,
        "e": 5,
    }


def test_counters_add_up_and_peaks_do_not() -> None:
    parts = [
        EngineStats(requests=1, tokens_computed=2, model_seconds=0.5, peak_memory_bytes=7, extra={"a": 1}),
        EngineStats(requests=3, tokens_generated=4, peak_memory_bytes=5, extra={"a": 2, "b": 1}),
    ]
    assert EngineStats.total(parts) == EngineStats(
        requests=4,
        tokens_computed=2,
        tokens_generated=4,
        model_seconds=0.5,
        peak_memory_bytes=7,
        extra={"a": 3, "b": 1},
    )
