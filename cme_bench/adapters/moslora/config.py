from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.registry import peft_type
from cme_bench.adapters.shared.config import AdapterConfig

MIXER_INITS = ("kaiming", "orthogonal")


@dataclass
class MosLoraConfig(AdapterConfig):
    """MoSLoRA: a LoRA with a learnable mixer between its two factors (arXiv 2406.11909).

    ``h = x W0 + (alpha / r) drop(x) A W B``, W of r x r.

    Args:
        mixer_init: Start of W: "kaiming" (uniform, a = sqrt 5) or "orthogonal".
    """

    mixer_init: Literal["kaiming", "orthogonal"] = field(
        default="kaiming", metadata={"help": "Start of the mixer: kaiming or orthogonal."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("moslora")
        if self.mixer_init not in MIXER_INITS:
            raise AdapterError(f"mixer_init must be one of {', '.join(MIXER_INITS)}, got {self.mixer_init!r}")
