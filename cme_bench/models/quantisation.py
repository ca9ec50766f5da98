"""A base whose weights are quantised: by which method, and whether what computes it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cme_bench.models.silence import transformers_silent
from cme_bench.util.errors import UsageError, first_line
from cme_bench.vllm_plugin.spec import BASES, QUANT_METHOD, SLOTS

if TYPE_CHECKING:
    import torch

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
    "mxfp4": ("kernels",),
    "fp_quant": ("fp_quant",),
    "higgs": ("flute",),
    "sinq": ("sinq",),
    "fouroversix": ("fouroversix",),
}
_FALLS_BACK = frozenset({"mxfp4"})
"""Methods that transformers computes without their package too, from full-size weights."""
_VLLM_NEEDS = frozenset({"bitsandbytes"})
"""Methods for which vLLM too needs that package; it brings its own kernels for the others."""
DEQUANTISED = "dequantised"
DEQUANTISED_NOTE = (
    "is computed with full-size weights here, and activations that are not rounded: the scores of a GPU that "
    "multiplies it as it is may differ"
)
_REFUSALS = (
    ImportError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    TypeError,
    KeyError,
    AttributeError,
)
"""Errors by which transformers refuses a quantised model."""
_BITS = ("bits", "w_bit", "nbits", "weight_bits")


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


def label_of(config: Any) -> str | None:
    """Return how records and tables call the quantisation of a checkpoint, as ``gptq 4 bit``; None if it has
    none."""
    block = quantisation(config)
    if block is None or (method := method_of(block)) == QUANT_METHOD:
        return None
    if method == "bitsandbytes":
        kind = str(block.get("bnb_4bit_quant_type", "fp4")) if block.get("load_in_4bit") else "int8"
        return f"{method} {kind}"
    if method == "compressed-tensors":
        return f"{method} {block.get('format', '')}".strip()
    bits = next((block[name] for name in _BITS if isinstance(block.get(name), int)), None)
    if bits is None and isinstance(block.get("weights"), str):  # of quanto: int4, float8
        return f"{method} {block['weights']}"
    return method if bits is None else f"{method} {bits} bit"


def stated_dtype(config: Any) -> torch.dtype | None:
    """Return the type in which a checkpoint of bitsandbytes says that its 4-bit weights are multiplied."""
    import torch

    block = quantisation(config)
    if block is None or method_of(block) != "bitsandbytes" or not block.get("load_in_4bit"):
        return None
    named = block.get("bnb_4bit_compute_dtype")
    found = named if isinstance(named, torch.dtype) else getattr(torch, str(named).split(".")[-1], None)
    return found if isinstance(found, torch.dtype) else None


def is_dequantised(config: Any) -> bool:
    """Return whether transformers makes full-size weights of a quantised checkpoint while it loads them, as
    it does on machines without kernels for FP8 and MXFP4."""
    from transformers.quantizers.auto import AutoHfQuantizer

    block = quantisation(config)
    if block is None or method_of(block) == QUANT_METHOD:
        return False
    with transformers_silent():
        quantizer = AutoHfQuantizer.from_config(dict(block), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    return bool(getattr(quantizer.quantization_config, "dequantize", False))


def check_quantisation(path: Path, config: Any, engine: str) -> None:
    """Raise UsageError if the base is quantised and ``engine`` ("hf" or "vllm") cannot load it here."""
    block = quantisation(config)
    if block is None:
        return
    method = method_of(block)
    if method in ("None", ""):
        raise UsageError(f"{path / 'config.json'}: quantization_config names no method (quant_method)")
    if method == QUANT_METHOD and block.get(SLOTS):
        raise UsageError(
            f"{path}: exported for vLLM's server with several adapters; to evaluate them give the base model "
            "and --adapter, or ask the server by --engine server"
        )
    if engine == "vllm":
        if method != QUANT_METHOD and not _known_to_vllm(method):
            raise UsageError(
                f"{path}: the base is quantised with {method}, which the installed vLLM does not know; use "
                "--engine hf"
            )
        if method in _VLLM_NEEDS and (missing := _missing(method)):
            raise UsageError(_not_installed(path, method, missing))
        return
    if method == QUANT_METHOD:
        raise UsageError(
            f"{path}: exported for vLLM with an adapter, which only --engine vllm computes; elsewhere give "
            "the base model and --adapter"
        )
    _check_transformers(path, method, block)


def _known_to_vllm(method: str) -> bool:
    """Return whether vLLM has a method of that name; where it is not installed, nobody knows."""
    if not _installed("vllm"):
        return True
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    return method in QUANTIZATION_METHODS


def check_takes_adapter(path: Path, config: Any) -> None:
    """Raise UsageError if vLLM's plugin can put no adapter on the base."""
    block = quantisation(config)
    if block is None:
        return
    if (method := method_of(block)) == QUANT_METHOD:
        raise UsageError(f"{path}: the folder holds an adapter already; give the base model and --adapter")
    if method not in BASES:
        raise UsageError(
            f"{path}: the base is quantised with {method}, on which the vLLM plugin puts no adapter (it does "
            f"on {', '.join(BASES)}); use --engine hf"
        )


def check_installed(what: str, package: str) -> None:
    """Raise UsageError if ``package``, which ``what`` needs, is not installed."""
    if not _installed(package):
        raise UsageError(f"{what}: {package} is not installed; install the extra 'quantize' (README)")


def _check_transformers(path: Path, method: str, block: Mapping[str, Any]) -> None:
    from transformers.quantizers.auto import AutoHfQuantizer

    what = f"{path}: the base is quantised with {method}"
    if method not in _FALLS_BACK and (missing := _missing(method)):
        raise UsageError(_not_installed(path, method, missing))
    try:
        with transformers_silent():
            quantizer = AutoHfQuantizer.from_config(dict(block), pre_quantized=True)
            quantizer.validate_environment(device_map=None, weights_only=True)
    except _REFUSALS as error:
        if missing := _missing(method):
            raise UsageError(_not_installed(path, method, missing)) from error
        if first_line(error).startswith("Unknown quantization type"):
            raise UsageError(f"{what}, which transformers does not know") from error
        raise UsageError(f"{what}, which cannot be used here ({first_line(error)})") from error


_COMMON = ("bitsandbytes", "gptq", "awq", "compressed-tensors")


def installed_methods() -> tuple[list[str], dict[str, str]]:
    """Return the usual methods whose packages are installed, and of the others what each needs.

    FP8 needs no package.
    """
    missing = {method: " and ".join(_missing(method)) for method in _COMMON if _missing(method)}
    return [*(method for method in _COMMON if method not in missing), "fp8"], missing


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
