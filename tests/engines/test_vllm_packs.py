"""Choices scored by packs through the real vLLM's model on a CPU, against transformers row by row."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import TeamLoraConfig
from cme_bench.engines import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.inbox import Batches
from cme_bench.engines.vllm import settings as vllm_settings
from cme_bench.engines.vllm.pack_worker import attention_layers, unusual
from cme_bench.engines.vllm.settings import VllmSettings
from cme_bench.util.errors import CmeError
from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.vllm_bench import Bench, ids

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    model = random_llama(
        0, hidden=128, heads=2, positions=160, vocab=384, spread=0.08, tokenizer=toy_tokenizer
    )
    return save_checkpoint(tmp_path_factory.mktemp("packs") / "base", model, toy_tokenizer)


@pytest.fixture(scope="module")
def adapters(base: Path) -> list[Path]:
    folders = [base.parent / "one", base.parent / "two"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        config = TeamLoraConfig(r=4, num_experts=3, init="random", target_attention=True)
        get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def bench(base: Path, toy_tokenizer: PreTrainedTokenizerFast) -> Iterator[Bench]:
    """Packs, in a process that has had an engine without them."""
    plain = Bench(base, toy_tokenizer, 160)
    assert len(dict(plain.vllm(None).loglikelihood(questions()[:1]))) == 1
    plain.host.close()
    bench = Bench(base, toy_tokenizer, 160, packs=True)
    yield bench
    bench.host.close()


def questions() -> list[LoglikelihoodRequest]:
    """Questions with and without a header, choices of one token and of many, one empty, one twice."""
    header = ids(60, 1)
    contexts = [ids(n, n) for n in (1, 7, 40, 120)] + [header + ids(n, 50 + n) for n in (2, 9, 30)]
    choices = (ids(1, 2), ids(5, 3), (*ids(5, 3)[:3], 9), ids(20, 4), (), ids(1, 2))
    asked = [LoglikelihoodRequest(tuple((context, choice) for choice in choices)) for context in contexts]
    return [*asked, LoglikelihoodRequest(((ids(4, 5), (7, 8)), (ids(9, 6), (7, 8))))]


def assert_alike(engine: Any, reference: Any, asked: list[LoglikelihoodRequest]) -> None:
    wanted = dict(reference.loglikelihood(asked))
    found = dict(engine.serve(Batches([asked[:3], asked[3:]])))
    assert found.keys() == wanted.keys()
    for number, response in wanted.items():
        assert found[number].logprobs == pytest.approx(response.logprobs, abs=1e-4), number
        assert found[number].greedy == response.greedy, number


def test_packs_and_vllms_own_way_are_alike_with_adapters_and_between_texts(
    bench: Bench, adapters: list[Path]
) -> None:
    asked = questions()
    for adapter in (adapters[0], None, adapters[1]):
        engine = bench.vllm(adapter)
        assert_alike(engine, bench.transformers(adapter), asked)
        assert bench.host.packs[None if adapter is None else engine._spec]
        distinct = sum(len(c) for r in asked for c in {c for c, _ in r.rows}) + sum(
            len(t) for r in asked for _, t in r.rows
        )
        assert 0 < engine.stats.tokens_computed < distinct
        assert engine.stats.requests == len(asked)
        texts = [GenerateRequest(ids(12, 8), 6), GenerateRequest(ids(70, 9), 6)]
        expected = dict(bench.transformers(adapter).generate(texts))
        assert {n: r.text for n, r in engine.generate(texts)} == {n: r.text for n, r in expected.items()}
        assert_alike(engine, bench.transformers(adapter), asked[::-1])


def test_questions_that_no_pack_has_memory_for_are_asked_one_by_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, notes = questions(), list[str]()
    start, host = bench.host.start_pack, bench.host
    calls: list[bool] = []

    def full(packed: bytes, *, first: bool) -> None:
        calls.append(first)
        if len(calls) > 1:  # the trial's pack was the first
            raise RuntimeError("CUDA out of memory")
        start(packed, first=first)

    host.packs.clear()
    monkeypatch.setattr(host, "start_pack", full)
    monkeypatch.setattr(host, "_note", notes.append)
    assert_alike(bench.vllm(), bench.transformers(), asked)
    assert [*host.packs.values()] == [False]
    assert [note for note in notes if "out of memory" in note and "without packs" in note]
    host.packs.clear()


def test_a_trial_is_not_counted_and_takes_nothing_from_what_was(bench: Bench) -> None:
    engine, asked = bench.vllm(), questions()
    bench.host.packs.clear()
    assert len(dict(engine.generate([GenerateRequest(ids(12, 8), 6)]))) == 1
    assert len(dict(engine.loglikelihood(asked))) == len(asked)
    assert bench.host.packs == {None: True}
    assert engine.stats.requests == 1 + len(asked)


def test_what_was_started_and_never_read_is_of_no_later_question(bench: Bench) -> None:
    engine, asked = bench.vllm(), questions()
    wanted = dict(engine.loglikelihood(asked))
    found = engine.loglikelihood(asked)
    next(iter(found))
    found.close()
    assert dict(engine.loglikelihood(asked)) == wanted


@pytest.mark.parametrize(("cpu", "chosen"), [(True, False), (False, True)])
def test_packs_are_for_gpus_unless_asked(monkeypatch: pytest.MonkeyPatch, cpu: bool, chosen: bool) -> None:
    monkeypatch.setattr(vllm_settings, "on_cpu", lambda: cpu)
    assert VllmSettings().takes_packs is chosen
    assert [VllmSettings.from_pairs({"packs": value}).takes_packs for value in (0, 1)] == [False, True]


def layer(kind: str = "attention:Attention", **features: Any) -> Any:
    """Return a layer of vLLM's that has nothing but what is asked of it."""
    module, _, name = kind.partition(":")
    cls = getattr(importlib.import_module(f"vllm.model_executor.layers.{module}"), name)
    made = cls.__new__(cls)
    torch.nn.Module.__init__(made)
    own = {"attn_type": "decoder", "sliding_window": None, "kv_cache_dtype": "auto"}
    for feature, value in (own | features).items():
        setattr(made, feature, value)
    made.impl = SimpleNamespace(logits_soft_cap=None, alibi_slopes=None, sinks=None)
    return made


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({}, ""),
        ({"kind": "attention:ChunkedLocalAttention"}, "ChunkedLocalAttention"),
        ({"kind": "mamba.mamba_mixer2:MambaMixer2"}, "MambaMixer2"),
        ({"sliding_window": 4096}, "a window"),
        ({"attn_type": "encoder_only"}, "ahead"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "quantised cache"),
    ],
)
def test_layers_that_see_other_tokens_than_packs_show_them_are_found(
    made: dict[str, Any], reason: str
) -> None:
    model = torch.nn.Sequential(layer(**made))
    [found] = attention_layers(model)
    assert unusual(found) == "" if not reason else reason in unusual(found)


def test_a_trial_that_fails_leaves_requests(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(packed: bytes, *, first: bool) -> None:
        raise CmeError("vLLM did not score a pack: no such operator")

    notes = list[str]()
    bench.host.packs.clear()
    monkeypatch.setattr(bench.host, "start_pack", fails)
    monkeypatch.setattr(bench.host, "_note", notes.append)
    assert_alike(bench.vllm(), bench.transformers(), questions())
    assert notes == ["choices are scored without packs: vLLM did not score a pack: no such operator"]
    bench.host.packs.clear()


def test_a_compiled_engine_computes_packs_without_its_compiled_code(
    base: Path,
    toy_tokenizer: PreTrainedTokenizerFast,
    adapters: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Letters are asked as requests there, by that code."""
    bench = Bench(base, toy_tokenizer, 160, packs=True, compile=True)
    try:
        assert_alike(bench.vllm(adapters[0]), bench.transformers(adapters[0]), questions())
        assert [*bench.host.packs.values()] == [True]
        context = ids(40, 3)
        letters = [
            LoglikelihoodRequest(tuple(((*context, n), (choice,)) for choice in (5, 6))) for n in (7, 8)
        ]
        monkeypatch.setattr(bench.host, "start_pack", None)
        assert_alike(bench.vllm(adapters[0]), bench.transformers(adapters[0]), letters)
    finally:
        bench.host.close()
