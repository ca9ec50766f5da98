"""AdaLoRA (arXiv 2303.10512): PEFT's own classes, and what this tool knows of them."""

from __future__ import annotations

from typing import Any

from peft import AdaLoraConfig, AdaLoraModel
from peft.tuners.adalora.layer import SVDLinear
from torch import Tensor

from cme_bench.adapters.gated import Gate, GatedForm, Read, any_value
from cme_bench.adapters.methods import lora
from cme_bench.adapters.registry import Measured, TrainingSettings, register

_ALLOCATION = "target_r init_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step".split()
_EPSILON = 1e-5  # PEFT's SVDLinear divides by the initial rank + 1e-5, also where ranks were cut


def _budget(settings: TrainingSettings) -> dict[str, Any]:
    """Return ``rank`` is the target; training starts at 1.5 times it, and the budget shrinks between 10 % and
    70 % of the steps."""
    steps = settings.steps
    return {
        "target_r": settings.rank,
        "init_r": -(-3 * settings.rank // 2),
        "tinit": steps // 10,
        "tfinal": min(max(1, 3 * steps // 10), steps - 1),
        "deltaT": max(1, steps // 100),
        "total_step": steps,
    }


def _plain(config: Any, layer: Any, read: Read) -> dict[str, Tensor]:
    """Return the tensors of a plain LoRA: singular values and the scale are multiplied into A."""
    (scale,) = layer.scaling.values()
    scale /= config.init_r + _EPSILON
    return {"down": read("lora_A").float() * read("lora_E").float() * scale, "up": read("lora_B").float()}


def _measured(names: list[str]) -> AdaLoraConfig:
    """Return the config with ranks that stay as they start: a step is timed, not the allocation of ranks."""
    return AdaLoraConfig(
        init_r=128, target_r=128, lora_alpha=256, total_step=10, tinit=1, tfinal=1, target_modules=names
    )


register(
    "adalora",
    AdaLoraConfig,
    AdaLoraModel,
    per_token=True,
    train=_budget,
    compared=[*lora.COMPARED, *_ALLOCATION],
    settings=lora.SETTINGS,
    rank_field="init_r",
    measured=[Measured("adalora128", _measured, "PEFT's own, without its allocation of ranks")],
    vllm=GatedForm(
        layer=SVDLinear,
        stored=("lora_A", "lora_B", "lora_E"),
        gate=lambda config: Gate(rank=config.init_r, scale=config.lora_alpha / config.init_r),
        tensors=_plain,
        fields=lora.GATED_FIELDS | dict.fromkeys(_ALLOCATION, any_value),
    ),
    paper="AdaLoRA (arXiv 2303.10512)",
)
