"""One adapter of every PEFT method, and one of every field of LoRA: what to make, and what must refuse it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import (
    BdLoraConfig,
    CordaConfig,
    EvaConfig,
    KasaConfig,
    LoraGAConfig,
    MontecloraConfig,
    VeloraConfig,
)
from transformers import PreTrainedModel

from cme_bench.adapters import AdapterConfig
from cme_bench.adapters.registry import methods

TARGETS = ["q_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """``settings`` of an adapter of ``method``; ``patch``: what is then written into its adapter_config.json;
    ``refused``: what the one line must say, None if it must be computed. ``made``: whether PEFT can save it
    from a model of two layers; else only its config is written. ``task``: that of all rows, if it has
    several."""

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    patch: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    made: bool = True
    task: int | None = None


def _lora(refused: str | None = None, patch: dict[str, Any] | None = None, **settings: Any) -> Case:
    return Case("LORA", settings, patch or {}, refused)


_VIRTUAL = {"num_virtual_tokens": 4, "target_modules": None, "r": None}

CASES: dict[str, Case] = {
    "ADALORA": Case("ADALORA", {"total_step": 10, "init_r": 4, "target_r": 2, "r": None}),
    "ADAMSS": Case("ADAMSS", {"r": 8, "num_subspaces": 2, "subspace_rank": 2}),
    "ADAPTION_PROMPT": Case(
        "ADAPTION_PROMPT", {"adapter_len": 4, "adapter_layers": 2, "target_modules": None, "r": None}
    ),
    "BEFT": Case("BEFT", {"target_modules": ["v_proj"], "r": None}),
    "BOFT": Case("BOFT", {"boft_block_size": 4, "r": None}),
    "C3A": Case("C3A", {"block_size": 8, "r": None}),
    "CARTRIDGE": Case("CARTRIDGE", _VIRTUAL),
    "CPT": Case(
        "CPT",
        {
            "cpt_token_ids": [3, 4, 5],
            "cpt_mask": [1, 1, 1],
            "cpt_tokens_type_mask": [1, 2, 3],
            "target_modules": None,
            "r": None,
        },
    ),
    "DEFT": Case("DEFT"),
    "DELORA": Case("DELORA"),
    "FOURIERFT": Case("FOURIERFT", {"n_frequency": 20, "r": None}),
    "FROD": Case("FROD", {"r": None}),
    "GLORA": Case("GLORA"),
    "GRALORA": Case("GRALORA", {"gralora_k": 2}),
    "HIRA": Case("HIRA"),
    "HRA": Case("HRA"),
    "IA3": Case("IA3", {"feedforward_modules": ["down_proj"], "r": None}),
    "LILY": Case("LILY"),
    "LN_TUNING": Case("LN_TUNING", {"target_modules": ["input_layernorm", "norm"], "r": None}),
    "LOHA": Case("LOHA"),
    "LOKR": Case("LOKR"),
    "LORA": _lora(),
    "MISS": Case("MISS"),
    "MULTITASK_PROMPT_TUNING": Case("MULTITASK_PROMPT_TUNING", {**_VIRTUAL, "num_tasks": 2}, task=1),
    "OFT": Case("OFT", {"oft_block_size": 4, "r": 0}),
    "OSF": Case("OSF", {"effective_rank": 4, "r": None}),
    "PEANUT": Case("PEANUT"),
    "POLY": Case("POLY", {"n_tasks": 3, "n_skills": 2, "n_splits": 2}, task=2),
    "PREFIX_TUNING": Case("PREFIX_TUNING", _VIRTUAL),
    "PREFIX_TUNING projected": Case(
        "PREFIX_TUNING", {**_VIRTUAL, "prefix_projection": True, "encoder_hidden_size": 16}
    ),
    "PROMPT_TUNING": Case("PROMPT_TUNING", _VIRTUAL),
    "PSOFT": Case("PSOFT"),
    "PVERA": Case("PVERA"),
    "PVERA drawn": Case(
        "PVERA", {"sample_at_inference": True}, refused="field 'sample_at_inference' of PVERA"
    ),
    "P_TUNING": Case("P_TUNING", {**_VIRTUAL, "encoder_hidden_size": 16}),
    "RANDLORA": Case("RANDLORA"),
    "ROAD": Case("ROAD", {"group_size": 8, "r": None}),
    "SHADOW": Case("SHADOW", refused="method SHADOW", made=False),
    "SHIRA": Case("SHIRA", {"r": 2}),
    "SUPERTUNING": Case("SUPERTUNING"),
    "TINYLORA": Case("TINYLORA"),
    "TRAINABLE_TOKENS": Case(
        "TRAINABLE_TOKENS", {"token_indices": [5, 6, 7], "target_modules": None, "r": None}
    ),
    "UNILORA": Case("UNILORA", {"theta_d_length": 16}),
    "VBLORA": Case("VBLORA", {"num_vectors": 8, "vector_length": 16, "topk": 2, "r": 2}),
    "VERA": Case("VERA"),
    "WAVEFT": Case("WAVEFT", {"n_frequency": 20, "r": None}),
    "XLORA": Case(
        "XLORA",
        {"hidden_size": 32, "adapters": {}, "target_modules": None, "r": None},
        refused="field 'adapters' names no expert",
        made=False,
    ),
    # ---- every method that this package registers itself
    **{
        method.name.upper(): Case(method.name.upper())
        for method in methods()
        if issubclass(method.config_class, AdapterConfig)
    },
    # ---- every field of LoRA
    "alora_invocation_tokens": _lora(alora_invocation_tokens=[9, 8]),
    "arrow_config": _lora("field 'arrow_config' of LORA", {"arrow_config": {"top_k": 2}}),
    "bias": _lora(bias="all"),
    "bias lora_only": _lora(bias="lora_only"),
    "corda_config": _lora("eigens", {"init_lora_weights": "corda"}, corda_config=CordaConfig()),
    "ensure_weight_tying": _lora(ensure_weight_tying=True, modules_to_save=["embed_tokens"]),
    "eva_config": _lora(init_lora_weights="eva", eva_config=EvaConfig()),
    "exclude_modules": _lora(exclude_modules=["down_proj"]),
    "fan_in_fan_out": _lora(fan_in_fan_out=False),
    "gaussian": _lora(init_lora_weights="gaussian"),
    "inference_mode": _lora(patch={"inference_mode": False}),
    "kasa_config": _lora(kasa_config=KasaConfig()),
    "layer_replication": _lora(layer_replication=[[0, 2], [1, 2]]),
    "layers_pattern": _lora(layers_pattern=["layers"], layers_to_transform=[1]),
    "layers_to_transform": _lora(layers_to_transform=[0]),
    "loftq_config": _lora("loftq_config", {"init_lora_weights": "loftq", "loftq_config": {}}),
    "lora_alpha": _lora(lora_alpha=12, lora_dropout=0.3),
    "lora_bias": _lora(lora_bias=True),
    "lora_ga_config": _lora(patch={"init_lora_weights": "lora_ga"}, lora_ga_config=LoraGAConfig()),
    "megatron_config": _lora("field 'megatron_config' of LORA", {"megatron_config": {"a": 1}}),
    "mica": _lora(init_lora_weights="mica"),
    "modules_to_save": _lora(modules_to_save=["norm", "lm_head"]),
    "monteclora_config": _lora(monteclora_config=MontecloraConfig()),
    "no start": _lora(patch={"init_lora_weights": None}),
    "olora": _lora(init_lora_weights="olora"),
    "on embed_tokens": _lora(target_modules=["q_proj", "embed_tokens"]),
    "on lm_head": _lora(target_modules=["q_proj", "lm_head"]),
    "orthogonal": _lora(init_lora_weights="orthogonal"),
    "pissa": _lora(init_lora_weights="pissa"),
    "pissa_niter_16": _lora(init_lora_weights="pissa_niter_16"),
    "rank_pattern": _lora(rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 3}),
    "target_parameters": _lora(target_modules=["q_proj"], target_parameters=["mlp.up_proj.weight"]),
    "task_type": _lora("field 'task_type' is 'SEQ_CLS'", {"task_type": "SEQ_CLS"}),
    "no task_type": _lora(patch={"task_type": None}),
    "trainable_token_indices": _lora(trainable_token_indices=[5, 6]),
    "use_bdlora": _lora(
        use_bdlora=BdLoraConfig(target_modules_bd_a=["down_proj"], target_modules_bd_b=["q_proj"], nblocks=2)
    ),
    "use_dora": _lora(use_dora=True),
    "use_qalora": _lora("field 'use_qalora' of LORA", use_qalora=True, qalora_group_size=8),
    "use_rslora": _lora(use_rslora=True),
    "velora_config": _lora(velora_config=VeloraConfig()),
    "of a newer PEFT, off": _lora(patch={"use_newer": False, "newer_config": None}),
    "of a newer PEFT, on": _lora("field 'use_newer' is unknown", {"use_newer": True}),
    "of another trainer": _lora(patch={"lorap_lr_ratio": 16.0}),
}

COMPUTES_NOTHING = frozenset(
    {"auto_mapping", "base_model_name_or_path", "megatron_core", "peft_type", "peft_version", "revision"}
    | {"runtime_config"}
)
"""Fields of LoRA that have no case: names and versions, and settings of machinery that is not used here."""


def make(case: Case, base: Callable[[], PreTrainedModel], out: Path) -> Path:
    """The folder ``out`` with a random adapter of ``case``, as PEFT saves it."""
    config_cls = PEFT_TYPE_TO_CONFIG_MAPPING[case.method]
    settings = {"task_type": "CAUSAL_LM", "target_modules": TARGETS, "r": 4, **case.settings}
    config: PeftConfig = config_cls(**{k: v for k, v in settings.items() if v is not None})
    torch.manual_seed(2)
    if case.made:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(base(), config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.1 * torch.randn(parameter.shape))
            model.save_pretrained(out)
    else:
        config.save_pretrained(out)
        (out / "adapter_model.safetensors").write_bytes(b"")
    file = out / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | case.patch))
    return out
