"""Keys of responses are made while the engine computes, and are those of the requests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.engines.base import LoglikelihoodRequest
from cme_bench.engines.hf import HFEngine
from cme_bench.runs import planner
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.identity import response_key
from cme_bench.runs.options import AskOptions, ModelOptions
from cme_bench.runs.runner import ask
from cme_bench.runs.store import read_records, samples_file

TASK = "cme_rte_ll"
ASKED = AskOptions(tasks=TASK, data="mini", limit=4)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order: packs that are started and waited for, keys that are made."""
    found: list[str] = []
    start, wait = HFEngine._score_pack, HFEngine._waited

    def started(self: HFEngine, *args: Any) -> Any:
        found.append("started")
        return start(self, *args)

    def waited(self: HFEngine, *args: Any) -> Any:
        found.append("waited")
        return wait(self, *args)

    def keyed(*args: Any) -> str:
        found.append("key")
        return response_key(*args)

    monkeypatch.setattr(HFEngine, "_score_pack", started)
    monkeypatch.setattr(HFEngine, "_waited", waited)
    monkeypatch.setattr(planner, "response_key", keyed)
    return found


def test_the_callers_work_is_done_once_all_packs_are_started(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, events: list[str]
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer, tokens_per_batch=16)
    engine.ahead = 1
    engine.meanwhile = lambda: events.append("meanwhile")
    requests = [LoglikelihoodRequest(((tuple(range(3 + i, 17 + i)), (7,)),)) for i in range(3)]
    answers = dict(engine.loglikelihood(requests))
    assert events == ["started", "started", "waited", "started", "waited", "meanwhile", "waited"]
    engine.meanwhile = None
    assert dict(engine.loglikelihood(requests)) == answers


def test_keys_are_made_behind_the_first_pack_and_once(
    tiny_checkpoint: Path, tmp_path: Path, events: list[str]
) -> None:
    with open_engines(ModelOptions(model=str(tiny_checkpoint), engine="hf")) as engines:
        (out,) = ask(engines, replace(ASKED, out=tmp_path / "run"))
        assert events.count("key") == 4 and events.index("key") > events.index("started")
        before = [(record.id, record.key) for record in read_records(samples_file(out, TASK))]
        assert len(dict(before)) == 4 and len({key for _, key in before}) == 4
        del events[:]
        ask(engines, replace(ASKED, out=out))
        assert events == ["key"] * 4, "asked again, all is there"
    assert [(record.id, record.key) for record in read_records(samples_file(out, TASK))] == before
