"""Runs of models in memory: the answers of the same weights in a folder, reuse by identity, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaptionPromptConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import cme_bench
from cme_bench.adapters import TeamLoraConfig
from cme_bench.adapters.load import load_adapter
from cme_bench.models.fingerprint import difference, fingerprint
from cme_bench.runs.progress import Listener
from cme_bench.runs.store import read_records, samples_file
from cme_bench.util.errors import InterruptedRun, UsageError
from cme_bench.util.files import read_json, write_json

TASKS = ("cme_rte_ll", "cme_rte")
ASKED: dict[str, Any] = {"tasks": TASKS, "data": "mini", "limit": 4, "progress": False}
LM = {"task_type": "CAUSAL_LM"}
VIRTUAL = {AdaptionPromptConfig: {"adapter_len": 3, "adapter_layers": 1}}


def lora(seed: int = 1, **changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "init_lora_weights": False, "target_modules": ["q_proj"], **LM, **changes})


@pytest.fixture
def base(tiny_checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)


@pytest.fixture
def tokenizer(tiny_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


def adapted(base: Any, config: Any = None, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    return get_peft_model(base, config or lora())


def answers(run: cme_bench.Run) -> list[Any]:
    return [
        record.response
        for task in TASKS
        for record in sorted(read_records(samples_file(run.folder, task)), key=lambda r: r.id)
    ]


def computed(run: cme_bench.Run) -> int:
    return int(read_json(run.folder / "run.json")["sessions"][-1]["items"])


def test_live_weights_answer_as_their_folder_does(
    base: Any, tokenizer: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = adapted(base, TeamLoraConfig(r=2, num_experts=2, init="random", **LM))
    model.save_pretrained(tmp_path / "team")
    model.train()
    shared = ASKED | {"prompt_format": "plain"}
    before = fingerprint(model)
    live = cme_bench.evaluate(
        model, tokenizer=tokenizer, adapters=["default", None], out=tmp_path / "l", **shared
    )
    saved = cme_bench.evaluate(
        tiny_checkpoint, adapters=[tmp_path / "team", None], out=tmp_path / "s", **shared
    )
    assert [answers(run) for run in live] == [answers(run) for run in saved]
    assert answers(live[0]) != answers(live[1])
    assert model.training
    assert difference(before, fingerprint(model)) is None
    assert [run.folder.name for run in live] == ["default", "base"]
    records = [run.view.run for run in live]
    assert (records[0].adapter and records[0].adapter.method, records[1].adapter) == ("teamlora", None)
    assert records[0].identity.model == records[1].identity.model
    assert cme_bench.compare(live[1], live[0]).forms
    assert "tiny + default" in repr(cme_bench.table(live))


def test_the_same_weights_reuse_answers_and_one_value_more_does_not(
    base: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = adapted(base)
    asked = ASKED | {"tokenizer": tokenizer, "prompt_format": "plain"}
    (first,) = cme_bench.evaluate(model, **asked)
    assert computed(first) == 8
    (again,) = cme_bench.evaluate(model, **asked)
    assert (again.folder, computed(again)) == (first.folder, 0)
    model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.data[0, 0] += 1e-6
    (other,) = cme_bench.evaluate(model, **asked)
    assert (other.folder != first.folder, computed(other)) == (True, 8)
    with pytest.raises(UsageError, match="holds a run with adapter"):
        cme_bench.evaluate(model, out=first.folder, **asked)
    with model.disable_adapter():
        (off,) = cme_bench.evaluate(model, **asked)
        assert model._adapters_disabled
    assert off.view.run.adapter is None
    (named,) = cme_bench.evaluate(model, adapters=[None], **asked)
    assert computed(named) == 0, "adapters switched off by the caller are the base"


def test_what_is_active_is_evaluated_and_stays_active(base: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = adapted(base)
    torch.manual_seed(5)
    model.add_adapter("b", lora())
    asked = ASKED | {"tokenizer": tokenizer, "prompt_format": "plain"}
    one, two, both_off = cme_bench.evaluate(
        model, adapters=["default", "b", None], out=tmp_path / "r", **asked
    )
    assert model.active_adapters == ["default"]
    gradients = [p.requires_grad for p in model.parameters()]
    model.base_model.set_adapter(["default", "b"])
    (both,) = cme_bench.evaluate(model, out=tmp_path / "both", **asked)
    assert both.name == "tiny + default+b"
    assert model.active_adapters == ["default", "b"]
    assert len({str(answers(run)) for run in (one, two, both_off, both)}) == 4
    model.set_adapter("b")
    (b,) = cme_bench.evaluate(model, out=tmp_path / "b", **asked)
    assert (answers(b), b.view.run.identity.adapter) == (answers(two), two.view.run.identity.adapter)
    model.set_adapter("default")
    assert [p.requires_grad for p in model.parameters()] == gradients


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig, AdaptionPromptConfig])
def test_virtual_tokens_as_from_a_folder(
    config: Any, base: Any, tokenizer: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = adapted(base, config(**VIRTUAL.get(config, {"num_virtual_tokens": 3}), **LM))
    for parameter in model.parameters():
        if parameter.requires_grad:  # the gate of an adaption prompt begins at zero
            parameter.data += 0.1
    model.save_pretrained(tmp_path / "a")
    asked = ASKED | {"tasks": TASKS, "limit": 2, "prompt_format": "plain"}
    live = cme_bench.evaluate(
        model, tokenizer=tokenizer, adapters=["default", None], out=tmp_path / "l", **asked
    )
    saved = cme_bench.evaluate(tiny_checkpoint, adapters=[tmp_path / "a", None], out=tmp_path / "s", **asked)
    assert [answers(run) for run in live] == [answers(run) for run in saved]


def test_the_prompt_format_is_the_records_or_is_asked_for(
    base: Any, tokenizer: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    adapted(base).save_pretrained(folder)
    write_json(folder / "cme_training.json", {"prompt_format": "teamlora", "finished": True})
    fresh = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    model = load_adapter(fresh, folder, allow_other_base=True)
    (run,) = cme_bench.evaluate(model, tokenizer=tokenizer, out=tmp_path / "r", **ASKED)
    assert {task.prompt_format for task in run.view.run.tasks.values()} == {"teamlora"}
    model.peft_config["default"].loaded_from = None
    with pytest.raises(UsageError, match=r"'default' does not say .* give prompt_format= \(chat, plain, "):
        cme_bench.evaluate(model, tokenizer=tokenizer, **ASKED)


def test_an_untrained_adapter_is_noted(base: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = adapted(base, lora(init_lora_weights=True))
    asked = ASKED | {"tokenizer": tokenizer, "prompt_format": "plain"}
    (run,) = cme_bench.evaluate(model, out=tmp_path / "r", **asked)
    assert any("changes no logit" in note for note in run.view.run.notes)


def test_hooks_of_the_users_own_are_never_answered_from_the_store(
    base: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    strength = [0.0]
    base.model.layers[0].register_forward_hook(lambda m, i, o: o + strength[0])
    asked = ASKED | {"tasks": "cme_rte_ll", "tokenizer": tokenizer}
    (one,) = cme_bench.evaluate(base, **asked)
    strength[0] = 0.5
    (two,) = cme_bench.evaluate(base, **asked)
    assert (computed(one), computed(two), one.folder != two.folder) == (4, 4, True)


def test_an_interrupted_run_goes_on_and_the_model_is_as_before(
    base: Any, tokenizer: Any, tmp_path: Path
) -> None:
    import os
    import signal

    class Stop(Listener):
        def start(self, task: str, *, total: int, done: int) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    model = adapted(base)
    model.train()
    asked = ASKED | {"tokenizer": tokenizer, "prompt_format": "plain", "out": tmp_path / "r"}
    before = fingerprint(model)
    with pytest.raises(InterruptedRun, match="resumes the run"):
        cme_bench.evaluate(model, **(asked | {"progress": Stop()}))
    assert model.training
    assert difference(before, fingerprint(model)) is None
    (run,) = cme_bench.evaluate(model, **asked)
    assert run.finished


def test_what_cannot_be_evaluated_is_refused_in_a_sentence(
    base: Any, tokenizer: Any, tiny_checkpoint: Path
) -> None:
    def refused(model: Any, message: str, **options: Any) -> None:
        with pytest.raises(UsageError, match=message) as error:
            cme_bench.evaluate(model, **({"tokenizer": tokenizer} | ASKED | options))
        assert "\n" not in str(error.value)

    refused(base, "a model in memory needs its tokenizer: give tokenizer=", tokenizer=None)
    refused(base, "engine vllm loads its own weights", engine="vllm")
    refused(base, "engine ray loads its own weights", engine="ray")
    refused(base, "the model in memory is float32; convert it first", dtype="bfloat16")
    refused(base, "adapter 'x': the model in memory has no adapters", adapters=["x"])
    refused(base, "tokenizer= takes a tokenizer of transformers, not a str", tokenizer="smollm2")
    refused(torch.nn.Linear(2, 2), "a Linear is no model")
    refused({"a": 1}, "a dict is no model")
    refused(AutoModel.from_pretrained(tiny_checkpoint), "no causal language model")
    model = adapted(base)
    plain = {"prompt_format": "plain"}
    refused(
        model, "adapter 'defalt': the model in memory has default; did you mean", adapters=["defalt"], **plain
    )
    model.merge_adapter()
    refused(model, "'default' is merged into the base", **plain)
    model.unmerge_adapter()
    model.base_model.model.model.layers[0].self_attn.q_proj.enable_adapters(False)
    refused(model, "some layers have other adapters on than others", **plain)


def test_methods_that_are_not_computed_are_refused(base: Any, tokenizer: Any) -> None:
    from peft import PolyConfig

    model = adapted(base, PolyConfig(r=2, n_tasks=2, n_skills=2, target_modules=["q_proj"], **LM))
    with pytest.raises(UsageError, match=r"adapter 'default': .*parameters of 2 tasks.*choose_task"):
        cme_bench.evaluate(model, tokenizer=tokenizer, prompt_format="plain", **ASKED)
