"""Every field and argument that PEFT offers is honoured by our methods, or refused as PEFT refuses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftMixedModel, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from cme_bench.adapters import AdapterConfig
from tests.support.adapter_cases import CONFIGS, ON_LINEARS, tiny_llama

HONOURED_FIELDS = {
    **dict.fromkeys(
        ("task_type", "peft_type", "auto_mapping", "peft_version"), "PEFT's own files and classes"
    ),
    **dict.fromkeys(("base_model_name_or_path", "revision", "inference_mode"), "PEFT's own"),
    **dict.fromkeys(
        (
            "r",
            "target_modules",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
            "modules_to_save",
        ),
        "a field of AdapterConfig",
    ),
}
OF_LORA_ALONE = sorted(set(inspect.signature(LoraConfig).parameters) - HONOURED_FIELDS.keys())

ARGUMENTS: dict[Callable[..., Any], dict[str, str]] = {
    get_peft_model: {
        "adapter_name": "generic tests",
        "mixed": "test_mixed_models_are_refused",
        "autocast_adapter_dtype": "test_peft_citizens",
        "revision": "test_the_revision_of_the_base_is_kept",
        "low_cpu_mem_usage": "test_peft_citizens",
    },
    PeftModel.from_pretrained: {
        "adapter_name": "generic tests",
        "is_trainable": "test_trainable_or_not",
        "config": "test_a_config_wins_over_the_file",
        "autocast_adapter_dtype": "test_peft_citizens",
        "ephemeral_gpu_offload": "test_offload_is_lora_s_alone",
        "low_cpu_mem_usage": "test_peft_citizens",
        "key_mapping": "test_keys_are_mapped",
    },
    PeftModel.load_adapter: {
        "adapter_name": "generic tests",
        "is_trainable": "test_trainable_or_not",
        "torch_device": "test_trainable_or_not",
        "autocast_adapter_dtype": "test_peft_citizens",
        "ephemeral_gpu_offload": "test_offload_is_lora_s_alone",
        "low_cpu_mem_usage": "test_peft_citizens",
        "key_mapping": "test_keys_are_mapped",
    },
    PeftModel.save_pretrained: {
        "safe_serialization": "generic tests",
        "selected_adapters": "test_peft_citizens",
        "save_embedding_layers": "test_embeddings_are_saved_if_asked",
        "is_main_process": "test_only_the_main_process_writes",
        "path_initial_model_for_weight_conversion": "test_the_conversion_of_pissa_is_refused",
    },
    PeftModel.add_adapter: {
        "adapter_name": "generic tests",
        "low_cpu_mem_usage": "generic tests",
        "autocast_adapter_dtype": "generic tests",
    },
    PeftModel.set_adapter: {"adapter_name": "generic tests", "inference_mode": "test_active_and_frozen"},
    PeftModel.set_requires_grad: {"adapter_names": "generic tests", "requires_grad": "generic tests"},
    PeftModel.delete_adapter: {"adapter_name": "generic tests"},
    BaseTuner.merge_and_unload: {
        "progressbar": "PEFT's own",
        "safe_merge": "test_adapter_peft",
        "adapter_names": "test_only_the_named_adapters_are_merged",
    },
    BaseTuner.merge_adapter: {
        "adapter_names": "test_only_the_named_adapters_are_merged",
        "safe_merge": "test_conv1d",
    },
    BaseTuner.set_adapter: {"adapter_name": "generic tests", "inference_mode": "test_active_and_frozen"},
    peft.inject_adapter_in_model: {
        "adapter_name": "generic tests",
        "low_cpu_mem_usage": "generic tests",
        "state_dict": "generic tests",
    },
}
"""Public function of PEFT -> its argument -> where it is tried with our methods."""
_GIVEN = {"self", "cls", "model", "model_id", "peft_config", "save_directory", "kwargs"}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin0, self.lin1 = nn.Linear(10, 20), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.lin1(self.lin0(x))
        return result


def two(seed: int = 0) -> Two:
    torch.manual_seed(seed)
    return Two()


def config(method: str, **fields: Any) -> Any:
    return CONFIGS[method](**{"r": 2, "init": "random", "target_modules": ["lin0"], **fields})


def on_llama(method: str) -> PeftModel:
    model = get_peft_model(tiny_llama(), CONFIGS[method](r=2, init="random", task_type="CAUSAL_LM"))
    return model.eval()


@pytest.mark.parametrize("function", ARGUMENTS, ids=lambda function: function.__qualname__)
def test_the_table_holds_every_argument_of_the_installed_peft(function: Callable[..., Any]) -> None:
    names = set(inspect.signature(function).parameters) - _GIVEN
    assert names == ARGUMENTS[function].keys()
    here = Path(__file__)
    for place in set(ARGUMENTS[function].values()) - {"PEFT's own", "generic tests"}:
        assert place in globals() or (here.parent / f"{place}.py").is_file(), place


def test_every_field_of_peft_s_base_config_is_known() -> None:
    assert set(inspect.signature(PeftConfig).parameters) <= HONOURED_FIELDS.keys()
    assert set(inspect.signature(AdapterConfig).parameters) >= HONOURED_FIELDS.keys()


@pytest.mark.parametrize("field", OF_LORA_ALONE)
def test_a_field_of_lora_alone_is_refused_as_python_refuses_it(field: str) -> None:
    """As by PEFT's methods that do not have it; a folder's unknown field is one of ``load_adapter``."""
    for method in CONFIGS:
        if field in inspect.signature(CONFIGS[method]).parameters:
            continue
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{field}'"):
            CONFIGS[method](target_modules=["lin0"], **{field: None})


@pytest.mark.parametrize("method", ON_LINEARS)
def test_mixed_models_are_refused(method: str) -> None:
    with pytest.raises(ValueError, match="peft_type"):
        get_peft_model(two(), config(method), mixed=True)
    mixed = get_peft_model(two(), LoraConfig(target_modules=["lin0"]), mixed=True)
    assert isinstance(mixed, PeftMixedModel)
    with pytest.raises(ValueError, match="peft_type"):
        mixed.add_adapter("other", config(method))


@pytest.mark.parametrize("method", ON_LINEARS)
def test_the_revision_of_the_base_is_kept(method: str, tmp_path: Path) -> None:
    get_peft_model(two(), config(method), revision="v2").save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).revision == "v2"


@pytest.mark.parametrize("method", ON_LINEARS)
def test_trainable_or_not(method: str, tmp_path: Path) -> None:
    get_peft_model(two(), config(method)).save_pretrained(tmp_path)
    for trainable in (False, True):
        model = PeftModel.from_pretrained(two(), tmp_path, is_trainable=trainable)
        model.load_adapter(tmp_path, "second", is_trainable=trainable, torch_device="cpu")
        ours = [p.requires_grad for name, p in model.named_parameters() if model.prefix in name]
        assert set(ours) == {trainable}
        assert model.training is trainable
    assert model.get_model_status().available_adapters == ["default", "second"]
    [layer] = model.get_layer_status()
    assert layer.requires_grad == {"default": trainable, "second": trainable}


@pytest.mark.parametrize("method", ON_LINEARS)
def test_a_config_wins_over_the_file(method: str, tmp_path: Path) -> None:
    get_peft_model(two(), config(method)).save_pretrained(tmp_path)
    given = config(method, alpha=0.0)
    if method == "teamlora":
        given.scaling = 0.0
    x = torch.randn(3, 10)
    assert torch.equal(PeftModel.from_pretrained(two(), tmp_path, config=given)(x), two()(x))
    assert not torch.equal(PeftModel.from_pretrained(two(), tmp_path)(x), two()(x))


@pytest.mark.parametrize("method", ON_LINEARS)
def test_offload_is_lora_s_alone(method: str, tmp_path: Path) -> None:
    get_peft_model(two(), config(method)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="phemeral"):
        PeftModel.from_pretrained(two(), tmp_path, ephemeral_gpu_offload=True)


@pytest.mark.parametrize("method", ON_LINEARS)
def test_keys_are_mapped(method: str, tmp_path: Path) -> None:
    model = get_peft_model(two(), config(method)).eval()
    model.save_pretrained(tmp_path)
    x = torch.randn(3, 10)
    other = nn.Sequential(two().lin0)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        PeftModel.from_pretrained(
            nn.Sequential(two().lin0), tmp_path, config=config(method, target_modules=["0"])
        )
    mapped = PeftModel.from_pretrained(
        other, tmp_path, config=config(method, target_modules=["0"]), key_mapping={"^lin0": "0"}
    )
    torch.testing.assert_close(mapped(x), model.base_model.model.lin0(x))


@pytest.mark.parametrize("method", CONFIGS)
def test_embeddings_are_saved_if_asked(method: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for asked in (False, True):
        on_llama(method).save_pretrained(tmp_path, save_embedding_layers=asked)
        found = load_file(tmp_path / "adapter_model.safetensors")
        assert any("embed_tokens" in key for key in found) is asked


@pytest.mark.parametrize("method", ON_LINEARS)
def test_only_the_main_process_writes(method: str, tmp_path: Path) -> None:
    get_peft_model(two(), config(method)).save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ON_LINEARS)
def test_the_conversion_of_pissa_is_refused(method: str, tmp_path: Path) -> None:
    model = get_peft_model(two(), config(method))
    with pytest.raises(ValueError, match="is not supported for"):
        model.save_pretrained(tmp_path / "a", path_initial_model_for_weight_conversion=str(tmp_path / "b"))


@pytest.mark.parametrize("method", ON_LINEARS)
def test_active_and_frozen(method: str) -> None:
    model = get_peft_model(two(), config(method), adapter_name="first")
    model.add_adapter("second", config(method))
    model.set_adapter("second", inference_mode=True)
    assert not any(p.requires_grad for p in model.parameters())
    model.base_model.set_adapter(["first", "second"])
    both = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in both} == {"first", "second"}


def test_only_the_named_adapters_are_merged() -> None:
    x = torch.randn(3, 10)
    model = get_peft_model(two(), config("moslora"), adapter_name="first").eval()
    model.add_adapter("second", config("moslora"))
    model.set_adapter("second")
    wanted = model.eval()(x)
    model.merge_adapter(["second"])
    assert model.base_model.model.lin0.merged_adapters == ["second"]
    torch.testing.assert_close(model(x), wanted)
    model.unmerge_adapter()
    torch.testing.assert_close(model.merge_and_unload(adapter_names=["second"], progressbar=False)(x), wanted)


LORA_S_OWN: dict[str, Callable[[PeftModel], Any]] = {
    "add_weighted_adapter": lambda model: model.add_weighted_adapter(["default"], [1.0], "sum"),
    "convert_to_lora": lambda model: peft.convert_to_lora(model, rank=2),
    "initialize_lora_eva_weights": lambda model: peft.initialize_lora_eva_weights(model, []),
    "replace_lora_weights_loftq": peft.replace_lora_weights_loftq,
    "subtract_mutated_init": lambda model: model.subtract_mutated_init({}, "default"),
}


@pytest.mark.parametrize("name", LORA_S_OWN)
def test_what_peft_does_for_lora_alone_is_an_error(name: str) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        LORA_S_OWN[name](on_llama("teamlora"))


@pytest.mark.parametrize("method", CONFIGS)
def test_transformers_puts_our_adapters_on_by_itself(method: str, tmp_path: Path) -> None:
    """``add_adapter`` and ``load_adapter`` of a transformers model, without a PeftModel around it."""
    ids = torch.arange(8).reshape(1, 8)
    made = on_llama(method)
    wanted = made(ids).logits
    made.save_pretrained(tmp_path)
    model: LlamaForCausalLM = tiny_llama()
    plain = model(ids).logits
    model.load_adapter(str(tmp_path), adapter_name="mine")
    assert torch.equal(model(ids).logits, wanted)
    model.disable_adapters()
    assert torch.equal(model(ids).logits, plain)
    other = tiny_llama()
    other.add_adapter(CONFIGS[method](r=2, init="random"), adapter_name="new")
    assert not torch.equal(other.eval()(ids).logits, plain)
