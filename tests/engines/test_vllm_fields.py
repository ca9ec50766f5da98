"""Every field of every method, without vLLM: equal to plain PEFT's logits, or refused by name."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM as Llama

from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, MosLoraConfig, TeamLoraConfig
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.gated import GatedForm
from cme_bench.adapters.registry import methods
from cme_bench.engines.vllm.adapter import read_gated
from tests.support.tiny_llama import random_llama
from tests.support.vllm_fields import (
    ACCEPTED,
    LORA,
    RECORDED,
    REFUSED,
    applied,
    logits,
    patch,
    peft_logits,
    save_adapter,
)

Case = tuple[str, Any]
EXACT = {method.name.upper() for method in methods() if isinstance(method.vllm, GatedForm)}


def cases(table: dict[str, list[Any]]) -> list[Case]:
    return [(field, value) for field, values in table.items() for value in values]


def label(case: Case) -> str:
    return re.sub(r"\W+", "-", f"{case[0]}-{case[1]}")


@pytest.fixture(scope="module")
def base() -> Llama:
    return random_llama(0, hidden=64, heads=2, kv_heads=1)


@pytest.fixture(scope="module")
def plain(base: Llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(base, tmp_path_factory.mktemp("fields") / "plain", LoraConfig(**LORA))


@pytest.fixture(scope="module")
def ids() -> Tensor:
    source = random.Random(0)
    return torch.tensor([[source.randrange(256) for _ in range(24)] for _ in range(2)])


def assert_exact(base: Llama, folder: Path, ids: Tensor) -> None:
    """The plugin's form of the adapter computes what PEFT does, and not what the base does."""
    found = read_gated(folder, base.config)
    without, wanted = logits(base, ids), peft_logits(base, folder, ids)
    with applied(base, found) as model:
        torch.testing.assert_close(logits(model, ids), wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - without).abs().max() > 0.05


def copied(plain: Path, folder: Path, **fields: Any) -> Path:
    folder.mkdir()
    for file in plain.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    patch(folder, **fields)
    return folder


def test_every_field_of_lora_is_in_a_table() -> None:
    """A new PEFT brings new fields: this test says to look at them."""
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    listed = ACCEPTED.keys() | RECORDED.keys() | REFUSED.keys() | {"peft_type"}
    assert known == listed - {"written_by_a_later_peft", "unsloth_version"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", cases(ACCEPTED), ids=label)
def test_a_lora_of_another_setting_is_exact(base: Llama, ids: Tensor, tmp_path: Path, case: Case) -> None:
    folder = save_adapter(base, tmp_path / "a", LoraConfig(**{**LORA, case[0]: case[1]}))
    assert_exact(base, folder, ids)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", cases(RECORDED), ids=label)
def test_a_record_changes_nothing(base: Llama, plain: Path, ids: Tensor, tmp_path: Path, case: Case) -> None:
    others = {"layers_to_transform": [0, 1]} if case[0] == "layers_pattern" else {}
    assert_exact(base, copied(plain, tmp_path / "a", **{case[0]: case[1]}, **others), ids)


@pytest.mark.parametrize("method", ["LORA", "ADALORA"])
@pytest.mark.parametrize("case", cases(REFUSED), ids=label)
def test_any_other_setting_is_refused_by_name(
    base: Llama, plain: Path, tmp_path: Path, case: Case, method: str
) -> None:
    folder = copied(plain, tmp_path / "a", **{case[0]: case[1], "peft_type": method, "total_step": 1})
    with pytest.raises(AdapterError, match=rf": {case[0]} is .*use --engine hf") as raised:
        read_gated(folder, base.config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", sorted({str(m.value) for m in PEFT_TYPE_TO_CONFIG_MAPPING} - EXACT))
def test_any_other_method_is_refused_by_name(base: Llama, plain: Path, tmp_path: Path, method: str) -> None:
    folder = copied(plain, tmp_path / "a", peft_type=method)
    with pytest.raises(AdapterError, match=rf"peft_type {method}: .*use --engine hf"):
        read_gated(folder, base.config)


ADALORA: dict[str, Any] = {"init_r": 6, "total_step": 10, "target_modules": ["q_proj", "down_proj"]}
ADALORA_FIELDS: dict[str, Any] = {
    "init_r": 5,
    "target_r": 3,
    "tinit": 1,
    "tfinal": 2,
    "deltaT": 2,
    "beta1": 0.5,
    "beta2": 0.5,
    "orth_reg_weight": 0.1,
    "total_step": 20,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*ADALORA_FIELDS, "lora_alpha"])
def test_every_field_of_adalora_is_exact(base: Llama, ids: Tensor, tmp_path: Path, name: str) -> None:
    own = {field.name for field in dataclasses.fields(AdaLoraConfig)} - {
        field.name for field in dataclasses.fields(LoraConfig)
    }
    assert own == ADALORA_FIELDS.keys()
    changed = {**ADALORA, name: ADALORA_FIELDS.get(name, 5)}
    assert_exact(base, save_adapter(base, tmp_path / "a", AdaLoraConfig(**changed)), ids)


OURS: dict[Any, dict[str, list[Any]]] = {
    TeamLoraConfig: {
        "scaling": ["alpha/(k*r)", 0.7],
        "normalize_omega": [True],
        "omega_times_k": [True],
        "dropout_place": ["latent"],
        "interaction_init": [0.5],
        "collaboration": [False],
        "competition": [False],
    },
    MoeLoraConfig: {},
    HydraLoraConfig: {},
    MosLoraConfig: {"mixer_init": ["orthogonal"]},
}
SHARED: dict[str, list[Any]] = {
    "r": [3],
    "alpha": [7.0],
    "dropout": [0.2],
    "target_modules": [["q_proj", "up_proj"]],
    "target_attention": [True],
    "exclude_modules": [["up_proj"]],
    "layers_to_transform": [[1]],
    "init": ["random"],
    "task_type": [None],
}
ROUTED: dict[str, list[Any]] = {"num_experts": [3], "balance_coefficient": [0.1]}


def our_cases() -> list[tuple[Any, str, Any]]:
    found = []
    for method, own in OURS.items():
        routed = {} if method is MosLoraConfig else ROUTED
        found += [(method, *case) for case in cases({**SHARED, **routed, **own})]
    return found


def test_every_field_of_our_methods_is_in_a_table() -> None:
    records = {"peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
    for method, own in OURS.items():
        listed = own.keys() | SHARED.keys() | (set() if method is MosLoraConfig else ROUTED.keys())
        left = {field.name for field in dataclasses.fields(method)} - listed - records
        assert left == {"inference_mode", "layers_pattern", "modules_to_save"}


@pytest.mark.parametrize("case", our_cases(), ids=lambda c: f"{c[0].__name__}-{label(c[1:])}")
def test_every_field_of_our_methods_is_exact(
    base: Llama, ids: Tensor, tmp_path: Path, case: tuple[Any, str, Any]
) -> None:
    method, field, value = case
    config = method(**{"r": 4, "init": "random", "task_type": "CAUSAL_LM", field: value})
    assert_exact(base, save_adapter(base, tmp_path / "a", config), ids)


@pytest.mark.parametrize("method", OURS, ids=lambda m: m.__name__)
def test_our_methods_with_whole_modules_are_refused(base: Llama, tmp_path: Path, method: Any) -> None:
    folder = save_adapter(base, tmp_path / "a", method(r=4, modules_to_save=["lm_head"]))
    with pytest.raises(AdapterError, match=r"modules_to_save is .*use --engine hf"):
        read_gated(folder, base.config)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.filterwarnings("ignore")
def test_layers_out_of_reach_are_refused(base: Llama, tmp_path: Path, target: str) -> None:
    """Alone or beside others: vLLM's plugin serves the linears of the decoder."""
    config = LoraConfig(**{**LORA, "target_modules": ["q_proj", target]})
    folder = save_adapter(base, tmp_path / "a", config)
    with pytest.raises(AdapterError, match=rf"{target}.*use --engine hf"):
        read_gated(folder, base.config)


def test_a_base_weight_in_the_file_is_refused(base: Llama, plain: Path, tmp_path: Path) -> None:
    """PEFT loads it over the base model's; the plugin has no place for it."""
    folder = copied(plain, tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    weight = base.get_input_embeddings().weight.detach().clone()
    save_file({**load_file(file), "base_model.model.model.embed_tokens.weight": weight}, file)
    with pytest.raises(AdapterError, match=r"embed_tokens\.weight .*use --engine hf"):
        read_gated(folder, base.config)


def test_the_sentence_names_file_field_and_value(base: Llama, plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "a", init_lora_weights="pissa")
    with pytest.raises(AdapterError) as raised:
        read_gated(folder, base.config)
    assert str(raised.value) == (
        f"{folder / 'adapter_config.json'}: init_lora_weights is 'pissa', which the vLLM plugin cannot "
        "compute; use --engine hf"
    )
    assert json.loads((folder / "adapter_config.json").read_text())["init_lora_weights"] == "pissa"
