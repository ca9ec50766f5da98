"""One vLLM that holds several adapters at a time, in float32, against transformers and against itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, TeamLoraConfig
from cme_bench.engines import LoglikelihoodRequest
from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.vllm_bench import Bench, ids
from tests.support.vllm_fields import save_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

LENGTH, SLOTS = 128, 3
CONFIGS: dict[str, Any] = {
    "teamlora": TeamLoraConfig(r=4, num_experts=3, init="random", target_attention=True),
    "lora": LoraConfig(r=20, lora_alpha=7, target_modules=["v_proj", "gate_proj"], init_lora_weights=False),
    "hydralora": HydraLoraConfig(r=4, num_experts=2, init="random", target_modules=["up_proj", "o_proj"]),
    "moelora": MoeLoraConfig(r=4, num_experts=4, init="random"),
    "another": TeamLoraConfig(r=4, num_experts=3, init="random", target_attention=True),
}
HEADER = ids(70, seed=9)
"""More than two blocks of vLLM's cache, which all questions have in common."""


class Slots:
    """The engine, an adapter's folder by name, and what transformers answers by name."""

    def __init__(self, base: Path, tokenizer: PreTrainedTokenizerFast, scratch: Path) -> None:
        model: Any = LlamaForCausalLM.from_pretrained(base)
        self.bench = Bench(base, tokenizer, LENGTH)
        self.asked = [
            LoglikelihoodRequest(((HEADER + ids(n, n), (5,)), (HEADER + ids(n, n), (6, 7, 8))))
            for n in (1, 2, 9, 30)
        ]
        self.folders: dict[str, Path | None] = {"base": None}
        for seed, (name, config) in enumerate(CONFIGS.items()):
            self.folders[name] = save_adapter(model, scratch / name, config, seed=seed)
        self.engines = {name: self.bench.vllm(folder) for name, folder in self.folders.items()}
        self.wanted = {name: self.answers(self.bench.transformers(f)) for name, f in self.folders.items()}
        self.bench.host.expect([e._spec for e in self.engines.values() if e._spec is not None])
        self.bench.host.hold(SLOTS)

    def answers(self, engine: Any) -> list[float]:
        found = dict(engine.loglikelihood(self.asked))
        return [logprob for i in range(len(self.asked)) for logprob in found[i].logprobs]


@pytest.fixture(scope="module")
def slots(
    tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast
) -> Iterator[Slots]:
    scratch = tmp_path_factory.mktemp("slots")
    model = random_llama(3, hidden=128, positions=LENGTH, vocab=320, spread=0.08, tokenizer=toy_tokenizer)
    found = Slots(save_checkpoint(scratch / "base", model, toy_tokenizer), toy_tokenizer, scratch)
    yield found
    found.bench.host.close()


def test_each_answers_as_it_does_alone_in_any_order(slots: Slots) -> None:
    names = [*slots.folders, *reversed(slots.folders)]
    for name in names:
        assert slots.answers(slots.engines[name]) == pytest.approx(slots.wanted[name], abs=1e-4), name
    every = list(slots.wanted.values())
    assert all(a != pytest.approx(b, abs=1e-2) for i, a in enumerate(every) for b in every[:i])
