"""Which settings of which adapter methods the vLLM plugin computes exactly; all others are refused by name.

An allow-list: a field that a later PEFT adds, or a value that nobody has compared with PEFT's own logits, is
refused until it stands here. ``tests/engines/test_vllm_fields.py`` walks every field and every method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import CONFIG_FILE, read_json
from cme_bench.adapters.support import HARMLESS

Allowed = Callable[[Any], bool]


def _any(value: Any) -> bool:
    """Whether the field may have this value: it decides nothing, or the tensors and PEFT's layers show it."""
    return True


def _none_named(value: Any) -> bool:
    return value is None or value == []


def _causal(value: Any) -> bool:
    return value is None or value == "CAUSAL_LM"


_PLAIN_STARTS = frozenset({"gaussian", "orthogonal", "eva", "mica", "lora_ga"})
"""Starts of A and B that leave the base weights alone when PEFT 0.21 loads an adapter. PiSSA, OLoRA, CorDA
and LoftQ do not: PEFT takes the start away from each base weight again. (Saved with
``path_initial_model_for_weight_conversion``, such an adapter is plain LoRA and says so.)"""


def _plain_start(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in _PLAIN_STARTS)


_RECORDS: dict[str, Allowed] = {
    "task_type": _causal,
    **dict.fromkeys(
        (
            "peft_type",
            "auto_mapping",
            "peft_version",
            "base_model_name_or_path",
            "revision",
            "inference_mode",
        ),
        _any,
    ),
}
_WHERE = dict.fromkeys(("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"), _any)

_LORA: dict[str, Allowed] = {
    **_RECORDS,
    **_WHERE,
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
        _any,
    ),
    "init_lora_weights": _plain_start,
    **dict.fromkeys(("modules_to_save", "layer_replication", "target_parameters"), _none_named),
}
_ADALORA = _LORA | dict.fromkeys(
    ("target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
    _any,
)
_OURS: dict[str, Allowed] = {
    **_RECORDS,
    **_WHERE,
    **dict.fromkeys(("r", "alpha", "dropout", "target_attention", "init"), _any),
    "modules_to_save": _none_named,
}
_ROUTED = _OURS | dict.fromkeys(("num_experts", "balance_coefficient"), _any)
_TEAM = _ROUTED | dict.fromkeys(
    (
        "scaling",
        "normalize_omega",
        "omega_times_k",
        "dropout_place",
        "interaction_init",
        "collaboration",
        "competition",
    ),
    _any,
)

EXACT: Mapping[str, Mapping[str, Allowed]] = {
    "LORA": _LORA,
    "ADALORA": _ADALORA,
    "TEAMLORA": _TEAM,
    "MOELORA": _ROUTED,
    "HYDRALORA": _ROUTED,
    "MOSLORA": _OURS | {"mixer_init": _any},
}
"""Method -> field -> whether the plugin computes the method with this value of the field. A field that is not
named must have its default, or be off: None or False."""


def refuse_inexact(folder: Path) -> None:
    """Raises AdapterError, in one sentence that names the field, unless every setting of the adapter in
    ``folder`` is one that the plugin computes exactly."""
    path = folder / CONFIG_FILE
    content = read_json(path)
    method = str(content.get("peft_type"))
    if method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        return  # no method at all, as reading the config says better
    if method not in EXACT:
        raise AdapterError(
            f"{path}: peft_type {method}: the vLLM plugin computes {', '.join(sorted(EXACT))} only; "
            "use --engine hf"
        )
    known = {field.name: field for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[method])}
    for name, value in content.items():
        if name in HARMLESS:
            continue
        allowed = EXACT[method].get(name)
        off = value is None or value is False or _is_default(value, known.get(name))
        ok = allowed(value) if allowed else off
        if not ok:
            raise AdapterError(
                f"{path}: {name} is {_short(value)}, which the vLLM plugin cannot compute; use --engine hf"
            )


def _is_default(value: Any, field: Field[Any] | None) -> bool:
    if field is None:
        return False
    made = field.default_factory() if field.default_factory is not MISSING else field.default
    return bool(value == made)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
