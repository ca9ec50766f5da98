"""A base whose weights are quantised: by which method, and whether what computes it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cme_bench.util.errors import UsageError, first_line
from cme_bench.vllm_plugin.spec import QUANT_METHOD

_PACKAGES: dict[str, tuple[str, ...]] = {
    "bitsandbytes": ("bitsandbytes",),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
    "aqlm": ("aqlm",),
    "quanto": ("optimum-quanto",),
    "quark": ("quark",),
    "hqq": ("hqq",),
    "compressed-tensors": ("compressed_tensors",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
    "spqr": ("spqr_quant",),
    "auto-round": ("auto_round",),
    "eetq": ("kernels",),
}
_VLLM_NEEDS = frozenset({"bitsandbytes"})
"""Methods for which vLLM too needs that package; it brings its own kernels for the others."""


def quantisation(config: Any) -> Mapping[str, Any] | None:
    """Return the block of a model's configuration that says how its weights are quantised; None if it has
    none."""
    for owner in (config, config.get_text_config(decoder=True)):
        for name in ("quantization_config", "compression_config"):
            if (block := getattr(owner, name, None)) is not None:
                return block if isinstance(block, Mapping) else _as_mapping(block)
    return None


def _as_mapping(block: Any) -> Mapping[str, Any]:
    return dict(block.to_dict()) if hasattr(block, "to_dict") else {"quant_method": block}


def method_of(block: Mapping[str, Any]) -> str:
    """Return the name of the method; older files of bitsandbytes say only how many bits."""
    if block.get("load_in_4bit") or block.get("load_in_8bit"):
        return "bitsandbytes"
    method = block.get("quant_method")
    return str(getattr(method, "value", method))


def check_quantisation(path: Path, config: Any, engine: str) -> None:
    """Raise UsageError if the base is quantised and ``engine`` ("hf" or "vllm") cannot load it here."""
    block = quantisation(config)
    if block is None:
        return
    method = method_of(block)
    if engine == "vllm":
        if method in _VLLM_NEEDS and (missing := _missing(method)):
            raise UsageError(_not_installed(path, method, missing))
        return
    if method == QUANT_METHOD:
        raise UsageError(
            f"{path}: exported for vLLM with an adapter, which only --engine vllm computes; elsewhere give "
            "the base model and --adapter"
        )
    _check_transformers(path, method, block)


def check_takes_adapter(path: Path, config: Any) -> None:
    """Raise UsageError if vLLM's plugin, to vLLM a method of quantisation, can put no adapter on the base."""
    block = quantisation(config)
    if block is None:
        return
    if (method := method_of(block)) == QUANT_METHOD:
        raise UsageError(f"{path}: the folder holds an adapter already; give the base model and --adapter")
    raise UsageError(
        f"{path}: the base is quantised with {method}, on which the vLLM plugin puts no adapter; use "
        "--engine hf"
    )


def _check_transformers(path: Path, method: str, block: Mapping[str, Any]) -> None:
    from transformers.quantizers.auto import AutoHfQuantizer

    what = f"{path}: the base is quantised with {method}"
    try:
        quantizer = AutoHfQuantizer.from_config(dict(block), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except ImportError as error:
        if missing := _missing(method):
            raise UsageError(_not_installed(path, method, missing)) from error
        raise UsageError(f"{what}, which cannot be used here ({first_line(error)})") from error
    except (ValueError, RuntimeError, NotImplementedError, TypeError, KeyError, AttributeError) as error:
        if first_line(error).startswith("Unknown quantization type"):
            raise UsageError(f"{what}, which transformers does not know") from error
        raise UsageError(f"{what}, which cannot be used here ({first_line(error)})") from error


def _missing(method: str) -> list[str]:
    return [name for name in _PACKAGES.get(method, ()) if not _installed(name)]


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package.replace("-", ".")) is not None
    except ModuleNotFoundError:  # the parent of a dotted name
        return False


def _not_installed(path: Path, method: str, missing: list[str]) -> str:
    names = " and ".join(missing)
    which = "which" if missing == [method] else f"for which {names}"
    verb, what = ("is", "it") if len(missing) == 1 else ("are", "them")
    return (
        f"{path}: the base is quantised with {method}, {which} {verb} not installed; install {what}, or use "
        "the full-precision model"
    )
