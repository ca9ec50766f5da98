"""Quantising a base while its weights are loaded, by bitsandbytes: ``--quantize``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cme_bench.models.quantisation import check_installed, method_of, quantisation
from cme_bench.util.errors import UsageError
from cme_bench.util.options import Quantize

if TYPE_CHECKING:
    import torch
    from torch import nn

LABELS: dict[Quantize, str] = {"4bit": "bitsandbytes nf4", "8bit": "bitsandbytes int8"}
"""By the value of ``--quantize``, what records and tables call it."""


def check_quantize(quantize: Quantize | None, path: Path, config: Any, engine: str) -> None:
    """Raise UsageError if ``engine`` ("hf" or "vllm") cannot quantise this base while it loads it."""
    if quantize is None:
        return
    if (block := quantisation(config)) is not None:
        raise UsageError(
            f"--quantize {quantize}: {path} is quantised already, with {method_of(block)}; leave the option "
            "out, or give the full-precision model"
        )
    if engine == "vllm":
        raise UsageError(
            f"--quantize {quantize} is for --engine hf: vLLM's own 4 and 8 bit differ from it in their "
            "products; give vLLM a checkpoint that is quantised already (AWQ, GPTQ, FP8)"
        )
    check_installed(f"--quantize {quantize}", "bitsandbytes")


def loading_config(quantize: Quantize, dtype: torch.dtype) -> Any:
    """Return what transformers is told: NF4 with doubly quantised scales (QLoRA, arXiv 2305.14314) whose
    products are in ``dtype``, or LLM.int8() (arXiv 2208.07339)."""
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def quiet() -> None:
    """Keep bitsandbytes from a line of warning for every product of a model that is not float16."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def settle(model: nn.Module, dtype: torch.dtype) -> None:
    """Make 4-bit layers of bitsandbytes multiply in ``dtype`` and leave their weights as they are.

    On a CPU with AVX512-BF16 such a layer else repacks its weights at its first forward, rounds their scales
    to bfloat16, and multiplies in bfloat16 whatever the model's type is.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            layer.compute_dtype, layer.compute_type_is_set = dtype, True  # type: ignore[assignment]
