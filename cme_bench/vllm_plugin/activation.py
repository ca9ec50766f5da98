"""The activation of a feed-forward block computed by the layer before it: one kernel less a block.

That layer's kernel has the sums of gate and up projection in registers when it adds the adapters' updates.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from cme_bench.vllm_plugin.method import GatedLinearMethod
from cme_bench.vllm_plugin.slot_method import SlottedMethod


def fuse_activations(model: nn.Module, vllm_config: Any) -> int:
    """Have layers with fused kernels compute silu(gate) * up; the number of blocks.

    Only in blocks whose forward is known, and not where vLLM puts LoRAs of its own on the layers, which it
    would add to the product.
    """
    done = 0
    for block in model.modules():
        layer: Any = getattr(block, "gate_up_proj", None)
        method = getattr(layer, "quant_method", None)
        if (
            isinstance(method, (GatedLinearMethod, SlottedMethod))
            and layer.bias is None
            and _is_known(block)
            and method.can_silu
            and (isinstance(method, SlottedMethod) or vllm_config.lora_config is None)
        ):
            method.silu, block.act_fn = True, nn.Identity()
            done += 1
    return done


def _is_known(block: nn.Module) -> bool:
    """Tell whether a block hands gate_up_proj's output to SiluAndMul alone, and what that gives to down_proj
    alone."""
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.models.llama import LlamaMLP
    from vllm.model_executor.models.qwen2 import Qwen2MLP

    return type(block) in {LlamaMLP, Qwen2MLP} and type(block.act_fn) is SiluAndMul
