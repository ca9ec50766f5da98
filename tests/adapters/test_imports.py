"""Checkpoints of other repositories: the logits of the imported adapter against the original's equations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Phi3Config, Phi3ForCausalLM, PhiConfig, PhiForCausalLM
from typer.testing import CliRunner

from cme_bench.adapters.convert import Imported, import_adapter
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import read_config, weights_file
from cme_bench.adapters.imports.run import NAMES
from cme_bench.adapters.load import load_adapter
from cme_bench.cli.adapters import LAYOUTS, adapters
from tests.support import foreign_checkpoints as foreign
from tests.support.adapter_cases import TINY, tiny_llama
from tests.support.foreign_checkpoints import FFN, PREFIX, Foreign, linears

ATTENTION = ("q_proj", "v_proj")
Make = Callable[[nn.Module], Foreign]


def old_names(key: str) -> str:
    """MixLoRA's names before August 2024."""
    key = re.sub(r"layers\.(\d+)\.mlp\.moe_gate", r"layers.\1.gate", key)
    key = re.sub(r"layers\.(\d+)\.mlp\.(\w+)\.experts\.(\d+)\.", r"layers.\1.experts.\3.\2.", key)
    for new, old in {"gate_proj": "w1_proj", "down_proj": "w2_proj", "up_proj": "w3_proj"}.items():
        key = key.replace(new, old)
    return key


def _mixlora(base: nn.Module, *names: str, **more: Any) -> Foreign:
    return foreign.mixlora(base, linears(base, names or (*FFN, *ATTENTION)), **more)


CHECKPOINTS: dict[str, Make] = {
    "hydralora": lambda base: foreign.hydralora(base, linears(base, FFN)),
    "hydralora, two experts, one layer": lambda base: foreign.hydralora(base, linears(base, FFN, [1]), k=2),
    "hydralora, linears apart": lambda base: foreign.hydralora(
        base, [*linears(base, ["q_proj"], [0]), *linears(base, ["up_proj"])]
    ),
    "loramoe": lambda base: foreign.loramoe(base, linears(base, FFN), k=4),
    "loramoe, its loss on": lambda base: foreign.loramoe(base, linears(base, FFN)).set(blc_weight=0.1),
    "loramoe, of MoE-PEFT": lambda base: foreign.moe_peft_loramoe(base, linears(base, FFN)),
    "loramoe, attention of MoE-PEFT": lambda base: foreign.moe_peft_loramoe(
        base, linears(base, FFN), plain=linears(base, ATTENTION)
    ),
    "moslora": lambda base: foreign.moslora(base, linears(base, (*FFN, *ATTENTION))),
    "moslora, rslora": lambda base: foreign.moslora(base, linears(base, ATTENTION)).set(use_rslora=True),
    "mixlora": _mixlora,
    "mixlora, feed-forward alone": lambda base: _mixlora(base, *FFN, top_k=1),
    "mixlora, some linears": lambda base: _mixlora(base, "down_proj", "o_proj", top_k=3),
    "mixlora, rslora": lambda base: _mixlora(base, use_rslora=True),
    "mixlora, another activation": lambda base: _mixlora(base, act_fn="gelu"),
    "mixlora, experts of their own": lambda base: _mixlora(
        base, r=2, plain_r=6, expert_lora={"r": 2, "lora_alpha": 5, "lora_dropout": 0.1, "bias": "none"}
    ),
}


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    found: Tensor = model(ids).logits
    return found


def check_exact(made: Foreign, done: Imported, folder: Path, ids: Tensor, fresh: Any = tiny_llama) -> None:
    """The imported adapter's logits are those of the original's equations, and not those of the base."""
    wanted = logits(made.applied_to(fresh()), ids)
    found = logits(load_adapter(fresh(), folder, allow_other_base=True).eval(), ids)
    assert (found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))
    assert (wanted - logits(fresh(), ids)).abs().max() > 0.05
    assert str(done.config.peft_type.value).lower() == made.method


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("known_base", [True, False], ids=["base", "no base"])
def test_logits_are_those_of_the_original(name: str, known_base: bool, ids: Tensor, tmp_path: Path) -> None:
    made = CHECKPOINTS[name](tiny_llama())
    source = made.write(tmp_path / "theirs", pickled=known_base)
    TINY.save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base") if known_base else "org/base"
    done = import_adapter(source, tmp_path / "ours", base)
    assert done.layout == name.split(",", maxsplit=1)[0] and "/" in done.origin
    check_exact(made, done, tmp_path / "ours", ids)
    forced = import_adapter(source, tmp_path / "again", base, layout=done.layout)
    assert forced == replace(done, config=forced.config)
    assert weights_file(tmp_path / "again").read_bytes() == weights_file(tmp_path / "ours").read_bytes()


def _phi3() -> Any:
    torch.manual_seed(2)
    sizes = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    return Phi3ForCausalLM(
        Phi3Config(
            **sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, pad_token_id=2
        )
    ).eval()


def _phi() -> Any:
    torch.manual_seed(2)
    sizes = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    return PhiForCausalLM(PhiConfig(**sizes, num_attention_heads=2, initializer_range=0.3)).eval()


@pytest.mark.parametrize(
    ("fresh", "names"),
    [(_phi3, ("gate_up_proj", "down_proj", "qkv_proj")), (_phi, ("fc1", "fc2", "dense"))],
    ids=["phi3", "phi"],
)
def test_mixlora_on_other_feed_forward_blocks(
    fresh: Any, names: tuple[str, ...], ids: Tensor, tmp_path: Path
) -> None:
    made = _mixlora(fresh(), *names)
    done = import_adapter(made.write(tmp_path / "theirs"), tmp_path / "ours", "org/base")
    check_exact(made, done, tmp_path / "ours", ids, fresh)


RENAMED: dict[str, tuple[str, Callable[[str], str]]] = {
    "no prefix": ("hydralora", lambda key: key.removeprefix(PREFIX)),
    "an adapter's name": ("loramoe", lambda key: key.replace(".weight", ".default.weight")),
    "of distributed training": ("moslora", lambda key: f"module.{key}"),
    "of a compiled model": ("hydralora", lambda key: f"_orig_mod.{key}"),
}


@pytest.mark.parametrize("name", RENAMED)
def test_names_with_other_surroundings(name: str, ids: Tensor, tmp_path: Path) -> None:
    kind, rename = RENAMED[name]
    made = CHECKPOINTS[kind](tiny_llama())
    source = made.named(rename).write(tmp_path / "theirs", pickled=False)
    done = import_adapter(source, tmp_path / "ours", "org/base")
    check_exact(made, done, tmp_path / "ours", ids)


def test_mixlora_before_august_2024(ids: Tensor, tmp_path: Path) -> None:
    made = _mixlora(tiny_llama())
    old = made.named(old_names).set(
        routing_strategy="mixtral", target_modules=["w1_proj", "w2_proj", "q_proj"]
    )
    assert any("experts.0.w1_proj" in key for key in old.tensors)
    done = import_adapter(old.write(tmp_path / "theirs"), tmp_path / "ours", "org/base")
    check_exact(made, done, tmp_path / "ours", ids)


def test_bfloat16_is_taken_bit_by_bit(ids: Tensor, tmp_path: Path) -> None:
    made = CHECKPOINTS["hydralora"](tiny_llama())
    narrow = replace(made, tensors={key: tensor.bfloat16() for key, tensor in made.tensors.items()})
    wide = replace(made, tensors={key: tensor.float() for key, tensor in narrow.tensors.items()})
    done = import_adapter(narrow.write(tmp_path / "theirs"), tmp_path / "ours", "org/base")
    check_exact(wide, done, tmp_path / "ours", ids)


def test_short_targets_only_where_they_mean_the_same_layers(tmp_path: Path) -> None:
    TINY.save_pretrained(tmp_path / "base")
    first = foreign.hydralora(tiny_llama(), linears(tiny_llama(), FFN, [0]))
    source = first.write(tmp_path / "first")
    config = import_adapter(source, tmp_path / "a", str(tmp_path / "base")).config
    assert set(config.target_modules) == {f"model.layers.0.mlp.{name}" for name in FFN}
    whole = CHECKPOINTS["hydralora"](tiny_llama()).write(tmp_path / "whole")
    for out, base in (("b", str(tmp_path / "base")), ("c", "org/base")):
        assert set(import_adapter(whole, tmp_path / out, base).config.target_modules) == set(FFN)
    regular = (
        CHECKPOINTS["hydralora"](tiny_llama()).set(target_modules=r".*\.[01]\.mlp\..*").write(tmp_path / "re")
    )
    assert len(import_adapter(regular, tmp_path / "d", "org/base").config.target_modules) == 6


def test_a_plain_peft_adapter_in_a_pickle(ids: Tensor, tmp_path: Path) -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.requires_grad * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "theirs", safe_serialization=False)
    with pytest.raises(AdapterError, match=r"pickle file.*cme-bench adapters import"):
        load_adapter(tiny_llama(), tmp_path / "theirs")
    done = import_adapter(tmp_path / "theirs", tmp_path / "ours", "org/base")
    assert done.layout == "peft"
    found = logits(load_adapter(tiny_llama(), tmp_path / "ours").eval(), ids)
    assert torch.equal(found, logits(model.eval(), ids))
    with pytest.raises(AdapterError, match="needs no import"):
        import_adapter(tmp_path / "ours", tmp_path / "b", "org/base")


class Hostile:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("owned"),)


def test_a_pickle_that_would_run_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = CHECKPOINTS["hydralora"](tiny_llama()).write(tmp_path / "theirs")
    torch.save({"a": Hostile()}, folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin cannot be read as tensors alone") as raised:
        import_adapter(folder, tmp_path / "ours", "org/base")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "owned").exists() and not (tmp_path / "ours").exists()


GATE, DOWN = "model.layers.0.mlp.gate_proj", "model.layers.1.mlp.down_proj"
MIX = "mixlora.layers.0.mlp"
Change = dict[str, Any]
REFUSED: list[tuple[str, Change, Change, str]] = [
    # ---- tensors
    ("hydralora", {f"{PREFIX}{DOWN}.lora_B1.weight": None}, {}, f"{DOWN}.lora_B1 is missing"),
    ("hydralora", {f"{PREFIX}{DOWN}.lora_A.weight": None}, {}, f"{DOWN}.lora_A is missing"),
    ("hydralora", {f"{PREFIX}{DOWN}.lora_route.weight": None}, {}, f"{DOWN}.lora_route is missing"),
    ("hydralora", {f"{PREFIX}{DOWN}.lora_A.weight": torch.ones(5, 40)}, {}, "lora_B0 has shape [24, 4]"),
    (
        "hydralora",
        {f"{PREFIX}{DOWN}.lora_route.weight": torch.ones(2, 40)},
        {},
        "lora_route has shape [2, 40]",
    ),
    ("hydralora", {f"{PREFIX}{DOWN}.bias": torch.ones(24)}, {}, f"tensor {PREFIX}{DOWN}.bias is not in"),
    ("hydralora", {f"{PREFIX}lm_head.weight": torch.ones(2, 2)}, {}, "lm_head.weight is not in the layout"),
    ("hydralora", {f"{PREFIX}{DOWN}.lora_A.weight": torch.ones(4, 40).long()}, {}, "not floating point"),
    ("hydralora", {f"{PREFIX}{DOWN}.lora_A.weight": torch.full((4, 40), torch.nan)}, {}, "not finite"),
    ("hydralora", {f"{PREFIX}{DOWN}.lora_A.other.weight": torch.ones(4, 40)}, {}, "there twice"),
    ("hydralora", {f"{PREFIX}{DOWN}.lora_A.weight": "text"}, {}, "is a str, not a tensor"),
    ("loramoe", {f"{PREFIX}{DOWN}.lora_A2.weight": None}, {}, f"{DOWN}.lora_A2 is missing"),
    (
        "loramoe",
        {f"{PREFIX}{DOWN}.lora_task.weight": torch.ones(2)},
        {},
        "lora_task.weight is not in the layout",
    ),
    ("moslora", {f"{PREFIX}{DOWN}.lora_AB.weight": None}, {}, f"{DOWN}.lora_AB is missing"),
    (
        "moslora",
        {f"{PREFIX}{DOWN}.lora_magnitude_vector": torch.ones(24)},
        {},
        "lora_magnitude_vector is not in",
    ),
    ("mixlora", {f"{MIX}.moe_gate.weight": None}, {}, "layers.0.mlp.moe_gate.weight is missing"),
    ("mixlora", {f"{MIX}.up_proj.experts.2.lora_B.weight": None}, {}, "up_proj.experts.2.lora_B is missing"),
    ("mixlora", {f"{MIX}.up_proj.experts.4.lora_B.weight": torch.ones(40, 4)}, {}, "up_proj.experts.4"),
    ("mixlora", {f"{MIX}.moe_gate.weight": torch.ones(4, 23)}, {}, "moe_gate.weight has shape [4, 23]"),
    (
        "mixlora",
        {"mixlora.norm.weight": torch.ones(4)},
        {},
        "tensor mixlora.norm.weight is not in the layout",
    ),
    # ---- settings
    ("hydralora", {}, {"lora_nums": 4}, "field 'lora_nums' is 4, but the tensors have 3"),
    ("hydralora", {}, {"r": 8}, "field 'r' is 8, but the tensors have rank 4"),
    ("hydralora", {}, {"fan_in_fan_out": True}, "field 'fan_in_fan_out' is True"),
    ("hydralora", {}, {"top_k": 2}, "field 'top_k' is unknown to the layout hydralora"),
    ("hydralora", {}, {"modules_to_save": ["lm_head"]}, "field 'modules_to_save'"),
    ("hydralora", {}, {"task_type": "SEQ_CLS"}, "field 'task_type' is 'SEQ_CLS'"),
    ("hydralora", {}, {"lora_alpha": None}, "pass alpha"),
    ("hydralora", {}, {"lora_alpha": "much"}, "field 'lora_alpha' is 'much', not a number"),
    ("hydralora", {}, {"use_rslora": True}, "field 'use_rslora' is unknown"),
    ("hydralora", {}, {"enable_lora": [True, False]}, "field 'enable_lora'"),
    ("moslora", {}, {"lora_use_mixer": False}, "field 'lora_use_mixer' is False"),
    ("moslora", {}, {"use_dora": True}, "field 'use_dora' is True"),
    ("moslora", {}, {"rank_pattern": {"q_proj": 2}}, "field 'rank_pattern'"),
    ("moslora", {}, {"init_lora_weights": "loftq"}, "field 'init_lora_weights' is 'loftq'"),
    ("mixlora", {}, {"use_dora": True}, "field 'use_dora' is True"),
    ("mixlora", {}, {"routing_strategy": "mixlora-dynamic", "top_p": 0.8}, "field 'routing_strategy'"),
    ("mixlora", {}, {"routing_strategy": None}, "field 'routing_strategy'"),
    ("mixlora", {}, {"num_experts": 8}, "field 'num_experts' is 8, but the tensors have 4"),
    ("mixlora", {}, {"top_k": 5}, "top_k must lie in 1 to num_experts"),
    ("mixlora", {}, {"act_fn": "sillu"}, "unknown act_fn 'sillu'"),
    ("mixlora", {}, {"act_fn": 3}, "unknown act_fn 3"),
    ("mixlora", {}, {"jitter_noise": "much"}, "field 'jitter_noise' is 'much', not a number"),
    ("mixlora", {}, {"expert_lora": {"use_dora": True}}, "field 'use_dora' is True"),
    ("mixlora", {}, {"expert_lora": {"r": 3}}, "field 'r' is 3, but the tensors have rank 4"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: re.sub(r"\W+", "-", f"{case[0]}-{case[3]}"))
def test_what_would_change_the_answers_is_refused_by_name(
    case: tuple[str, Change, Change, str], tmp_path: Path
) -> None:
    kind, tensors, settings, wanted = case
    made = CHECKPOINTS[kind](tiny_llama()).set(**settings)
    changed = {key: value for key, value in {**made.tensors, **tensors}.items() if value is not None}
    source = replace(made, tensors=changed).write(tmp_path / "theirs")
    with pytest.raises(AdapterError) as raised:
        import_adapter(source, tmp_path / "ours", "org/base")
    assert wanted in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "ours").exists() and [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_attention_beside_mixtures_of_moe_peft(tmp_path: Path) -> None:
    made = CHECKPOINTS["loramoe, of MoE-PEFT"](tiny_llama())
    made.tensors["loramoe.layers.0.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 24)
    with pytest.raises(AdapterError, match=r"q_proj\.lora_B is missing"):
        import_adapter(made.write(tmp_path / "half"), tmp_path / "ours", "org/base")
    made.tensors["loramoe.layers.0.self_attn.q_proj.lora_A.weight"] = torch.ones(5, 24)
    made.tensors["loramoe.layers.0.self_attn.q_proj.lora_B.weight"] = torch.ones(24, 5)
    with pytest.raises(AdapterError, match=r"layers differ in rank: .*_proj has 4, .*q_proj 5"):
        import_adapter(made.write(tmp_path / "ranks"), tmp_path / "ours", "org/base")


def test_ambiguous_unknown_and_forced_layouts(tmp_path: Path) -> None:
    hydra, moe = (CHECKPOINTS[name](tiny_llama()) for name in ("hydralora", "loramoe"))
    both = replace(hydra, tensors={**moe.tensors, **hydra.tensors}).write(tmp_path / "both")
    with pytest.raises(AdapterError, match=r"tensors of hydralora and loramoe; name one with --layout"):
        import_adapter(both, tmp_path / "ours", "org/base")
    with pytest.raises(AdapterError, match=r"tensor .*lora_A0\.weight is not in the layout hydralora"):
        import_adapter(both, tmp_path / "ours", "org/base", layout="hydralora")
    other = replace(hydra, tensors={"mola.layers.0.mlp.x": torch.ones(2)}).set(peft_type="MOLA")
    with pytest.raises(AdapterError, match=r"tensor mola\.layers\.0\.mlp\.x is in no known layout.*--layout"):
        import_adapter(other.write(tmp_path / "other"), tmp_path / "ours", "org/base")
    source = hydra.write(tmp_path / "hydra")
    for layout in ("loramoe", "moslora", "mixlora", "teamlora-2024-08"):
        with pytest.raises(AdapterError, match=rf"tensor {PREFIX}\S+weight is not in the layout {layout}"):
            import_adapter(source, tmp_path / "ours", "org/base", layout=layout)
    with pytest.raises(AdapterError, match="unknown layout 'hydra'; did you mean 'hydralora'"):
        import_adapter(source, tmp_path / "ours", "org/base", layout="hydra")


def test_another_base_and_two_files(tmp_path: Path) -> None:
    made = CHECKPOINTS["hydralora"](tiny_llama())
    source = made.write(tmp_path / "theirs")
    TINY.__class__(**{**TINY.to_dict(), "intermediate_size": 48}).save_pretrained(tmp_path / "wide")
    with pytest.raises(AdapterError, match=r"does not fit the base model: .*has shape"):
        import_adapter(source, tmp_path / "ours", str(tmp_path / "wide"))
    assert not (tmp_path / "ours").exists()
    made.write(tmp_path / "more", pickled=False)
    (source / "adapter_model.safetensors").write_bytes(
        (tmp_path / "more/adapter_model.safetensors").read_bytes()
    )
    import_adapter(source, tmp_path / "same", "org/base")
    torch.save({key: 2 * tensor for key, tensor in made.tensors.items()}, source / "adapter_model.bin")
    with pytest.raises(AdapterError, match="which differ; name one"):
        import_adapter(source, tmp_path / "ours", "org/base")
    import_adapter(source / "adapter_model.bin", tmp_path / "ours", "org/base")


def test_the_command(tmp_path: Path) -> None:
    made = _mixlora(tiny_llama(), expert_lora={"lora_alpha": 8, "r": 4})
    source = made.write(tmp_path / "theirs")
    arguments = ["import", str(source), "-o", str(tmp_path / "ours"), "--base", "org/base"]
    run = CliRunner().invoke(adapters, [*arguments, "--layout", "mixlora"])
    assert run.exit_code == 0
    lines = run.stdout.splitlines()
    assert lines[0].startswith("layout mixlora (TUDB-Labs/MoE-PEFT, ")
    assert lines[1] == "mixlora, 4 experts of rank 4, scale 2 for experts, 4 for attention, lora_alpha / r"
    assert "experts take expert_lora's lora_alpha 8" in run.stderr
    about = json.loads(CliRunner().invoke(adapters, ["describe", str(tmp_path / "ours"), "--json"]).stdout)
    assert about["trainable_parameters"] == sum(tensor.numel() for tensor in made.tensors.values())
    assert read_config(tmp_path / "ours").base_model_name_or_path == "org/base"


def test_the_command_lists_every_layout() -> None:
    assert all(name in LAYOUTS for name in NAMES)
