"""Quantised checkpoints written by hand, each beside a full-size model of the numbers that it stands for.

Formats: GPTQ and AWQ (4 bits, packed in int32), FP8 with a scale for every 128 x 128 block or one a tensor,
and compressed-tensors (int8 weights and activations; 4 bits packed). Every linear but the output layer is
quantised.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.support.tiny_llama import save_checkpoint

GROUP = 32
Packed = tuple[dict[str, Tensor], Tensor]
"""The tensors of a layer by the end of their names, and the weight (out, in) that they stand for."""
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ keeps column ``8 i + order[j]`` in the j-th 4 bits of int32 number i."""
FP8_MAX = 448.0


def gptq(weight: Tensor) -> Packed:
    """4 bits, symmetric, groups of 32 inputs: qweight (in / 8, out), qzeros, scales, g_idx."""
    levels, scales = _levels(weight)
    groups = scales.shape[1]
    packed = {
        "qweight": _into_int32(levels.T, dim=0),
        "qzeros": _into_int32(torch.full((groups, len(weight)), 7), dim=1),  # GPTQ stores the zero less one
        "scales": scales.T.half().contiguous(),
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
    }
    return packed, _weight(levels, scales.half().float())


def awq(weight: Tensor) -> Packed:
    """4 bits, groups of 32 inputs: qweight (in, out / 8) in AWQ's order, qzeros, scales."""
    levels, scales = _levels(weight)
    order = torch.tensor(_AWQ_ORDER)

    def ordered(columns: Tensor) -> Tensor:
        return columns.reshape(len(columns), -1, 8)[:, :, order].reshape(len(columns), -1)

    zeros = torch.full((scales.shape[1], len(weight)), 8)
    packed = {
        "qweight": _into_int32(ordered(levels.T), dim=1),
        "qzeros": _into_int32(ordered(zeros), dim=1),
        "scales": scales.T.half().contiguous(),
    }
    return packed, _weight(levels, scales.half().float())


def fp8_blocks(weight: Tensor) -> Packed:
    """8-bit floats with the inverse scale of every block of 128 x 128, as DeepSeek's and Qwen's."""
    blocks = weight.unfold(0, 128, 128).unfold(1, 128, 128)  # [rows, columns, 128, 128]
    scale = blocks.abs().amax((2, 3)) / FP8_MAX
    whole = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    stored = (weight / whole).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale_inv": scale}, stored.float() * whole


def fp8_tensor(weight: Tensor) -> Packed:
    """8-bit floats with one scale."""
    scale = weight.abs().max() / FP8_MAX
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": scale.reshape(1)}, stored.float() * scale


def int8_channels(weight: Tensor) -> Packed:
    """compressed-tensors' int-quantized: int8 with a scale for every output."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    stored = (weight / scale).round().clamp(-128, 127)
    return {"weight": stored.to(torch.int8), "weight_scale": scale}, stored * scale


def packed_groups(weight: Tensor) -> Packed:
    """compressed-tensors' pack-quantized: 4 bits, symmetric, groups of 32 inputs."""
    levels, scales = _levels(weight)
    packed = {
        "weight_packed": _into_int32(levels, dim=1),
        "weight_scale": scales.contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }
    return packed, _weight(levels, scales)


def _args(**given: Any) -> dict[str, Any]:
    return {"symmetric": True, "dynamic": False, **given}


def _compressed(form: str, weights: Any, activations: Any = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


FORMATS: Mapping[str, tuple[dict[str, Any], Callable[[Tensor], Packed]]] = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
        gptq,
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
        awq,
    ),
    "fp8 blocks": (
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "fmt": "e4m3",
        },
        fp8_blocks,
    ),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, fp8_tensor),
    "compressed int8": (
        _compressed(
            "int-quantized",
            _args(num_bits=8, type="int", strategy="channel"),
            _args(num_bits=8, type="int", strategy="token", dynamic=True),
        ),
        int8_channels,
    ),
    "compressed 4 bit": (
        _compressed("pack-quantized", _args(num_bits=4, type="int", strategy="group", group_size=GROUP)),
        packed_groups,
    ),
}


def write_quantised(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, kind: str
) -> PreTrainedModel:
    """Write ``model`` quantised as ``kind``; return the full-size model of the numbers that are stored."""
    block, pack = FORMATS[kind]
    save_checkpoint(folder, model, tokenizer)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    meant = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in meant.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                packed, weight = pack(module.weight)
                del tensors[f"{name}.weight"]
                tensors |= {f"{name}.{end}": tensor.contiguous() for end, tensor in packed.items()}
                module.weight.copy_(weight)
    save_file(tensors, file, metadata={"format": "pt"})
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": block}))
    return meant


def _levels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return levels of 0 to 15 around 8 (out, in), and the scale of every group (out, groups)."""
    grouped = weight.reshape(len(weight), -1, GROUP)
    scales = (grouped.abs().amax(-1) / 7).half().float()
    levels = (grouped / scales[..., None]).round().clamp(-8, 7) + 8
    return levels.reshape(weight.shape).long(), scales


def _weight(levels: Tensor, scales: Tensor) -> Tensor:
    return (levels - 8).float() * scales.repeat_interleave(GROUP, 1)


def _into_int32(values: Tensor, dim: int) -> Tensor:
    """Lay 8 numbers of 4 bits along ``dim`` into one of 32, the first in the lowest bits."""
    values = values.movedim(dim, -1).reshape(*values.movedim(dim, -1).shape[:-1], -1, 8)
    shifted = (values << (4 * torch.arange(8))).sum(-1)
    signed = torch.where(shifted >= 1 << 31, shifted - (1 << 32), shifted).int()
    return signed.movedim(-1, dim).contiguous()
