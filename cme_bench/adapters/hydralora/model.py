from __future__ import annotations

from cme_bench.adapters.hydralora.layer import HydraLoraLinear
from cme_bench.adapters.shared.model import AdapterModel


class HydraLoraModel(AdapterModel):
    """PEFT tuner that puts ``HydraLoraLinear`` on the targeted linear layers."""

    prefix: str = "hydralora_"
    tuner_layer_cls = HydraLoraLinear
