"""Which bfloat16 models float16 can hold."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerFast

from cme_bench.models import float16
from cme_bench.models.float16 import LARGEST, MOST_LOST, what_is_lost, why_not_adapter, why_not_float16
from tests.support.quantised_bases import write_quantised
from tests.support.tiny_llama import random_llama, save_checkpoint


def normal(spread: float, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (spread * torch.randn(64, 96, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_numbers_of_float16s_range_lose_nothing_that_matters(dtype: torch.dtype) -> None:
    for spread in (1e-3, 0.02, 1.0, 1e3):
        assert what_is_lost("w", normal(spread, dtype)) is None
    assert what_is_lost("w", torch.zeros(8, dtype=dtype)) is None
    assert what_is_lost("w", torch.tensor([LARGEST, -LARGEST])) is None
    dead = normal(0.02, dtype)
    dead[:40] *= 1e-8  # rows of tokens that are in no text
    assert what_is_lost("w", dead) is None


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.tensor([1.0, -65536.0], dtype=torch.bfloat16), "w holds 65536, beyond float16's 65504"),
        (torch.tensor([1.0, torch.inf]), "w holds NaN or infinite values"),
        (torch.tensor([torch.nan, 1.0]), "w holds NaN or infinite values"),
        (normal(1e-5), "w loses 0.14 % in float16: its numbers are about 1e-05"),
        (normal(1e-9), "w loses 1e+02 % in float16: its numbers are about 1e-09"),
        (normal(1e-28), "w loses 1e+02 % in float16: its numbers are about 1e-28"),
    ],
)
def test_numbers_beyond_it_are_named(weight: torch.Tensor, said: str) -> None:
    assert what_is_lost("w", weight) == said


def test_what_is_lost_is_less_than_a_rounding_to_bfloat16_takes() -> None:
    """At the limit the error by norm is a third of that of bfloat16, and far above that of float16."""
    exact = normal(1.0, torch.float32)
    narrow, wide = (
        float((exact - exact.to(d).float()).norm() / exact.norm()) for d in (torch.bfloat16, torch.half)
    )
    assert 2 * wide < MOST_LOST < narrow / 3


def test_parts_of_an_adapter_are_weighed_together() -> None:
    trained, hardly = normal(1e-2, torch.float32), normal(1e-6, torch.float32)
    assert why_not_adapter({"a.up": trained, "b.up": hardly, "a.down": trained}) is None
    assert why_not_adapter({"a.up": hardly, "a.down": trained}) == (
        "the adapter's up loses 1.7 % in float16: its numbers are about 1e-06"
    )
    assert why_not_adapter({"a.up": trained, "a.router": hardly}) is None, "routers stay in float32"


@pytest.fixture
def bare(tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    return save_checkpoint(tmp_path / "base", random_llama(0, tokenizer=toy_tokenizer), toy_tokenizer)


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (("llama", "llama"), None),
        (("gemma2", "gemma2"), "gemma2: its hidden states are too large for float16"),
        (("paligemma", "gemma2"), "gemma2: its hidden states are too large for float16"),
        (("gemma3n", "gemma3n_text"), "gemma3n: its hidden states are too large for float16"),
        (("glm4", "glm4"), "glm4: its hidden states are too large for float16"),
        (("glm4_moe", "glm4_moe"), None),
        (("qwen2_5_vl", "qwen2_5_vl_text"), "qwen2_5_vl: vLLM clips its hidden states in float16"),
        (("deepseek_v3", "deepseek_v3"), "deepseek_v3: vLLM scales its hidden states in float16"),
    ],
)
def test_families_that_need_the_range_are_named(bare: Path, kinds: tuple[str, str], said: str | None) -> None:
    text = SimpleNamespace(model_type=kinds[1])
    config = SimpleNamespace(model_type=kinds[0], get_text_config=lambda decoder=False: text)
    assert why_not_float16(bare, config) == said


@pytest.mark.slow
def test_families_that_vllm_refuses_are_known() -> None:
    config: Any = pytest.importorskip("vllm.config.model")
    refused = config._FLOAT16_NOT_SUPPORTED_MODELS
    assert all(float16._why_not_family(kind) for kind in refused)


def test_quantised_weights_are_multiplied_as_their_method_can(
    tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: Any = pytest.importorskip("vllm.model_executor.layers.quantization")
    model = random_llama(3, hidden=128, heads=2, kv_heads=2, vocab=512, tokenizer=toy_tokenizer)
    write_quantised(tmp_path / "base", model, toy_tokenizer, "gptq")
    config = AutoConfig.from_pretrained(tmp_path / "base")

    def takes(*dtypes: torch.dtype) -> None:
        method = type("Method", (), {"get_supported_act_dtypes": lambda self: list(dtypes)})
        monkeypatch.setattr(layers, "get_quantization_config", {"gptq": method}.__getitem__)

    takes(torch.bfloat16, torch.half)
    assert why_not_float16(tmp_path / "base", config) is None
    takes(torch.bfloat16)
    assert why_not_float16(tmp_path / "base", config) == "vLLM computes gptq in no float16"
    config.quantization_config["quant_method"] = "gptq_of_tomorrow"
    said = "vLLM does not say whether gptq_of_tomorrow takes float16 ('gptq_of_tomorrow')"
    assert why_not_float16(tmp_path / "base", config) == said


def test_weights_are_read_once_for_each_state_of_a_file(
    bare: Path, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CME_BENCH_CACHE", str(tmp_path / "cache"))
    config = AutoConfig.from_pretrained(bare)
    assert why_not_float16(bare, config) is None
    own = float16.what_is_lost
    monkeypatch.setattr(float16, "what_is_lost", lambda name, weight: pytest.fail(f"{name} is read again"))
    assert why_not_float16(bare, config) is None
    monkeypatch.setattr(float16, "what_is_lost", own)
    model = random_llama(0, tokenizer=toy_tokenizer)
    with torch.no_grad():
        model.model.norm.weight[3] = 7e4
    save_checkpoint(bare, model, toy_tokenizer)
    for _ in range(2):
        assert why_not_float16(bare, config) == "model.norm.weight holds 70000, beyond float16's 65504"
