"""vLLM on a CPU: adapters over bases that it computes by AWQ, GPTQ, FP8 and compressed-tensors."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import TeamLoraConfig
from cme_bench.engines.base import LoglikelihoodRequest
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import check_base, load_config
from cme_bench.models.quantisation import check_takes_adapter
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.engine_source import EngineJob
from cme_bench.runs.options import ModelOptions
from cme_bench.util.errors import UsageError
from tests.support.quantised_bases import write_quantised
from tests.support.tiny_llama import random_llama, save_checkpoint

CONTEXT = tuple(range(10, 18))
ROWS = LoglikelihoodRequest(tuple((CONTEXT, pair) for pair in itertools.product((20, 30, 40), (21, 31, 41))))
JOB = EngineJob(64, 64, CONTEXT)
ROUNDING = 0.25
"""Most difference of the sum of two log-probabilities: vLLM multiplies in bfloat16. The adapter moves them by
2 to 4."""


def scores(model: Path, adapter: Path | None, engine: str) -> torch.Tensor:
    dtype = "float32" if engine == "hf" else "auto"
    options = ModelOptions(model=str(model), engine=engine, dtype=dtype)  # type: ignore[arg-type]
    with open_engines(options) as engines:
        found = engines.adapter(None if adapter is None else str(adapter))
        ((_, response),) = engines.open(found, JOB).loglikelihood([ROWS])
    return torch.tensor(response.logprobs)


def write_adapter(base: Path, config: PeftConfig, folder: Path) -> Path:
    torch.manual_seed(3)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gptq", "awq", "fp8 blocks", "compressed int8"])
def test_the_update_is_added_to_the_quantised_product(
    kind: str, tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    pytest.importorskip("vllm")
    if kind == "fp8 blocks" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("vLLM has FP8 products on CPUs with AMX only")
    model = random_llama(
        1, hidden=128, heads=2, kv_heads=2, positions=512, vocab=512, spread=0.08, tokenizer=toy_tokenizer
    )
    meant = write_quantised(tmp_path / "base", model, toy_tokenizer, kind)
    full = save_checkpoint(tmp_path / "full", meant, toy_tokenizer)
    targets = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    config = TeamLoraConfig(r=4, num_experts=4, target_modules=targets, task_type="CAUSAL_LM")
    if kind == "awq":
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    adapter = write_adapter(full, config, tmp_path / "adapter")
    alone, adapted = scores(full, None, "hf"), scores(full, adapter, "hf")
    found = scores(tmp_path / "base", adapter, "vllm")
    assert (adapted - alone).abs().max() > 4 * ROUNDING, "the adapter does too little to be seen"
    torch.testing.assert_close(found, adapted, rtol=0, atol=ROUNDING)


def test_what_vllm_does_not_know_is_said_in_one_line(
    tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    pytest.importorskip("vllm")
    model = random_llama(3, hidden=128, heads=2, kv_heads=2, tokenizer=toy_tokenizer)
    write_quantised(tmp_path / "base", model, toy_tokenizer, "gptq")
    checkpoint = resolve_model(str(tmp_path / "base"))
    config = load_config(checkpoint)
    check_base(checkpoint, config, "vllm")
    check_takes_adapter(checkpoint.path, config)
    config.quantization_config["quant_method"] = "quanto"
    with pytest.raises(UsageError, match="quantised with quanto, which the installed vLLM does not know"):
        check_base(checkpoint, config, "vllm")
    with pytest.raises(UsageError, match="on which the vLLM plugin puts no adapter"):
        check_takes_adapter(checkpoint.path, config)
