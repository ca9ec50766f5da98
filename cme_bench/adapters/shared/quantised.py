"""Linear layers whose weight is not a matrix of ordinary numbers: packed, rounded, or on disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cme_bench.util.devices import computing_device

_PACKED = ("qweight", "W_q", "weight_packed", "codes", "quant_state", "weight_scale", "weight_scale_inv")
"""Tensors and states of quantised layers."""


def is_quantised_linear(module: nn.Module) -> bool:
    """Return whether a module is a quantised linear layer; GPTQ's, AWQ's and HQQ's are no subclass of
    torch's."""
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in sizes) and is_quantised(module)


def is_quantised(layer: nn.Module) -> bool:
    """Return whether the weight of a linear layer is no plain matrix of numbers of at least 16 bits."""
    weight: Any = getattr(layer, "weight", None)
    plain = (
        type(weight) in (Tensor, nn.Parameter)
        and weight.is_floating_point()
        and weight.dtype.itemsize > 1
        and not hasattr(layer, "quantization_scheme")  # of compressed-tensors: rounds what it is given
    )
    return not plain or any(hasattr(layer, name) for name in _PACKED)


def why_no_quantised_merge(method: str) -> str:
    """Return the sentence for whoever asks to merge an adapter into a quantised weight."""
    return (
        f"{method} cannot be merged into a quantised weight, which would be rounded anew; keep the adapter, "
        "or load the base model unquantised"
    )


READS_8_BITS = (
    "PEFT reads the base's weights for it, and cannot read 8-bit ones on a CPU: take 4-bit ones or the "
    "full-precision base, or a GPU"
)


def restore_scales(model: nn.Module) -> bool:
    """Give the scales back to 8-bit layers of bitsandbytes that lost them; return whether any had.

    PEFT moves such a weight to the CPU it lies on whenever it reads its numbers, as for DoRA, and the copy
    has no scales (0.21.2 with bitsandbytes 0.50).
    """
    lost = False
    for layer in model.modules():
        weight: Any = getattr(layer, "weight", None)
        if type(weight).__name__ != "Int8Params" or weight.CB is None or weight.SCB is not None:
            continue
        lost = True
        weight.CB = None  # the layer's state has both, and is read where the weight has none
    return lost


def parameter_place(base: nn.Module) -> tuple[torch.device | None, torch.dtype]:
    """Return the device and type of an adapter's parameters on a linear layer: where it computes, in float32,
    or the layer's own type if that is wider."""
    weight = getattr(base, "weight", None)
    wide = isinstance(weight, Tensor) and weight.dtype == torch.float64
    try:
        device: torch.device | None = computing_device(base)
    except StopIteration:
        device = None
    return device, torch.float64 if wide else torch.float32
