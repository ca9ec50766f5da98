"""One vLLM that is given every accepted kind of single-expert adapter, one after the other, in float32."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import AdaLoraConfig, LoraConfig
from torch import nn
from transformers import AutoConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, MosLoraConfig, TeamLoraConfig
from cme_bench.engines import LoglikelihoodRequest
from cme_bench.engines.vllm.adapter import GatedAdapter, read_gated
from cme_bench.engines.vllm.engine import VLLMEngine
from cme_bench.vllm_plugin.file import write_adapter
from cme_bench.vllm_plugin.spec import GatedSpec
from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.vllm_bench import Bench
from tests.support.vllm_fields import ACCEPTED, LORA, save_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

LENGTH, RANK = 64, 16


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    model = random_llama(3, hidden=128, positions=LENGTH, vocab=320, spread=0.08, tokenizer=toy_tokenizer)
    return save_checkpoint(tmp_path_factory.mktemp("swaps") / "base", model, toy_tokenizer)


@pytest.fixture(scope="module")
def bench(base: Path, toy_tokenizer: PreTrainedTokenizerFast) -> Iterator[Bench]:
    bench = Bench(base, toy_tokenizer, LENGTH)
    yield bench
    bench.host.close()


def every_setting() -> dict[str, Any]:
    """Configs by name: all values that are accepted, and the other methods without a router."""
    found: dict[str, Any] = {
        f"{field}={value}": LoraConfig(**{**LORA, field: value})
        for field, values in ACCEPTED.items()
        for value in values
    }
    found["adalora"] = AdaLoraConfig(init_r=6, total_step=10, target_modules=["q_proj", "down_proj"])
    found["moslora"] = MosLoraConfig(r=4, init="random", target_attention=True)
    return found


def widened(adapter: GatedAdapter, base: nn.Module) -> GatedAdapter:
    """The same function in the one shape that the engine of this test has: all linears, the largest rank."""
    sizes = {
        name: module.weight.shape
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    spec = GatedSpec("lora", RANK, 1, 1.0, False, False, None, tuple(sorted(sizes)))
    tensors = {}
    for name, (d_out, d_in) in sizes.items():
        for part, shape in spec.shapes(d_in, d_out).items():
            tensors[f"{name}.{part}"] = tensor = base.get_submodule(name).weight.new_zeros(shape)
            if (own := adapter.tensors.get(f"{name}.{part}")) is not None:
                tensor[: own.shape[0], : own.shape[1]] = own
    return GatedAdapter(spec, tensors)


@pytest.mark.filterwarnings("ignore")
def test_every_accepted_setting_equals_peft_after_any_other(
    base: Path, bench: Bench, toy_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(base)
    contexts = [tuple(3 + (seed + 11 * i) % 250 for i in range(n)) for seed, n in enumerate((5, 31, 40))]
    asked = [LoglikelihoodRequest(((c, (5,)), (c, (6, 7, 8)))) for c in contexts]
    plain = dict(bench.transformers().loglikelihood(asked))
    ends = frozenset([toy_tokenizer.eos_token_id])
    running = None
    for number, (name, config) in enumerate(every_setting().items()):
        folder = save_adapter(model, tmp_path / str(number), config, seed=number)
        gated = widened(read_gated(folder, AutoConfig.from_pretrained(base)), model)
        file = tmp_path / f"{number}.safetensors"
        write_adapter(file, gated.spec, gated.tensors)
        engine = VLLMEngine(bench.host, toy_tokenizer, ends, adapter=file, spec=gated.spec)
        found = dict(engine.loglikelihood(asked))
        wanted = dict(bench.transformers(folder).loglikelihood(asked))
        for index, response in wanted.items():
            assert found[index].logprobs == pytest.approx(response.logprobs, abs=1e-4), name
        assert any(abs(w.logprobs[0] - plain[i].logprobs[0]) > 0.01 for i, w in wanted.items()), name
        running = running or bench.host._llm
        assert bench.host._llm is running
    after = dict(bench.vllm().loglikelihood(asked))
    for index, response in plain.items():
        assert after[index].logprobs == pytest.approx(response.logprobs, abs=1e-4)


def other_shapes() -> dict[str, Any]:
    """Configs of methods with experts, and of a LoRA of another rank on fewer modules."""
    return {
        "teamlora": TeamLoraConfig(r=4, num_experts=3, init="random", target_attention=True),
        "lora": LoraConfig(r=6, target_modules=["v_proj", "gate_proj"], init_lora_weights=False),
        "hydralora": HydraLoraConfig(r=4, num_experts=2, init="random", target_modules=["up_proj"]),
        "moelora": MoeLoraConfig(r=4, num_experts=4, init="random"),
    }


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_other_shapes_are_taken_by_the_running_engine(
    base: Path, bench: Bench, tmp_path: Path
) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(base)
    room = widened(GatedAdapter(GatedSpec("lora", 1, 1, 1.0, False, False, None, ()), {}), model)
    bench.host.use(None, room.spec)
    running = bench.host._llm
    asked = [LoglikelihoodRequest((((5, 6, 7, 9), (5,)), ((5, 6, 7, 9, 11), (6, 7, 8))))]
    plain = dict(bench.transformers().loglikelihood(asked))[0].logprobs
    folders = {
        name: save_adapter(model, tmp_path / name, config, seed=seed)
        for seed, (name, config) in enumerate(other_shapes().items())
    }
    for name in (*folders, *reversed(folders)):
        found = dict(bench.vllm(folders[name]).loglikelihood(asked))[0].logprobs
        wanted = dict(bench.transformers(folders[name]).loglikelihood(asked))[0].logprobs
        assert found == pytest.approx(wanted, abs=1e-4), name
        assert found != pytest.approx(plain, abs=1e-2), name
        assert dict(bench.vllm().loglikelihood(asked))[0].logprobs == pytest.approx(plain, abs=1e-4)
    assert bench.host._llm is running
