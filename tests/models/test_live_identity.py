"""Who a model in memory is: any change of what decides an answer is another hash, nothing else is."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from cme_bench.models.adapter_tokenizer import tokenizer_hash
from cme_bench.models.live_identity import adapter_hash, base_hash, has_unknown_code
from cme_bench.util.errors import UsageError


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def lora(base: Any, **changes: Any) -> Any:
    torch.manual_seed(3)
    settings = {"r": 2, "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]} | changes
    return get_peft_model(base, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **settings))


def identity(model: Any, ends: tuple[int, ...] = (2,)) -> str:
    return base_hash(model, ends)


CHANGES: dict[str, Callable[[Any], object]] = {
    "a value": lambda m: m.model.layers[1].mlp.down_proj.weight.data.view(-1)[7].add_(1e-6),
    "one bit": lambda m: m.model.norm.weight.data.view(torch.int32)[0].bitwise_xor_(1),
    "a buffer": lambda m: m.model.rotary_emb.inv_freq.mul_(1.0001),
    "a type": lambda m: m.model.layers[0].mlp.up_proj.to(torch.bfloat16),
    "a field of the config": lambda m: setattr(m.config, "rms_norm_eps", 1e-3),
    "a number in a module": lambda m: setattr(m.model.layers[0].self_attn, "scaling", 0.3),
    "another activation": lambda m: setattr(m.model.layers[0].mlp, "act_fn", torch.nn.GELU()),
    "a layer less": lambda m: m.model.layers.pop(1),
    "swapped layers": lambda m: m.model.layers.insert(0, m.model.layers.pop(1)),
    "attention": lambda m: m.set_attn_implementation("eager"),
    "a hook": lambda m: m.model.norm.register_forward_hook(lambda *_: None),
    "a forward": lambda m: setattr(m.model.norm, "forward", lambda x: x),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_decides_an_answer_decides_the_hash(name: str, tiny_checkpoint: Path) -> None:
    model = loaded(tiny_checkpoint)
    before = identity(model)
    CHANGES[name](model)
    assert identity(model) != before


def norm_of_a_file(folder: Path, factor: str) -> Any:
    """A class of a user's own file."""
    file = folder / "my_norm.py"
    file.write_text(
        "import torch\n\n\nclass Norm(torch.nn.Module):\n    def forward(self, x):\n"
        f"        return {factor} * x\n"
    )
    spec = importlib.util.spec_from_file_location("my_norm", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules["my_norm"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Norm()


def test_the_code_of_a_users_class_counts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    hashes = []
    for factor in ("1.0", "1.0", "2.0"):
        model = loaded(tiny_checkpoint)
        model.model.norm = norm_of_a_file(tmp_path, factor)
        assert not has_unknown_code(model)
        hashes.append(identity(model))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_class_that_was_typed_into_a_session_has_no_key(tiny_checkpoint: Path) -> None:
    model = loaded(tiny_checkpoint)
    session: dict[str, Any] = {"__name__": "a_session", "torch": torch}
    exec("class Norm(torch.nn.Module):\n    def forward(self, x):\n        return x", session)
    model.model.norm = session["Norm"]()
    assert has_unknown_code(model)
    assert identity(model) != identity(model)


def test_a_forward_that_was_put_on_a_class_counts(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(tiny_checkpoint)
    before = identity(model)
    kind = type(model.model.norm)
    monkeypatch.setattr(kind, "forward", torch.nn.Identity.forward)
    assert identity(model) != before


def test_ends_of_answers_count(tiny_checkpoint: Path) -> None:
    model = loaded(tiny_checkpoint)
    assert identity(model) != identity(model, (2, 3))


def test_what_training_alone_reads_does_not_count(tiny_checkpoint: Path) -> None:
    model = loaded(tiny_checkpoint)
    before = identity(model)
    model.train()
    model.requires_grad_(False)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.config.use_cache = False
    model.config._name_or_path = "elsewhere"
    assert identity(model) == before == identity(loaded(tiny_checkpoint))
    assert not has_unknown_code(model)


def test_base_and_adapters_are_apart(tiny_checkpoint: Path) -> None:
    alone = identity(loaded(tiny_checkpoint))
    model = lora(loaded(tiny_checkpoint))
    assert identity(model.get_base_model()) == alone, "with LoRA and a copied output layer on it"
    first = adapter_hash(model, ["default"])
    model.add_adapter("b", LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.set_adapter("b")
    assert adapter_hash(model, ["default"]) == first, "another adapter, active, is nothing to it"
    assert adapter_hash(model, ["b"]) not in {first, adapter_hash(model, ["default", "b"])}
    assert identity(model.get_base_model()) == alone


ADAPTER_CHANGES: dict[str, Callable[[Any], object]] = {
    "a value": lambda layer: layer.lora_B["default"].weight.data.view(-1)[0].add_(1e-6),
    "its scaling": lambda layer: layer.scaling.update(default=0.77),
    "its type": lambda layer: layer.lora_A["default"].to(torch.float64),
}


@pytest.mark.parametrize("name", ADAPTER_CHANGES)
def test_any_change_of_an_adapter_is_another_adapter_on_the_same_base(
    name: str, tiny_checkpoint: Path
) -> None:
    model = lora(loaded(tiny_checkpoint))
    inner = model.get_base_model()
    before, base = adapter_hash(model, ["default"]), identity(inner)
    ADAPTER_CHANGES[name](inner.model.layers[0].self_attn.q_proj)
    assert adapter_hash(model, ["default"]) != before
    assert identity(inner) == base


def test_a_change_of_a_module_that_was_saved_whole_is_the_adapters(tiny_checkpoint: Path) -> None:
    model = lora(loaded(tiny_checkpoint))
    inner = model.get_base_model()
    before, base = adapter_hash(model, ["default"]), identity(inner)
    inner.lm_head.modules_to_save["default"].weight.data.view(-1)[0].add_(1e-6)
    assert (adapter_hash(model, ["default"]) != before, identity(inner)) == (True, base)
    inner.lm_head.original_module.weight.data.view(-1)[0].add_(1e-6)
    assert identity(inner) != base


def test_threads_do_not_change_the_hash(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(tiny_checkpoint)
    usual = identity(model)
    read: list[int] = []
    for threads in (1, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: read.append(count) or count)
        assert identity(model) == usual
    assert read == [1, 5]
    monkeypatch.setattr("cme_bench.models.live_identity._hash_or_none", lambda tensor: None)
    assert identity(model) == usual  # one after the other


def test_weights_that_are_elsewhere_are_named(tiny_checkpoint: Path) -> None:
    model = loaded(tiny_checkpoint)
    model.model.layers[1].to("meta")
    with pytest.raises(UsageError, match=r"the values of model\.layers\.1\.\S+ are not in this process"):
        identity(model)


def test_a_tokenizer_is_known_by_what_it_does(tiny_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    before = tokenizer_hash(tokenizer)
    tokenizer.padding_side = "left"
    assert tokenizer_hash(tokenizer) == before
    tokenizer.chat_template = "{{ messages }}"
    assert (after := tokenizer_hash(tokenizer)) != before
    tokenizer.add_tokens(["<more>"])
    assert tokenizer_hash(tokenizer) != after
