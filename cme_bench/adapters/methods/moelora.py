"""MoELoRA as TeamLoRA's baseline (arXiv 2408.09856), in the style of LoRAMoE (arXiv 2312.09979)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from peft import LoraConfig
from torch import Tensor, nn

from cme_bench.adapters.registry import Measured, Wrap, register
from cme_bench.adapters.routing.config import RoutedConfig
from cme_bench.adapters.routing.gated import FUSED, routed_form
from cme_bench.adapters.routing.layer import RoutedLinear
from cme_bench.adapters.shared.layer import Shapes
from cme_bench.adapters.shared.lowrank import fitted, new_weight
from cme_bench.adapters.shared.model import AdapterModel


@dataclass
class MoeLoraConfig(RoutedConfig):
    """MoELoRA: k independent low-rank pairs behind a dense softmax router, in the style of LoRAMoE.

    ``h = x W0 + (alpha / r) sum_i g_i drop(x) A_i B_i``, ``g = softmax(x R)`` per token (the reading of
    TeamLoRA's baseline, arXiv 2408.09856; LoRAMoE: arXiv 2312.09979).
    """


class MoeLoraLinear(RoutedLinear[MoeLoraConfig]):
    """A linear layer with MoELoRA: ``g = softmax(x R)``, ``x W0 + (alpha / r) sum_i g_i drop(x) A_i B_i``.

    The k pairs are kept side by side, so two products serve all experts where the published form needs 2k.

    Parameters of one adapter, as saved:
        moelora_down: (k r, d_in), rows i r to (i + 1) r are A_i transposed.
        moelora_up: (d_out, k r), columns i r to (i + 1) r are B_i transposed.
        moelora_router: (k, d_in), R transposed.
    """

    method = "moelora"
    adapter_layer_names = ("moelora_down", "moelora_up", "moelora_router")

    @staticmethod
    def shapes(config: MoeLoraConfig, d_in: int, d_out: int) -> Shapes:
        """Shape of every parameter of one adapter, by parameter name."""
        width = config.num_experts * config.r
        return {
            "moelora_down": (width, d_in),
            "moelora_up": (d_out, width),
            "moelora_router": (config.num_experts, d_in),
        }


class MoeLoraModel(AdapterModel):
    """PEFT tuner that puts ``MoeLoraLinear`` on the targeted linear layers."""

    prefix: str = "moelora_"
    tuner_layer_cls = MoeLoraLinear


def one_expert(
    config: MoeLoraConfig, tensors: Mapping[str, Tensor], chosen: Mapping[str, int]
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return the plain LoRA that is left of an adapter if every layer keeps one expert, its gate 1.

    A softmax over one expert is 1, so that expert's update is ``(alpha / r) x A_i B_i`` for every token.

    Args:
        config: Of the adapter.
        tensors: As they are saved.
        chosen: The expert that each layer keeps, by the layer's name in the base model.
    """
    kept, parts = {}, {"moelora_down": "lora_A", "moelora_up": "lora_B"}
    for name, tensor in tensors.items():
        place, _, part = name.rpartition(".")
        if part in parts:
            first = config.r * chosen[place.removeprefix("base_model.model.")]
            rows = tensor if part == "moelora_down" else tensor.T
            own = rows[first : first + config.r]
            kept[f"{place}.{parts[part]}.weight"] = (own if part == "moelora_down" else own.T).contiguous()
    plain = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        target_modules=config.target_modules,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        task_type=config.task_type,
        inference_mode=True,
    )
    return plain, kept


class PublishedMoeLora(nn.Module):
    """MoELoRA in its published form: 2k products and k tensors of full width, each gated by a softmax router.

    ``base(x) + (alpha / r) sum_i g_i x A_i B_i``, alpha = 2r. The gates are float32 and are rounded to the
    experts' dtype before they meet them, which is kinder to this form than the promotion to float32.
    """

    def __init__(self, base: nn.Linear, r: int, k: int) -> None:
        super().__init__()
        self.base = base
        self.router = new_weight(k, base.in_features, base)
        self.down = nn.ParameterList([new_weight(r, base.in_features, base) for _ in range(k)])
        self.up = nn.ParameterList([new_weight(base.out_features, r, base) for _ in range(k)])

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        base: Tensor = self.base(x)
        result = base
        x = fitted(x, self.router)  # once, for all products
        gates = nn.functional.linear(x, self.router).softmax(dim=-1, dtype=torch.float32)
        for i, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            expert = nn.functional.linear(nn.functional.linear(x, down), up)
            result = result + (2.0 * gates[..., i : i + 1]).to(expert.dtype) * expert
        return result.to(base.dtype)


def _published(k: int, names: list[str]) -> Wrap:
    return lambda linear: PublishedMoeLora(linear, 32, k)


def _fused(k: int, names: list[str]) -> MoeLoraConfig:
    return MoeLoraConfig(r=32, alpha=64.0, num_experts=k, target_modules=names)


_EXPERTS = {"_k2": 2, "": 4, "_k8": 8}
"""End of the name of a measured form -> number of experts."""
_LOOP = "as published: a loop over experts"

register(
    "moelora",
    MoeLoraConfig,
    MoeLoraModel,
    routed=True,
    per_token=True,
    settings=("alpha", "dropout", "balance_coefficient"),
    measured=[
        *(Measured(f"moelora32{e}", partial(_published, k), _LOOP, k == 4) for e, k in _EXPERTS.items()),
        *(Measured(f"moelora32_fused{e}", partial(_fused, k), FUSED, k == 4) for e, k in _EXPERTS.items()),
    ],
    vllm=routed_form("moelora", MoeLoraLinear),
    paper="MoELoRA (arXiv 2310.18339)",
)
