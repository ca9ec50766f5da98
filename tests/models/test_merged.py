"""DoRA for vLLM: merged into the base weights, in float32 alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from cme_bench.adapters.errors import AdapterError
from cme_bench.cli.adapters import adapters
from cme_bench.engines.vllm.adapter import adapted_linears
from cme_bench.engines.vllm.fields import needs_merging, refuse_rounded
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.merged import write_merged
from cme_bench.util.errors import UsageError
from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.vllm_fields import logits, peft_logits, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")
FORMS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}},
}


@pytest.fixture(scope="module")
def model(toy_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return random_llama(0, tokenizer=toy_tokenizer)


@pytest.fixture(scope="module")
def base(
    model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("merged") / "base", model, toy_tokenizer)


def dora(model: LlamaForCausalLM, folder: Path, **fields: object) -> Path:
    settings = {"r": 4, "lora_alpha": 12, "use_dora": True, "task_type": "CAUSAL_LM", **fields}
    settings.setdefault("target_modules", ["q_proj", "down_proj"])
    return save_adapter(model, folder, LoraConfig(**settings))


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 250, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", FORMS)
def test_merged_weights_compute_what_peft_does(
    form: str, model: LlamaForCausalLM, base: Path, ids: Tensor, tmp_path: Path
) -> None:
    folder = dora(model, tmp_path / "dora", **FORMS[form])
    adapted_linears(folder, model.config)
    write_merged(resolve_model(str(base)), folder, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    wanted = peft_logits(model, folder, ids)
    torch.testing.assert_close(logits(merged, ids), wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - logits(model, ids)).abs().max() > 0.05
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_only_dora_is_merged_and_only_in_float32(model: LlamaForCausalLM, tmp_path: Path) -> None:
    folder = dora(model, tmp_path / "dora")
    assert needs_merging(folder)
    refuse_rounded(folder, "float32")
    with pytest.raises(AdapterError, match=r"use_dora is True.*bfloat16 would round.*--dtype float32"):
        refuse_rounded(folder, "bfloat16")
    with pytest.raises(AdapterError, match=r"use_dora is True.*quantised: use --engine hf"):
        refuse_rounded(folder, "float32", quantised=True)
    plain = dora(model, tmp_path / "plain", use_dora=False)
    assert not needs_merging(plain)
    refuse_rounded(plain, "bfloat16")


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias is"),
    ],
)
def test_what_a_merged_dora_may_not_have(
    fields: dict[str, object], wanted: str, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=wanted):
        adapted_linears(dora(model, tmp_path / "dora", **fields), model.config)


def test_an_idle_adapter_and_a_full_folder(model: LlamaForCausalLM, base: Path, tmp_path: Path) -> None:
    checkpoint = resolve_model(str(base))
    folder = dora(model, tmp_path / "dora")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        write_merged(checkpoint, folder, tmp_path / "full")


def test_the_command_prints_the_dtype(model: LlamaForCausalLM, base: Path, tmp_path: Path) -> None:
    folder = dora(model, tmp_path / "dora")
    run = CliRunner().invoke(
        adapters, ["export-vllm", str(folder), "--base", str(base), "-o", str(tmp_path / "out")]
    )
    assert run.exit_code == 0, run.output
    assert run.stdout.splitlines()[-1].endswith(" --dtype float32")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
