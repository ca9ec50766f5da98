"""Putting an adapter that is to be trained on its base."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.adalora import SVDLinear
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.shared.quantised import READS_8_BITS, restore_scales
from cme_bench.util.errors import CmeError, first_line


def leave_casts(layers: Iterable[Any], device: torch.device) -> None:
    """Let autocast cast what PEFT's low-rank layers multiply, which they would widen to float32 before.

    A product under autocast is of the same numbers; dropout and what is kept for its gradient are halved. On
    a CPU, whose dropout in bfloat16 would round its factor, all stays as it is. Without autocast, as where a
    model is tried before its first step, PEFT casts as ever.
    """
    if device.type != "cuda":
        return
    for layer in layers:
        if type(layer) in (LoraLinear, SVDLinear) and not getattr(layer, "lora_variant", None):
            layer._cast_input_dtype = functools.partial(_left, layer._cast_input_dtype)


def _left(cast: Callable[[Tensor, torch.dtype], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` as it is under autocast, else as PEFT casts it."""
    return x if torch.is_autocast_enabled(x.device.type) else cast(x, dtype)


def put_fresh(model: Any, config: PeftConfig) -> PeftModel:
    """Return the base ``model`` with a fresh adapter. AdapterError if PEFT cannot start it there."""
    try:
        adapted = get_peft_model(model, config)
    except CmeError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise AdapterError(f"PEFT cannot start this adapter on the base ({first_line(error)})") from error
    if restore_scales(model):
        raise AdapterError(READS_8_BITS)
    return adapted
