from cme_bench.adapters.hydralora.config import HydraLoraConfig
from cme_bench.adapters.hydralora.layer import HydraLoraLinear
from cme_bench.adapters.hydralora.model import HydraLoraModel

__all__ = ["HydraLoraConfig", "HydraLoraLinear", "HydraLoraModel"]
