from __future__ import annotations

from dataclasses import dataclass

from cme_bench.adapters.registry import peft_type
from cme_bench.adapters.shared.config import RoutedConfig


@dataclass
class MoeLoraConfig(RoutedConfig):
    """MoELoRA: k independent low-rank pairs behind a dense softmax router, in the style of LoRAMoE.

    ``h = x W0 + (alpha / r) sum_i g_i drop(x) A_i B_i``, ``g = softmax(x R)`` per token (the reading of
    TeamLoRA's baseline, arXiv 2408.09856; LoRAMoE: arXiv 2312.09979).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("moelora")
