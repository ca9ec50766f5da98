"""Our methods as PEFT's own: flags, errors, mixed batches, and what else PEFT offers for its LoRA."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, NoMatchingPeftModuleError, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting, rescale_adapter_scale
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from cme_bench.adapters import record_router
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.load import load_adapter
from tests.support.adapter_cases import CONFIGS, ON_LINEARS, ROUTED, Make, tiny_llama

METHODS = list(CONFIGS)


class Two(nn.Module):
    """PEFT's own tests adapt such a model."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Linear(10, 20)
        self.lin1 = nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin1(self.lin0(x))


def config(method: str, **fields: Any) -> Any:
    return CONFIGS[method](**{"r": 2, "init": "random", "target_modules": ["lin0"], **fields})


def dtypes(model: Any) -> set[torch.dtype]:
    return {p.dtype for name, p in model.named_parameters() if model.prefix in name}


@pytest.mark.parametrize("method", ON_LINEARS)
def test_autocast_adapter_dtype(method: str, tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = get_peft_model(Two().to(dtype), config(method))
        assert dtypes(model) == {torch.float32}
        model.save_pretrained(tmp_path / str(dtype))
        narrow = get_peft_model(Two().to(dtype), config(method), autocast_adapter_dtype=False)
        assert dtypes(narrow) == {dtype}
        assert narrow.eval()(torch.ones(3, 10, dtype=dtype)).dtype == dtype
        loaded = PeftModel.from_pretrained(
            Two().to(dtype), tmp_path / str(dtype), autocast_adapter_dtype=False
        )
        assert dtypes(loaded) == {dtype}
    assert dtypes(get_peft_model(Two().double(), config(method))) == {torch.float64}


@pytest.mark.parametrize("targets", ["all-linear", r".*lin0"])
@pytest.mark.parametrize("fields", [{"layers_to_transform": [0]}, {"layers_pattern": "layers"}])
def test_layers_need_named_targets(targets: str, fields: dict[str, Any]) -> None:
    for made in (LoraConfig, CONFIGS["teamlora"]):
        with pytest.raises(ValueError, match=next(iter(fields))):
            made(target_modules=targets, **fields)
    with pytest.raises(ValueError, match="layers_to_transform"):
        config("teamlora", layers_pattern="layers")


@pytest.mark.parametrize(
    "fields",
    [
        {"exclude_modules": ["lin0"]},
        {"modules_to_save": ["lin0"]},
        {"target_modules": ["lin0", "lin1"], "exclude_modules": r".*lin.*"},
        {"target_modules": ["nothing"]},
        {"target_modules": ["nothing", "lin0"], "exclude_modules": ["lin0"]},
    ],
)
def test_no_target_is_peft_s_error(fields: dict[str, Any]) -> None:
    lora = {"target_modules": ["lin0"], **fields}
    with pytest.raises(NoMatchingPeftModuleError) as theirs:
        get_peft_model(Two(), LoraConfig(**lora))
    with pytest.raises(NoMatchingPeftModuleError) as ours:
        get_peft_model(Two(), config("teamlora", **fields))
    assert isinstance(ours.value, AdapterError)
    assert "\n" not in str(ours.value)
    if fields != {"target_modules": ["nothing"]}:  # there ours lists what could be adapted
        assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("method", ON_LINEARS)
def test_inputs_that_must_not_be_cast(method: str) -> None:
    """The product is computed in the input's dtype then, and the flag is as before afterwards."""
    torch.manual_seed(0)
    model = get_peft_model(Two().bfloat16(), config(method)).eval()
    x = torch.randn(4, 10, dtype=torch.bfloat16)
    cast = model(x)
    with disable_input_dtype_casting(model):
        uncast = model(x)
    torch.testing.assert_close(uncast, cast, atol=0.1, rtol=0.1)
    assert not torch.equal(uncast, cast)
    assert torch.equal(model(x), cast)


@pytest.mark.parametrize("method", ON_LINEARS)
def test_every_row_with_its_own_adapter(method: str) -> None:
    torch.manual_seed(0)
    model = get_peft_model(Two(), config(method, modules_to_save=["lin1"]), adapter_name="a").eval()
    model.add_adapter("b", config(method, modules_to_save=["lin1"], r=3))
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    x = torch.randn(5, 10)
    names = ["a", "__base__", "b", "a", "b"]
    mixed = model(x, adapter_names=names)
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                alone = model(x[row : row + 1])
        else:
            model.set_adapter(name)
            alone = model(x[row : row + 1])
        torch.testing.assert_close(mixed[row : row + 1], alone)
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): c$"):
        model(x, adapter_names=["c"] * 5)
    with pytest.raises(ValueError, match="but got 4 and 5 respectively"):
        model(x, adapter_names=["a"] * 4)
    with pytest.raises(ValueError, match="in training mode"):
        model.train()(x, adapter_names=names)
    model.eval()
    assert not any(m._forward_pre_hooks for m in model.modules())
    if method in ROUTED:
        with record_router(model), pytest.raises(AdapterError, match="adapter_names"):
            model(x, adapter_names=names)


def test_generation_with_adapter_names(adapted: Make, ids: Tensor) -> None:
    model = adapted("teamlora").eval()
    model.generation_config.eos_token_id = None
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    both = model.generate(input_ids=ids, adapter_names=["default", "__base__"], **settings)
    assert torch.equal(both[:1], model.generate(input_ids=ids[:1], **settings))
    with model.disable_adapter():
        assert torch.equal(both[1:], model.generate(input_ids=ids[1:], **settings))


@pytest.mark.parametrize("method", METHODS)
def test_copies_pickles_and_low_memory(method: str, adapted: Make, ids: Tensor, tmp_path: Path) -> None:
    model = adapted(method).eval()
    wanted = model(ids).logits
    assert torch.equal(copy.deepcopy(model)(ids).logits, wanted)
    assert torch.equal(pickle.loads(pickle.dumps(model))(ids).logits, wanted)
    torch.save(model, tmp_path / "whole.pt")
    assert torch.equal(torch.load(tmp_path / "whole.pt", weights_only=False)(ids).logits, wanted)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter", low_cpu_mem_usage=True).eval()
    assert not any(p.is_meta for p in loaded.parameters())
    assert torch.equal(loaded(ids).logits, wanted)


@pytest.mark.parametrize("method", METHODS)
def test_adapters_added_deleted_and_swapped(
    method: str, adapted: Make, base: LlamaForCausalLM, ids: Tensor, tmp_path: Path
) -> None:
    plain = base(ids).logits
    model = adapted(method).eval()
    first = model(ids).logits
    model.save_pretrained(tmp_path / "first")
    model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("second")
    assert not torch.equal(model.eval()(ids).logits, first)
    model.save_pretrained(tmp_path / "two", selected_adapters=["second"])
    second = model(ids).logits
    model.delete_adapter("second")
    assert model.active_adapters == ["default"]
    assert torch.equal(model(ids).logits, first)
    with pytest.raises(ValueError, match="only supports LORA"):
        hotswap_adapter(model, tmp_path / "two" / "second", "default")
    assert torch.equal(load_adapter(tiny_llama(), tmp_path / "two" / "second")(ids).logits, second)
    assert torch.equal(model.unload()(ids).logits, plain)


@pytest.mark.parametrize("method", METHODS)
def test_what_we_cannot_do_is_an_error(method: str, adapted: Make) -> None:
    """Never a silent nothing: no weighted sums of adapters, and no scale from outside."""
    model = adapted(method)
    with pytest.raises((AttributeError, AdapterError)):
        model.add_weighted_adapter(["default"], [0.5], "sum")
    with pytest.raises((ValueError, AttributeError)), rescale_adapter_scale(model, 0.5):
        pass
    assert not model.supports_lora_conversion()


@pytest.mark.parametrize("method", METHODS)
def test_gradients_pass_checkpoints(method: str, adapted: Make, ids: Tensor) -> None:
    model = adapted(method)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(input_ids=ids, labels=ids).loss.backward()
    assert wanted.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name])
