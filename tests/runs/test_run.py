"""A whole run on our own items with a tiny model: files, resume, keys, interruption."""

from __future__ import annotations

import copy
import csv
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf.engine import HFEngine
from cme_bench.engines.inbox import Inbox
from cme_bench.engines.logits import LogitsError
from cme_bench.reports.near_ties import tie_notes
from cme_bench.reports.run_summary import warnings
from cme_bench.reports.runs import check_alike, open_run
from cme_bench.runs.identity import response_key
from cme_bench.runs.options import RunOptions
from cme_bench.runs.progress import Listener
from cme_bench.runs.runner import run as run_all
from cme_bench.runs.store import read_records, samples_file
from cme_bench.util.errors import CmeError, InterruptedRun, UsageError

TASKS = "cme_rte,cme_rte_ll,cme_squad"


class Memory(Listener):
    """Remembers what a run reports."""

    def __init__(self) -> None:
        self.resumed: dict[str, int] = {}
        self.computed = 0

    def start(self, task: str, *, total: int, done: int) -> None:
        self.resumed[task] = done

    def advance(self, items: int, detail: str = "") -> None:
        self.computed += items


def options(model: Path, out: Path, **changes: Any) -> RunOptions:
    settings: dict[str, Any] = {"tasks": TASKS, "data": "mini", "out": out} | changes
    return RunOptions(model=str(model), **settings)


def run(asked: RunOptions, listener: Listener | None = None) -> Path:
    """The folder of a run without adapters."""
    (folder,) = run_all(asked, listener)
    return folder


def content(folder: Path, name: str) -> Any:
    return orjson.loads((folder / name).read_bytes())


def test_run_writes_every_promised_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = run(options(tiny_checkpoint, tmp_path / "r"))
    manifest, results = content(folder, "run.json"), content(folder, "results.json")
    assert manifest["model"]["path"] == str(tiny_checkpoint)
    assert manifest["finished"]
    assert set(manifest["tasks"]) == set(TASKS.split(","))
    assert len(manifest["identity"]["model"]) == 64
    assert (
        results["results"]["cme_rte_ll"]["acc,none"]
        == results["cme"]["tasks"]["cme_rte_ll"]["metrics"]["acc"]["value"]
    )
    assert "acc_norm_stderr,none" in results["results"]["cme_rte_ll"]
    assert set(results["cme"]["forms"]) == {"generated", "likelihood"}
    for task in TASKS.split(","):
        records = list(read_records(samples_file(folder, task)))
        assert sorted(r.id for r in records) == list(range(12))
        assert all(r.prompt and r.key and r.scores for r in records)
    rows = list(csv.DictReader((folder / "summary.csv").open()))
    assert list(rows[0]) == "task domain metric value stderr n scale better".split()
    mean = sum(r.scores["f1"] for r in read_records(samples_file(folder, "cme_squad"))) / 12
    assert float(
        next(r for r in rows if r["task"] == "cme_squad" and r["metric"] == "f1")["value"]
    ) == pytest.approx(mean)


def test_same_command_again_computes_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = run(options(tiny_checkpoint, tmp_path / "r"))
    before = (folder / "results.json").read_bytes()
    listener = Memory()
    run(options(tiny_checkpoint, tmp_path / "r"), listener)
    assert listener.computed == 0
    assert listener.resumed == dict.fromkeys(TASKS.split(","), 12)
    assert (folder / "results.json").read_bytes() == before
    assert len(content(folder, "run.json")["sessions"]) == 2


def test_a_larger_limit_keeps_what_is_stored(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run(options(tiny_checkpoint, tmp_path / "r", limit=5, tasks="cme_rte_ll"))
    assert content(tmp_path / "r", "results.json")["n-samples"]["cme_rte_ll"] == {
        "original": 12,
        "effective": 5,
    }
    listener = Memory()
    run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll"), listener)
    assert (listener.resumed["cme_rte_ll"], listener.computed) == (5, 7)
    listener = Memory()
    run(options(tiny_checkpoint, tmp_path / "r", limit=5, tasks="cme_rte_ll"), listener)
    assert listener.computed == 0
    assert content(tmp_path / "r", "results.json")["cme"]["tasks"]["cme_rte_ll"]["metrics"]["acc"]["n"] == 5


def test_changed_shots_are_a_miss_and_back_again_a_hit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    zero = content(run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll")), "results.json")
    listener = Memory()
    two = content(
        run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll", shots=2), listener), "results.json"
    )
    assert listener.computed == 12
    assert two["task_hashes"] != zero["task_hashes"]
    listener = Memory()
    again = content(
        run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll"), listener), "results.json"
    )
    assert listener.computed == 0
    assert again == zero
    last = {r.id: r.key for r in read_records(samples_file(tmp_path / "r", "cme_rte_ll"))}
    first = list(read_records(samples_file(tmp_path / "r", "cme_rte_ll")))[:12]
    assert last == {r.id: r.key for r in first}, "the last record of an item is the current one"


def test_bos_is_added_recorded_and_decided_by_the_user(
    tiny_checkpoint: Path, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A llama whose tokenizer adds none: the scores are those of prompts with one, and no others."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    begin = {"auto": [270], "never": []}
    for bos, ids in begin.items():
        folder = run(options(tiny_checkpoint, tmp_path / bos, tasks="cme_rte_ll", limit=1, bos=bos))
        told = content(folder, "run.json")
        assert (told["bos"]["prefix"], told["bos"]["own"], told["arguments"]["bos"]) == (ids, [], bos)
        assert [note for note in told["notes"] if "every prompt gets one" in note] == told["notes"]
        assert bool(told["notes"]) == (bos == "auto")
        (record,) = read_records(samples_file(folder, "cme_rte_ll"))
        context = [*ids, *toy_tokenizer(record.prompt)["input_ids"]]
        for choice, ours in zip(record.choices, record.response.logprobs, strict=True):
            rest = toy_tokenizer(choice)["input_ids"]
            with torch.no_grad():
                table = model(torch.tensor([context + rest])).logits[0].log_softmax(-1)
            plain = sum(float(table[len(context) - 1 + i, token]) for i, token in enumerate(rest))
            assert ours == pytest.approx(plain, abs=1e-4)
    views = [open_run(tmp_path / bos) for bos in begin]
    with pytest.raises(UsageError, match=r"the special tokens before a prompt differ: ids \[270\], the"):
        check_alike(views, allow_mixed=False)
    with pytest.raises(UsageError, match="--bos sometimes: unknown"):
        run(options(tiny_checkpoint, tmp_path / "no", tasks="cme_rte_ll", limit=1, bos="sometimes"))
    assert not (tmp_path / "no").exists()


def test_a_token_without_an_embedding_is_refused_before_weights(
    tiny_checkpoint: Path,
    tmp_path: Path,
    toy_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    grown = copy.deepcopy(toy_tokenizer)
    grown.add_tokens([f"<extra {i}>" for i in range(40)] + ["Answer:"])
    grown.save_pretrained(broken)
    monkeypatch.setattr("cme_bench.models.loaded.load_model", lambda *_, **__: pytest.fail("weights loaded"))
    with pytest.raises(UsageError, match=r"ids up to 313, the model 300 embeddings \('Answer:' is 313\)"):
        run(options(broken, tmp_path / "r", tasks="cme_rte_ll", limit=1))


def test_another_model_in_the_same_folder_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll", limit=2))
    with pytest.raises(UsageError, match="dtype float32, not bfloat16"):
        run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll", limit=2, dtype="bfloat16"))


def test_torn_last_line_is_cut_and_only_that_item_computed_again(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_squad"))
    expected = content(folder, "results.json")
    file = samples_file(folder, "cme_squad")
    file.write_bytes(file.read_bytes()[:-40])
    listener = Memory()
    run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_squad"), listener)
    assert listener.computed == 1
    assert content(folder, "results.json") == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_window_and_the_rest_follows(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    whole = run(options(tiny_checkpoint, tmp_path / "whole", tasks="cme_rte_ll"))
    original = HFEngine.serve

    def interrupted(self: HFEngine, inbox: Inbox) -> Iterator[Any]:
        for count, answer in enumerate(original(self, inbox)):
            yield answer
            if count == 3:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(HFEngine, "serve", interrupted)
    monkeypatch.setattr("cme_bench.runs.session.WINDOW_ITEMS", 2)
    with pytest.raises(InterruptedRun, match="resumes"):
        run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll"))
    monkeypatch.undo()
    listener = Memory()
    run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll"), listener)
    assert listener.resumed["cme_rte_ll"] == 6
    assert content(tmp_path / "r", "results.json")["cme"] == content(whole, "results.json")["cme"]


def test_results_of_a_finished_task_exist_while_later_ones_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    seen = {}

    class Watch(Listener):
        def start(self, task: str, *, total: int, done: int) -> None:
            if task == "cme_squad":
                seen.update(content(tmp_path / "r", "results.json")["results"])

    run(options(tiny_checkpoint, tmp_path / "r"), Watch())
    assert set(seen) == {"cme_rte", "cme_rte_ll"}


def test_tasks_are_finished_in_turn_though_an_engine_answers_ahead(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a later task is there before the last answer of the first; then the engine fails."""
    tasks = "cme_rte_ll,cme_boolq_ll,cme_sst2_ll"
    whole = run(options(tiny_checkpoint, tmp_path / "whole", tasks=tasks))
    original = HFEngine.serve

    def ahead(self: HFEngine, inbox: Inbox) -> Iterator[Any]:
        answers = list(original(self, inbox))
        late = [answer for answer in answers if answer[0] == 0]
        early = [answer for answer in answers if 12 <= answer[0] < 24]
        yield from (answer for answer in answers if 0 < answer[0] < 12)
        yield from early
        yield from late
        raise LogitsError.at(30)

    class Told(Listener):
        def __init__(self) -> None:
            self.lines: list[tuple[str, int]] = []

        def start(self, task: str, *, total: int, done: int) -> None:
            self.lines.append((task, done))

        def advance(self, items: int, detail: str = "") -> None:
            task, done = self.lines[-1]
            self.lines[-1] = (task, done + items)

    monkeypatch.setattr(HFEngine, "serve", ahead)
    told = Told()
    with pytest.raises(CmeError, match=r"^task cme_sst2_ll, item \d+: the model's logits"):
        run(options(tiny_checkpoint, tmp_path / "r", tasks=tasks), told)
    assert told.lines == [("cme_rte_ll", 12), ("cme_boolq_ll", 12), ("cme_sst2_ll", 0)]
    assert set(content(tmp_path / "r", "results.json")["results"]) == {"cme_rte_ll", "cme_boolq_ll"}
    monkeypatch.undo()
    listener = Memory()
    run(options(tiny_checkpoint, tmp_path / "r", tasks=tasks), listener)
    assert listener.resumed == {"cme_rte_ll": 12, "cme_boolq_ll": 12, "cme_sst2_ll": 0}
    assert content(tmp_path / "r", "results.json")["cme"] == content(whole, "results.json")["cme"]


def test_too_many_truncated_prompts_are_refused_before_an_engine_is_made(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cme_bench.runs.hf_source.HFSource.open", lambda *_, **__: pytest.fail("an engine was made")
    )
    with pytest.raises(UsageError, match=r"do not fit.*cme_squad"):
        run(options(tiny_checkpoint, tmp_path / "r", settings={"max_length": 250}, max_truncated=0))


def test_truncated_prompts_are_counted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_squad", settings={"max_length": 250}))
    records = list(read_records(samples_file(folder, "cme_squad")))
    cut = sum(r.truncated > 0 for r in records)
    assert cut > 0
    assert content(folder, "run.json")["tasks"]["cme_squad"]["truncated"] == cut
    assert content(folder, "results.json")["cme"]["tasks"]["cme_squad"]["quality"]["truncated"] == cut / 12


def test_the_key_depends_on_everything_that_decides_the_response() -> None:
    base = {"model": "a" * 64, "adapter": "none", "dtype": "float32", "engine": "hf"}
    scored = LoglikelihoodRequest((((1, 2), (3,)), ((1, 2), (4,))))
    asked = GenerateRequest((1, 2, 3), 8, ("\n",))
    keys = [
        response_key(base, scored),
        response_key(base | {"model": "b" * 64}, scored),
        response_key(base | {"adapter": "c" * 64}, scored),
        response_key(base | {"dtype": "bfloat16"}, scored),
        response_key(base, LoglikelihoodRequest((((1, 2), (3,)), ((1, 2), (5,))))),
        response_key(base, LoglikelihoodRequest((((1,), (2, 3)), ((1, 2), (4,))))),
        response_key(base, LoglikelihoodRequest((((1, 2), (3,)),))),
        response_key(base, asked),
        response_key(base, GenerateRequest((1, 2, 3), 9, ("\n",))),
        response_key(base, GenerateRequest((1, 2, 3), 8, ())),
    ]
    assert len(set(keys)) == len(keys)
    other_objects = LoglikelihoodRequest((((1, 2), (3,)), (tuple([1, 2]), (4,))))
    assert response_key(base, other_objects) == response_key(base, scored)


def test_logits_of_16_bits_are_another_identity_than_rounded_ones(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    asked = options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll", limit=2, dtype="bfloat16")
    folder = run(asked)
    now = content(folder, "run.json")
    assert now["identity"]["logits"] == now["engine"]["logits"] == "float32"
    del now["identity"]["logits"], now["engine"]["logits"]  # as an earlier version wrote it
    (folder / "run.json").write_bytes(orjson.dumps(now))
    with pytest.raises(UsageError, match="holds a run with logits bfloat16, not float32"):
        run(asked)
    old, new = open_run(folder), open_run(run(replace(asked, out=tmp_path / "new")))
    with pytest.raises(UsageError, match="types of the logits differ: bfloat16, float32"):
        check_alike([old, new], allow_mixed=False)


def test_wide_states_are_another_identity_than_rounded_ones(tiny_checkpoint: Path, tmp_path: Path) -> None:
    asked = options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll", limit=2, dtype="bfloat16")
    rounded = replace(asked, out=tmp_path / "old", settings={"wide_states": 0})
    new, old = run(asked), run(rounded)
    identity, before = (content(folder, "run.json")["identity"] for folder in (new, old))
    assert identity == before | {"states": "float32"}, (
        "answers of earlier versions are those of rounded states"
    )
    near = [content(folder, "results.json")["cme"]["near_tie_nats"] for folder in (new, old)]
    assert near == [0.02, 0.15]
    told = [content(folder, "run.json")["engine"]["states"] for folder in (new, old)]
    assert told == ["float32", "bfloat16: asked for"]
    for options_, folder in ((rounded, new), (asked, old)):
        with pytest.raises(UsageError, match="holds a run with states"):
            run(replace(options_, out=folder))
    with pytest.raises(UsageError, match="types of the hidden states differ: bfloat16, float32"):
        check_alike([open_run(new), open_run(old)], allow_mixed=False)


def test_float32_responses_keep_their_identity(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll", limit=2))
    identity = content(folder, "run.json")["identity"]
    assert set(identity) == {"model", "adapter", "dtype", "engine", "data", "prompt_format"}


def test_ties_are_counted_and_warned_of(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = HFEngine.serve

    def tied(self: HFEngine, inbox: Inbox) -> Iterator[tuple[int, Any]]:
        for index, response in own(self, inbox):
            equal = (response.logprobs[0],) * len(response.logprobs)
            yield index, replace(response, logprobs=equal) if index == 0 else response

    monkeypatch.setattr(HFEngine, "serve", tied)
    folder = run(options(tiny_checkpoint, tmp_path / "r", tasks="cme_rte_ll"))
    results = content(folder, "results.json")["cme"]
    assert results["tasks"]["cme_rte_ll"]["quality"]["ties"] == pytest.approx(1 / 12)
    assert results["near_tie_nats"] == 1e-3
    assert [w for w in warnings(folder) if "8.3 % questions whose best choices tie exactly" in w]
    assert any(line.startswith("TIES: in 1 tasks") for line in tie_notes([open_run(folder)], "likelihood"))
    tied_record = next(r for r in read_records(samples_file(folder, "cme_rte_ll")) if r.id == 0)
    assert tied_record.response.margin == 0.0


@pytest.mark.parametrize("kept", [0, 3])
def test_results_are_those_of_the_records_read_again(
    kept: int, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = "cme_rte_ll,cme_hellaswag_ll,cme_emotion_ll,cme_squad"
    whole = run(options(tiny_checkpoint, tmp_path / "a", tasks=tasks))
    run(options(tiny_checkpoint, tmp_path / "b", tasks=tasks, limit=3))
    monkeypatch.setattr("cme_bench.runs.recorder.MOST_KEPT", kept)
    again = run(options(tiny_checkpoint, tmp_path / "c", tasks=tasks))
    resumed = run(options(tiny_checkpoint, tmp_path / "b", tasks=tasks))
    for folder in (again, resumed):
        assert content(folder, "results.json") == content(whole, "results.json")


def test_records_that_json_changes_are_read_again(tmp_path: Path) -> None:
    from cme_bench.runs.recorder import _reads_back
    from cme_bench.scoring.record import Record, StoredResponse

    def record(score: Any, logprob: float = -1.0) -> Record:
        response = StoredResponse(logprobs=[logprob], greedy=[True])
        return Record(
            id=0, key="", task="", scores={"acc": score}, response=response, target="", truncated=0,
            prompt="", choices=["a"], doc={},
        )  # fmt: skip

    assert all(_reads_back(record(score)) for score in (1.0, 1, True, None, [1, 2], "a"))
    assert not any(_reads_back(record(score)) for score in (float("nan"), (1, 2), [float("inf")], {1: 2}))
    assert not _reads_back(record(1.0, float("-inf")))
