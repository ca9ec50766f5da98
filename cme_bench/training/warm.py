"""A first use of what every training step uses on a GPU, while rows are still being read.

Kernels of Triton are built when they are first called with numbers of a kind, seconds each time on a new
machine, and CUDA's libraries start then too.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from peft import PeftConfig
from transformers import PreTrainedModel

from cme_bench.training.fresh import leave_casts
from cme_bench.training.sweep.slots import Slot
from cme_bench.training.varlen import VARLEN, available

_TOKENS = 128
"""A multiple of 16, as those of a pack are, for which Triton builds kernels of their own."""


def warm_up(model: PreTrainedModel, config: PeftConfig, dtype: torch.dtype) -> None:
    """Make a step of a few tokens with an adapter that is thrown away, and wait until a GPU has done all.

    The frozen ``model`` is as before. On a CPU nothing is done. A failure is left to the training itself,
    which can tell of it.
    """
    if model.device.type != "cuda":
        return
    before = model.config._attn_implementation
    with suppress(Exception):
        if available(model.device, dtype):
            model.set_attn_implementation(VARLEN)
        use_once(model, config, bf16=dtype == torch.bfloat16)
    model.set_attn_implementation(before)
    torch.cuda.synchronize(model.device)


def use_once(model: PreTrainedModel, config: PeftConfig, *, bf16: bool) -> None:
    """Compute a few tokens with a fresh adapter, and the gradients of its numbers; then take it off."""
    slot = Slot(model, config, seed=0)
    if bf16:
        leave_casts(slot.layers.values(), model.device)
    ids = torch.arange(_TOKENS, device=model.device)[None]
    with slot.mounted() as adapted:
        adapted.train()
        with torch.enable_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        states.float().sum().backward()
