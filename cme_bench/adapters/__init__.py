"""Adapter methods for PEFT: TeamLoRA, its baselines, and those that you register.

Importing this package registers its methods with PEFT; LoRA and AdaLoRA are PEFT's own. ``get_peft_model``,
``save_pretrained``, ``PeftModel.from_pretrained`` and ``AutoPeftModelForCausalLM`` then work as for any other
method; a process that has not imported this package fails on such an adapter with ``KeyError: 'TEAMLORA'``.
:func:`register` adds a method of yours.
"""

from cme_bench.adapters import methods as _methods  # importing them registers them
from cme_bench.adapters.decay import no_decay_names
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.gated import Gate, GatedForm
from cme_bench.adapters.methods.hydralora import HydraLoraConfig
from cme_bench.adapters.methods.mixlora import MixLoraConfig
from cme_bench.adapters.methods.moelora import MoeLoraConfig
from cme_bench.adapters.methods.moslora import MosLoraConfig
from cme_bench.adapters.methods.teamlora import TeamLoraConfig
from cme_bench.adapters.peft_types import peft_type
from cme_bench.adapters.registry import Measured, Method, TrainingSettings, names, register
from cme_bench.adapters.routing.balance import balance_tape
from cme_bench.adapters.routing.record import RouterStats, record_router
from cme_bench.adapters.shared.config import AdapterConfig
from cme_bench.adapters.shared.layer import AdapterLinear
from cme_bench.adapters.shared.model import AdapterModel

METHODS = names()
"""Names of the methods of this package."""
del _methods

__all__ = [
    "METHODS",
    "AdapterConfig",
    "AdapterError",
    "AdapterLinear",
    "AdapterModel",
    "Gate",
    "GatedForm",
    "HydraLoraConfig",
    "Measured",
    "Method",
    "MixLoraConfig",
    "MoeLoraConfig",
    "MosLoraConfig",
    "RouterStats",
    "TeamLoraConfig",
    "TrainingSettings",
    "balance_tape",
    "no_decay_names",
    "peft_type",
    "record_router",
    "register",
]
