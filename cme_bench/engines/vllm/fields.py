"""Which settings of which adapter methods the vLLM plugin computes exactly; all others are refused by name.

An allow-list: a field that a later PEFT adds, or a value that nobody has compared with PEFT's own logits, is
refused until its method's registration names it. ``tests/engines/test_vllm_fields.py`` walks every field and
every method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import CONFIG_FILE, read_json
from cme_bench.adapters.gated import Allowed, GatedForm, any_value, none_named
from cme_bench.adapters.registry import Method, find, methods
from cme_bench.adapters.support import HARMLESS


def _causal(value: Any) -> bool:
    return value is None or value == "CAUSAL_LM"


_ALWAYS: dict[str, Allowed] = {
    "task_type": _causal,
    "modules_to_save": none_named,
    **dict.fromkeys(
        (
            # what PEFT records
            "peft_type",
            "auto_mapping",
            "peft_version",
            "base_model_name_or_path",
            "revision",
            "inference_mode",
            # where the adapter lies
            "target_modules",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
        ),
        any_value,
    ),
}
"""Field -> whether the plugin computes an adapter of any method with this value of the field."""


_MERGED = ("use_dora",)
"""Fields that merging computes, and the plugin does not."""


def exact_fields(method: Method) -> Mapping[str, Allowed]:
    """Return field -> whether the plugin computes a method with this value of the field.

    A field that is not named must have its default, or be off: None or False. Empty where the plugin does not
    compute the method at all.
    """
    if not isinstance(method.vllm, GatedForm):
        return {}
    own = method.vllm.fields
    if own is None:
        inherited = {field.name for field in fields(PeftConfig)}
        own = dict.fromkeys(method.fields - inherited, any_value)
    return {**own, **_ALWAYS}


def needs_merging(folder: Path) -> bool:
    """Return whether the adapter in ``folder`` is a LoRA with DoRA, which scales the base's own output.

    No low-rank update equals it; merged into the base weights it is one linear layer.
    """
    content = read_json(folder / CONFIG_FILE)
    return content.get("peft_type") == "LORA" and bool(content.get("use_dora"))


def refuse_rounded(folder: Path, dtype: str, *, quantised: bool = False) -> None:
    """Raise AdapterError for an adapter that needs merging where that would round the merged weights."""
    if needs_merging(folder) and quantised:
        raise AdapterError(
            f"{folder / CONFIG_FILE}: use_dora is True, which vLLM computes merged into the base weights; "
            "these are quantised: use --engine hf"
        )
    if needs_merging(folder) and dtype != "float32":
        raise AdapterError(
            f"{folder / CONFIG_FILE}: use_dora is True, which vLLM computes merged into the base weights; "
            f"{dtype} would round these: use --dtype float32, or --engine hf"
        )


def refuse_inexact(folder: Path) -> None:
    """Raise AdapterError, in one sentence that names the field, unless every setting of the adapter in
    ``folder`` is one that the plugin computes exactly, or that merging does."""
    path = folder / CONFIG_FILE
    content = read_json(path)
    method = str(content.get("peft_type"))
    if method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        return  # no method at all, as reading the config says better
    entry = find(method)
    if entry is None or not isinstance(entry.vllm, GatedForm):
        why = "" if entry is None else f" ({entry.vllm})"
        able = ", ".join(sorted(m.name.upper() for m in methods() if isinstance(m.vllm, GatedForm)))
        raise AdapterError(
            f"{path}: peft_type {method}: the vLLM plugin computes {able} only{why}; use --engine hf"
        )
    exact = exact_fields(entry)
    merged = _MERGED if needs_merging(folder) else ()
    known = {field.name: field for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[method])}
    for name, value in content.items():
        if name in HARMLESS:
            continue
        allowed = exact.get(name)
        off = value is None or value is False or _is_default(value, known.get(name))
        ok = allowed(value) if allowed else off or name in merged
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
