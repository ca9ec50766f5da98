"""What the engine takes from a model and tells about itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import BloomConfig, BloomForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.engines import LoglikelihoodRequest, LoglikelihoodResponse
from cme_bench.engines.hf import HFEngine
from cme_bench.engines.hf.forward import max_positions


def test_describe_names_what_computes(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert HFEngine(tiny_model, toy_tokenizer, device="cpu").describe() == {
        "engine": "hf",
        "dtype": "float32",
        "device": "cpu",
        "attention": "sdpa",
        "logits": "float32",
        "prefixes": "shared",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def test_max_length_is_the_models_unless_given(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert HFEngine(tiny_model, toy_tokenizer).max_length == 65
    assert HFEngine(tiny_model, toy_tokenizer, max_length=9).max_length == 9
    assert max_positions(transformers.GPT2Config(n_positions=77)) == 77
    assert max_positions(BloomConfig()) == 2048


def test_a_model_without_position_ids(
    toy_tokenizer: PreTrainedTokenizerFast,
    reference: Callable[[Any, LoglikelihoodRequest], LoglikelihoodResponse],
) -> None:
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=2)).eval()
    request = LoglikelihoodRequest((((1, 2, 3, 4), (5, 6)), ((7,), (8,))))
    engine = HFEngine(model, toy_tokenizer)
    [(_, found)] = engine.loglikelihood([request])
    assert engine.describe()["prefixes"] == "not shared: the model takes no position ids"
    assert found.logprobs == pytest.approx(reference(model, request).logprobs, abs=1e-4)


def test_the_contract_is_free_of_torch() -> None:
    code = "import sys, cme_bench.engines; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
