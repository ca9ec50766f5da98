"""About how long a model takes on this device, from matrix products that are timed for half a second.

The rule: a token costs 2 operations a parameter. How many operations the device does a second is measured
with products as large as the model's own, in its type: with many rows for prompts, and with few for the steps
of a generation, which read every weight for a few tokens. Engines reach about half of that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from cme_bench.models.loaded import LoadedModel

REACHED = 0.5
"""The share of a bare product's speed that engines reach: attention, norms and Python take the rest."""
PROMPT_ROWS, STEP_ROWS = 512, 16
MEASURE_SECONDS = 0.25
_LARGEST = 8192
"""Most columns and rows of the weights that are multiplied."""


@dataclass(frozen=True, slots=True)
class Work:
    """The amount to compute: ``prompt_tokens`` are fed, of ``scored_tokens`` the logits are needed, and
    ``new_tokens`` at most are generated one after the other."""

    prompt_tokens: int
    scored_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Seconds:
    """An estimate: of the prompts, and of the generated answers if each takes all tokens that it may."""

    prompts: float
    answers_at_most: float


def estimated(model: LoadedModel, work: Work) -> Seconds:
    """Return about how many seconds ``work`` takes on the model's device, loading left out.

    Adapters are left out too; they cost up to half as much again. Of a model with experts that take turns all
    parameters are counted, though a token passes few of them.
    """
    config = getattr(model.config, "text_config", None) or model.config
    head = int(getattr(config, "vocab_size", 0)) * int(getattr(config, "hidden_size", 0))
    tables = head if getattr(config, "tie_word_embeddings", False) else 2 * head
    body = max(model.parameters - tables, 0)
    prompt = 2.0 * (body * work.prompt_tokens + head * work.scored_tokens)
    answers = 2.0 * (body + head) * work.new_tokens
    speeds = [operations_per_second(model.device, model.dtype, config, n) for n in (PROMPT_ROWS, STEP_ROWS)]
    fast, slow = (REACHED * speed for speed in speeds)
    return Seconds(prompt / fast, answers / slow)


def operations_per_second(device: torch.device, dtype: torch.dtype, config: Any, rows: int) -> float:
    """Return the speed of products of ``rows`` rows with a weight of the model's shape, measured for a
    quarter of a second."""
    import torch

    wide = min(int(getattr(config, "hidden_size", 0) or 1024), _LARGEST)
    high = min(int(getattr(config, "intermediate_size", 0) or 4 * wide), _LARGEST)
    # several weights in turn, so that small ones do not stay in a cache that the whole model does not fit in
    weights = [torch.randn(high, wide, device=device).to(dtype) for _ in range(8)]
    x = torch.randn(rows, wide, device=device).to(dtype)
    _products(x, weights, device)
    began, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < MEASURE_SECONDS or not done:
        _products(x, weights, device)
        done += len(weights)
    return 2.0 * rows * wide * high * done / passed


def _products(x: torch.Tensor, weights: list[torch.Tensor], device: torch.device) -> None:
    import torch

    for weight in weights:
        torch.nn.functional.linear(x, weight)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
