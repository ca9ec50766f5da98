"""Adapters that differ from a plain LoRA in one field, and how the plugin computes them, without vLLM."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from cme_bench.engines.vllm.adapter import GatedAdapter
from cme_bench.vllm_plugin.reference import add_up, gated_latent, shares

LORA: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "task_type": "CAUSAL_LM",
}

ACCEPTED: dict[str, list[Any]] = {
    "task_type": [None],
    "r": [3],
    "target_modules": [r".*\.(o|gate|up)_proj", "all-linear"],
    "exclude_modules": [["q_proj"], r".*layers\.0.*"],
    "lora_alpha": [5],
    "lora_dropout": [0.3],
    "fan_in_fan_out": [True],
    "use_rslora": [True],
    "init_lora_weights": [False, "gaussian", "orthogonal", "eva", "mica", "lora_ga"],
    "layers_to_transform": [[1], 0],
    "rank_pattern": [{"q_proj": 3, "layers.1.mlp.down_proj": 12}],
    "alpha_pattern": [{"down_proj": 3.0}],
    "ensure_weight_tying": [True],
}
"""Field of LoraConfig -> values that adapters are made with: all computed exactly."""

RECORDED: dict[str, list[Any]] = {
    "auto_mapping": [{"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}],
    "peft_version": ["0.11.1"],
    "base_model_name_or_path": [None],
    "revision": ["main"],
    "inference_mode": [False],
    "layers_pattern": [["layers"]],
    "megatron_core": ["megatron"],
    "loftq_config": [{"loftq_bits": 4, "loftq_iter": 1}],
    "runtime_config": [{"ephemeral_gpu_offload": True}],
    "eva_config": [{"rho": 2.0}],
    "corda_config": [{"corda_method": "ipm"}],
    "lora_ga_config": [{"direction": "ArBr"}],
    "qalora_group_size": [32],
    "modules_to_save": [[]],
    "layer_replication": [[]],
    "target_parameters": [[]],
    "written_by_a_later_peft": [None, False],
    "unsloth_version": ["2025.1"],
}
"""Field -> values that are put into a saved config: they decide nothing."""

REFUSED: dict[str, list[Any]] = {
    "task_type": ["SEQ_CLS", "SEQ_2_SEQ_LM"],
    "bias": ["all", "lora_only"],
    "modules_to_save": [["lm_head"]],
    "init_lora_weights": ["pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "later"],
    "megatron_config": [{"tensor_model_parallel_size": 1}],
    "trainable_token_indices": [[1, 2], {"embed_tokens": [1]}],
    "use_dora": [True],
    "velora_config": [{}, {"num_groups": 4}],
    "alora_invocation_tokens": [[5, 6]],
    "use_qalora": [True],
    "monteclora_config": [{}, {"num_samples": 2}],
    "layer_replication": [[[0, 2], [1, 2]]],
    "lora_bias": [True],
    "target_parameters": [["mlp.experts.gate_up_proj"]],
    "use_bdlora": [{}, {"nblocks": 2}],
    "arrow_config": [{}, {"top_k": 2}],
    "kasa_config": [{}, {"beta": 0.1}],
    "written_by_a_later_peft": [True, 1, 0.5, {}, "on"],
}
"""Field -> values that change what PEFT computes, or may."""


def save_adapter(base: nn.Module, folder: Path, config: PeftConfig, seed: int = 1) -> Path:
    """What plain PEFT saves of an adapter on ``base`` whose every trainable weight is random."""
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def patch(folder: Path, **fields: Any) -> None:
    """Change fields of a saved adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    """``(rows, tokens)`` to ``(rows, tokens, vocabulary)``, float32."""
    found: Tensor = model.eval()(input_ids=ids).logits.float()
    return found


def peft_logits(base: nn.Module, folder: Path, ids: Tensor) -> Tensor:
    """Those of plain PEFT: a fresh base, ``from_pretrained``, one forward."""
    return logits(PeftModel.from_pretrained(copy.deepcopy(base), folder), ids)


@contextmanager
def applied(model: nn.Module, adapter: GatedAdapter) -> Iterator[nn.Module]:
    """``model`` with the plugin's form of an adapter, by its reference operations, one linear at a time."""
    spec = adapter.spec

    def hook(name: str) -> Any:
        t = {part: adapter.tensors[f"{name}.{part}"] for part in ("down", "up")}
        router = adapter.tensors.get(f"{name}.router")
        interaction = adapter.tensors.get(f"{name}.interaction")

        def forward(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            x = inputs[0].reshape(-1, inputs[0].shape[-1])
            gate = None
            if router is not None:
                m = None if interaction is None else interaction[None]
                gate = shares((x @ router.T)[:, None], m, spec)
            z = gated_latent(x @ t["down"].T, gate, spec)
            y = output.reshape(len(x), -1)
            return add_up(y, z, t["up"], [(0, 0, y.shape[1])]).reshape(output.shape)

        return forward

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in spec.modules]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()
