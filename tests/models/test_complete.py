"""Every weight comes from the files: no false alarm on what transformers saves, names for what is missing."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.complete import check_weights
from cme_bench.models.load import check_base, load_config
from cme_bench.util.errors import UsageError

Tensors = dict[str, Tensor]
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "phi": {},
    "phi3": {},
    "olmo2": {},
    "cohere": {},
    "stablelm": {},
    "starcoder2": {},
    "granite": {},
    "falcon": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "mamba": {"state_size": 4},
    "mixtral": EXPERTS,
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS | {"head_dim": 8},
    "olmoe": EXPERTS,
    "phimoe": EXPERTS,
    "gpt_oss": EXPERTS | {"head_dim": 8},
}
"""Kinds of models, and what makes them small: dense and of experts, tied and not, of several conventions."""


def saved(folder: Path, kind: str = "llama", shard: str = "1GB", **changes: Any) -> Path:
    known = AutoConfig.for_model(kind)
    settings = {k: v for k, v in {**SIZES, **KINDS[kind], **changes}.items() if hasattr(known, k)}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
        model.save_pretrained(folder, max_shard_size=shard)
    return folder


def edit(folder: Path, change: Callable[[Tensors], Tensors], name: str = "model.safetensors") -> Path:
    save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})
    return folder


def config(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_bytes(orjson.dumps(orjson.loads(file.read_bytes()) | changes))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        checkpoint = resolve_model(str(folder))
        check_base(checkpoint, load_config(checkpoint))
    line = str(caught.value)
    assert str(folder) in line
    assert "\n" not in line
    return line


def accept(folder: Path) -> None:
    checkpoint = resolve_model(str(folder))
    check_base(checkpoint, load_config(checkpoint))


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_saves_is_complete(kind: str, tmp_path: Path) -> None:
    accept(saved(tmp_path / kind, kind))


def test_shards_and_adapters_beside_them_are_complete(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", shard="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    save_file({"base_model.model.x.lora_A.weight": torch.ones(1)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    accept(folder)


def old_mixtral(tensors: Tensors) -> Tensors:
    """A file of each expert's projections, as transformers 4 saved them."""
    assert any("block_sparse_moe.experts.3.w1.weight" in name for name in tensors)
    return tensors


def gpt2_tables(tensors: Tensors) -> Tensors:
    return tensors | {
        f"transformer.h.{i}.attn.{name}": torch.ones(1, 1, 8, 8)
        for i in (0, 1)
        for name in ("bias", "masked_bias")
    }


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("mixtral", old_mixtral),
        ("gpt2", gpt2_tables),
        ("gpt2", lambda t: {k.removeprefix("transformer."): v for k, v in t.items()}),
        ("gpt_neox", lambda t: t | {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8)}),
        ("llama", lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        ("llama", lambda t: {f"model.{name}": tensor for name, tensor in t.items()}),
        ("llama", lambda t: t | {"v_head.summary.weight": torch.ones(1, 32)}),
        ("qwen2", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
        ("qwen2", lambda t: {k.replace("model.embed_tokens", "lm_head"): v for k, v in t.items()}),
    ],
)
def test_older_layouts_are_complete(kind: str, change: Any, tmp_path: Path) -> None:
    accept(edit(saved(tmp_path / "m", kind), change))


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda t: {name: tensor for name, tensor in t.items() if part not in name}


def renamed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda t: {prefix + name: tensor for name, tensor in t.items()}


def reshaped(name: str) -> Callable[[Tensors], Tensors]:
    return lambda t: t | {name: t[name][:-1].clone()}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", without("lm_head"), r"lm_head.weight is missing from the weights \(1 of 21 are\)"),
        ("llama", without("layers.1.mlp"), r"layers.1.mlp.down_proj.weight is missing .*\(3 of 21 are\)"),
        (
            "llama",
            renamed("_orig_mod."),
            "lm_head.weight is missing .*files call it _orig_mod.lm_head.weight",
        ),
        ("llama", renamed("module."), "the files call it module."),
        ("llama", reshaped("model.norm.weight"), r"norm.weight has shape \[31\] .* asks for \[32\]"),
        (
            "llama",
            lambda t: t | {"model.extra.weight": torch.ones(2)},
            "model.extra.weight is in the weights, bu",
        ),
        (
            "llama",
            lambda t: t | {"base_model.model.q.lora_A.weight": torch.ones(2)},
            "lora_A.weight is in the",
        ),
        (
            "qwen2",
            lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] + 1},
            "hold both and they di",
        ),
        ("mistral", without("embed_tokens"), "(lm_head|embed_tokens).weight is missing"),
        ("mixtral", without("experts.3.w2"), r"experts.3.w2.weight is missing .*\(2 of 41 are\)"),
        (
            "mixtral",
            without("0.block_sparse_moe.experts.3"),
            r"(experts.*shape|experts.3.w1.weight is missing)",
        ),
        ("qwen3_moe", without("experts.2.up_proj"), "experts.2.up_proj.weight is missing"),
        ("bloom", without("word_embeddings.weight"), "is missing"),
        ("mamba", without("A_log"), "mixer.A_log is missing"),
    ],
)
def test_other_weights_than_the_models_are_refused_by_name(
    kind: str, change: Any, message: str, tmp_path: Path
) -> None:
    line = refusal(edit(saved(tmp_path / "m", kind), change))
    assert re.search(message, line), line


def test_a_config_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    assert "model.layers.1" in refusal(config(folder, num_hidden_layers=1))
    assert "model.layers.2" in refusal(config(folder, num_hidden_layers=3))
    assert "has shape" in refusal(config(folder, num_hidden_layers=2, vocab_size=97))


def lose_a_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def lose_the_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()


def add_a_single_file(folder: Path) -> None:
    save_file({"x": torch.ones(1)}, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-100])


def break_the_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose_a_shard, r"model-00002-of-.*safetensors is missing, which model.safetensors.index.json names"),
        (lose_the_index, "neither model.safetensors nor model.safetensors.index.json"),
        (add_a_single_file, "two sets of weights"),
        (truncate, r"model-00001.*: the weights cannot be loaded"),
        (break_the_index, "no weight_map"),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(harm: Any, message: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", shard="20KB")
    harm(folder)
    with pytest.raises(UsageError) as caught:
        accept(folder)
    assert re.search(message, str(caught.value)), caught.value


def test_quantised_weights_are_checked_by_module(tmp_path: Path) -> None:
    def pack(tensors: Tensors) -> Tensors:
        packed = {}
        for name, tensor in tensors.items():
            if "_proj" in name:
                module = name.removesuffix(".weight")
                packed |= {f"{module}.qweight": tensor[:4].int(), f"{module}.scales": tensor[:1].clone()}
            else:
                packed[name] = tensor
        return packed

    folder = edit(saved(tmp_path / "m"), pack)
    block = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    loaded = LlamaConfig.from_pretrained(config(folder, quantization_config=block))
    check_weights(folder, loaded)
    edit(folder, without("layers.1.mlp.up_proj"))
    with pytest.raises(UsageError, match=r"layers.1.mlp.up_proj.weight is missing"):
        check_weights(folder, loaded)
    edit(
        folder,
        lambda t: (
            t | {"model.layers.1.mlp.up_proj.qweight": torch.ones(1), "model.layers.2.x": torch.ones(1)}
        ),
    )
    with pytest.raises(UsageError, match=r"model.layers.2.x is in the weights"):
        check_weights(folder, loaded)


def test_a_copy_without_the_adapter_is_the_same_model(tmp_path: Path) -> None:
    folder = saved(tmp_path / "clean")
    beside = shutil.copytree(folder, tmp_path / "beside")
    save_file({"x": torch.ones(1)}, beside / "adapter_model.safetensors")
    (beside / "adapter_config.json").write_text("{}")
    assert resolve_model(str(beside)).hash == resolve_model(str(folder)).hash
