"""Sizes from configs alone, against the table of the design notes and the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig, PeftConfig
from torch import Tensor
from transformers import LlamaConfig

from cme_bench.adapters import AdapterError, HydraLoraConfig, MoeLoraConfig, MosLoraConfig, TeamLoraConfig
from cme_bench.adapters.describe import describe
from cme_bench.adapters.liveness import check_liveness
from tests.support.adapter_cases import CONFIGS, TINY, Make

FFN = ["gate_proj", "up_proj", "down_proj"]
CHINESE_LLAMA_2_7B = LlamaConfig(
    vocab_size=55296,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
)
LLAMA_3_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
TABLE: list[tuple[PeftConfig, float, float | None]] = [
    (LoraConfig(r=32, target_modules=FFN), 0.670, 0.67),
    (LoraConfig(r=128, target_modules=FFN), 2.679, 2.68),
    (MoeLoraConfig(r=32), 2.714, 2.71),
    (HydraLoraConfig(r=32), 1.863, 1.84),
    (TeamLoraConfig(r=16), 1.375, 1.35),
    (TeamLoraConfig(r=32), 2.714, 2.71),
]


@pytest.mark.parametrize(("config", "derived", "published"), TABLE)
def test_parameter_table(config: PeftConfig, derived: float, published: float) -> None:
    found = describe(config, CHINESE_LLAMA_2_7B)
    assert found.base_parameters == 6_929_256_448
    assert found.percent_of_base == pytest.approx(derived, abs=0.0006)
    assert found.percent_of_base == pytest.approx(published, abs=0.03)
    assert found.targets == ("down_proj", "gate_proj", "up_proj")


def test_teamlora_32_in_numbers() -> None:
    found = describe(TeamLoraConfig(r=32), CHINESE_LLAMA_2_7B)
    assert (found.method, found.rank, found.experts) == ("teamlora", 32, 4)
    assert found.trainable_parameters == 188_057_088
    # MoELoRA has all but the interaction matrices.
    moe = describe(MoeLoraConfig(r=32), CHINESE_LLAMA_2_7B)
    assert found.trainable_parameters - moe.trainable_parameters == 3 * 32 * 4 * 4


def test_llama_3_8b() -> None:
    """By hand: each layer has two linears 4096 -> 14336 and one back; k = 4 experts of rank 32."""
    for config, per_linear in (
        (TeamLoraConfig(r=32), (4 * 32 * (4096 + 14336), 4, 16)),
        (MoeLoraConfig(r=32), (4 * 32 * (4096 + 14336), 4, 0)),
        (HydraLoraConfig(r=32), None),
        (MosLoraConfig(r=32), (32 * (4096 + 14336) + 32 * 32, 0, 0)),
    ):
        found = describe(config, LLAMA_3_8B)
        assert found.base_parameters == 8_030_261_248
        if per_linear is None:
            wanted = 32 * (2 * 32 * (4096 + 4 * 14336) + 32 * (14336 + 4 * 4096) + 4 * (2 * 4096 + 14336))
        else:
            pair, experts, matrix = per_linear
            wanted = 32 * (3 * (pair + matrix) + experts * (2 * 4096 + 14336))
        assert found.trainable_parameters == wanted
        assert found.percent_of_base == pytest.approx(100 * wanted / 8_030_261_248)


@pytest.mark.parametrize("method", CONFIGS)
def test_model_folder_and_config_agree(method: str, adapted: Make, tmp_path: Path) -> None:
    model = adapted(method)
    model.add_adapter("second", CONFIGS[method](r=5))
    base = sum(p.numel() for p in describe.__globals__["bare_model"](TINY).parameters())
    from_model = describe(model)
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    assert from_model.base_parameters == base
    assert describe(tmp_path, TINY) == from_model
    assert describe(CONFIGS[method](r=3, alpha=6.0), TINY) == from_model
    alone = describe(tmp_path)
    assert alone.percent_of_base is None and alone.trainable_parameters == from_model.trainable_parameters
    model.set_adapter("second")
    assert describe(model).rank == 5


def test_describe_reads_a_local_base(adapted: Make, tmp_path: Path) -> None:
    TINY.save_pretrained(tmp_path / "base")
    model = adapted("teamlora")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    assert describe(tmp_path / "adapter").percent_of_base == describe(model).percent_of_base
    with pytest.raises(AdapterError, match=r"config\.json"):
        describe(tmp_path / "adapter", tmp_path / "nowhere")


def test_liveness(adapted: Make, ids: Tensor) -> None:
    model = adapted("teamlora")
    model.train()
    assert check_liveness(model, ids) > 0
    assert model.training
    model.add_adapter("idle", CONFIGS["teamlora"](r=2))
    model.set_adapter("idle")
    with pytest.raises(AdapterError, match="'idle' changes no logit"):
        check_liveness(model, ids)
    model.set_adapter("default")
    for name, parameter in model.named_parameters():
        if "_up" in name and name.endswith("default"):
            parameter.data.fill_(float("inf"))
    with pytest.raises(AdapterError, match="'default' gives logits that are not finite"):
        check_liveness(model, ids)


def test_every_public_field_of_a_config_is_recorded() -> None:
    """What two trainings may differ in; paths, seeds and PEFT's own bookkeeping are not among it."""
    one = describe(TeamLoraConfig(r=4, target_modules=["up_proj"]), LLAMA_3_8B).config
    assert one.keys() >= {"r", "init", "interaction_init", "num_experts", "dropout_place", "target_modules"}
    assert not {"base_model_name_or_path", "inference_mode", "peft_version", "revision"} & one.keys()
    lora = LoraConfig(
        r=4, target_modules={"up_proj", "down_proj"}, rank_pattern={"up_proj": 8}, use_rslora=True
    )
    found = describe(lora, LLAMA_3_8B).config
    assert found.keys() >= {"r", "use_rslora", "init_lora_weights", "alpha_pattern", "modules_to_save"}
    assert (found["target_modules"], found["rank_pattern"]) == (["down_proj", "up_proj"], {"up_proj": 8})
