from __future__ import annotations

from cme_bench.adapters.shared.model import AdapterModel
from cme_bench.adapters.teamlora.layer import TeamLoraLinear


class TeamLoraModel(AdapterModel):
    """PEFT tuner that puts ``TeamLoraLinear`` on the targeted linear layers."""

    prefix: str = "teamlora_"
    tuner_layer_cls = TeamLoraLinear
