"""TeamLoRA and its baselines as PEFT methods. Importing this package registers them with PEFT.

LoRA and AdaLoRA are PEFT's own. ``get_peft_model``, ``save_pretrained``, ``PeftModel.from_pretrained`` and
``AutoPeftModelForCausalLM`` then work as for any other method; a process that has not imported this package
fails on such an adapter with ``KeyError: 'TEAMLORA'``.
"""

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.hydralora import HydraLoraConfig
from cme_bench.adapters.moelora import MoeLoraConfig
from cme_bench.adapters.moslora import MosLoraConfig
from cme_bench.adapters.registry import METHODS, register
from cme_bench.adapters.routing.balance import balance_tape
from cme_bench.adapters.routing.record import RouterStats, record_router
from cme_bench.adapters.shared.decay import no_decay_names
from cme_bench.adapters.teamlora import TeamLoraConfig

register()

__all__ = [
    "METHODS",
    "AdapterError",
    "HydraLoraConfig",
    "MoeLoraConfig",
    "MosLoraConfig",
    "RouterStats",
    "TeamLoraConfig",
    "balance_tape",
    "no_decay_names",
    "record_router",
    "register",
]
