from __future__ import annotations

from cme_bench.adapters.moelora.layer import MoeLoraLinear
from cme_bench.adapters.shared.model import AdapterModel


class MoeLoraModel(AdapterModel):
    """PEFT tuner that puts ``MoeLoraLinear`` on the targeted linear layers."""

    prefix: str = "moelora_"
    tuner_layer_cls = MoeLoraLinear
