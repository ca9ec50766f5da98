"""LoRA (arXiv 2106.09685): PEFT's own classes, and what this tool knows of them."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, LoraModel
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from cme_bench.adapters.gated import Allowed, Gate, GatedForm, Read, any_value, none_named
from cme_bench.adapters.registry import Measured, register
from cme_bench.adapters.shared.lowrank import new_weight, project

COMPARED = (
    "lora_alpha lora_dropout use_rslora init_lora_weights rank_pattern alpha_pattern megatron_config "
    "megatron_core trainable_token_indices loftq_config eva_config corda_config lora_ga_config use_dora "
    "velora_config alora_invocation_tokens use_qalora qalora_group_size monteclora_config layer_replication "
    "runtime_config lora_bias target_parameters use_bdlora arrow_config kasa_config ensure_weight_tying"
).split()
SETTINGS = ("lora_alpha", "lora_dropout", "use_rslora", "use_dora")

_PLAIN_STARTS = frozenset({"gaussian", "orthogonal", "eva", "mica", "lora_ga"})
"""Starts of A and B that leave the base weights alone when PEFT 0.21 loads an adapter. PiSSA, OLoRA, CorDA
and LoftQ do not: PEFT takes the start away from each base weight again. (Saved with
``path_initial_model_for_weight_conversion``, such an adapter is plain LoRA and says so.)"""


def _plain_start(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in _PLAIN_STARTS)


GATED_FIELDS: dict[str, Allowed] = {
    **dict.fromkeys(
        (
            "r",
            "lora_alpha",
            "use_rslora",
            "rank_pattern",
            "alpha_pattern",
            "lora_dropout",  # of training
            "fan_in_fan_out",  # how the base weight is stored
            "runtime_config",  # where PEFT computes
            # What belongs to a start that is not allowed, or to a switch that must be off, decides nothing.
            "eva_config",
            "corda_config",
            "lora_ga_config",
            "loftq_config",
            "megatron_core",
            "qalora_group_size",
            # Ties adapters of embeddings, which are refused as layers.
            "ensure_weight_tying",
        ),
        any_value,
    ),
    "init_lora_weights": _plain_start,
    **dict.fromkeys(("layer_replication", "target_parameters"), none_named),
}
"""Field -> whether the plugin computes LoRA with this value of the field."""


class LeanLora(nn.Module):
    """``base(x) + (alpha / r) x A B`` with alpha = 2r: two products, an addition, no cast under autocast."""

    def __init__(self, base: nn.Linear, r: int) -> None:
        super().__init__()
        self.base = base
        self.down = new_weight(r, base.in_features, base)
        self.up = new_weight(base.out_features, r, base)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        base: Tensor = self.base(x)
        return (base + nn.functional.linear(project(x, self.down) * 2.0, self.up)).to(base.dtype)


def _plain(config: Any, layer: Any, read: Read) -> dict[str, Tensor]:
    (scale,) = layer.scaling.values()
    return {"down": read("lora_A.weight").float() * scale, "up": read("lora_B.weight").float()}


def _measured(r: int, *, default: bool) -> Measured:
    def config(names: list[str]) -> LoraConfig:
        return LoraConfig(r=r, lora_alpha=2 * r, target_modules=names, bias="none")

    return Measured(f"lora{r}", config, "PEFT's own", default)


register(
    "lora",
    LoraConfig,
    LoraModel,
    per_token=True,
    compared=COMPARED,
    settings=SETTINGS,
    measured=[
        _measured(32, default=True),
        _measured(64, default=False),
        _measured(128, default=True),
        Measured(
            "lora128_lean",
            lambda names: lambda linear: LeanLora(linear, 128),
            "LoRA without PEFT's cast of the input",
        ),
    ],
    vllm=GatedForm(
        layer=LoraLinear,
        stored=("lora_A.weight", "lora_B.weight"),
        gate=lambda config: Gate(rank=config.r, scale=config.lora_alpha / config.r),
        tensors=_plain,
        fields=GATED_FIELDS,
    ),
    paper="LoRA (arXiv 2106.09685)",
)
