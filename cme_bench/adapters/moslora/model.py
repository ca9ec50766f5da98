from __future__ import annotations

from cme_bench.adapters.moslora.layer import MosLoraLinear
from cme_bench.adapters.shared.model import AdapterModel


class MosLoraModel(AdapterModel):
    """PEFT tuner that puts ``MosLoraLinear`` on the targeted linear layers."""

    prefix: str = "moslora_"
    tuner_layer_cls = MosLoraLinear
    mergeable = True
