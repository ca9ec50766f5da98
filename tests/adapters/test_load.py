"""Loading: every bad input is one line, before anything is changed."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, ShiraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from cme_bench.adapters import TeamLoraConfig, examine
from cme_bench.adapters.load import load_adapter, take_off
from cme_bench.adapters.shared.config import rank_per_expert
from cme_bench.util.errors import UsageError
from tests.support.adapter_cases import CONFIGS, TINY, Make, tiny_llama


@pytest.fixture
def folder(adapted: Make, tmp_path: Path) -> Path:
    """A good TeamLoRA adapter of the tiny base."""
    adapted("teamlora").save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def fresh() -> LlamaForCausalLM:
    return tiny_llama()


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> str:
    """Changes the tensors in place; returns the first key ending in _down."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in sorted(tensors) if key.endswith("_down"))
    change(tensors)
    save_file(tensors, path)
    return key


def refusal(model: LlamaForCausalLM, folder: Path, **options: object) -> str:
    """The message of the error; checks that it is one line and that the model was left alone."""
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(UsageError) as raised:
        load_adapter(model, folder, **options)
    message = str(raised.value)
    assert "\n" not in message
    assert [name for name, _ in model.named_modules()] == before
    return message


@pytest.mark.parametrize("method", [*CONFIGS, "lora"])
def test_loads_what_was_saved(
    method: str, adapted: Make, base: LlamaForCausalLM, fresh: LlamaForCausalLM, ids: Tensor, tmp_path: Path
) -> None:
    if method == "lora":
        config = LoraConfig(r=3, target_modules=["up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(base, config).eval()
    else:
        model = adapted(method).eval()
    wanted = model(ids).logits
    model.save_pretrained(tmp_path)
    loaded = load_adapter(fresh, tmp_path, name="mine")
    assert loaded.active_adapter == "mine"
    assert torch.equal(loaded(ids).logits, wanted)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_loads_a_second_adapter_beside_the_first(folder: Path, fresh: LlamaForCausalLM, ids: Tensor) -> None:
    model = load_adapter(fresh, folder, name="first")
    assert load_adapter(model, folder, name="second") is model
    assert model.active_adapter == "second"
    second = model(ids).logits
    model.set_adapter("first")
    assert torch.equal(model(ids).logits, second)
    with pytest.raises(UsageError, match="already has an adapter named 'first'"):
        load_adapter(model, folder, name="first")


def test_no_adapter_folder(fresh: LlamaForCausalLM, tmp_path: Path) -> None:
    assert "adapter_config.json not found" in refusal(fresh, tmp_path)


def test_damaged_config(folder: Path, fresh: LlamaForCausalLM) -> None:
    (folder / "adapter_config.json").write_text("{")
    assert "adapter_config.json cannot be read" in refusal(fresh, folder)
    (folder / "adapter_config.json").write_text("[]")
    assert "JSON object" in refusal(fresh, folder)


def test_pickle_is_refused(folder: Path, fresh: LlamaForCausalLM) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    message = refusal(fresh, folder)
    assert "adapter_model.bin is a pickle file" in message
    (folder / "adapter_model.bin").unlink()
    assert "adapter_model.safetensors not found" in refusal(fresh, folder)


def test_damaged_weights(folder: Path, fresh: LlamaForCausalLM) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    assert f"{path} is not a readable safetensors file" in refusal(fresh, folder)


def test_unknown_method(folder: Path, fresh: LlamaForCausalLM) -> None:
    edit_config(folder, peft_type="TEAMLORAA")
    assert "unknown peft_type 'TEAMLORAA'; did you mean 'TEAMLORA'?" in refusal(fresh, folder)
    edit_config(folder, peft_type=None)
    assert "unknown peft_type None" in refusal(fresh, folder)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"num_experts": 1}, "num_experts must be an integer of at least 2, got 1"),
        ({"r": 0}, "r must be a positive integer, got 0"),
        ({"r": 2.5}, "field 'r' cannot be 2.5"),
        ({"dropout": 1.0}, "dropout must lie in [0, 1), got 1.0"),
        ({"scaling": "alpha"}, "scaling must be alpha/r or alpha/(k*r) or a number, got 'alpha'"),
        ({"dropout_place": "output"}, "dropout_place must be one of input, latent, got 'output'"),
        ({"init": "ones"}, "init must be one of zero, random, got 'ones'"),
        ({"interaction_init": -1}, "interaction_init must not be negative"),
        ({"balance_coefficient": -1}, "balance_coefficient must not be negative"),
        ({"num_expert": 4}, "unknown field 'num_expert'; did you mean 'num_experts'?"),
    ],
)
def test_settings_out_of_range(
    fields: dict[str, object], wanted: str, folder: Path, fresh: LlamaForCausalLM
) -> None:
    edit_config(folder, **fields)
    assert refusal(fresh, folder) == f"{folder / 'adapter_config.json'}: {wanted}" or wanted in refusal(
        fresh, folder
    )


def test_missing_tensor(folder: Path, fresh: LlamaForCausalLM) -> None:
    key = edit_tensors(folder, lambda t: t.pop(next(k for k in sorted(t) if k.endswith("_down"))))
    message = refusal(fresh, folder)
    assert f"adapter_model.safetensors: tensor {key} is missing (1 of 24 are)" in message


def test_extra_tensor(folder: Path, fresh: LlamaForCausalLM) -> None:
    edit_tensors(folder, lambda t: t.update({"base_model.model.extra": torch.ones(2)}))
    message = refusal(fresh, folder)
    assert "adapter_model.safetensors: tensor base_model.model.extra is not part of this adapter" in message


def test_misshaped_tensor(folder: Path, fresh: LlamaForCausalLM) -> None:
    def narrow(tensors: dict[str, Tensor]) -> None:
        key = next(k for k in sorted(tensors) if k.endswith("_down"))
        tensors[key] = tensors[key][:7].contiguous()

    key = edit_tensors(folder, narrow)
    message = refusal(fresh, folder)
    assert f"tensor {key} has shape [7, 40]" in message and "ask for [12, 40]" in message


def test_base_of_another_size(folder: Path) -> None:
    wide = LlamaForCausalLM(LlamaConfig(**{**TINY.to_dict(), "hidden_size": 32}))
    assert "hidden size 32" in refusal(wide, folder)
    deep = LlamaForCausalLM(LlamaConfig(**{**TINY.to_dict(), "num_hidden_layers": 3, "layer_types": None}))
    assert "layers.2" in refusal(deep, folder) and "missing" in refusal(deep, folder)


@pytest.mark.parametrize(
    "recorded",
    [
        "org/model-b",  # a mirror, or a model of equal shapes: its name cannot tell
        "unsloth/model-a-bnb-4bit",
        "models/my-model",
        "../other",
        "./base",
        "C:\\Users\\me\\other",
        "/gone/from/this/machine",
    ],
)
def test_base_of_another_name(
    recorded: str, folder: Path, fresh: LlamaForCausalLM, ids: Tensor, tmp_path: Path
) -> None:
    """Said, not refused: the shapes fit, and what a base is called on another machine says little."""
    wanted = load_adapter(tiny_llama(), folder)(ids).logits
    edit_config(folder, base_model_name_or_path=recorded)
    fresh.name_or_path = fresh.config._name_or_path = "org/model-a"
    with pytest.warns(UserWarning, match="the base model here is org/model-a; the shapes fit") as told:
        model = load_adapter(fresh, folder)
    assert f"trained on {recorded}," in str(told[0].message)
    assert torch.equal(model(ids).logits, wanted)
    take_off(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(fresh, folder, allow_other_base=True)


@pytest.mark.parametrize(
    ("recorded", "actual"),
    [
        ("org/model-a", "/home/u/.cache/huggingface/hub/models--org--model-a/snapshots/0123abc"),
        ("meta/Llama-3.1-8B", "/data/llama-3.1-8b/"),
        ("C:\\models\\llama", "/srv/llama"),
        ("models/llama/", "mirror/llama"),
    ],
)
def test_the_same_base_elsewhere(recorded: str, actual: str, folder: Path, fresh: LlamaForCausalLM) -> None:
    edit_config(folder, base_model_name_or_path=recorded)
    fresh.name_or_path = fresh.config._name_or_path = actual
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(fresh, folder)


def test_recorded_base_folder_of_another_size(folder: Path, fresh: LlamaForCausalLM, tmp_path: Path) -> None:
    LlamaConfig(**{**TINY.to_dict(), "vocab_size": 60}).save_pretrained(tmp_path / "a")
    edit_config(folder, base_model_name_or_path=str(tmp_path / "a"))
    fresh.name_or_path = str(tmp_path / "b")
    assert "(vocab_size 60 there, 50 here)" in refusal(fresh, folder)


def test_a_relative_path_is_no_folder_of_this_machine(
    folder: Path, fresh: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was relative to the trainer's folder, so what lies there by chance says nothing."""
    LlamaConfig(**{**TINY.to_dict(), "vocab_size": 60}).save_pretrained(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    edit_config(folder, base_model_name_or_path="./a")
    fresh.name_or_path = str(tmp_path / "b")
    with pytest.warns(UserWarning, match="trained on ./a"):
        load_adapter(fresh, folder)


def test_no_target_found(folder: Path, fresh: LlamaForCausalLM) -> None:
    edit_config(folder, target_modules=["fc1", "fc2"])
    message = refusal(fresh, folder)
    assert "no layer matches target_modules fc1, fc2" in message
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in message
    assert "lm_head" not in message


def test_unknown_architecture_lists_candidates() -> None:
    sizes = {"hidden_size": 16, "ffn_dim": 24, "word_embed_proj_dim": 16, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=20, num_hidden_layers=1, **sizes))
    with pytest.raises(
        UsageError, match=r"architecture 'opt'.*: fc1, fc2, k_proj, out_proj, q_proj, v_proj$"
    ):
        get_peft_model(model, TeamLoraConfig(r=2))


def test_only_linear_layers(fresh: LlamaForCausalLM) -> None:
    with pytest.raises(UsageError, match=r"embed_tokens is Embedding; only torch\.nn\.Linear"):
        get_peft_model(fresh, TeamLoraConfig(r=2, target_modules=["embed_tokens"]))


def test_unknown_preset() -> None:
    with pytest.raises(UsageError, match=r"unknown TeamLoRA preset 'papr'; did you mean 'paper'\?"):
        TeamLoraConfig.preset("papr")


def test_rank_that_does_not_divide() -> None:
    assert rank_per_expert(64, 4) == 16
    for total in (30, 0):
        with pytest.raises(UsageError, match=f"rank {total} does not divide into 4 experts"):
            rank_per_expert(total, 4)


def test_embeddings_that_the_adapter_ships(folder: Path, fresh: LlamaForCausalLM, ids: Tensor) -> None:
    """Taken, and said where they are not the base's own."""
    name = "base_model.model.model.embed_tokens.weight"
    edit_tensors(folder, lambda t: t.update({name: fresh.get_input_embeddings().weight.data.clone()}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_off(load_adapter(fresh, folder))
    edit_tensors(folder, lambda t: t.update({name: torch.full((50, 24), 0.1)}))
    with pytest.warns(UserWarning, match="embed_tokens.weight differs from the base model's own"):
        model = load_adapter(fresh, folder)
    assert torch.equal(model.get_input_embeddings().weight, torch.full((50, 24), 0.1))


def test_embeddings_only_grow_and_only_as_they_are_shipped(folder: Path, fresh: LlamaForCausalLM) -> None:
    name, head = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"
    edit_tensors(folder, lambda t: t.update({name: torch.zeros(51, 24)}))
    assert "embed_tokens has rows for new token ids, but lm_head is not in the file" in refusal(fresh, folder)
    edit_tensors(folder, lambda t: t.update({head: torch.zeros(52, 24)}))
    assert "different numbers of rows" in refusal(fresh, folder)
    edit_tensors(folder, lambda t: t.update({name: torch.zeros(49, 24), head: torch.zeros(49, 24)}))
    assert "has 49 rows, the base model 50; embeddings only grow" in refusal(fresh, folder)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "fields", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": [7, 52]}]
)
def test_a_larger_vocabulary(fields: dict[str, Any], tied: bool, ids: Tensor, tmp_path: Path) -> None:
    """The base grows as PEFT users grow it, equals their model, and is afterwards what it was, to the bit."""

    def base() -> LlamaForCausalLM:
        torch.manual_seed(1)
        return LlamaForCausalLM(LlamaConfig(**{**TINY.to_dict(), "tie_word_embeddings": tied})).eval()

    def grown() -> LlamaForCausalLM:
        model = base()
        model.resize_token_embeddings(56, mean_resizing=False)
        return model

    if tied:
        fields = fields | ({"modules_to_save": ["embed_tokens"]} if "modules_to_save" in fields else {})
    config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False, **fields)
    torch.manual_seed(3)
    trained = get_peft_model(grown(), config)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    trained.save_pretrained(tmp_path, save_embedding_layers=True)
    new = torch.cat((ids, torch.tensor([[52], [55]])), dim=1)
    wanted = trained.eval()(new).logits
    model = base()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="embeddings grow to the 56 rows that are shipped"):
        loaded = load_adapter(model, tmp_path)
    torch.testing.assert_close(loaded(new).logits, wanted)
    take_off(loaded)
    assert model.config.vocab_size == 50
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model(ids).logits.shape[-1] == 50


@pytest.mark.parametrize("name", ["llama-3.1-8b_lr1e-4", "trained norm", "base_model.model", "默认", "-x"])
def test_any_folder_name(name: str, adapted: Make, fresh: LlamaForCausalLM, tmp_path: Path) -> None:
    adapted("teamlora", modules_to_save=["norm"]).save_pretrained(tmp_path / name)
    assert load_adapter(fresh, tmp_path / name).active_adapter == "default"


def test_what_peft_cannot_load_leaves_the_base_alone(
    folder: Path, fresh: LlamaForCausalLM, ids: Tensor
) -> None:
    """PEFT fails halfway; the model is taken apart again."""
    before = fresh(ids).logits
    for key, value in (("layers_to_transform", ["a"]), ("target_modules", "(")):
        edit_config(folder, **{key: value})
        refusal(fresh, folder)
        edit_config(folder, **{key: None})
    assert torch.equal(fresh(ids).logits, before)


def test_a_signal_while_it_loads_stops_the_run_and_is_no_fault_of_the_adapter(
    folder: Path, fresh: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt  # as a signal's handler does, wherever the program is

    before = [name for name, _ in fresh.named_modules()]
    with monkeypatch.context() as patch:
        patch.setattr(PeftModel, "from_pretrained", stopped)
        with pytest.raises(KeyboardInterrupt):
            load_adapter(fresh, folder)
    assert [name for name, _ in fresh.named_modules()] == before
    model = load_adapter(fresh, folder)
    monkeypatch.setattr(PeftModel, "load_adapter", stopped)
    with pytest.raises(KeyboardInterrupt):
        load_adapter(model, folder, name="second")


def test_the_experts_of_older_transformers(tmp_path: Path) -> None:
    """w1, w2 and w3 of each expert are fused when PEFT loads them; the check sees what PEFT makes of them."""
    config = MixtralConfig(**_MIXTRAL)
    torch.manual_seed(0)
    tensors = {}
    for layer in range(config.num_hidden_layers):
        place = f"base_model.model.model.layers.{layer}"
        sizes = {f"{place}.self_attn.q_proj": (24, 24)}
        for expert in range(config.num_local_experts):
            here = f"{place}.block_sparse_moe.experts.{expert}"
            sizes |= {f"{here}.w1": (24, 40), f"{here}.w3": (24, 40), f"{here}.w2": (40, 24)}
        for name, (d_in, d_out) in sizes.items():
            tensors[f"{name}.lora_A.weight"] = 0.1 * torch.randn(2, d_in)
            tensors[f"{name}.lora_B.weight"] = 0.1 * torch.randn(d_out, 2)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "w1", "w2", "w3"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields | {"task_type": "CAUSAL_LM"}))

    def base() -> MixtralForCausalLM:
        torch.manual_seed(1)
        return MixtralForCausalLM(copy.deepcopy(config)).eval()

    ids = torch.randint(3, 50, (2, 6))
    wanted = PeftModel.from_pretrained(base(), str(tmp_path)).eval()(ids).logits
    model = base()
    plain = model(ids).logits
    loaded = load_adapter(model, tmp_path)
    torch.testing.assert_close(loaded(ids).logits, wanted)
    assert not torch.allclose(wanted, plain, atol=1e-3)
    take_off(loaded)
    torch.testing.assert_close(model(ids).logits, plain)
    del tensors[f"{place}.block_sparse_moe.experts.1.w2.lora_B.weight"]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert str(tmp_path) in refusal(model, tmp_path)  # type: ignore[arg-type]


_MIXTRAL = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
}


def test_a_shape_that_only_loading_finds(fresh: LlamaForCausalLM, tmp_path: Path) -> None:
    """SHiRA cannot be built without memory, so what there is to say is PEFT's line with the tensor."""
    config = ShiraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path)
    edit_config(tmp_path, r=3)
    assert "size mismatch for base_model" in refusal(fresh, tmp_path)


def test_what_was_compared_once_is_known_until_adapter_or_base_change(
    folder: Path, fresh: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh.config.dtype = torch.bfloat16
    first = examine.examine(fresh, folder)
    built = examine.adapted
    counted: list[Any] = []
    monkeypatch.setattr(examine, "adapted", lambda base, config: counted.append(base) or built(base, config))
    fresh.config.dtype = torch.float32
    again = examine.examine(fresh, folder)
    assert not counted
    assert (again.base_tensors, again.checked) == (first.base_tensors, first.checked)
    with pytest.raises(UsageError, match="has shape"):
        examine.examine(LlamaForCausalLM(LlamaConfig(**TINY.to_dict() | {"hidden_size": 48})), folder)
    edit_config(folder, r=64)
    assert "has shape" in refusal(fresh, folder)
    edit_config(folder, r=json.loads((folder / "adapter_config.json").read_text())["r"] // 2)
    edit_tensors(folder, lambda tensors: tensors.pop(next(iter(tensors))))
    assert refusal(fresh, folder)
    assert len(counted) >= 3
