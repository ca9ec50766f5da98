from __future__ import annotations

from dataclasses import dataclass

from cme_bench.adapters.registry import peft_type
from cme_bench.adapters.shared.config import RoutedConfig


@dataclass
class HydraLoraConfig(RoutedConfig):
    """HydraLoRA: one down-projection, k up-projections behind a dense softmax router (arXiv 2404.19245).

    ``h = x W0 + (alpha / r) sum_i g_i (drop(x) A) B_i``, ``g = softmax(x R)`` per token.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("hydralora")
