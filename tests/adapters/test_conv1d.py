"""Adapters on GPT-2's Conv1D, whose weight lies the other way round, and layers that cannot be adapted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from cme_bench.adapters.describe import describe
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.load import load_adapter
from cme_bench.adapters.shared.layer import AdapterLinear
from cme_bench.engines.hf.per_token import why_not_per_token
from tests.support.adapter_cases import CONFIGS, ON_LINEARS

SIZES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 20}


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(**SIZES, initializer_range=0.3)).eval()


class AsLinear(nn.Module):
    """One layer, as Conv1D or as the nn.Linear of the same weight."""

    def __init__(self, conv: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        weight, bias = torch.randn(7, 5), torch.randn(7)
        layer: nn.Module = Conv1D(7, 5) if conv else nn.Linear(5, 7)
        layer.weight = nn.Parameter(weight.T.contiguous() if conv else weight)
        layer.bias = nn.Parameter(bias)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


@pytest.mark.parametrize("method", ON_LINEARS)
def test_it_is_the_linear_of_the_transposed_weight(method: str) -> None:
    x = torch.randn(2, 3, 5)
    found = []
    for conv in (True, False):
        config = CONFIGS[method](r=2, init="random", target_modules=["layer"])
        base = AsLinear(conv)
        torch.manual_seed(3)
        found.append(get_peft_model(base, config).eval()(x))
    torch.testing.assert_close(*found)
    assert (found[0] - AsLinear(True)(x)).abs().max() > 0.01


def test_moslora_is_merged_into_it_and_taken_out_again() -> None:
    base = AsLinear(True)
    plain = base.layer.weight.detach().clone()
    model = get_peft_model(base, CONFIGS["moslora"](r=2, init="random", target_modules=["layer"])).eval()
    x = torch.randn(2, 3, 5)
    wanted = model(x)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(x), wanted)
    assert model.base_model.model.layer.weight.shape == (5, 7)
    model.unmerge_adapter()
    torch.testing.assert_close(model.base_model.model.layer.weight, plain)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    torch.testing.assert_close(model.merge_and_unload()(x), wanted)


@pytest.mark.parametrize(
    ("targets", "number"),
    [(None, 4), (["c_attn", "c_proj"], 6), ("all-linear", 8), (r".*\.1\.mlp\.c_fc", 1)],
)
def test_an_adapter_of_gpt2_is_saved_described_and_loaded(targets: Any, number: int, tmp_path: Path) -> None:
    ids = torch.arange(6).reshape(1, 6)
    config = CONFIGS["teamlora"](r=2, init="random", target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(gpt2(), config).eval()
    wanted = model(ids).logits
    assert (wanted - gpt2()(ids).logits).abs().max() > 0.01
    layers = [m for m in model.modules() if isinstance(m, AdapterLinear)]
    assert len(layers) == number
    assert why_not_per_token(model, torch.float32) is None
    model.save_pretrained(tmp_path)
    assert describe(tmp_path, gpt2().config).trainable_parameters == sum(
        p.numel() for name, p in model.named_parameters() if "teamlora_" in name
    )
    assert torch.equal(load_adapter(gpt2(), tmp_path)(ids).logits, wanted)


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x)
        return result


@pytest.mark.parametrize("target", ["out_proj", "linear1"])
def test_a_layer_that_its_parent_reads_is_refused(target: str) -> None:
    """PEFT's LoRA adapts it, and in evaluation nothing happens."""
    x = torch.randn(1, 3, 8)
    lora = get_peft_model(Reading(), LoraConfig(target_modules=["linear1"], init_lora_weights=False)).eval()
    found = lora(x)
    with lora.disable_adapter():
        assert torch.equal(lora(x), found)
    with pytest.raises(AdapterError, match=f"{target} cannot be adapted: .* reads its weight") as caught:
        get_peft_model(Reading(), CONFIGS["teamlora"](target_modules=[target]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("target", "refused"), [("out_proj", True), ("x_proj", True), ("in_proj", False)])
def test_what_mamba_s_kernels_read_is_refused(target: str, refused: bool) -> None:
    config = AutoConfig.for_model("mamba", vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    ours = CONFIGS["moslora"](r=2, target_modules=[target])
    if not refused:
        get_peft_model(model, ours)
        return
    with pytest.raises(ValueError, match=f"{target} of mamba cannot be adapted"):
        get_peft_model(model, ours)
