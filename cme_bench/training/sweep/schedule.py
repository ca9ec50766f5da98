"""The learning rate of every adapter at every step."""

from __future__ import annotations

import math


def cosine_share(step: int, *, warmup: int, steps: int) -> float:
    """Return the share of the peak rate that step ``step`` (from 0) uses: transformers' cosine schedule."""
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
