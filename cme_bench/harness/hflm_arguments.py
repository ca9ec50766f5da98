"""The model arguments of lm-eval's ``HFLM``: what ``cme-hf`` makes of each, and of names that it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cme_bench.util.errors import UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Fixed:
    """An argument that has the values ``allowed`` alone; ``why`` says what to do in place of others."""

    allowed: tuple[Any, ...]
    why: str


_STORED = "cme-hf reads a quantised checkpoint as its config.json says: leave it out"
_UNSET = (None, False)

FIXED: Mapping[str, Fixed] = {
    "backend": Fixed(("default", "causal"), "cme-hf evaluates decoder-only models: leave it out"),
    "softmax_dtype": Fixed((None, "float32"), "cme-hf computes every softmax in float32: leave it out"),
    "mixed_precision_dtype": Fixed((None,), "cme-hf computes in the type of the weights: give dtype=..."),
    "trust_remote_code": Fixed(_UNSET, "cme-hf never runs the code of a model: leave it out"),
    "tp_plan": Fixed((None,), "cme-hf splits no layer: leave it out, and give device_map=auto"),
    "autogptq": Fixed(_UNSET, _STORED),
    "gptqmodel": Fixed(_UNSET, _STORED),
    "quantization_config": Fixed(
        (None,), "cme-hf quantises by bitsandbytes alone: give load_in_4bit=True or load_in_8bit=True"
    ),
    "gguf_file": Fixed((None,), "cme-hf reads safetensors alone: give the checkpoint in that form"),
    "low_cpu_mem_usage": Fixed((None, True), "transformers loads no other way: leave it out"),
    "use_safetensors": Fixed((None, True), "cme-hf reads safetensors alone: leave it out"),
}
"""Arguments of ``HFLM``, and of those that it hands on to transformers, that must keep their default."""

ATTENTIONS = ("eager", "sdpa")
"""Implementations of attention that take the masks with which the engine shares prefixes."""


def check_fixed(given: Mapping[str, Any], taken: Iterable[str]) -> None:
    """Check arguments that stand in ``FIXED``. UsageError for another value, and for a name that is unknown.

    ``taken``: names of the arguments that have any value, of which the nearest is proposed.
    """
    for name, value in given.items():
        plain = str(value).removeprefix("torch.") if name.endswith("_dtype") and value is not None else value
        if name not in FIXED:
            known = [*taken, *FIXED]
            raise UsageError(f"cme-hf has no argument {name!r}{did_you_mean(name, known)}")
        if not any(type(plain) is type(one) and plain == one for one in FIXED[name].allowed):
            raise UsageError(f"{name}={value}: {FIXED[name].why}")


def check_flag(name: str, value: object) -> bool:
    """Return a value that must be True or False; None is False. UsageError for another."""
    if value is None or isinstance(value, bool):
        return bool(value)
    raise UsageError(f"{name}={value}: it must be True or False")


def check_count(name: str, value: object, least: int) -> None:
    """Check a whole number of at least ``least``, or None. UsageError for another value."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise UsageError(f"{name}={value}: it must be a whole number of at least {least}")


def check_token(tokenizer: Any, name: str, value: int | None) -> None:
    """Check a token id, or None. UsageError if the tokenizer has no such token."""
    if value is not None and value >= len(tokenizer):
        raise UsageError(f"{name}={value}: the tokenizer has {len(tokenizer)} tokens")


def attention(value: object) -> dict[str, Any]:
    """Return what ``attn_implementation`` hands to transformers. UsageError if the engine cannot use it."""
    if value is None:
        return {}
    if value not in ATTENTIONS:
        shown = " or ".join(ATTENTIONS)
        raise UsageError(f"attn_implementation={value}: cme-hf computes with {shown}")
    return {"attn_implementation": value}


def dtype_name(value: object) -> str:
    """Return the name of a dtype: "auto", a torch.dtype, or the name of one. UsageError if it is no float."""
    import torch

    if value is None or value == "auto":
        return "auto"
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UsageError(f"dtype={value}: it must be auto, float32, bfloat16 or float16")
    return str(dtype).removeprefix("torch.")


def device_of(value: object) -> Any:
    """Return the device of this name, or the one of a run. UsageError if there is no such
    device."""
    import torch

    from cme_bench.models.load import evaluation_device

    if value is None:
        return evaluation_device()
    if str(value) == "meta":
        raise UsageError("device=meta: nothing is computed there")
    try:
        torch.empty(0, device=value)  # type: ignore[call-overload]  # whatever was given
    except (RuntimeError, TypeError, ValueError, AssertionError) as err:
        raise UsageError(f"device={value}: there is no such device here") from err
    return torch.device(value)  # type: ignore[call-overload]


def end_of_thought(tokenizer: Any, token: object) -> str | None:
    """Return the text of ``think_end_token``, a text or a token id, after which the answer stands.

    UsageError for a special token, which the texts of an engine leave out, and for an id that does not exist.
    """
    if token is None:
        return None
    if isinstance(token, str) and token.isdigit():
        token = int(token)
    if isinstance(token, int) and not isinstance(token, bool):
        text = tokenizer.decode(token) if 0 <= token < len(tokenizer) else ""
        text = "" if "\ufffd" in text else text  # part of a character
    else:
        text = token if isinstance(token, str) else ""
    if not text:
        raise UsageError(f"think_end_token={token}: it must be a text, or the id of a token that has one")
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) == 1 and ids[0] in tokenizer.all_special_ids:
        raise UsageError(f"think_end_token={token}: it is a special token, which texts leave out")
    return text
