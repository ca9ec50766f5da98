"""Images through the real vLLM on a CPU, against transformers: likelihoods, texts, an adapter, refusals."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from cme_bench.adapters import TeamLoraConfig
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.load import load_adapter, take_off
from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf.engine import HFEngine
from cme_bench.engines.vllm.adapter import read_gated
from cme_bench.models.loaded import SavedModel
from cme_bench.runs.options import ModelOptions
from cme_bench.util.errors import UsageError
from cme_bench.vllm_plugin.file import write_adapter
from tests.support.seen import Seeing, noise
from tests.support.tiny_llava import llava_processor, random_llava, save_llava, seeing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
IMAGES = tuple(noise(seed, 40 + 8 * seed, 50) for seed in range(3))
TEXTS = ("<image>\nIs it a dog? ", "<image>\nWhat colour? ", "<image> or <image>? ", "No image. ")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Seeing:
    own = seeing(toy_tokenizer)
    model = random_llava(0, own, positions=192, heads=1)
    folder = tmp_path_factory.mktemp("images") / "llava"
    return Seeing.load(save_llava(folder, model, llava_processor(own)))


@pytest.fixture(scope="module")
def adapter(seen: Seeing) -> Path:
    torch.manual_seed(3)
    config = TeamLoraConfig(r=4, num_experts=2, init="random", target_attention=True)
    folder = seen.folder.parent / "team"
    get_peft_model(Seeing.load(seen.folder).model, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def host(seen: Seeing) -> Iterator[Any]:
    from cme_bench.engines.vllm.host import Host
    from cme_bench.engines.vllm.settings import VllmSettings

    host = Host(seen.folder, "float32", VllmSettings(kv_gib=1, block_size=32), reader=seen.vision)
    host.allow(193)
    yield host
    host.close()


def asked(seen: Seeing) -> tuple[list[LoglikelihoodRequest], list[GenerateRequest]]:
    choices = [tuple(seen.tokenizer(word)["input_ids"]) for word in ("yes", "no", "x")]
    choices.append((choices[0][0], seen.vision.token_id, choices[2][0]))  # a token of an image as text
    scored, written = [], []
    for first in range(len(IMAGES)):
        for text in TEXTS:
            images = tuple(IMAGES[(first + n) % 3] for n in range(text.count("<image>")))
            ids = seen.ids(text, *images)
            scored.append(LoglikelihoodRequest(tuple((ids, choice) for choice in choices), images))
            written.append(GenerateRequest(ids, 6, images=images))
    return scored, written


def assert_alike(engine: Any, model: Any, seen: Seeing) -> None:
    scored, written = asked(seen)
    reference = HFEngine(model, seen.tokenizer, reader=seen.vision)
    wanted, found = dict(reference.loglikelihood(scored)), dict(engine.loglikelihood(scored))
    for number, response in wanted.items():
        assert found[number].logprobs == pytest.approx(response.logprobs, abs=1e-4), number
        assert found[number].greedy == response.greedy, number
    assert dict(engine.generate(written)) == dict(reference.generate(written))


def test_answers_are_those_of_transformers_with_an_adapter_and_without(
    host: Any, seen: Seeing, adapter: Path
) -> None:
    from cme_bench.engines.vllm.engine import VLLMEngine

    gated = read_gated(adapter, seen.model.config)
    file = adapter.parent / "team.safetensors"
    write_adapter(file, gated.spec, gated.tensors)
    assert all(name.startswith("model.language_model.layers.") for name in gated.spec.modules)
    ends = frozenset([seen.tokenizer.eos_token_id])
    engine = VLLMEngine(host, seen.tokenizer, ends, adapter=file, spec=gated.spec)
    engine.check_liveness("team", seen.ids(TEXTS[0], IMAGES[0]), IMAGES[:1])
    model = load_adapter(seen.model, adapter)
    assert_alike(engine, model, seen)
    take_off(model)
    assert_alike(VLLMEngine(host, seen.tokenizer, ends), seen.model, seen)


def test_a_lora_on_a_tower_is_refused_by_name(seen: Seeing, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(Seeing.load(seen.folder).model, config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"adapts model\.vision_tower\S+, outside of the language model"):
        read_gated(tmp_path, seen.model.config)


def test_images_with_marks_between_their_tiles_are_refused(
    tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    from cme_bench.runs.vllm_source import VLLMSource
    from tests.support.tiny_vlms import idefics3

    tiled = Seeing.load(idefics3(tmp_path / "idefics3", toy_tokenizer))
    options = ModelOptions(model=str(tiled.folder), engine="vllm")
    model = SavedModel(options.model, engine="vllm", dtype="float32", device=lambda: torch.device("cpu"))
    source = VLLMSource(model, options)
    ids = tiled.ids("<image>\nWhat? ", IMAGES[0])
    with pytest.raises(UsageError, match="puts other tokens around or between those of an image"):
        source.check([GenerateRequest(ids, 3, images=IMAGES[:1])])
