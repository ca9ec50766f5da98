"""A first use of what every training step uses on a GPU, while rows are still being read.

Kernels of Triton are built when they are first called, seconds each time in a new place, and CUDA's libraries
start then too.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from transformers import PreTrainedModel

from cme_bench.adapters.routing import gate_kernels
from cme_bench.training.varlen import VARLEN, available

_TOKENS = 16


def warm_up(model: PreTrainedModel, dtype: torch.dtype, *, routed: bool) -> None:
    """Compute a few tokens and their gradients with a frozen model, and wait until its GPU has done all.

    ``routed``: the adapter will have gates. Nothing is changed, no random number is drawn, and on a CPU
    nothing is done. A failure is left to where the same is wanted and can be told.
    """
    if model.device.type != "cuda":
        return
    before = model.config._attn_implementation
    with suppress(Exception):
        if routed:
            gate_kernels.work(model.device)
        if available(model.device, dtype):
            model.set_attn_implementation(VARLEN)
        _compute(model, dtype)
    model.set_attn_implementation(before)
    torch.cuda.synchronize(model.device)


def _compute(model: PreTrainedModel, dtype: torch.dtype) -> None:
    ids = torch.arange(_TOKENS, device=model.device)[None]
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    with torch.enable_grad(), torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        decoder = model.base_model
        states = decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
    torch.autograd.grad(states.float().sum(), embedded)
