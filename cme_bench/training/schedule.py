"""The learning rate of every step, a linear warm-up, then half a cosine down to 0; and AdamW's constants."""

from __future__ import annotations

import math

from cme_bench.training.options import TrainOptions

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""transformers' defaults of AdamW."""


def rate(options: TrainOptions, steps: int, step: int) -> float:
    """Return the learning rate of a step, from 0, of a training of so many steps."""
    warmup = warmup_steps(options.warmup, steps)
    return options.learning_rate * cosine_share(step, warmup=warmup, steps=steps)


def warmup_steps(share: float, steps: int) -> int:
    """Return the steps of the warm-up: its share, rounded up, but never all of them.

    The first step of a warm-up has a learning rate of zero, so a training of one step would change nothing.
    """
    return min(math.ceil(share * steps), steps - 1)


def cosine_share(step: int, *, warmup: int, steps: int) -> float:
    """Return the share of the peak rate that step ``step`` (from 0) uses: transformers' cosine schedule."""
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
