"""The settings of a checkpoint from elsewhere: each is used, known to decide nothing, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.imports.source import Source
from cme_bench.adapters.support import HARMLESS

Allowed: TypeAlias = Callable[[Any], bool]
"""Whether the import is exact with this value of a setting."""


def anything(value: Any) -> bool:
    """Return that any value is allowed: the setting is used, or decides nothing of the forward pass."""
    return True


def off(value: Any) -> bool:
    """Return whether a switch is off, or a list or table empty."""
    return value is None or value is False or value in ("", [], {})


def _causal(value: Any) -> bool:
    return value is None or value == "CAUSAL_LM"


_RECORDED: dict[str, Allowed] = {
    **dict.fromkeys(
        "auto_mapping base_model_name_or_path inference_mode peft_version revision".split(), anything
    ),
    "task_type": _causal,
    **dict.fromkeys(HARMLESS, anything),
}
"""What every PEFT-like trainer writes beside the settings of a method."""
LORA_FORK: dict[str, Allowed] = {
    **_RECORDED,
    **dict.fromkeys("r lora_alpha lora_dropout target_modules".split(), anything),
    "peft_type": lambda value: value in (None, "LORA"),
    # Trained biases lie in the file as tensors, and are refused there.
    "bias": anything,
    # Both ways of computing give the same function.
    "merge_weights": anything,
    # Of fused linears (MergedLinear), which have another layout.
    "enable_lora": off,
    # Their layers take torch.nn.Linear alone, whose weight this switch would transpose.
    "fan_in_fan_out": off,
    "modules_to_save": off,
}
"""Settings of the forks of PEFT 0.2 that HydraLoRA, LoRAMoE and MoSLoRA are."""
RECORDED: Mapping[str, Allowed] = _RECORDED


def check_settings(source: Source, allowed: Mapping[str, Allowed], layout: str) -> None:
    """Raise AdapterError for the first setting that is not known of a layout, or has a value that is not."""
    for key, value in source.settings.items():
        known = allowed.get(key)
        if known is None and not off(value):
            raise AdapterError(
                f"{source.config}: field {key!r} is unknown to the layout {layout} and may change what is "
                "computed; remove it if it does not"
            )
        if known is not None and not known(value):
            raise AdapterError(
                f"{source.config}: field {key!r} is {_short(value)}, which the layout {layout} cannot be "
                "imported with"
            )


@dataclass(frozen=True, slots=True)
class Scaled:
    """Rank and alpha of a low-rank update, alpha such that its factor is ``alpha / rank``."""

    rank: int
    alpha: float


def scaled(source: Source, settings: Mapping[str, Any], rank: int, *, alpha: float | None) -> Scaled:
    """Return rank and alpha of ``settings``, whose rank must be that of the tensors.

    ``alpha``: the user's; wins. With ``use_rslora`` the factor is alpha / sqrt(r), which alpha takes up.
    Raises AdapterError if there is no alpha, or a number is none.
    """
    found = settings.get("r")
    if found is not None and found != rank:
        raise AdapterError(f"{source.config}: field 'r' is {found!r}, but the tensors have rank {rank}")
    value = settings.get("lora_alpha") if alpha is None else alpha
    if value is None:
        raise AdapterError(f"{source.file}: no adapter_config.json gives lora_alpha; pass alpha")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AdapterError(f"{source.config}: field 'lora_alpha' is {_short(value)}, not a number")
    return Scaled(rank, value * math.sqrt(rank) if settings.get("use_rslora") else value)


def number(source: Source, key: str) -> float:
    """Return a setting that is a number; 0 if it is not there. Raises AdapterError if it is none."""
    value = source.settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise AdapterError(f"{source.config}: field {key!r} is {_short(value)}, not a number")
    return float(value or 0)


def check_count(source: Source, key: str, found: int, what: str) -> None:
    """Raise AdapterError if a setting counts something and the tensors show another number."""
    said = source.settings.get(key)
    if said is not None and said != found:
        raise AdapterError(
            f"{source.config}: field {key!r} is {_short(said)}, but the tensors have {found} {what}"
        )


def dropout(settings: Mapping[str, Any]) -> float:
    """Return the probability of dropping an element, which matters in training alone."""
    value = settings.get("lora_dropout")
    return float(value) if isinstance(value, int | float) and 0 <= value < 1 else 0.0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
