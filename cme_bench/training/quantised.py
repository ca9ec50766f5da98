"""Training an adapter on a base that is quantised, as QLoRA does (arXiv 2305.14314): what the base needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cme_bench.models.quantisation import method_of, quantisation
from cme_bench.util.errors import UsageError


def check_trainable(path: Any, config: Any) -> None:
    """Raise UsageError if gradients cannot go through the layers of a quantised checkpoint."""
    from transformers.quantizers.auto import AutoHfQuantizer

    block = quantisation(config)
    if block is None:
        return
    quantizer = AutoHfQuantizer.from_config(dict(block), pre_quantized=True)
    try:
        trainable = quantizer.is_trainable
    except AttributeError:  # of settings with which nothing loads, as loading says
        return
    if not trainable:
        raise UsageError(
            f"{path}: the base is quantised with {method_of(block)}, through which transformers computes no "
            "gradients; train on the full-precision model, perhaps with --quantize 4bit"
        )


def prepare_quantised(model: nn.Module) -> None:
    """Freeze a quantised base, and keep its norms and biases in float32.

    PEFT's ``prepare_model_for_kbit_training`` makes embeddings and output layer float32 too, which nothing
    here gains by: logits are float32 anyway.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1 and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def check_on_devices(model: nn.Module) -> None:
    """Raise UsageError if parts of a model wait in memory or on disk for their turn: they have no
    gradients."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UsageError(
                f"--device-map: {name} does not fit on the GPUs; a training needs all of the base there: "
                "take more GPUs, a smaller base, or --quantize 4bit"
            )
