"""An input-gated LoRA: a LoRA whose update is scaled, token by token, by a learned gate between 0 and 1.

A method of nobody, in one file, to copy from. Train it, look at it, evaluate it::

    cme-bench train smollm2 --plugin examples/input_gated_lora.py --method gatedlora --data mini --out gated
    cme-bench adapters describe gated --plugin examples/input_gated_lora.py
    cme-bench run smollm2 --plugin examples/input_gated_lora.py --adapter gated --data mini --tasks cme_ll

``h = x W0 + (alpha / r) sigmoid(gate_scale (x g)) drop(x) A B``: A, B and the vector g are learned.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cme_bench.adapters import AdapterConfig, AdapterError, AdapterLinear, AdapterModel, register


@dataclass
class GatedLoraConfig(AdapterConfig):
    """Settings beside those of every low-rank adapter, such as ``r``, ``alpha`` and ``target_modules``.

    Args:
        gate_scale: Steepness of the gate.
    """

    gate_scale: float = field(default=1.0, metadata={"help": "Steepness of the gate."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate_scale <= 0:
            raise AdapterError(f"gate_scale must be positive, got {self.gate_scale!r}")


class GatedLoraLinear(AdapterLinear[GatedLoraConfig]):
    """A linear layer with the update. The names of its parameters begin with the method's."""

    method = "gatedlora"
    adapter_layer_names = ("gatedlora_down", "gatedlora_up", "gatedlora_gate")

    @staticmethod
    def shapes(config: GatedLoraConfig, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter: A (transposed), B (transposed), g."""
        return {
            "gatedlora_down": (config.r, d_in),
            "gatedlora_up": (d_out, config.r),
            "gatedlora_gate": (d_in,),
        }

    def reset(self, adapter_name: str) -> None:
        """A and B start as in LoRA; g at zero, so that every gate is one half."""
        super().reset(adapter_name)
        nn.init.zeros_(self.held("gate", adapter_name))

    def delta(self, x: Tensor, adapter_name: str) -> Tensor:
        """The update of one adapter: (..., d_in) to (..., d_out)."""
        config = self.settings[adapter_name]
        down, up, g = (self.held(part, adapter_name) for part in ("down", "up", "gate"))
        x = x.to(down.dtype)
        gate = torch.sigmoid(config.gate_scale * (x @ g)).unsqueeze(-1)
        z = nn.functional.linear(self.dropped(x, adapter_name), down)
        return config.scale * gate * nn.functional.linear(z, up)


class GatedLoraModel(AdapterModel):
    """Puts the layer on the linears that the config names; by default on the feed-forward ones."""

    prefix: str = "gatedlora_"
    tuner_layer_cls = GatedLoraLinear


register(
    "gatedlora",
    GatedLoraConfig,
    GatedLoraModel,
    per_token=True,  # a token's update depends on that token alone, so prefixes may be shared
    vllm="its gate is a sigmoid of the input, and the plugin's gates are a softmax over experts",
)
