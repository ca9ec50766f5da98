"""Runs of a bfloat16 model whose engine computes in float16, and what happens where that overflows.

vLLM is stood in for by transformers in float32, which says NaN where float16 is to overflow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters.load import load_adapter
from cme_bench.engines.hf.engine import HFEngine
from cme_bench.engines.inbox import Inbox
from cme_bench.engines.logits import LogitsError
from cme_bench.reports.runs import check_alike, open_run
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.folders import run_folder
from cme_bench.runs.options import RunOptions
from cme_bench.runs.progress import Listener
from cme_bench.runs.responder import Responder
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.runs.vllm_source import VLLMSource
from cme_bench.util.errors import CmeError, UsageError
from cme_bench.util.files import read_json
from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.vllm_fields import save_adapter

TASKS = "cme_rte_ll,cme_arc_easy_ll"
LEFT = r"its hidden states left the range of float16 \(task cme_arc_easy_ll, item \d+\)"


class Heard(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


class Stand(HFEngine):
    """In float16 it has no numbers from its ``last`` answer on; in bfloat16 it has."""

    last = 8

    def __init__(self, *args: Any, computed: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.computed = computed

    def serve(self, inbox: Inbox) -> Iterator[Any]:
        for n, answer in enumerate(super().serve(inbox)):
            if self.computed.dtype == "float16" and n >= self.last:
                raise LogitsError.at(answer[0])
            yield answer

    def describe(self) -> dict[str, str]:
        told = super().describe()
        return told | {"engine": "vllm", "dtype": self.computed.dtype, "states": self.computed.told}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types in which engines were opened so far."""
    types: list[str] = []

    def open_(self: VLLMSource, adapter: Any, job: Any, stopping: Any = None) -> Stand:
        types.append(job.computed.dtype)
        model: Any = LlamaForCausalLM.from_pretrained(self.model.checkpoint.path, dtype=torch.float32)
        model = model if adapter is None else load_adapter(model, adapter.path)
        return Stand(model, self.model.tokenizer, max_length=job.max_length, computed=job.computed)

    monkeypatch.setattr(VLLMSource, "open", open_)
    monkeypatch.setattr(VLLMSource, "begin", lambda self: None)
    monkeypatch.setattr("cme_bench.models.load.check_class", lambda *args: None)
    return types


@pytest.fixture
def base(tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    return save_checkpoint(
        tmp_path / "base", random_llama(0, positions=2048, tokenizer=toy_tokenizer), toy_tokenizer
    )


@pytest.fixture
def asked(base: Path, tmp_path: Path) -> RunOptions:
    return RunOptions(
        str(base), tasks=TASKS, data="mini", limit=6, engine="vllm", dtype="bfloat16", out=tmp_path / "out"
    )


def told(folder: Path) -> dict[str, Any]:
    return dict(read_json(folder / "run.json"))


def test_the_record_says_what_was_asked_and_what_computed(
    asked: RunOptions, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stand, "last", 99)
    heard = Heard()
    [new] = run(asked, heard)
    assert opened == ["float16"]
    record = told(new)
    assert (
        record["identity"]["dtype"] == record["computed"]["asked"] == record["model"]["dtype"] == "bfloat16"
    )
    assert record["identity"]["states"] == record["engine"]["states"] == "float16"
    assert record["computed"]["dtype"] == record["engine"]["dtype"] == "float16"
    assert read_json(new / "results.json")["cme"]["near_tie_nats"] == 0.02
    line = "vLLM computes it in float16 (three bits more than bfloat16); --set float16_states=0 computes in "
    assert f"{line}bfloat16, as before" in heard.notes

    heard = Heard()
    old_way = replace(asked, out=asked.out.parent / "old", settings={"float16_states": 0})  # type: ignore[union-attr]
    [old] = run(old_way, heard)
    assert opened == ["float16", "bfloat16"]
    record = told(old)
    assert "states" not in record["identity"], "answers of earlier versions are those of rounded states"
    assert record["computed"] == {"asked": "bfloat16", "dtype": "bfloat16", "because": "asked for"}
    assert record["engine"]["states"] == "bfloat16: asked for"
    assert read_json(old / "results.json")["cme"]["near_tie_nats"] == 0.15
    assert not any("vLLM computes" in note for note in heard.notes)

    for options, folder in ((old_way, new), (asked, old)):
        with pytest.raises(UsageError, match="holds a run with states"):
            run(replace(options, out=folder))
    with pytest.raises(UsageError, match="types of the hidden states differ: bfloat16, float16"):
        check_alike([open_run(new), open_run(old)], allow_mixed=False)
    keys = [{r.key for r in read_records(samples_file(folder, "cme_rte_ll"))} for folder in (new, old)]
    assert not keys[0] & keys[1]


def test_a_run_that_overflows_is_asked_again_as_a_whole(asked: RunOptions, opened: list[str]) -> None:
    heard = Heard()
    [folder] = run(asked, heard)
    assert opened == ["float16", "bfloat16"]
    [line] = [note for note in heard.notes if "left the range" in note]
    assert line.endswith(": all is asked again, of vLLM in bfloat16")
    record = told(folder)
    assert record["finished"]
    assert "states" not in record["identity"]
    assert record["computed"]["dtype"] == record["engine"]["dtype"] == "bfloat16"
    assert record["engine"]["states"].startswith(
        "bfloat16: its hidden states left the range of float16 (task "
    )
    assert read_json(folder / "results.json")["cme"]["near_tie_nats"] == 0.15

    [direct] = run(replace(asked, out=asked.out.parent / "old", settings={"float16_states": 0}))  # type: ignore[union-attr]
    for task in TASKS.split(","):
        last = {r.id: r for r in read_records(samples_file(folder, task))}
        wanted = {r.id: r for r in read_records(samples_file(direct, task))}
        assert {i: (r.key, r.response) for i, r in last.items()} == {
            i: (r.key, r.response) for i, r in wanted.items()
        }, "no answer of float16 is left"

    again = Heard()
    assert run(replace(asked, limit=8), again) == [folder], "it goes on in bfloat16, and tries no second time"
    assert opened == ["float16", "bfloat16", "bfloat16", "bfloat16"]
    assert any("vLLM computes it in bfloat16 and not in float16: its hidden" in note for note in again.notes)


def test_a_default_folder_goes_on_after_an_overflow(
    asked: RunOptions, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = run(replace(asked, out=None))
    assert run(replace(asked, out=None)) == folders
    assert opened == ["float16", "bfloat16"]


def test_results_of_float16_do_not_stand_beside_answers_of_bfloat16(
    asked: RunOptions, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is stopped before it has a result in bfloat16; the first task was done in float16."""
    folder = asked.out
    assert folder is not None
    own = Stand.serve

    def stops(self: Stand, inbox: Inbox) -> Iterator[Any]:
        if self.computed.dtype == "bfloat16":
            assert not (folder / "results.json").exists()
            raise CmeError("stopped")
        return own(self, inbox)

    monkeypatch.setattr(Stand, "serve", stops)
    with pytest.raises(CmeError, match="stopped"):
        run(asked)
    assert not (folder / "results.json").exists()
    monkeypatch.setattr(Stand, "serve", own)
    run(asked)
    assert opened == ["float16", "bfloat16", "bfloat16"]
    assert told(folder)["finished"]


def test_a_model_without_numbers_in_either_type_is_told_of(
    asked: RunOptions, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Stand, inbox: Inbox) -> Iterator[Any]:
        raise LogitsError.at(0)
        yield

    monkeypatch.setattr(Stand, "serve", broken)
    with pytest.raises(CmeError, match="logits are NaN or infinite"):
        run(asked)
    assert opened == ["float16", "bfloat16"]


def test_adapters_that_come_later_are_computed_alike(
    asked: RunOptions, base: Path, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    config = LoraConfig(r=2, target_modules=["up_proj"], task_type="CAUSAL_LM")
    adapters = tuple(str(save_adapter(model, tmp_path / f"a{i}", config, seed=i)) for i in range(3))
    own = Stand.serve

    def second(self: Stand, inbox: Inbox) -> Iterator[Any]:
        self.last = 99 if len(opened) == 1 else 0
        return own(self, inbox)

    monkeypatch.setattr(Stand, "serve", second)
    folders = run(replace(asked, adapters=adapters))
    assert opened == ["float16", "float16", "bfloat16", "bfloat16"]
    assert [told(folder)["computed"]["dtype"] for folder in folders] == ["float16", "bfloat16", "bfloat16"]
    assert all(told(folder)["finished"] for folder in folders)
    assert run(replace(asked, adapters=adapters)) == folders
    assert len(opened) == 4, "all is stored"


def test_an_adapter_of_small_numbers_keeps_bfloat16(
    asked: RunOptions, base: Path, opened: list[str], tmp_path: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    config = LoraConfig(r=2, target_modules=["up_proj"], task_type="CAUSAL_LM")
    adapters = [save_adapter(model, tmp_path / f"a{i}", config, seed=i) for i in range(2)]
    file = adapters[1] / "adapter_model.safetensors"
    small = {name: tensor * 1e-6 if "lora_B" in name else tensor for name, tensor in load_file(file).items()}
    save_file(small, file, metadata={"format": "pt"})
    folders = run(replace(asked, adapters=tuple(map(str, adapters)), limit=2))
    found = [told(folder)["computed"] for folder in folders]
    assert [each["dtype"] for each in found] == ["float16", "bfloat16"]
    assert found[1]["because"].startswith("the adapter's up loses ")


def test_where_a_run_would_be_does_not_depend_on_the_engine_that_is_chosen_so_far(
    asked: RunOptions, opened: list[str], tmp_path: Path
) -> None:
    elsewhere = replace(asked, out=None)
    with open_engines(replace(elsewhere, engine="auto")) as open_yet, open_engines(elsewhere) as decided:
        assert open_yet.computes == "hf"
        guessed = run_folder(elsewhere, Responder(open_yet), engine="vllm")
        assert guessed == run_folder(elsewhere, Responder(decided))
