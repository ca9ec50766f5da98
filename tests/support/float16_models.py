"""Tiny bfloat16 models that float16 holds, and some that it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_llama import random_llama, save_checkpoint


def overflowing(model: Any) -> None:
    """Make hidden states some 100,000 large, by weights that float16 holds."""
    model.model.layers[0].mlp.down_proj.weight *= 3e4
    model.model.layers[0].mlp.up_proj.weight *= 1e2


def overflowing_at_the_end(model: Any) -> None:
    """Make one number of the last hidden state too large: one logit would be infinite and the others minus
    infinity, and none of them NaN."""
    model.model.norm.weight[5] = 6e4
    model.model.embed_tokens.weight[:, 5] += 1.0
    model.lm_head.weight[:, 5] = -1e-4 * model.lm_head.weight[:, 5].abs() - 1e-6  # infinity times 0 is NaN
    model.lm_head.weight[300, 5] *= -1


def save_bfloat16(
    folder: Path, tokenizer: PreTrainedTokenizerFast, change: Callable[[Any], None] = lambda model: None
) -> Path:
    """Return ``folder``, a model folder in bfloat16, after ``change`` of the weights."""
    model = random_llama(0, hidden=128, positions=1024, vocab=384, spread=0.1, tokenizer=tokenizer)
    with torch.no_grad():
        change(model)
    return save_checkpoint(folder, model.bfloat16(), tokenizer)
