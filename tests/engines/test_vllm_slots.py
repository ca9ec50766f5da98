"""One vLLM that holds several adapters at a time, in float32, against transformers and against itself.

Its cache has so few blocks that requests are preempted, and there are fewer slots than adapters.
"""

from __future__ import annotations

import importlib.util
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, TeamLoraConfig
from cme_bench.engines import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.vllm.settings import engine_arguments
from cme_bench.util.errors import UsageError
from cme_bench.vllm_plugin.slot_form import common_room
from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.vllm_bench import Bench, ids
from tests.support.vllm_fields import save_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),
]

LENGTH, SLOTS, BLOCKS, NEW = 160, 3, 24, 40
CONFIGS: dict[str, Any] = {
    "teamlora": TeamLoraConfig(r=4, num_experts=3, init="random", target_attention=True),
    "lora": LoraConfig(r=20, lora_alpha=7, target_modules=["v_proj", "gate_proj"], init_lora_weights=False),
    "hydralora": HydraLoraConfig(r=4, num_experts=2, init="random", target_modules=["up_proj", "o_proj"]),
    "moelora": MoeLoraConfig(r=4, num_experts=4, init="random"),
    "another": TeamLoraConfig(r=4, num_experts=3, init="random", target_attention=True),
}
HEADER = ids(70, seed=9)
"""More than two blocks of vLLM's cache, which all questions have in common."""
SCORED = [
    LoglikelihoodRequest(((HEADER + ids(n, n), (5,)), (HEADER + ids(n, n), (6, 7, 8)))) for n in (1, 2, 9, 30)
]
GENERATED = [GenerateRequest(HEADER + ids(n, 50 + n), NEW) for n in (1, 8, 20)]


class Slots:
    """The engine, an adapter's folder and file by name, and what transformers answers by name."""

    def __init__(self, base: Path, tokenizer: PreTrainedTokenizerFast, scratch: Path) -> None:
        from vllm import LLM

        model: Any = LlamaForCausalLM.from_pretrained(base)
        self.bench = bench = Bench(base, tokenizer, LENGTH)
        self.folders: dict[str, Path | None] = {"base": None}
        for seed, (name, config) in enumerate(CONFIGS.items()):
            self.folders[name] = save_adapter(model, scratch / name, config, seed=seed)
        self.engines = {name: bench.vllm(folder) for name, folder in self.folders.items()}
        self.scored = {name: scores(bench.transformers(f)) for name, f in self.folders.items()}
        self.texts = {name: texts(bench.transformers(f)) for name, f in self.folders.items()}
        room = common_room([engine._spec for engine in self.engines.values() if engine._spec is not None])
        arguments = engine_arguments(base, "float32", LENGTH, bench.host.settings, room, slots=SLOTS)
        bench.host.hold(SLOTS)
        bench.host.adopt(LLM(**arguments, num_gpu_blocks_override=BLOCKS), LENGTH)

    @property
    def llm(self) -> Any:
        return self.bench.host._llm

    def text(self, output: Any) -> str:
        """What an output says; vLLM's own text leaves out the bytes of half a character."""
        return str(self.bench.tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True))

    def named(self, name: str) -> Any:
        """The LoRARequest of an adapter, None for the base model."""
        return self.bench.host.use(self.engines[name]._adapter, None)


def scores(engine: Any) -> list[float]:
    found = dict(engine.loglikelihood(SCORED))
    return [logprob for i in range(len(SCORED)) for logprob in found[i].logprobs]


def texts(engine: Any) -> list[str]:
    found = dict(engine.generate(GENERATED))
    return [found[i].text for i in range(len(GENERATED))]


@pytest.fixture(scope="module")
def slots(
    tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast
) -> Iterator[Slots]:
    scratch = tmp_path_factory.mktemp("slots")
    model = random_llama(3, hidden=128, positions=LENGTH, vocab=320, spread=0.08, tokenizer=toy_tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
        found = Slots(save_checkpoint(scratch / "base", model, toy_tokenizer), toy_tokenizer, scratch)
        yield found
        found.bench.host.close()


def test_each_answers_as_it_does_alone_in_any_order(slots: Slots) -> None:
    """The header's keys and values are in the cache, from the adapters before."""
    for name in [*slots.folders, *reversed(slots.folders)]:
        assert scores(slots.engines[name]) == pytest.approx(slots.scored[name], abs=1e-4), name
    every = list(slots.scored.values())
    assert all(a != pytest.approx(b, abs=1e-2) for i, a in enumerate(every) for b in every[:i])


def test_all_at_once_while_requests_are_preempted(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every adapter's requests in one batch, shuffled; steps have three adapters and the base model."""
    from vllm import SamplingParams

    scheduler = slots.llm.llm_engine.engine_core.engine_core.scheduler
    preempted = []
    own = scheduler._preempt_request
    monkeypatch.setattr(scheduler, "_preempt_request", lambda *a, **k: (preempted.append(a), own(*a, **k))[1])
    ends = [slots.bench.tokenizer.eos_token_id]
    params = SamplingParams(temperature=0, max_tokens=NEW, stop_token_ids=ends)
    asked = [(name, i) for name in slots.folders for i in range(len(GENERATED))]
    for seed in (0, 1):
        random.Random(seed).shuffle(asked)
        prompts = [{"prompt_token_ids": list(GENERATED[i].prompt)} for _, i in asked]
        named = [slots.named(name) for name, _ in asked]
        outputs = slots.llm.generate(prompts, params, use_tqdm=False, lora_request=named)
        for (name, i), output in zip(asked, outputs, strict=True):
            assert slots.text(output) == slots.texts[name][i], name
    assert preempted
    assert len({text for found in slots.texts.values() for text in found}) > len(GENERATED) * 3


def test_threads_ask_different_adapters_at_the_same_time(slots: Slots) -> None:
    names = list(slots.folders)
    with ThreadPoolExecutor(len(names)) as pool:
        found = list(pool.map(lambda name: (scores(slots.engines[name]), texts(slots.engines[name])), names))
    for name, (scored, generated) in zip(names, found, strict=True):
        assert scored == pytest.approx(slots.scored[name], abs=1e-4), name
        assert generated == slots.texts[name], name


def test_an_adapter_that_is_taken_out_comes_back_for_those_who_ask_it(slots: Slots) -> None:
    """Taken out while its requests are at work; meanwhile another takes its slot."""
    from vllm import SamplingParams

    engine = slots.llm.llm_engine
    params = SamplingParams(
        temperature=0, max_tokens=NEW, stop_token_ids=[slots.bench.tokenizer.eos_token_id]
    )
    given = {}
    for name in ("teamlora", "another", "base"):
        given[name] = name
        engine.add_request(
            name, {"prompt_token_ids": list(GENERATED[0].prompt)}, params, lora_request=slots.named(name)
        )
    steps = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                assert slots.text(output) == slots.texts[output.request_id][0], output.request_id
                given.pop(output.request_id)
        steps += 1
        if steps in (3, 9):
            engine.remove_lora(slots.named("teamlora").lora_int_id)
            for name in ("lora", "hydralora", "moelora"):
                engine.add_lora(slots.named(name))
    assert not given


def test_a_name_keeps_its_file(slots: Slots, tmp_path: Path) -> None:
    """The cache would go on giving out what the file before computed."""
    from vllm.lora.request import LoRARequest

    model: Any = LlamaForCausalLM.from_pretrained(slots.bench.base)
    first = slots.bench.vllm(save_adapter(model, tmp_path / "first", CONFIGS["teamlora"], seed=11))._adapter
    second = slots.engines["another"]._adapter
    engine = slots.llm.llm_engine
    engine.add_lora(LoRARequest("mine", 101, str(first)))
    for request in (
        LoRARequest("mine", 102, str(second)),
        LoRARequest("mine", 101, str(second), load_inplace=True),
    ):
        with pytest.raises(Exception, match="is not the file that adapter mine had before"):
            engine.add_lora(request)
    with pytest.raises(Exception, match="the id 101 of adapter other is that of adapter mine"):
        engine.add_lora(LoRARequest("other", 101, str(second)))
    shutil.copy(second, first)
    for name in ("lora", "hydralora", "moelora"):  # which take its slot
        engine.add_lora(slots.named(name))
    with pytest.raises(Exception, match="has changed since it was first read"):
        engine.add_lora(LoRARequest("mine", 101, str(first)))
    for name in ("teamlora", "another"):
        assert scores(slots.engines[name]) == pytest.approx(slots.scored[name], abs=1e-4), name


def test_what_fits_no_slot_is_told_before_it_is_asked(slots: Slots, tmp_path: Path) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(slots.bench.base)
    config = TeamLoraConfig(r=64, num_experts=3, init="random")
    engine = slots.bench.vllm(save_adapter(model, tmp_path / "large", config))
    with pytest.raises(UsageError, match=r"fits no slot of this engine: its rank is 64, .* room for 16"):
        scores(engine)
    assert scores(slots.engines["another"]) == pytest.approx(slots.scored["another"], abs=1e-4)
